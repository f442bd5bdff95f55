"""Estimates of scores, what score differences say, and the regressions that score graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyrocrl import InputError, simulate
from pyrocrl.constructions import score_differences
from pyrocrl.constructions.hard_interventions import Unmixing, earlier, moved
from pyrocrl.exact import orders
from pyrocrl.exact.basis_regression import allowed, basis_functions, places
from pyrocrl.parts.network_sem import NetworkSEM


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def correlated(rows: int = 3000) -> tuple[torch.Tensor, torch.Tensor]:
    root = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.3, 0.5, 1.2]], dtype=torch.float64)
    noise = torch.randn(rows, 3, generator=generator(), dtype=torch.float64)
    return noise @ root.mT + 2.0, torch.linalg.inv(root @ root.mT)


@pytest.mark.parametrize("method", score_differences.ESTIMATORS)
def test_every_estimator_knows_a_gaussian(method: score_differences.Estimator) -> None:
    x, precision = correlated()
    found = score_differences.estimate(x, method, generator())(x[:500])
    truth = -(x[:500] - 2.0) @ precision
    assert ((found - truth).square().sum() / truth.square().sum()) < 0.05


def bimodal(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of two independent mixtures 1/2 N(-2, 1) + 1/2 N(2, 1), and their score."""
    g = generator()
    sign = torch.randint(0, 2, (rows, 2), generator=g).double() * 4 - 2
    x = sign + torch.randn(rows, 2, generator=g, dtype=torch.float64)
    return x, -x + 2 * (2 * x).tanh()


@pytest.mark.parametrize("method", ["stein", "sliced"])
def test_scores_that_are_not_linear(method: score_differences.Estimator) -> None:
    x, truth = bimodal(4000)

    def error(kind: score_differences.Estimator) -> float:
        found = score_differences.estimate(x, kind, generator())(x)
        return float((found - truth).square().sum() / truth.square().sum())

    assert error(method) < 0.2 < error("gaussian")


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(InputError, match="score"):
        score_differences.estimate(torch.randn(10, 2), "flow", generator())  # type: ignore[arg-type]


def test_score_difference_of_a_root_is_its_own_row() -> None:
    """Varici et al. (2024): without parents, R_k has rank one and its range is the target's row of the unmixing."""
    rows = 4000
    g = generator()
    mixing = torch.tensor([[1.0, 0.5], [-0.4, 1.0]], dtype=torch.float64)
    z = torch.randn(3 * rows, 2, generator=g, dtype=torch.float64)
    env = torch.arange(3).repeat_interleave(rows)
    z[env == 1, 0] *= 2.0
    z[env == 2, 1] *= 2.0
    target = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    found = score_differences.differences(z @ mixing.mT, env, target, "gaussian", g)
    rows_of = torch.linalg.inv(mixing)
    for k in range(2):
        value, vector = torch.linalg.eigh(found[k])
        assert value[0] < 0.01 * value[1]
        assert torch.nn.functional.cosine_similarity(vector[:, 1], rows_of[k], dim=0).abs() > 0.999


def test_features_depend_on_their_places_alone() -> None:
    z = torch.randn(50, 4, generator=generator(), dtype=torch.float64)
    member = places(4)
    for j in range(4):
        other = z.clone()
        other[:, j] += 1.0
        changed = (basis_functions(other) - basis_functions(z)).abs().amax(0) > 1e-9
        assert torch.equal(changed, member[:, j])
    parents = earlier((2, 0, 3, 1))
    assert (allowed(parents)[2].sum(), allowed(parents)[1].sum()) == (1, (~member[:, 1]).sum())
    assert len(moved((0, 1, 2))) == 4


def test_laws_of_latents_are_those_of_the_density() -> None:
    """Of each latent along an order: they add up to log p(z | env); draws follow them, and integrate to 1."""
    sem = NetworkSEM(2, [[0, 0], [1, 0], [0, 1]]).double()
    torch.manual_seed(0)
    with torch.no_grad():
        sem.own.start(torch.tensor([[9.0, 9.0], [3.0, 9.0], [9.0, -2.0]]).double(), torch.full((3, 2), 0.5).double())
        for parameter in sem.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        env = torch.arange(3).repeat_interleave(20_000)
        z = torch.randn(len(env), 2, dtype=torch.float64)
        hit, who = sem.acting(env)
        laws = [sem.law(k, z, sem.before, hit[:, k], who[:, k]) for k in range(2)]
        told = sum(law.log_prob(z[:, k]) for k, law in enumerate(laws))
        torch.testing.assert_close(told, sem.log_prob(z, env), rtol=1e-10, atol=1e-10)
        drawn = laws[0].sample()
        assert float(drawn[env == 1].mean()) == pytest.approx(float(laws[0].mean[env == 1].mean()), abs=0.02)
        assert float(drawn[env != 1].std()) == pytest.approx(float(laws[0].variance[0].sqrt()), rel=0.02)
        grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)
        for e in range(3):
            rows = torch.zeros(len(grid), 2, dtype=torch.float64)
            own = torch.full((len(grid),), e)
            density = sem.law(1, rows, sem.before, hit[env == e][:1, 1].expand(len(grid)), own).log_prob(grid).exp()
            assert float(density.sum() * (grid[1] - grid[0])) == pytest.approx(1.0, abs=1e-3)


def test_environments_that_act_together_bring_their_own_laws() -> None:
    """The last one listed that targets a latent counts; without any, none is intervened on."""
    sem = NetworkSEM(2, [[0, 0], [1, 0], [0, 1], [1, 1]])
    env = torch.tensor([0, 3])
    for together, hit, who in (
        (None, [[False, False], [True, True]], [[0, 0], [3, 3]]),
        ((), [[False, False]] * 2, [[0, 0]] * 2),
        ((1,), [[True, False]] * 2, [[1, 0]] * 2),
        ((1, 2), [[True, True]] * 2, [[1, 2]] * 2),
        ((3, 1), [[True, True]] * 2, [[1, 3]] * 2),
    ):
        found = sem.acting(env, together)
        assert (found[0].tolist(), found[1].tolist()) == (hit, who)


def test_graph_posterior_at_the_true_latents() -> None:
    """Given the true latents and order: probable edges are the true ones, and every draw is acyclic and forwards."""
    wrong = 0
    for seed in (100, 101, 102):
        data = simulate.draw("varici2024_quadratic", seed, samples=1500, latents=4, features=6)
        z, env = torch.tensor(data.truth["z"]), torch.tensor(data.env)
        target = torch.tensor(data.target_matrix(4)).double()
        unmixing = Unmixing(z, env, target, generator())
        _, before = unmixing.search(torch.eye(4).double(), generator(), mixed=False)
        found = unmixing.posterior(torch.eye(4).double(), before)
        table = found.scores(before) + orders.log_edge_prior(4, 0.5)
        edges = orders.edge_probabilities(table).numpy()
        wrong += int(((edges > 0.5) != data.truth["graph"].astype(bool)).sum())
        torch.manual_seed(0)
        _, drawn = orders.sample_dags(table)
        assert not (drawn & (before == 0)).any()
    assert wrong <= 3


def test_settings_hold_what_they_say() -> None:
    data = simulate.draw("varici2024_quadratic", 3, samples=4000)
    z, env = data.truth["z"], data.env
    for k in range(5):
        own = z[env == k + 1]
        parents = np.flatnonzero(data.truth["graph"][:, k])
        assert all(abs(np.corrcoef(np.abs(own[:, j]), own[:, k])[0, 1]) < 0.06 for j in parents)
        assert 2.2 < own[:, k].var() < 8.0  # five times .5 to 1.5
    assert np.linalg.matrix_rank(data.x) == 5
    general = simulate.draw("varici2024_general", 3, samples=500)
    assert general.target_matrix(3).sum(0).tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="laws"):
        simulate.draw("varici2024_general", 3, laws="scales")
