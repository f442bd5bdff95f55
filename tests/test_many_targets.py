"""More latents than graphs can be summed over, in a `LatentSEM`: sampled orders against exact sums, search, limits."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch

import pyrocrl
from pyrocrl import Data, InputError, simulate
from pyrocrl.claims.indeterminacy import is_acyclic
from pyrocrl.constructions import many_orders
from pyrocrl.exact import capped_parents, linear_sem, order_sampling, orders
from pyrocrl.exact.orders import is_order_of
from pyrocrl.parts.latent_sem import LatentSEM
from pyrocrl.parts.sampled_graphs import SampledGraphs

D = 5


pytestmark = pytest.mark.usefixtures("double")


def chain(latents: int, kind: str, rows: int = 400, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(z, env) of a chain with relu links, under an intervention on each latent."""
    data = simulate.draw("zhang2023", seed, latents=latents, samples=rows, intervention=kind, features=latents + 1)
    return torch.as_tensor(data.truth["z"]), torch.as_tensor(data.env)


def sampled(model: LatentSEM) -> LatentSEM:
    """The same model, as if it had too many latents."""
    model.many = True
    model.graphs = SampledGraphs(model.latents, model.edge_probability)
    model.register_buffer("ordered", torch.tensor(False))
    return model


def test_table_is_that_of_all_sets() -> None:
    a = torch.randn(D, 9, D)
    cov, count, own = a.mT @ a / 9, torch.full((D,), 50.0), torch.arange(D)
    wide = capped_parents.at(cov, torch.cat([own[:, None], own.expand(D, -1)], 1))
    likely = capped_parents.likely(wide)
    table = order_sampling.over_nodes(capped_parents.scores(wide, count, likely), likely)
    without = ~orders.members(D).mT
    torch.testing.assert_close(table[without], linear_sem.regression_scores(cov, count, own)[without])


def test_pairs_of_columns_enter_together() -> None:
    x = torch.randn(40, 1 + 3 * 2)
    x[:, 0] += x[:, 3] - x[:, 4]  # both columns of the second node
    cov = (x.mT @ x / 40).expand(3, -1, -1)
    likely = capped_parents.likely(cov, 2, most=1)
    assert likely[0].tolist() == [1] and likely[2].tolist() == [1]
    found = capped_parents.scores(cov, torch.full((3,), 40.0), likely, 2)[0]
    rest = x[:, 0] - x[:, 3:5] @ torch.linalg.lstsq(x[:, 3:5], x[:, :1]).solution[:, 0]
    left = rest.square().sum() / x[:, 0].square().sum()
    log_rest = torch.log1p(40 * left) - np.log1p(40)
    assert float(found[1] - found[0]) == pytest.approx(float(-20 * log_rest - 0.5 * np.log1p(40)), rel=1e-6)


@pytest.mark.parametrize("kind", ["shift", "variance", "perfect"])
def test_sampled_orders_agree_with_sums(kind: str) -> None:
    z, env = chain(D, kind, 60)
    target = [[0] * D, *np.eye(D, dtype=int).tolist()]
    exact = LatentSEM(D, D + 1, target, kind, "relu")  # type: ignore[arg-type]
    exact.gather(z, env)
    drawn = sampled(LatentSEM(D, D + 1, target, kind, "relu"))  # type: ignore[arg-type]
    drawn.gather(z, env)
    drawn.sample_orders(torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.graph(), exact.graph(), atol=0.08, rtol=0)
    with pyro.poutine.trace() as record, torch.no_grad():
        drawn.recover()
    sites = {name: site["value"] for name, site in record.trace.nodes.items() if site["type"] == "sample"}
    assert is_order_of(sites["order"].numpy(), sites["graph"].numpy() > 0.5)


def settled(z: torch.Tensor, env: torch.Tensor, kind: str) -> LatentSEM:
    """Unknown targets of a chain, its order known."""
    model = sampled(LatentSEM(D, D + 1, None, kind, "relu"))  # type: ignore[arg-type]
    model.start(z, env, torch.arange(D))
    model.gather(z, env)
    model.sample_orders(torch.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("kind", ["shift", "variance"])
def test_unknown_targets_are_settled(kind: str) -> None:
    model = settled(*chain(D, kind), kind)
    assert (model.hard_targets()[1:] == torch.eye(D)).all()
    assert float(model.target_log_prob[0, -1].exp()) == pytest.approx(1.0)
    torch.testing.assert_close(model.target_log_prob.exp().sum(1), torch.ones(D + 1))


def test_an_environment_without_target_has_none() -> None:
    z, env = chain(D, "shift")
    z[env == 2] = z[env == 0][torch.randperm(int((env == 0).sum()))]
    assert float(settled(z, env, "shift").target_log_prob[2, -1].exp()) > 0.9


def test_orders_are_proposed() -> None:
    d = 14
    z, env = chain(d, "shift", 300)
    target = [[0] * d, *np.eye(d, dtype=int).tolist()]
    known = LatentSEM(d, d + 1, target, "shift", "relu")
    found = many_orders.proposed(known, z, env, np.random.default_rng(0), 1)[0]
    assert is_order_of(found.numpy(), np.eye(d, k=1))


def test_sources_are_taken_out() -> None:
    """Of a latent that mixes in its parent, as means of environments give it."""
    z, env = chain(2, "shift")
    mixed = z.clone()
    mixed[:, 1] -= 0.92 * z[:, 0]
    known = LatentSEM(2, 3, [[0, 0], [1, 0], [0, 1]], "shift", "relu")
    matrix, shift = many_orders.by_sources(known, mixed, env, (0.3, 0.5, 0.7))
    own = env == 0
    before, after = (np.corrcoef(v[own, 1], z[own, 1])[0, 1] for v in (mixed, mixed @ matrix.mT + shift))
    assert before < 0.95 and after > 0.99


def fitted(twice: bool) -> tuple[pyrocrl.Fit, pyrocrl.Verdict]:
    """Thirteen latents of linear equations under shifts; twice: two environments on one, none on another."""
    options = {"mixing": "linear", "mechanism": "linear", "features": 30, "noise": 0.02}
    data = simulate.draw("zhang2023", 0, latents=13, samples=60, **options)
    if twice:
        names = np.array(data.env_labels())
        half, free = np.flatnonzero(names == "target_3")[::2], names != "target_4"
        names[half] = "target_4"
        data = Data(data.x[free], names[free].tolist(), control="observational")
    torch.set_default_dtype(torch.float32)
    program = pyrocrl.build("discrepancy_vae", data, latents=13, targets="unknown", mechanism="linear", hidden=8)
    found = pyrocrl.fit(program, data, seed=0, epochs=1, least_steps=5, device="cpu", progress=False)
    return found, pyrocrl.diagnose(found)


def test_thirteen_latents_of_linear_equations() -> None:
    """Fitted, drawn and told: the graph keeps its prior, innovations and targets are found."""
    found, verdict = fitted(twice=False)
    graph, targets = found.graph(), found.targets()
    assert graph is not None and targets is not None
    np.testing.assert_allclose(graph[~np.eye(13, dtype=bool)], 1 / 13, rtol=1e-5)
    right = (targets > 0.5).sum(1)
    assert right[0] == 0 and (right[1:] == 1).all() and ((targets > 0.5).sum(0) == 1).all()
    assert verdict["targets"].identified and verdict["graph"].verdict == "not identified"
    drawn = found.posterior(3)["posterior"]
    assert dict(drawn["graph"].sizes) == {"chain": 2, "draw": 3, "parent": 13, "child": 13}
    assert all(is_acyclic(one) for one in drawn["graph"].to_numpy().reshape(-1, 13, 13))


def test_two_environments_on_one_of_thirteen_latents() -> None:
    verdict = fitted(twice=True)[1]["latents"]
    assert verdict.verdict == "not identified" and "no environment intervenes on" in verdict.reason


def test_limits() -> None:
    assert not LatentSEM(12, 2).many and "graphs.orders" not in LatentSEM(12, 2).state_dict()
    assert LatentSEM(13, 2).many
    with pytest.raises(InputError, match="at most 128"):
        LatentSEM(129, 2)
    with pytest.raises(InputError, match="at most 12"):
        LatentSEM(13, 2, maps=4)
    data = simulate.draw("zhang2023", 0, latents=13, samples=5, mixing="linear", features=20)
    perfect = {"intervention": "perfect", "targets": "relabelled"}
    for options in ({"intervention": "soft"}, perfect | {"targets": "unknown"}, perfect, {"decoder": "mlp"}):
        with pytest.raises(InputError, match=r"latents.*at most 12"):
            pyrocrl.build("discrepancy_vae", data, latents=13, **options)
