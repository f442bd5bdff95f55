"""The verdict: rotation is not identified, sparse anchored loadings are; conditions, ties, k-hat."""

from __future__ import annotations

from functools import cache

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrocrl
from pyrocrl import Batch, Claim, Data, Fit, ModelCard, Program, Recipe, Reference
from pyrocrl.diagnose import pairwise_agreement, psis_khat, rotation_freedom, tied_chains
from pyrocrl.dists import MultivariateNormal, Normal

PAPER = Reference("Anderson & Rubin", 1956, "Statistical inference in factor analysis", "Berkeley", "https://doi.org/x")


class FactorAnalysis(Program):
    """x = W z + noise, z ~ N(0, I), every loading free: W is known up to a rotation only, whatever the card says."""

    card = ModelCard(
        name="factor_analysis",
        title="Factor analysis",
        family="test",
        summary="Claims too much.",
        claims=(Claim("latents", ("permutation", "sign", "scale")),),
        references=(PAPER,),
    )
    recipe = Recipe(epochs=150, batch_size=90, lr=0.03, patience=None, chains=4, kl_warmup=0.0, temperature_span=0.0)

    def __init__(self, features: int, latents: int, diagonal: bool = False) -> None:
        super().__init__()
        self.loadings = nn.Parameter(torch.randn(features, latents))
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.encoder = nn.Parameter(0.1 * torch.randn(features, latents))
        self.tril = nn.Parameter(torch.zeros(latents, latents))

    def model(self, batch: Batch) -> None:
        zero = batch.x.new_zeros(self.loadings.shape[1])
        with self.rows(batch):
            z = pyro.sample("z", Normal(zero, zero + 1).to_event(1))
            pyro.sample("x", Normal(self.decode(z, batch), self.log_noise.exp()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            loc, diagonal = batch.x @ self.encoder, self.tril.diagonal(dim1=-2, dim2=-1).exp()
            if self.config["diagonal"]:
                pyro.sample("z", Normal(loc, diagonal).to_event(1))
            else:
                tril = self.tril.tril(-1) + torch.diag_embed(diagonal)
                pyro.sample("z", MultivariateNormal(loc, scale_tril=tril.expand(len(loc), *tril.shape)))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x @ self.encoder

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        return z @ self.loadings.mT


@cache
def anchored() -> Data:
    """Eight features with two or three anchors for each of three latents and one that mixes two."""
    rng = np.random.default_rng(5)
    mask = np.array([[1, 0, 0]] * 3 + [[0, 1, 0]] * 3 + [[0, 0, 1]] * 3 + [[1, 1, 0]])
    loadings = mask * rng.uniform(0.8, 1.6, mask.shape) * rng.choice([-1, 1], mask.shape)
    z = rng.normal(size=(600, 3))
    return Data(z @ loadings.T + 0.4 * rng.normal(size=(600, 10)), truth={"z": z, "mask": mask})


@cache
def rotated(diagonal: bool) -> Fit:
    return pyrocrl.fit(FactorAnalysis(10, 3, diagonal), anchored(), seed=0, progress=False)


def test_dense_gaussian_factors_are_not_identified_and_the_chains_show_it() -> None:
    fit = rotated(False)
    verdict = pyrocrl.diagnose(fit, anchored())
    assert verdict["latents"].verdict == "not identified"
    agreement = pairwise_agreement(fit)
    assert agreement[~np.eye(4, dtype=bool)].min() < 0.95  # chains of equal objective, turned against each other
    assert verdict.chains["ties"] >= 2


def test_a_diagonal_guide_does_not_hide_the_rotation() -> None:
    """The ELBO of a diagonal guide prefers PCA's axes: chains agree, and the verdict is still not identified."""
    fit = rotated(True)
    verdict = pyrocrl.diagnose(fit, anchored())
    assert verdict["latents"].verdict == "not identified"
    assert "rotation" in verdict["latents"].reason


def test_the_same_data_with_sparse_anchored_loadings_are_identified() -> None:
    program = pyrocrl.build("sparse_vae", anchored(), latents=3, decoder="linear")
    fit = pyrocrl.fit(program, anchored(), seed=0, progress=False)
    verdict = pyrocrl.diagnose(fit, anchored())
    assert verdict["latents"].verdict == "identified", str(verdict)
    assert verdict["mask"].verdict == "identified", str(verdict)
    assert pyrocrl.evaluate(fit, anchored())["mcc"] > 0.95


def test_sparse_vae_without_its_mask_is_the_rotation_again() -> None:
    program = pyrocrl.build("sparse_vae", anchored(), latents=3, decoder="linear", sparse=False)
    fit = pyrocrl.fit(program, anchored(), seed=0, chains=4, epochs=60, progress=False)
    assert rotation_freedom(fit, anchored()) is not None
    for claim in pyrocrl.diagnose(fit, anchored()).claims:
        assert claim.verdict == "not identified"


def test_one_chain_says_nothing() -> None:
    program = pyrocrl.build("sparse_vae", anchored(), latents=3, decoder="linear")
    fit = pyrocrl.fit(program, anchored(), seed=0, chains=1, progress=False)
    assert pyrocrl.diagnose(fit, anchored())["latents"].verdict == "not converged"


def test_ties_are_judged_by_the_rows_differences() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(-10, 3, size=500)
    rows = np.stack([base, base + rng.normal(0, 0.02, 500), base - 1.0, base - rng.exponential(0.5, 500)])
    assert tied_chains(rows).tolist() == [True, True, False, False]


def test_khat_is_small_for_an_exact_guide_and_large_for_a_poor_one() -> None:
    """Linear-Gaussian rows have Gaussian posteriors of one covariance, which the full guide can match."""
    fit = rotated(False)
    good = psis_khat(fit, anchored())
    assert good["median"] < 0.7
    with torch.no_grad():
        fit.chains.params["tril"] += -2.0 * torch.eye(3)  # a tenth of the width
    poor = psis_khat(fit, anchored())
    with torch.no_grad():
        fit.chains.params["tril"] -= -2.0 * torch.eye(3)
    assert poor["median"] > max(0.7, good["median"])


def test_an_unknown_claim_is_refused() -> None:
    with pytest.raises(pyrocrl.InputError, match="'graph'"):
        pyrocrl.diagnose(rotated(False), anchored())["graph"]
