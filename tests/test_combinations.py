"""Predicted combinations of interventions, and the discrepancy of `discrepancy_vae`."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, InputError
from pyrocrl.exact.mmd import mmd2
from pyrocrl.infer import stories
from pyrocrl.models.discrepancy_vae import DiscrepancyVAE
from pyrocrl.predict import combination_mean, pair_errors
from pyrocrl.simulate import draw


def parts_of(data: Data) -> tuple[Data, Data]:
    """(control and singles, pairs)."""
    labels = data.env_labels()
    both = np.char.find(labels, "+") >= 0
    assert data.targets is not None
    targets = {k: v for k, v in data.targets.items() if len(v) == 1}
    singles = Data(data.x[~both], env=labels[~both], targets=targets, truth={"z": data.truth["z"][~both]})
    return singles, Data(data.x[both], env=labels[both])


def test_a_pair_never_seen_is_predicted() -> None:
    data = draw("zhang2023", seed=100, samples=200, latents=3, mixing="linear", features=6, pairs=((0, 1), (1, 2)))
    train, pairs = parts_of(data)
    program = DiscrepancyVAE.from_data(train, hidden=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = pyrocrl.fit(program, train, chains=2, epochs=30, seed=0, progress=False)
    parts = {"target_0+1": ("target_0", "target_1"), "target_1+2": ("target_1", "target_2")}
    errors = pair_errors(fit, train, pairs, parts)
    assert errors["model"] < 0.3 * min(errors["control"], errors["training"])
    assert errors["floor"] < errors["model"] < 2 * errors["floor"] + errors["additive"]
    turned = [rows.coded_as(feature_names=rows.feature_names[::-1]) for rows in (train, pairs)]
    assert pair_errors(fit, *turned, parts) == pytest.approx(errors)
    # environments applied together do what `Fit.do` draws
    mean = combination_mean(fit, train, ("target_0", "target_1"))
    drawn = fit.do(train, environments=["target_0", "target_1"], draws=400)["x"].values  # (chain, draw, feature)
    apart = np.einsum("c,cf->f", fit.weights, drawn.mean(1)) - mean
    assert (np.abs(apart) < 5 * drawn.std((0, 1)) / np.sqrt(400)).all()
    with pytest.raises(InputError, match="target_9"):
        combination_mean(fit, train, ("target_9",))
    with pytest.raises(InputError, match="parts"):
        pair_errors(fit, train, pairs, {})
    with pytest.raises(InputError, match="parts"):
        pair_errors(fit, train, pairs, {"target_0+1": ("nobody",)})


def test_discrepancy_is_the_naive_double_sum() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(7, 3), torch.randn(5, 3) + 1.0
    wa, wb = torch.tensor([1.0, 0, 1, 1, 0, 1, 1]), torch.tensor([1.0, 1, 0, 1, 1])
    width = torch.tensor(2.0)

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float(sum((-((x - y) ** 2).sum() / (s * width)).exp() for s in (4, 2, 1, 0.5, 0.25)))

    p, q = a[wa > 0], b[wb > 0]
    mean = [np.mean([[kernel(x, y) for y in v] for x in u]) for u, v in ((p, p), (p, q), (q, q))]
    assert float(mmd2(a, wa, b, wb, width)) == pytest.approx(mean[0] - 2 * mean[1] + mean[2], abs=1e-5)
    assert float(mmd2(a, wa, a, wa, width)) == pytest.approx(0.0, abs=1e-6)
    assert float(mmd2(a, wa, b, 0 * wb, width)) == 0.0


def test_the_discrepancy_trains_and_targets_stay_apart() -> None:
    data = draw("zhang2023", seed=100, samples=150, latents=3, mixing="linear", features=6)
    program = DiscrepancyVAE.from_data(data, targets="unknown", objective="mmd", hidden=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = pyrocrl.fit(program, data, chains=1, epochs=20, seed=0, progress=False)
    targets = fit.targets()
    assert targets is not None
    assert sorted(targets[1:].argmax(1)) == [0, 1, 2]
    moved = fit.programs()[0]
    batch = fit.batch_of(data)
    with torch.no_grad():
        z = moved.latents(batch)
        after = moved._discrepancy(z, batch)
        moved.sem.own_intercept.zero_()  # virtual interventions that change nothing
        assert float(after) < 0.2 * float(moved._discrepancy(z, batch))


@pytest.mark.parametrize("kind", ["perfect", "shift"])
def test_behind_a_network_the_construction_is_held(kind: str) -> None:
    """Training leaves the guide's mean as constructed; a graph that the decoder can absorb stays at its prior."""
    data = draw("zhang2023", seed=100, samples=150, latents=3, mixing="mlp", features=6, intervention=kind)
    options = {"intervention": kind, "targets": "unknown", "latents": 3, "hidden": 16, "decoder": "mlp"}
    program = DiscrepancyVAE.from_data(data, **options)
    before = program.encoder.mean.linear.weight.clone()
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
    constructed = {k: v.clone() for k, v in program.encoder.mean.state_dict().items()}
    assert not torch.equal(constructed["linear.weight"], before)
    assert program.sem.absorbed == (kind == "shift")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = pyrocrl.fit(program, data, chains=1, epochs=2, seed=0, progress=False)
    moved = fit.programs()[0]
    assert not any(p.requires_grad for p in moved.encoder.mean.parameters())
    most = min(data.rows / moved.config["unmixed"], 1 / moved.config["correlation_error"] ** 2)
    assert 0 < moved.sem.count.sum() < most, "errors of latents temper the equations"
    graph = fit.graph()
    assert graph is not None
    if kind == "shift":
        np.testing.assert_allclose(graph[~np.eye(3, dtype=bool)], 0.25, atol=0.03)
    else:
        assert graph.max() > 0.5
    z, _ = moved.encoder(moved.observation.inputs(fit.batch_of(data)))
    reported = moved.sem.innovations(z) if kind == "shift" else z
    torch.testing.assert_close(moved.latents(fit.batch_of(data)), reported)
    with torch.no_grad():
        sites = {"z": z} | moved.recovered(fit.batch_of(data), {"z": z})
        drawn = stories.values(stories.told(moved, fit.batch_of(data), sites))
        told = moved.sem.seen(drawn["z"], drawn["weight"])
    torch.testing.assert_close(told, z, atol=1e-4, rtol=1e-4)
