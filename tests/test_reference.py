"""`pyrocrl.reference`, NUTS on stories, and `pyrocrl.agreement`: fits beside it, and what neither lets through."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

import pyrocrl
from pyrocrl import Data, Fit, InputError, agreement, reference, simulate
from pyrocrl.exact import annealed, orders
from pyrocrl.infer.chains import Chains
from pyrocrl.judge.reference import _program, _recorded, _Target, departures

SITES = ("weight", "intercept", "noise", "unmixing", "loadings")


@cache
def linear(seed: int, samples: int, kind: str = "perfect", targets: str = "known") -> Fit:
    """Two latents; one chain."""
    data = simulate.draw("squires2023_hard", seed, latents=2, features=4, samples=samples)
    program = pyrocrl.build("linear_sem_lin", data, latents=2, intervention=kind, targets=targets)
    return pyrocrl.fit(program, data, chains=1, seed=0, progress=False)


def graph_of(fit: Fit) -> dict[str, Any]:
    """The more probable graph and an order that it has."""
    graph = (fit.chains.chain(fit.reference).graph() > 0.5).double().numpy()
    reach = np.linalg.inv(np.eye(len(graph)) - graph) > 0
    return {"order": np.argsort(reach.sum(0), kind="stable"), "graph": graph}


def agrees(table: pd.DataFrame, slack: float = 0.0) -> bool:
    """Means within .2 posterior deviations, deviations within 25 %; slack: Monte Carlo errors allowed on top."""
    more = slack * table["error"].to_numpy()
    apart, ratio = table["difference"].abs().to_numpy(), table["ratio"].to_numpy()
    middle = table.groupby(level="site")["ratio"].median()
    return bool(
        (apart < 0.2 + more).all() and (np.abs(ratio - 1) < 0.25 + more).all() and (abs(middle - 1) < 0.25).all()
    )


def changed(fit: Fit, factor: float = 1.0, shift: float = 0.0) -> Fit:
    """The fit with draws that lie wider about the same mean, or about another one, in their own deviations."""
    out = copy.copy(fit)
    drawn = fit.chains.buffers["drawn"]
    mean, root = drawn.mean(1, keepdim=True), torch.linalg.cholesky(drawn[0].mT.cov())
    other = mean + factor * (drawn - mean) + shift * root.sum(1)
    out.chains = Chains(fit.program, fit.chains.params, fit.chains.buffers | {"drawn": other})
    return out


@cache
def given_graph() -> Any:
    fit = linear(0, 60)
    return reference(fit, given=graph_of(fit), draws=150, warmup=80)


def test_laplace_and_conjugacy_agree_with_nuts_given_a_graph() -> None:
    fit = linear(0, 60)
    tree = given_graph()
    assert not tree["sample_stats"]["diverging"].any() and tree.attrs["rhat_max"] < 1.1 and tree.attrs["ess_min"] > 40
    assert agrees(agreement(fit, tree, SITES, draws=300), slack=2)
    for other in (changed(fit, factor=1.5), changed(fit, shift=1.0)):  # is found out
        assert not agrees(agreement(other, tree, SITES, draws=300), slack=2)


def test_a_reference_is_laid_out_as_the_posterior() -> None:
    fit = linear(0, 60)
    tree, own = (
        given_graph()["posterior"].to_dataset(),
        fit.posterior(draws=2, predictive=False)["posterior"].to_dataset(),
    )
    assert {name: v.dims for name, v in tree.data_vars.items()} == {name: v.dims for name, v in own.data_vars.items()}
    for name, value in own.coords.items():
        if name == "data":  # the rows that were fitted
            assert tree["data"].values.tolist() == fit.fitted_rows().tolist()
            assert 0 < len(value) - len(tree["data"]) < 0.2 * len(value)
        elif name not in ("chain", "draw"):
            assert tree[name].values.tolist() == value.values.tolist()
    given = given_graph()["constant_data"]
    assert set(given.data_vars) == {"order", "graph"} and given["graph"].dims == ("parent", "child")
    assert (tree["graph"] == given["graph"]).all()
    alignment = fit.alignments[fit.reference]  # so the reference chain's order and units are the fit's
    assert alignment.permutation.tolist() == [0, 1] and np.allclose(alignment.scale, 1)


def test_a_reference_follows_its_seed_and_leaves_the_callers_random_state_alone() -> None:
    fit = linear(0, 60)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    options = {"given": graph_of(fit), "draws": 4, "warmup": 4}
    first, again = (reference(fit, seed=0, **options)["posterior"]["tangent"].values for _ in range(2))
    other = reference(fit, chains=2, seed=1, **options)["posterior"]["tangent"].values
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(first, again) and not np.array_equal(first, other[:1])
    assert len(other) == 2 and not np.array_equal(other[0], other[1])


def test_a_recorded_density_is_the_density() -> None:
    def smooth(white: dict[str, torch.Tensor]) -> torch.Tensor:
        return (white["a"] * white["b"]).square().sum()

    def branching(white: dict[str, torch.Tensor]) -> torch.Tensor:
        return smooth(white) if float(white["b"].detach()) > 0 else -smooth(white)

    for density in (smooth, branching):
        own = _recorded(density, ("a", "b"))
        for b in (0.5, 1.5, 2.5, 3.5, -1.0):
            at = {"a": torch.tensor([1.0, 2.0]) + b, "b": torch.tensor(b)}
            at = {name: value.double().requires_grad_() for name, value in at.items()}
            found, expected = own(at), density(at)
            slopes = [torch.autograd.grad(value, list(at.values())) for value in (found, expected)]
            assert found == expected and all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))


def test_joint_values_add_up_to_the_model() -> None:
    """Sum over the listed (order, graph) of story over the equations' conditional = the model, which knows no graph."""
    fit = linear(3, 100)
    target = _Target(*_program(fit, None, fit.fitted_rows()), {}, ("order", "graph"), fit)
    assert len(target.joint) == 4  # two orders, each with or without the edge that it allows
    with torch.no_grad():
        values = target._constrained(target._raw(target._white(target._start())))[0]
        tangent, batch = values["tangent"], target.batch
        parts = []
        for one in target.joint:
            told = pyro.poutine.condition(target.program.recover, data={**values, **one})
            trace = pyro.poutine.trace(told).get_trace(batch, tangent=tangent)
            equations = sum(
                trace.nodes[name]["fn"].log_prob(values[name]).sum() for name in ("variance", "slope", "level")
            )
            parts.append(target._log_density(values, one) - equations)
        model = pyro.poutine.condition(target.program.model, data={"tangent": tangent})
        total = pyro.poutine.trace(model).get_trace(batch).log_prob_sum()
    assert float(torch.stack(parts).logsumexp(0)) == pytest.approx(float(total), abs=1e-7)


@pytest.mark.slow
def test_all_graphs_of_two_latents_agree() -> None:
    fit = linear(5, 40)
    tree = reference(fit, sum_over=("order", "graph"), draws=150, warmup=100)
    edges = tree["posterior"]["graph"].mean(("chain", "draw")).values
    exact = fit.chains.chain(fit.reference).graph().numpy()
    assert 0.1 < exact.max() < 0.9  # several graphs are probable
    assert np.abs(edges - exact).max() < 0.15  # draws between two maxima are worth a third of their number
    table = agreement(fit, tree, SITES, draws=400)
    assert (table["difference"].abs() < 0.2 + 2 * table["error"]).all()
    assert agrees(agreement(fit, reference(fit, by="marginal"), SITES, draws=400), slack=1)


# -- the exact posterior over all graphs ------------------------------------------------------------------------------


@cache
def small(seed: int, samples: int) -> Fit:
    data = simulate.draw("squires2023_hard", seed, latents=2, features=4, samples=samples)
    return pyrocrl.fit(pyrocrl.build("linear_sem_lin", data, latents=2), data, chains=2, seed=seed, progress=False)


def test_edges_and_weights_of_few_rows_are_those_of_the_exact_posterior() -> None:
    """Several maxima, of which one alone is most of the posterior in some chains and not in others."""
    found = [
        departures(fit, reference(fit, by="marginal", draws=250), 250) for fit in (small(103, 100), small(108, 100))
    ]
    distance, ratio = (np.array([one[name] for one in found]) for name in ("edge_tv", "weight_sd_ratio"))
    assert distance.mean() < 0.05 and distance.max() < 0.15
    assert abs(np.median(ratio) - 1) < 0.15


def test_a_lower_maximum_and_too_narrow_weights_are_found_out() -> None:
    fit = small(103, 100)
    tree = reference(fit, by="marginal", draws=150)
    narrow = departures(changed(fit, factor=0.2), tree, draws=150)
    assert narrow["edge_tv"] > 0.05 or abs(narrow["weight_sd_ratio"] - 1) > 0.15
    chosen = copy.copy(fit)
    for name in ("evidence_parts", "weights"):  # remembered
        chosen.__dict__.pop(name, None)
    lower = torch.tensor([0.0, -16.0]) + fit.chains.buffers["log_density"]
    chosen.chains = Chains(fit.program, fit.chains.params, fit.chains.buffers | {"log_density": lower})
    assert chosen.log_evidence is not None and chosen.weights[1] < 1e-5 and chosen.reference == 0


def test_a_walk_from_the_prior_is_quadrature() -> None:
    """Two latents by both: probabilities of edges and the evidence."""
    program = small(103, 100).chains.chain(0)
    with torch.no_grad():
        grid = annealed.on_a_grid(program._objective, torch.Generator().manual_seed(0), 2000)
        walk = annealed.from_the_prior(program._objective, 2, 2000, torch.Generator().manual_seed(0))
        table = program._slices()
        edges = [
            torch.func.vmap(lambda rows: orders.edge_probabilities(program._scores(rows, table)))(one.rows).mean(0)
            for one in (grid, walk)
        ]
    torch.testing.assert_close(*edges, atol=0.03, rtol=0)
    assert abs(float(grid.log_evidence - walk.log_evidence)) < 0.15


# -- what has no density, and what is refused -----------------------------------------------------------------------


def test_entries_that_nothing_gives_a_density_stay_where_they_are() -> None:
    """Under shifts, interventional equations have no variance of their own."""
    data = simulate.draw(
        "zhang2023", 0, mechanism="linear", intervention="shift", mixing="linear", features=4, latents=2, samples=60
    )
    program = pyrocrl.build("linear_sem_lin", data, latents=2, intervention="shift")
    fit = pyrocrl.fit(program, data, chains=1, seed=0, progress=False)
    tree = reference(fit, given={"order": [0, 1], "graph": np.zeros((2, 2))}, draws=12, warmup=12)
    spread = np.ptp(tree["posterior"]["variance"].values[0], axis=0)
    assert (spread[:2] > 0).all() and (spread[2:] == 0).all()
    assert np.isfinite(tree["sample_stats"]["lp"]).all()


def test_what_cannot_be_sampled_is_refused() -> None:
    fit = linear(0, 60)
    full = graph_of(fit)
    with pytest.raises(InputError, match=r"^given: found nothing for graph, order; allowed: values of every discrete"):
        reference(fit)
    with pytest.raises(InputError, match=r"nothing for order"):
        reference(fit, given={"graph": full["graph"]})
    with pytest.raises(InputError, match=r"given: found 'grpah' \(did you mean 'graph'\?\)"):
        reference(fit, given={"grpah": full["graph"]})
    with pytest.raises(InputError, match=r"given\['graph'\]: found shape \(3, 3\); allowed: shape \(2, 2\)"):
        reference(fit, given={**full, "graph": np.zeros((3, 3))})
    with pytest.raises(InputError, match=r"sum_over: found 'tangent'; allowed: graph, order"):
        reference(fit, sum_over=("tangent",))
    with pytest.raises(InputError, match=r"sum_over: found 'graph'"):  # given already
        reference(fit, given=full, sum_over=("graph",))
    with pytest.raises(InputError, match=r"by: found 'exact'; allowed: marginal, nuts"):
        reference(fit, by="exact")
    with pytest.raises(InputError, match="given: found some"):
        reference(fit, by="marginal", given=full)
    with pytest.raises(InputError, match="draws: found 0"):
        reference(fit, given=full, draws=0)
    with pytest.raises(InputError, match=r"data: found \d+ rows that were not fitted"):
        reference(fit, linear(3, 100).data, given=full)
    with pytest.raises(InputError, match=r"names: found 'wieght' \(did you mean 'weight'\?\)"):
        agreement(fit, given_graph(), ["wieght"])


def test_too_many_joint_values_are_refused_before_any_is_listed() -> None:
    fit = sparse(0)
    with pytest.raises(InputError, match="by: found 'marginal' for sparse_vae"):
        reference(fit, by="marginal")
    with pytest.raises(InputError, match=r"sum_over: found gate of 65536 values; allowed: 256 joint values at most"):
        reference(fit, sum_over=("gate",))


# -- sparse decoding -------------------------------------------------------------------------------------------------


@cache
def sparse(seed: int) -> Fit:
    """200 rows of eight features on two latents, a linear decoder of two chains."""
    rng = np.random.default_rng(seed)
    loadings = np.zeros((8, 2))
    loadings[:4, 0], loadings[4:, 1], loadings[3, 1] = (1, 0.8, -0.9, 0.7), (0.9, -1, 0.8, 0.6), 0.5
    data = Data(x=rng.normal(size=(200, 2)) @ loadings.T + 0.5 * rng.normal(size=(200, 8)))
    program = pyrocrl.build("sparse_vae", data, latents=2, decoder="linear", hidden=16)
    return pyrocrl.fit(program, data, chains=1, seed=0, progress=False)


def gibbs(fit: Fit, gate: np.ndarray, draws: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(draw, feature, latent) loadings in units of the features' spread and (draw, feature) variances, by Gibbs:
    x_j = a_j + spread_j sum_k gate_jk slope_jk z_k + noise, each drawn from its conjugate conditional."""
    program, batch = _program(fit, None, fit.fitted_rows())
    spread = program.observation.spread.numpy()
    x = (batch.x - program.observation.mean(torch.zeros_like(batch.x), batch)).numpy()
    rng = np.random.default_rng(seed)
    rows, features = x.shape
    loadings, variance = gate * program.slope.loc.numpy() * spread[:, None], np.full(features, 0.25)
    kept = []
    for _ in range(draws):
        scaled = loadings / variance[:, None]
        cov = np.linalg.inv(np.eye(gate.shape[1]) + loadings.T @ scaled)
        z = x @ scaled @ cov + rng.normal(size=(rows, gate.shape[1])) @ np.linalg.cholesky(cov).T
        for j in range(features):
            on = np.flatnonzero(gate[j])
            prior = np.eye(len(on)) / (program.slab * spread[j]) ** 2
            inside = np.linalg.inv(prior + z[:, on].T @ z[:, on] / variance[j])
            mean = inside @ z[:, on].T @ x[:, j] / variance[j]
            loadings[j, on] = mean + np.linalg.cholesky(inside) @ rng.normal(size=len(on))
            rest = ((x[:, j] - z @ loadings[j]) ** 2).sum()
            variance[j] = (0.015 * spread[j] ** 2 + rest / 2) / rng.gamma(1.5 + rows / 2)
        kept.append((loadings / spread[:, None], variance.copy()))
    slopes, variances = zip(*kept, strict=True)
    return np.stack(slopes), fit.in_data_units("variance", np.stack(variances))


@pytest.mark.parametrize("seed", range(2))
def test_slopes_and_variances_of_a_sparse_decoder_are_those_of_a_gibbs_sampler(seed: int) -> None:
    """Given the mask: means within .2 deviations, deviations within 15 %; the guide's own, whatever its gates say."""
    fit = sparse(seed)
    program = fit.chains.chain(fit.reference)
    gate = (program.mask() > 0.5).double().numpy()
    with torch.no_grad():
        slope, log_variance = program.slope, program.variance
        slopes = slope.loc.double().numpy(), slope.scale.double().numpy()
        noise = torch.distributions.LogNormal(log_variance.loc.double(), log_variance.scale.double())
        variances = (fit.in_data_units("variance", value.numpy()) for value in (noise.mean, noise.stddev))
    for (mean, sd), exact in zip((slopes, variances), gibbs(fit, gate, 4000), strict=True):
        drawn = exact[500:]
        use = drawn.std(0) > 0
        apart, ratio = (mean - drawn.mean(0))[use] / drawn.std(0)[use], sd[use] / drawn.std(0)[use]
        assert np.abs(apart).max() < 0.2, apart
        assert np.abs(ratio - 1).max() < 0.15, ratio


@torch.no_grad()
def test_latents_of_a_sparse_decoder_go_with_its_slopes() -> None:
    """They are set last, with z summed out: what the encoder knew of the trained ones is not their posterior."""
    fit = sparse(1)
    program, batch = _program(fit, None, fit.fitted_rows())
    x = program.observation.inputs(batch).double()
    gate = (program.mask() > 0.5).double()
    slope, tril = gate * program.slope.loc.double(), program._correlation_tril().double()
    variance = (program.variance.loc.double() - 2 * program.observation.spread.double().log()).exp()
    across = slope @ tril @ tril.mT
    exact = x @ torch.linalg.solve(across @ slope.mT + torch.diag(variance), across)
    assert torch.allclose(program.latents(batch).double(), exact, atol=1e-4)


@pytest.mark.slow
def test_a_sparse_decoder_given_its_mask() -> None:
    """NUTS agrees with a Gibbs sampler of the same equations, and the fit with NUTS."""
    fit = sparse(0)
    gate = (fit.chains.chain(fit.reference).mask() > 0.5).double().numpy()
    tree = reference(fit, given={"gate": gate}, draws=300, warmup=100)
    assert not tree["sample_stats"]["diverging"].any() and tree.attrs["rhat_max"] < 1.1
    slopes, variances = gibbs(fit, gate, 6000)
    for name, exact in (("loadings", slopes[500:]), ("variance", variances[500:])):
        own = tree["posterior"][name].values[0]
        use = exact.std(0) > 0
        apart = ((own.mean(0) - exact.mean(0)) / np.where(use, exact.std(0), 1.0))[use]
        ratio = (own.std(0) / np.where(use, exact.std(0), 1.0))[use]
        assert np.abs(apart).max() < 0.35 and np.abs(apart.mean()) < 0.2, (name, apart)
        assert np.abs(ratio - 1).max() < 0.25, (name, ratio)
    table = agreement(fit, tree, ("theta", "loadings", "variance"), draws=400)
    assert agrees(table, slack=1)
