"""Latents from contrasts: closed forms against draws, and every step of the construction on its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyrocrl import InputError, contrastive, sem, simulate
from pyrocrl.contrastive import Contrast, Equations
from pyrocrl.models.linear_sem_nonlin import LinearSEMNonlin, dispersion

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


@pytest.mark.parametrize("hit", [HIT, torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)])
def test_moments_of_log_odds_are_those_of_draws(hit: torch.Tensor) -> None:
    eq = equations(hit)
    z, group = rows(eq, hit, 400_000)
    odds = true_odds(z, eq, hit)
    mean, cov = contrastive.odds_moments(eq, hit)
    for c in range(len(hit) + 1):
        part = odds[group == c]
        sd = part.std(0)
        assert torch.allclose(part.mean(0) / sd, mean[c] / sd, atol=0.01)
        assert torch.allclose(torch.cov(part.mT) / torch.outer(sd, sd), cov[c] / torch.outer(sd, sd), atol=0.04)


def test_equations_follow_from_log_odds_alone() -> None:
    eq = equations()
    z, group = rows(eq, HIT, 20_000)
    found = contrastive.match(true_odds(z, eq, HIT), group, HIT, torch.Generator().manual_seed(1))[0]
    sd = z.std(0)
    expected = eq.weight * sd[:, None] / sd
    assert torch.allclose(found.weight.abs(), expected.abs(), atol=0.12)
    assert float(found.weight.abs()[expected == 0].max()) < 0.12


def test_changing_parents_keeps_the_determinant_without_cycles() -> None:
    weight = equations().weight
    assert torch.allclose(contrastive.log_det_change(weight, HIT), torch.zeros(3).double(), atol=1e-12)
    cyclic = weight.clone()
    cyclic[2, 0] = 0.5
    assert contrastive.log_det_change(cyclic, HIT).abs().min() > 0.01


@pytest.mark.parametrize("shape", [(20, 50), (50, 20)])
def test_orthogonalised_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(contrastive.orthogonalised(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_contrast_at_the_truth_is_the_classifier_of_the_truth() -> None:
    eq = equations()
    z, group = rows(eq, HIT, 5_000)
    contrast = Contrast(3, HIT, torch.full((4,), 0.25, dtype=torch.float64), eq, width=8)
    for parameter in contrast.encoder.parameters():
        parameter.data.zero_()
    contrast.encoder.linear.weight.data.copy_(torch.eye(3))
    torch.manual_seed(0)
    contrast.decoder.load_state_dict(contrast.encoder.state_dict())
    with torch.no_grad():
        entropy, distance, error = contrast.terms(z, group, 64)
    logits = torch.cat([torch.zeros(len(z), 1, dtype=torch.float64), true_odds(z, eq, HIT)], 1)
    assert float(entropy) == pytest.approx(float(torch.nn.functional.cross_entropy(logits, group)), abs=1e-9)
    assert float(distance) < 2e-3
    assert float(error) == pytest.approx(0.0, abs=1e-12)
    contrast.encoder.linear.bias.data.fill_(0.5)
    with torch.no_grad():
        assert float(contrast.terms(z, group, 64)[1]) > 5 * float(distance)


def test_sparsity_is_blind_to_the_latents_units() -> None:
    eq = equations()
    scale = torch.tensor([2.0, 0.5, 3.0]).double()
    other = eq._replace(weight=eq.weight * scale / scale[:, None], log_scale=eq.log_scale + scale.log())
    share = torch.full((4,), 0.25, dtype=torch.float64)
    first, second = (Contrast(3, HIT, share, e, 8).sparsity().item() for e in (eq, other))
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
    found = contrastive.construct(x, group, target, width=32, steps=300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.no_grad():
        h = (found.encoder(x).double() @ found.unmixing.mT).numpy()
    matched = np.abs(np.corrcoef(z.numpy().T, h.T)[:3, 3:]).diagonal()
    assert matched.mean() > 0.88


def test_dispersion_is_one_for_a_structural_equation_model_and_more_for_errors() -> None:
    z, group = rows(equations(), HIT, 20_000)
    target = torch.cat([torch.zeros(1, 3), HIT])
    assert dispersion(contrastive.moments(z, group, target)) < 3
    bent = z + 0.1 * z.roll(1, 1).square()
    assert dispersion(contrastive.moments(bent, group, target)) > 20


@pytest.mark.parametrize(("name", "low", "high"), [("buchholz2023", 0.97, 1.0), ("buchholz2023_hard", 0.3, 0.9)])
def test_settings_have_the_published_design(name: str, low: float, high: float) -> None:
    data = simulate.draw(name, seed=1, samples=3000)
    again = simulate.draw(name, seed=1, samples=3000)
    assert np.array_equal(data.x, again.x)
    assert data.x.shape == (18_000, 100 if name == "buchholz2023" else 10)
    assert low < float(data.name.split()[-1]) < high
    z, weight = data.truth["z"], data.truth["weight"]
    size = np.abs(weight[weight != 0])
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
    with pytest.raises(InputError, match="no intervention on latents"):
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
    assert isinstance(found, sem.Environments)
