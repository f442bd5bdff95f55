"""Where linear decoders start: varimax factors, of log-normalised counts where x is, and log rates by regression."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.constructions import anchors
from pyrocrl.constructions.affine import Start, unmix
from pyrocrl.parts.latent_sem import LatentSEM
from pyrocrl.parts.observation import Observation

STEEPEST = 1.0  # largest slope at the start: rare genes are part of their own factors' scores
SHRINK = 0.7  # of slopes at the start, for the same reason
UNSURE = -4.0  # least log probability of a target at the start


@torch.no_grad()
def count_factors(
    observation: Observation, batch: Batch, pick: Tensor, prior: LatentSEM, generator: torch.Generator
) -> Start:
    """Factors of the rows `pick` (positions, with repeats), and `prior` left at equations for them.

    Known targets turn the factors by `unmix`, so that each latent is its environments' own; unknown ones are settled
    by evidence among the factors as they are: programmes of genes that go together in single cells.
    """
    x = observation.inputs(batch)[pick]
    env = batch.env[pick]
    _, scores, precision = (torch.as_tensor(v).to(x) for v in anchors.varimax(x.double().cpu().numpy(), prior.latents))
    offset, cov = torch.zeros_like(precision[0]), torch.linalg.inv(precision)
    if not prior.unknown:
        turn, offset, _ = unmix(x @ scores.mT, env, prior, generator)
        scores, cov = turn @ scores, turn @ cov @ turn.mT
    z = x @ scores.mT + offset
    tril = torch.linalg.cholesky(cov)
    noise = torch.randn(z.shape, generator=generator).to(z)
    prior.start(z + noise @ tril.mT, env)
    if prior.unknown:
        prior.target_logits.copy_(prior.target_log_prob.clamp_min(UNSURE))
    # Stein: Cov(x_j, z) = E[x_j] Cov(z) loadings_j where log-means are linear in a Gaussian z
    expected = observation.mean(torch.zeros_like(batch.x), batch)[pick]
    centred = z - z.mean(0)
    cross = (batch.x[pick] - expected).mT @ centred / expected.sum(0)[:, None]
    moments = torch.cov(z.mT, correction=0)
    loadings = SHRINK * torch.linalg.solve(moments, cross.mT).mT.clamp(-STEEPEST, STEEPEST)
    bias = -0.5 * ((loadings @ moments) * loadings).sum(1)  # so that E[exp(bias + loadings z)] = 1 about z = 0
    return Start(scores, offset, tril, loadings, bias)


class Factors(NamedTuple):
    """Varimax factors of `Observation.inputs`, see `anchors.varimax`; slope (feature, latent), of the decoder's output:
    the loadings, or those of log rates."""

    loadings: Tensor
    scores: Tensor
    precision: Tensor
    slope: Tensor


@torch.no_grad()
def varimax_factors(observation: Observation, batch: Batch, latents: int, generator: torch.Generator) -> Factors:
    """Factors of a bootstrap of the rows."""
    scaled = observation.inputs(batch)
    pick = torch.randint(len(scaled), (len(scaled),), generator=generator)
    found = anchors.varimax(scaled[pick].double().numpy(), latents)
    loadings, scores, precision = (torch.as_tensor(part).to(scaled) for part in found)
    if not observation.counts:
        return Factors(loadings, scores, precision, loadings)
    z = scaled[pick] @ scores.mT
    expected = observation.mean(torch.zeros_like(batch.x), batch)[pick]
    # Stein: Cov(x_j, z_k) = w_jk E[x_j] where log-means are linear in a Gaussian z
    return Factors(
        loadings, scores, precision, ((batch.x[pick] - expected).mT @ z) / expected.sum(0)[:, None] / z.var(0)
    )
