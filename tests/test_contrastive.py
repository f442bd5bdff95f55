"""Latents from contrasts: closed forms against draws, and every step of the construction on its own."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch

import pyrocrl
from pyrocrl import InputError, simulate
from pyrocrl.constructions import contrastive, optimise, subspaces
from pyrocrl.constructions.contrastive import Chart, Contrast, Equations
from pyrocrl.exact import linear_sem, orders
from pyrocrl.judge.checks import CHECKS, environments
from pyrocrl.lab.suite.equations import HARD, linear_world
from pyrocrl.models.linear_sem_nonlin import LinearSEMNonlin
from pyrocrl.parts.nets import Residual
from pyrocrl.turns import drawing

HIT = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def equations(hit: torch.Tensor = HIT) -> Equations:
    """A chain 0 -> 1 -> 2 with 0 -> 2."""
    weight = torch.tensor([[0.0, 0.8, -0.5], [0.0, 0.0, 0.7], [0.0, 0.0, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    own = 0.3 * torch.randn(2, *hit.shape, generator=generator, dtype=torch.float64)
    return Equations(weight, torch.tensor([0.1, -0.2, 0.3]).double(), torch.zeros(3).double(), 1.5 + own[0], own[1])


def rows(eq: Equations, hit: torch.Tensor, each: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """z (rows, latent) and group (rows,), in the same number from every class."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for c in range(len(hit) + 1):
        z = torch.zeros(each, 3, dtype=torch.float64)
        for k in range(3):  # parents first
            noise = torch.randn(each, generator=generator, dtype=torch.float64)
            if c > 0 and hit[c - 1, k]:
                z[:, k] = eq.own_intercept[c - 1, k] + eq.own_log_scale[c - 1, k].exp() * noise
            else:
                z[:, k] = eq.intercept[k] + z @ eq.weight[:, k] + eq.log_scale[k].exp() * noise
        out.append(z)
    return torch.cat(out), torch.arange(len(hit) + 1).repeat_interleave(each)


def true_odds(z: torch.Tensor, eq: Equations, hit: torch.Tensor) -> torch.Tensor:
    """(rows, class - 1) from the log densities themselves."""
    mean, cov = contrastive.laws(eq, hit)
    log = [torch.distributions.MultivariateNormal(m, c).log_prob(z) for m, c in zip(mean, cov, strict=True)]
    return torch.stack(log[1:], -1) - log[0][:, None]


def test_changing_parents_keeps_the_determinant_without_cycles() -> None:
    weight = equations().weight
    assert torch.allclose(contrastive.log_det_change(weight, HIT), torch.zeros(3).double(), atol=1e-12)
    cyclic = weight.clone()
    cyclic[2, 0] = 0.5
    assert contrastive.log_det_change(cyclic, HIT).abs().min() > 0.01


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_orthogonalised_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(optimise.orthogonalised(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_matrices_step_together_as_they_would_alone() -> None:
    stack = torch.randn(3, 20, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = torch.stack([optimise.orthogonalised(matrix) for matrix in stack])
    torch.testing.assert_close(optimise.orthogonalised(stack), alone)


@pytest.mark.parametrize("laplace", [False, True])
def test_law_distance_is_that_of_characteristic_functions_and_so_is_its_gradient(laplace: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    along = (2 * torch.randn(60, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    average = torch.rand(3, 60, generator=generator, dtype=torch.float64) / 60
    direction = torch.randn(2, 4, generator=generator, dtype=torch.float64)

    def distance(along: torch.Tensor) -> torch.Tensor:
        return contrastive.law_distance(along, average, direction if laplace else None)

    expected = torch.zeros((), dtype=torch.float64)
    for t in contrastive.FREQUENCIES.double():
        law = (1 / (1 + (t * direction).square())).prod(0) if laplace else (-0.5 * t * t).exp()
        gap = (average.to(torch.complex128) @ (1j * t * along).exp() - law).abs().square()
        expected = expected + (-0.25 * t * t).exp() * gap.mean()
    torch.testing.assert_close(distance(along), expected, rtol=1e-6, atol=0)
    assert torch.autograd.gradcheck(distance, along)


def test_descent_ends_where_the_loss_is_least_and_never_above_its_start() -> None:
    target = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    found = optimise.descend(lambda at: (at - target).cosh().sum(), torch.zeros_like(target), 100)
    torch.testing.assert_close(found, target, atol=1e-5, rtol=0)
    start = torch.full((2,), 2.0, dtype=torch.float64)
    lost = optimise.descend(lambda at: torch.where(at > 1.9, at, torch.nan).sum(), start, 100)
    assert 3.8 < lost.sum() < 4.0, "a cliff ends it, not the search"


def identity() -> Residual:
    """The map from 3 numbers to themselves."""
    net = Residual(3, 3, 8).double()
    for parameter in net.parameters():
        parameter.data.zero_()
    net.linear.weight.data.copy_(torch.eye(3))
    return net


def test_contrast_at_the_truth_is_the_classifier_of_the_truth() -> None:
    eq = equations()
    z, group = rows(eq, HIT, 5_000)
    contrast = Contrast(identity(), identity(), torch.full((4,), 0.25, dtype=torch.float64), HIT, eq)
    torch.manual_seed(0)
    with torch.no_grad():
        entropy, distance, error = contrast.terms(z, group, 64)
    logits = torch.cat([torch.zeros(len(z), 1, dtype=torch.float64), true_odds(z, eq, HIT)], 1)
    assert float(entropy) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, group)), abs=1e-9)
    assert float(distance) < 2e-3
    assert float(error) == pytest.approx(0.0, abs=1e-12)
    contrast.encoder.linear.bias.data.fill_(0.5)
    with torch.no_grad():
        assert float(contrast.terms(z, group, 64)[1]) > 5 * float(distance)


def test_chart_knows_the_truth_by_any_affine_map_of_it() -> None:
    """Laws without equations: the same classifier, whatever the basis; and worse for a curved map."""
    eq = equations()
    z, group = rows(eq, HIT, 5_000)
    chart = Chart(identity(), identity(), torch.full((4,), 0.25, dtype=torch.float64))
    expected = torch.cat([torch.zeros(len(z), 1, dtype=torch.float64), true_odds(z, eq, HIT)], 1)
    best = float(torch.nn.functional.cross_entropy(expected, group))
    matrix = torch.tensor([[1.0, 0.4, 0.0], [0.0, 2.0, -0.3], [0.5, 0.0, 0.7]]).double()
    with torch.no_grad():
        torch.manual_seed(0)
        plain = [float(term) for term in chart.terms(z, group, 64)]
        torch.manual_seed(0)
        mapped = [float(term) for term in chart.terms(z @ matrix.mT + 0.3, group, 64)]
        torch.manual_seed(0)
        bent = [float(term) for term in chart.terms(z + 0.4 * z.roll(1, 1).square(), group, 64)]
    assert plain[0] == pytest.approx(best, abs=3e-3)
    assert mapped[0] == pytest.approx(plain[0], abs=1e-4)
    assert mapped[1] < 2e-3
    assert bent[0] > plain[0] + 0.01
    assert bent[1] > 5 * plain[1]


def test_reparametrised_chart_has_the_new_latents_and_the_same_features() -> None:
    torch.manual_seed(0)
    chart = Chart(Residual(4, 3, 8).double(), Residual(3, 4, 8).double(), torch.full((2,), 0.5).double())
    x, offset = torch.randn(20, 4).double(), torch.randn(3).double()
    matrix = torch.eye(3).double() + 0.3 * torch.randn(3, 3).double()
    with torch.no_grad():
        before, decoded = chart.encoder(x), chart.decoder(chart.encoder(x))
        chart.reparametrise(matrix, offset)
        assert torch.allclose(chart.encoder(x), before @ matrix.mT + offset)
        assert torch.allclose(chart.decoder(chart.encoder(x)), decoded)


def test_sparsity_is_blind_to_the_latents_units() -> None:
    eq = equations()
    scale = torch.tensor([2.0, 0.5, 3.0]).double()
    other = eq._replace(weight=eq.weight * scale / scale[:, None], log_scale=eq.log_scale + scale.log())
    share = torch.full((4,), 0.25, dtype=torch.float64)
    first, second = (Contrast(identity(), identity(), share, HIT, e).penalty().item() for e in (eq, other))
    assert first == pytest.approx(second)
    assert first > 0


def test_construction_undoes_a_curved_mixing() -> None:
    eq = equations()
    z, group = rows(eq, HIT, 2_000)
    x = torch.cat([z, torch.tanh(z @ torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.3, -1.0]]).double())], 1)
    x = x @ torch.randn(5, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = ((x - x.mean(0)) / x.std(0)).float()
    target = torch.cat([torch.zeros(1, 3), HIT.float()])
    state = torch.random.get_rng_state()
    encoder, unmixing, _, changed = contrastive.construct(
        x, group, target, width=32, steps=150, generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.no_grad():
        h = (encoder(x).double() @ unmixing.mT).numpy()
    matched = np.abs(np.corrcoef(z.numpy().T, h.T)[:3, 3:]).diagonal()
    assert matched.min() > 0.97
    assert 0 < changed < 0.05


def nearly_cancelling(seed: int) -> tuple[torch.Tensor, torch.Tensor, linear_sem.Environments]:
    """Latents (rows, latent) whose direct and indirect ways may nearly cancel, a chart of them that is not quite affine
    and its moments."""
    data = linear_world(seed, HARD, rows=1000, noise=0.0, features=3)
    z = torch.as_tensor(data.truth["z"])
    rng = np.random.default_rng(seed)
    turn, other = (torch.as_tensor(np.linalg.qr(rng.standard_normal((3, 3)))[0]) for _ in range(2))
    y = (z - z.mean(0)) / z.std(0) @ turn
    y = y + 0.1 * torch.tanh(2 * y @ other)
    target = torch.cat([torch.zeros(1, 3), HIT])
    return z, y, contrastive.moments(y, torch.as_tensor(data.env), target)


@pytest.mark.parametrize("seed", [1, 12])  # the theorem's candidates alone lead to others: correlations .37, .47
def test_the_search_finds_latents_whose_ways_nearly_cancel(seed: int) -> None:
    z, y, environments = nearly_cancelling(seed)
    found = contrastive.optima(environments, torch.Generator().manual_seed(0))
    values = [float(one.value) for one in found]
    assert values == sorted(values, reverse=True)

    def matched(unmixing: torch.Tensor) -> np.ndarray:
        return np.abs(np.corrcoef((y @ unmixing.mT).numpy().T, z.numpy().T)[:3, 3:]).diagonal()

    assert matched(found[0].unmixing).min() > 0.95
    others = [one for one in found[1:] if matched(one.unmixing).min() < 0.9]
    assert others and found[0].value - others[0].value < 10, "which are to be tried as well"
    settled = environments.transform(others[0].unmixing)  # a chart that was bent to other latents keeps to them
    near = contrastive.likely(settled, 0.0125, True, torch.Generator().manual_seed(0))
    assert ((near[0] / near[0].abs().max(1, keepdim=True).values).abs() - torch.eye(3)).abs().max() < 0.3
    best = contrastive.likely(settled, 0.0, False, torch.Generator().manual_seed(0))
    assert len(best) == 1 and matched(best[0] @ others[0].unmixing).min() > 0.95


def test_latents_tell_environments_better_than_mixtures_of_them() -> None:
    eq, target = equations(), torch.cat([torch.zeros(1, 3), HIT])
    z, env = rows(eq, HIT, 1000)
    nobody = torch.zeros(4)

    def told(unmixing: torch.Tensor, escaped: torch.Tensor = nobody, latents: torch.Tensor = z) -> float:
        y = latents @ unmixing.double().mT
        parts = contrastive.told(y, env, contrastive.moments(y, env, target), escaped)
        assert parts.shape == (contrastive.PARTS,)
        return float(parts.sum())

    right = told(torch.eye(3))
    assert told(torch.diag(torch.tensor([2.0, -0.3, 5.0]))) == pytest.approx(right, abs=1e-6)
    mixed = torch.eye(3)
    mixed[0, 2] = 0.5  # which equations among what is read do not make up for
    assert told(mixed) < right - 12
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert told(torch.eye(3), latents=z + noise) < right - 12
    assert told(torch.eye(3), torch.tensor([0.0, 0.6, 0.6, 0.6])) < right - 12

    likelihood = (
        torch.distributions.MultivariateNormal(
            *contrastive.laws(contrastive.fitted(contrastive.moments(z, env, target)), HIT)
        )
        .log_prob(z[:, None])
        .softmax(1)[torch.arange(len(z)), env]
        .log()
        .sum()
    )
    left = contrastive.misfit(contrastive.moments(z, env, target)).deviance / 2
    assert right == pytest.approx(float(likelihood - left), rel=1e-6)


def test_maps_vary_as_much_as_rows_leave_them_open() -> None:
    """Of exact latents the identity lies within draws as it should; four times the rows halve their spread, and errors
    of the latents widen it."""
    eq, target = equations(), torch.cat([torch.zeros(1, 3), HIT])
    off = ~torch.eye(3, dtype=torch.bool)
    scores = []
    for seed in range(8):
        environments = contrastive.moments(*rows(eq, HIT, 300, seed), target)
        draws = contrastive.nearby_maps(environments, 0.0, 200, torch.Generator().manual_seed(seed))
        assert (draws.diagonal(dim1=-2, dim2=-1) == 1).all()
        scores.append(((torch.eye(3) - draws.mean(0)) / draws.std(0))[off])
    assert 0.75 < float(torch.cat(scores).square().mean().sqrt()) < 1.35
    more = contrastive.nearby_maps(
        environments._replace(count=4 * environments.count), 0.0, 200, torch.Generator().manual_seed(1)
    )
    assert float((more.std(0) / draws.std(0))[off].log().mean().exp()) == pytest.approx(0.5, rel=0.15)
    few = contrastive.nearby_maps(environments, 1 / 1200 / contrastive.HIDDEN, 200, torch.Generator().manual_seed(1))
    assert float((few.std(0) / draws.std(0))[off].log().mean().exp()) == pytest.approx(2**0.5, rel=0.15)


def test_graphs_are_of_all_maps_to_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = LinearSEMNonlin.example()
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(0))
    sem = program.sem
    table = sem._slices(sem.hard_targets())
    each = [linear_sem.mechanism_scores(m.to(table.cov), table, sem.edge_probability, "perfect") for m in sem.maps]
    averaged = torch.stack([orders.edge_probabilities(scores) for scores in each]).mean(0)
    torch.testing.assert_close(sem.graph(), averaged.to(sem.graph()))
    with drawing(0):
        traces = [pyro.poutine.trace(sem.recover).get_trace() for _ in range(300)]
    drawn = torch.stack([one.nodes["graph"]["value"] for one in traces]).double().mean(0)
    assert (drawn - averaged).abs().max() < 0.1

    fit = pyrocrl.fit(program, data, chains=1, epochs=1, least_steps=1, progress=False)
    told = CHECKS["map_told"]
    monkeypatch.setattr(LinearSEMNonlin, "latent_maps", lambda _: torch.eye(2).repeat(4, 1, 1))
    assert told(fit, data) is None
    apart = torch.eye(2).repeat(2, 1, 1)
    apart[:, 1, 0] = torch.tensor([0.5, -0.5])  # a quarter of the variance of a latent of the same size
    monkeypatch.setattr(LinearSEMNonlin, "latent_maps", lambda _: apart)
    lack = told(fit, data)
    assert lack is not None and lack.which == (fit.names["latent"][1],) and lack.rows > data.rows


def test_maps_that_are_seldom_far_off_leave_latents_open(monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = LinearSEMNonlin.example()
    fit = pyrocrl.fit(program, data, chains=1, epochs=1, least_steps=1, progress=False)
    z = np.linalg.qr(np.random.default_rng(0).standard_normal((400, 3)))[0]
    monkeypatch.setattr(environments, "latents_of", lambda *_, **__: (z - z.mean(0), np.zeros(400, int)))
    for seldom, open_ in ((1, False), (3, True)):  # of 25 draws: less than 2 % of the variance either way
        maps = torch.eye(3).repeat(25, 1, 1)
        maps[:seldom, 1, 0] = 0.4
        monkeypatch.setattr(LinearSEMNonlin, "latent_maps", lambda _, maps=maps: maps)
        lack = CHECKS["map_told"](fit, data)
        assert (lack is not None) == open_
    assert lack is not None and "probability 0.12" in lack.reason and lack.which == (fit.names["latent"][1],)


def test_other_latents_that_are_nearly_as_likely_leave_it_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = LinearSEMNonlin.example()
    fit = pyrocrl.fit(program, data, chains=1, epochs=1, least_steps=1, progress=False)
    holds = CHECKS["readings_apart"]
    monkeypatch.setattr(LinearSEMNonlin, "readings_margin", lambda _: math.inf)
    assert holds(fit, data) is None
    monkeypatch.setattr(LinearSEMNonlin, "readings_margin", lambda _: 2.0)
    lack = holds(fit, data)
    assert lack is not None and "(2.0 nats less)" in lack.reason and lack.rows == 5 * data.rows


def test_round_that_does_not_help_on_kept_rows_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    z, group = rows(equations(), HIT, 500)
    z = ((z - z.mean(0)) / z.std(0)).float()
    states = []

    def train_on(self: Contrast, *_: object, heat: float) -> None:
        """Nothing at first; then an encoder of noise."""
        if states:
            torch.nn.init.normal_(self.encoder.linear.weight)
        states.append({name: value.clone() for name, value in self.encoder.state_dict().items()})

    monkeypatch.setattr(Chart, "train_on", lambda *_: None)
    monkeypatch.setattr(Contrast, "train_on", train_on)
    target = torch.cat([torch.zeros(1, 3), HIT.float()])
    plan = contrastive.PLAN._replace(branches=1)
    found = contrastive.construct(z, group, target, 8, 4, torch.Generator().manual_seed(0), plan=plan)
    assert len(states) == 2
    assert all(torch.equal(value, states[0][name]) for name, value in found.encoder.state_dict().items())


def test_dispersion_is_one_for_a_structural_equation_model_and_more_for_errors() -> None:
    z, group = rows(equations(), HIT, 20_000)
    target = torch.cat([torch.zeros(1, 3), HIT])
    assert contrastive.dispersion(contrastive.moments(z, group, target)) < 3
    bent = z + 0.1 * z.roll(1, 1).square()
    assert contrastive.dispersion(contrastive.moments(bent, group, target)) > 20


@pytest.mark.parametrize(("name", "low", "high"), [("buchholz2023", 0.97, 1.0), ("buchholz2023_hard", 0.3, 0.9)])
def test_settings_have_the_published_design(name: str, low: float, high: float) -> None:
    data = simulate.draw(name, seed=1, samples=3000)
    again = simulate.draw(name, seed=1, samples=3000)
    assert np.array_equal(data.x, again.x)
    assert data.x.shape == (18_000, 100 if name == "buchholz2023" else 10)
    assert low < float(data.name.split()[-1]) < high
    z, weight = data.truth["z"], data.truth["weight"]
    size = np.abs(weight[weight != 0])
    assert size.size >= 5
    assert ((size >= 0.25) & (size <= 1)).all()
    observational = z[data.env == data.env_names.index("observational")]
    residual = observational - observational @ weight
    cov = np.cov(residual.T)
    assert ((cov.diagonal() > 0.9) & (cov.diagonal() < 2.2)).all()
    assert np.abs(cov - np.diag(cov.diagonal())).max() < 0.15
    for k in range(5):
        own = z[data.env == data.env_names.index(f"target_{k}")]
        assert 0.9 < abs(own[:, k].mean()) < 2.1
        parents = np.flatnonzero(weight[:, k])
        if len(parents):
            assert np.abs(np.corrcoef(own[:, [*parents, k]].T)[-1, :-1]).max() < 0.08


def test_settings_and_program_reject_what_they_cannot_use() -> None:
    with pytest.raises(InputError, match="samples"):
        simulate.draw("buchholz2023", samples=1)
    with pytest.raises(InputError, match="observational"):
        LinearSEMNonlin(features=6, latents=2, target_matrix=[[1, 0], [0, 1]])
    with pytest.raises(InputError, match="no environment that intervenes on latent 0"):
        LinearSEMNonlin(features=6, latents=2, target_matrix=[[0, 0], [0, 1]])
    with pytest.raises(InputError, match="steps"):
        LinearSEMNonlin(features=6, latents=2, target_matrix=[[0, 0], [1, 0], [0, 1]], steps=0)


def test_law_of_every_class_is_its_own() -> None:
    eq = equations()
    z, group = rows(eq, HIT, 200_000)
    mean, cov = contrastive.laws(eq, HIT)
    found = contrastive.moments(z, group, torch.cat([torch.zeros(1, 3), HIT]))
    assert torch.allclose(found.mean, mean, atol=0.02)
    assert torch.allclose(found.cov, cov, atol=0.05)


def test_signal_components_keep_what_stands_out_of_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    loadings = torch.linalg.qr(torch.randn(30, 2, generator=generator))[0]
    z = torch.randn(2000, 2, generator=generator)
    x = 8.0 * z @ loadings.mT + torch.randn(2000, 30, generator=generator)
    x = (x - x.mean(0)) / x.std(0)
    seen = x @ subspaces.signal_components(x, 1)
    value = torch.linalg.eigvalsh(torch.cov(seen.mT))
    torch.testing.assert_close(value[-2:], torch.ones(2), atol=1e-4, rtol=1e-4)
    assert value[:-2].abs().max() < 1e-4, "noise would be learnt by heart"
    three = torch.linalg.eigvalsh(torch.cov((x @ subspaces.signal_components(x, 3)).mT))
    assert int((three > 0.5).sum()) == 3


def test_names_of_targets_are_not_read() -> None:
    """Targets known up to relabelling: the same fit as with known ones; only the chains' alignment differs."""
    _, data = LinearSEMNonlin.example()
    fits = [
        pyrocrl.fit(
            LinearSEMNonlin.from_data(data, targets=kind, width=8, steps=4),
            data,
            chains=1,
            epochs=1,
            seed=0,
            progress=False,
        )
        for kind in ("known", "relabelled")
    ]
    a, b = (fit.latents(data) for fit in fits)
    np.testing.assert_allclose(a, b)
    np.testing.assert_allclose(*(fit.graph() for fit in fits))
    assert ["permutation" in fit.program.claims()[0].up_to for fit in fits] == [False, True]
    program = fits[0].programs()[0]
    most = 1 / program.config["correlation_error"] ** 2
    assert 0 < program.sem.count.sum() < most, "no number of rows mends the encoder's own errors"
