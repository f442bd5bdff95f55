"""mechanism_shift: evidence in closed form, sums over graphs and shifts, and shifted nodes found."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pyro
import pytest
import torch
from scipy.stats import multivariate_t

import pyrocrl
from pyrocrl import Batch, Data, Fit, InputError, simulate
from pyrocrl.exact import regression, sharing
from pyrocrl.exact.orders import all_dags
from pyrocrl.models.mechanism_shift import FEWEST, RATIOS, MechanismShift

OPTIONS = {"samples": 400, "latents": 3, "environments": 4, "shifts": 1}


@cache
def fitted(reference: bool) -> tuple[Fit, Data]:
    data = simulate.draw("mechanism_shift2024", 102, reference=reference, density=0.9, **OPTIONS)
    program = MechanismShift.from_data(data, inducing=24)
    return pyrocrl.fit(program, data, chains=2, seed=0, progress=False), data


def started(seed: int = 0, **options: object) -> MechanismShift:
    data = simulate.draw("mechanism_shift2024", seed, samples=60, latents=2, environments=2, shifts=1)
    data = Data(data.x, data.env_labels(), control="env_0")
    program = MechanismShift.from_data(data, inducing=8, **{"reference": False, **options}).double()
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
    return program


def log_prob_of(method: Callable, batch: Batch, values: dict, **kept: torch.Tensor) -> float:
    """Log density of a program at these values of its sites."""
    trace = pyro.poutine.trace(pyro.poutine.condition(method, data=values)).get_trace(batch, **kept)
    return float(trace.log_prob_sum())


def hits(data: Data) -> np.ndarray:
    truth = np.zeros((len(data.env_names), data.features))
    for env, nodes in data.truth["targets"].items():
        truth[data.env_names.index(env), list(nodes)] = 1
    return truth


@pytest.mark.parametrize("seed", range(4))
def test_setting_shifts_as_many_mechanisms_as_it_says(seed: int) -> None:
    data = simulate.draw("mechanism_shift2024", seed, samples=3)
    hit = hits(data)
    assert (hit.sum(1) == 2).all()
    assert hit.sum(0).max() <= 3
    assert len(np.unique(hit, axis=0)) == 6
    assert data.targets is None
    assert simulate.draw("mechanism_shift2024", seed, samples=3, reference=True).env_names[0] == "observational"


def test_linear_setting_shares_equations_but_for_the_shifted_ones() -> None:
    data = simulate.draw("mechanism_shift2024", 3, samples=20_000, mechanism="linear")
    hit, graph = hits(data), data.truth["graph"].astype(bool)
    for k in range(5):
        fits = []
        for e in np.flatnonzero(hit[:, k] == 0):
            z = data.x[data.env == e]
            basis = np.column_stack([np.ones(len(z)), z[:, graph[:, k]]])
            weight, left, *_ = np.linalg.lstsq(basis, z[:, k], rcond=None)
            fits.append([*weight, math.sqrt(left[0] / len(z))])
        np.testing.assert_allclose(fits, np.tile(fits[0], (len(fits), 1)), atol=0.06)


def test_evidence_is_that_of_a_student_t() -> None:
    rng = np.random.default_rng(0)
    phi, y = rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    values = torch.from_numpy(np.column_stack([phi, y]))
    moments, count = (values.mT @ values)[None], torch.tensor([9.0], dtype=torch.float64)
    found = regression.log_evidence(moments, count, 3.0, 2)[0]
    a, b = regression.SHAPE, regression.RATE
    law = multivariate_t(np.zeros(9), b / a * (np.eye(9) + 3.0 * phi @ phi.T), df=2 * a)
    np.testing.assert_allclose(found, [law.logpdf(y[:, 0]), law.logpdf(y[:, 1])])


@pytest.mark.parametrize("reference", [True, False])
def test_graph_and_targets_are_sums_over_all_of_them(reference: bool) -> None:
    program = started(reference=reference)
    program.evidence.mul_(0.02)  # so that the posterior is not all on one graph
    change, edge = program.loc.detach()
    rate, differs = torch.sigmoid(change), sharing.subsets(2, reference)
    assert len(differs) == (2 if reference else 4)
    total, graph_sum, target_sum = 0.0, np.zeros((2, 2)), np.zeros((2, 2))
    for graph in all_dags(2):
        orders = 1 if graph.any() else 2
        for first in differs:
            for second in differs:
                weight = orders * math.exp(float(edge) * graph.sum())
                for k, hit in enumerate((first, second)):
                    parents = int(graph[:, k] @ [1, 2])
                    subset = int((differs == hit).all(1).nonzero())
                    weight *= float(program.evidence[k, parents, :, subset].exp().mean())
                    free = hit[1:] if reference else hit
                    weight *= float((rate * free + (1 - rate) * (1 - free)).prod())
                total += weight
                graph_sum += weight * graph
                target_sum += weight * np.stack([first, second], -1)
    np.testing.assert_allclose(program.graph(), graph_sum / total, atol=1e-9)
    np.testing.assert_allclose(program.targets_matrix(), target_sum / total, atol=1e-9)
    batch = simulate.draw("mechanism_shift2024", 0, samples=3, latents=2, environments=2, shifts=1).tensors()
    draws = [program.recovered(batch, {"change": change, "edge": edge}) for _ in range(600)]
    for name, exact in (("graph", graph_sum / total), ("targets", target_sum / total)):
        mean = torch.stack([draw[name].double() for draw in draws]).mean(0)
        np.testing.assert_allclose(mean, exact, atol=0.1)


@pytest.mark.parametrize("options", [{}, {"reference": False}, {"mechanism": "linear"}])
def test_story_less_recover_is_model(options: dict) -> None:
    """For every graph, targets, cell of the grid, noise and weights, not only those that are probable."""
    data = simulate.draw("mechanism_shift2024", 1, samples=40, latents=3, environments=3, shifts=1, reference=True)
    program = MechanismShift.from_data(data, **{"inducing": 8, **options}).double()
    batch = data.tensors(dtype=torch.float64, moments=True)
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
        kept = {"change": torch.tensor(-0.7).double(), "edge": torch.tensor(0.4).double()}
        lost = program.recovered(batch, kept)
        free = program.differs.amax(0)[:, None]  # not in the reference
        moved = {
            "order": torch.tensor([2, 0, 1]),
            "graph": torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 0]]).double(),
            "targets": (1 - lost["targets"]) * free,
            "grid": (lost["grid"] + 1) % 3,
            "precision": 1.3 * lost["precision"],
            "w": lost["w"] + 0.1,
        }
        model = log_prob_of(program.model, batch, kept)
        for each in (lost, *({**lost, name: moved[name]} for name in ("precision", "w")), moved):
            story = log_prob_of(program.story, batch, {**kept, **each})
            recover = log_prob_of(program.recover, batch, each, **kept)
            assert math.isfinite(story)
            assert story - recover == pytest.approx(model, abs=1e-8)


def test_what_rows_do_not_tell_has_its_prior() -> None:
    """Own equations of environments that are no targets, and coefficients of latents that are no parents."""
    program = started(mechanism="linear")
    batch = simulate.draw("mechanism_shift2024", 0, samples=3, latents=2, environments=2, shifts=1).tensors()
    chosen, grid, targets = torch.tensor([0, 1]), torch.tensor([1, 1]), torch.zeros(2, 2).double()
    own = program.moments[chosen, grid // len(RATIOS)]
    known = sharing.regressions(own, program.count, targets, torch.full((2,), 10.0).double())  # t^2 = 10
    assert (known.shape[1:] == regression.SHAPE).all()
    assert (known.rate[1:] == regression.RATE).all()
    assert (known.mean[1:] == 0).all()
    root = torch.eye(3).double() / math.sqrt(10.0)
    torch.testing.assert_close(known.root[1:], root.expand_as(known.root[1:]))
    torch.testing.assert_close(known.root[0, :, 2, :2], torch.zeros(2, 2).double())  # latent 1 is no parent
    assert known.shape[0, 0] > regression.SHAPE
    assert (program.recovered(batch, {"change": program.loc[0], "edge": program.loc[1]})["w"][1:] != 0).all()


def test_environments_that_act_together_give_their_own_mechanisms() -> None:
    """The last one listed that differs counts; without any, the shared mechanism."""
    program = MechanismShift(2, 2, 3)
    batch = Data(np.random.default_rng(0).standard_normal((6, 2)), env=list("aabbcc")).tensors()
    targets = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    expected = {None: [[0, 0], [0, 0], [2, 0], [2, 0], [3, 3], [3, 3]], (): [[0, 0]] * 6}
    expected |= {(2, 1): [[2, 3]] * 6, (1, 2): [[3, 3]] * 6, (1,): [[2, 0]] * 6}
    for together, own in expected.items():
        part = dataclasses.replace(batch, together=together)
        assert program._acting(targets, part).tolist() == own


@pytest.mark.parametrize("reference", [True, False])
def test_shifted_nodes_and_graph_are_found(reference: bool) -> None:
    fit, data = fitted(reference)
    targets, graph = fit.targets(), fit.graph()
    assert targets is not None
    assert graph is not None
    truth = hits(data)
    np.testing.assert_array_equal(targets > 0.5, truth > 0)
    np.testing.assert_array_equal(graph > 0.5, data.truth["graph"] > 0)
    assert truth.sum() == 4
    assert data.truth["graph"].sum() >= 2
    claim = pyrocrl.diagnose(fit, data)["targets"]
    open_ = bool(((targets > 0.1) & (targets < 0.9)).any())
    assert claim.verdict == ("identified, undecided at this n" if open_ else "identified if"), str(claim)
    if reference:
        assert (targets[0] == 0).all()


def test_noise_of_a_mechanism_is_what_its_parents_leave() -> None:
    fit, data = fitted(True)
    tree = fit.posterior(draws=20, predictive=False, thin=50)["posterior"]
    natural = data.env == 0
    for k in range(3):
        parents = np.flatnonzero(data.truth["graph"][:, k])
        noise = float(tree["noise"].sel(env="observational")[..., k].mean()) * data.x[:, k].std()
        spread = data.x[natural, k].std()
        assert 0.4 < noise < 1.1  # s_k ~ U(.5, 1)
        if parents.size:
            assert noise < 0.9 * spread
        else:
            assert noise == pytest.approx(spread, rel=0.15)


def test_claims_follow_the_options() -> None:
    linear = MechanismShift(4, 4, 3, mechanism="linear", reference=False)
    targets, graph = linear.claims()
    assert graph.up_to == ("markov equivalence",)
    assert not targets.needs
    assert FEWEST in targets.given
    targets, graph = MechanismShift(4, 4, 3).claims()
    assert graph.up_to == () and FEWEST not in targets.given and targets.needs == ("observational_environment",)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"features": 9, "latents": 9, "environments": 3}, "features"),
        ({"features": 4, "latents": 3, "environments": 3}, "latents"),
        ({"features": 4, "latents": 4, "environments": 11}, "environments"),
        ({"features": 4, "latents": 4, "environments": 3, "mechanism": "cubic"}, "mechanism"),
        ({"features": 4, "latents": 4, "environments": 3, "inducing": 0}, "inducing"),
    ],
)
def test_bad_options_are_refused(options: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        MechanismShift(**options)


def test_bad_settings_are_refused() -> None:
    for options, word in (
        ({"shifts": 4}, "shifts"),
        ({"mechanism": "cubic"}, "mechanism"),
        ({"samples": 1}, "samples"),
    ):
        with pytest.raises(InputError, match=word):
            simulate.draw("mechanism_shift2024", 0, **options)
