"""How probable rows of counts are under linear factor models, of counts or of log(1 + x / size), on one scale.

A model of counts gives each count a probability. A Gaussian model of y = log(1 + x / s) - m gives y a density, and with
the Jacobian 1 / (s + x) that is a density of x on the line: no probability of a count, since a column of equal values
makes it as large as one likes, and most of what single cells show are zeros. Here its y is rounded to counts instead:

    P(x = k) = P(y(k - 1/2) < y <= y(k + 1/2)),   P(x = 0) = P(y <= y(1/2))

which adds up to 1 over k = 0, 1, ..., like a model of counts. Latents are integrated out of both by importance
sampling: z from Student's t around the mode of its posterior given a draw of all else, with the curvature there; of
scores that are mixtures their components come first, from what expectation propagation says, one in five from the
prior.

Longer than other files because the two laws, the sampling and what it is beside are one comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import gammaln
from torch import Tensor

from pyrocrl.data import Data
from pyrocrl.exact.count_scores import RowsOfCounts, components_given_counts
from pyrocrl.exact.score_mixtures import components_given, deviations, told
from pyrocrl.infer import stories
from pyrocrl.infer.chains import mix
from pyrocrl.infer.fitted import Fit
from pyrocrl.turns import drawing, reseed

DRAWS, SAMPLES = 10, 12  # of all but the latents in each chain; of latents given each
STEPS, LENGTH = 7, 3.0  # of Newton's method, each at most so long
FREEDOM = 8.0  # of Student's t
FROM_PRIOR = 0.2  # of components
TAIL = -1e6  # log-probability below which there is none


@dataclass(frozen=True)
class Counts:
    """Negative binomial counts x (rows, feature) of means exp(level + eta)."""

    x: Tensor
    level: Tensor
    dispersion: Tensor

    def log_density(self, eta: Tensor) -> Tensor:
        """(..., rows) summed over features; eta (..., rows, feature)."""
        r, log_mean = self.dispersion, self.level + eta
        fixed = (torch.lgamma(self.x + r) - torch.lgamma(r) - torch.lgamma(self.x + 1)).sum(-1)
        return fixed + (self.x * (log_mean - r.log()) - (self.x + r) * (log_mean - r.log()).exp().log1p()).sum(-1)

    def slope(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """First derivatives by eta, and less the second."""
        share = torch.sigmoid(self.level + eta - self.dispersion.log())
        fitted = (self.x + self.dispersion) * share
        return self.x - fitted, fitted * (1 - share)


@dataclass(frozen=True)
class Rounded:
    """N(level + eta, sd^2), of which is told that it is between low and high (rows, feature)."""

    low: Tensor
    high: Tensor
    level: Tensor
    sd: Tensor

    def _ends(self, eta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ends in deviations, turned round where both are above the mean, and the log-probability between them."""
        mean = self.level + eta
        a, b = (self.low - mean) / self.sd, (self.high - mean) / self.sd
        turned = a > 0
        low, high = torch.where(turned, -b, a), torch.where(turned, -a, b)
        top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        inside = top + torch.log1p(-(bottom - top).clamp_max(-1e-12).exp())
        return a, b, inside.clamp_min(TAIL)

    def log_density(self, eta: Tensor) -> Tensor:
        """(..., rows) summed over features; eta (..., rows, feature)."""
        return self._ends(eta)[2].sum(-1)

    def slope(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        """First derivatives by eta, and less the second."""
        a, b, inside = self._ends(eta)
        left, right = ((-0.5 * v.square() - inside).exp() / math.sqrt(2 * math.pi) for v in (a, b))
        first = left - right
        bend = first.square() - (torch.where(a.isfinite(), a, 0.0) * left - b * right)
        return first / self.sd, (bend / self.sd.square()).clamp_min(0.0)


Entries = Counts | Rounded


@dataclass(frozen=True)
class Prior:
    """z ~ N(0, D R D), tril of R; D of ones, or of the deviations of components with `weights` (latent, component)."""

    tril: Tensor
    weights: Tensor | None = None


def log_probability(
    entries: Entries, loadings: Tensor, prior: Prior, middle: Tensor | None = None, samples: int = SAMPLES
) -> tuple[Tensor, Tensor]:
    """(rows,) estimates of log p(x) given all but z, and effective sample sizes as shares of `samples`.

    middle: (rows, feature) values that stand for rounded x where components are guessed, in deviations of the noise
    from level.
    """
    used = (loadings != 0).any(0)
    loadings, tril = loadings[:, used], torch.linalg.cholesky((prior.tril @ prior.tril.mT)[used][:, used])
    rows, latents = entries.level.shape[0], int(used.sum())
    if not latents:
        return entries.log_density(torch.zeros_like(entries.level)), torch.ones(rows, dtype=loadings.dtype)
    sd, log_weight = torch.ones(1, rows, latents, dtype=loadings.dtype), torch.zeros(samples, rows)
    if prior.weights is not None:
        weights = prior.weights[used]
        if isinstance(entries, Counts):
            of_counts = RowsOfCounts(entries.x, entries.level, loadings, entries.dispersion, tril)
            guess = components_given_counts(of_counts, weights)[0].exp()
        else:
            assert middle is not None
            scaled = loadings / entries.sd[:, None]
            guess = components_given(*told(middle, None, scaled, torch.ones_like(entries.sd)), tril, weights)[0].exp()
        guess = (1 - FROM_PRIOR) * guess + FROM_PRIOR * weights
        picked = torch.distributions.Categorical(guess).sample((samples,))  # (sample, rows, latent)
        every = torch.arange(latents)
        sd = deviations(weights)[every, picked]
        log_weight = weights[every, picked].log().sum(-1) - guess.expand(samples, -1, -1, -1).gather(
            -1, picked[..., None]
        )[..., 0].log().sum(-1)
    between = torch.cholesky_inverse(tril) / (
        sd[..., :, None] * sd[..., None, :]
    )  # (sample or 1, rows, latent, latent)
    pairs = (loadings[:, :, None] * loadings[:, None, :]).flatten(1)

    def second(z: Tensor) -> tuple[Tensor, Tensor]:
        slope, bend = entries.slope(z @ loadings.mT)
        return (
            slope @ loadings - (between @ z[..., None])[..., 0],
            (bend @ pairs).unflatten(-1, (latents, latents)) + between,
        )

    mode = torch.zeros_like(sd)
    for _ in range(STEPS):
        slope, bend = second(mode)
        step = torch.linalg.solve(bend, slope[..., None])[..., 0]
        mode = mode + step * (LENGTH / step.norm(dim=-1, keepdim=True).clamp_min(LENGTH))
    root = torch.linalg.cholesky(second(mode)[1])  # of the precision
    noise = torch.randn(samples, rows, latents, dtype=loadings.dtype)
    spread = torch.distributions.Chi2(torch.tensor(FREEDOM, dtype=loadings.dtype)).sample((samples, rows)) / FREEDOM
    noise = noise / spread[..., None].sqrt()
    z = mode + torch.linalg.solve_triangular(root.mT, noise[..., None], upper=True)[..., 0]
    log_q = (
        math.lgamma((FREEDOM + latents) / 2)
        - math.lgamma(FREEDOM / 2)
        - latents / 2 * math.log(FREEDOM * math.pi)
        + root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        - (FREEDOM + latents) / 2 * (noise.square().sum(-1) / FREEDOM).log1p()
    )
    inner = (z * (between @ z[..., None])[..., 0]).sum(-1)
    log_p = 0.5 * (torch.linalg.slogdet(between)[1] - inner - latents * math.log(2 * math.pi))
    each = log_weight + entries.log_density(z @ loadings.mT) + log_p - log_q  # (sample, rows)
    total = each.logsumexp(0)
    return total - math.log(samples), (2 * total - (2 * each).logsumexp(0)).exp() / samples


# -- of fits and of simple laws -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CellCounts:
    """Counts (rows, gene), size factors of mean about 1, and what of log(1 + x / size) is taken for 0 (rows, gene)."""

    counts: np.ndarray
    size: np.ndarray
    level: np.ndarray

    @property
    def logged(self) -> np.ndarray:
        """(rows, gene) y."""
        out: np.ndarray = self.at(0.0)
        return out

    def at(self, apart: float) -> np.ndarray:
        """(rows, gene) y of counts that are so much larger."""
        out: np.ndarray = np.log1p((self.counts + apart) / self.size[:, None]) - self.level
        return out

    @property
    def ends(self) -> tuple[np.ndarray, np.ndarray]:
        """(rows, gene) between which y is that of these counts."""
        low = np.full(self.counts.shape, -np.inf)
        there = self.counts > 0
        low[there] = (np.log1p(np.maximum(self.counts - 0.5, 0) / self.size[:, None]) - self.level)[there]
        return low, self.at(0.5)

    @property
    def log_jacobian(self) -> np.ndarray:
        """(rows,) of y by x."""
        out: np.ndarray = -np.log(self.size[:, None] + self.counts).sum(1)
        return out


def of_fit(fit: Fit, data: Data, cells: CellCounts, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, float]:
    """(rows,) log-probabilities of `cells`, of which `data` are the rows as the fit takes them; and the mean effective
    sample size as a share. Averaged over draws of each chain, chains by their weights."""
    batch = fit.batch_of(data).annealed()
    parts, sizes = [], []
    with drawing(), torch.no_grad():
        for chain, (weight, program) in enumerate(zip(fit.weights, fit.programs(), strict=True)):
            if weight < 1e-6:
                continue
            reseed(mix(seed, chain, 53))
            for sites, trace in _draws(program, batch, draws):
                law, loadings = trace.nodes["x"]["fn"].base_dist, trace.nodes["loadings"]["value"].double()
                middle = None
                if data.counts:
                    x = torch.as_tensor(cells.counts, dtype=torch.float64)
                    entries: Entries = Counts(x, law.mean.double().log(), law.dispersion.double())
                else:
                    assert fit.units is not None
                    low, high = (torch.as_tensor(fit.units.standard(v)) for v in cells.ends)
                    entries = Rounded(low, high, law.mean.double(), law.stddev[0].double())
                    middle = (batch.x.double() - entries.level) / entries.sd
                eye = torch.eye(loadings.shape[1], dtype=torch.float64)
                weights = sites.get("weights")
                prior = Prior(
                    sites.get("correlation_tril", eye).double(), None if weights is None else weights.double()
                )
                value, size = log_probability(entries, loadings, prior, middle)
                parts.append(value.numpy() + math.log(weight / draws))
                sizes.append(float(size.mean()))
    return np.logaddexp.reduce(parts, 0), float(np.mean(sizes))


def _draws(program: Any, batch: Any, draws: int) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Draws of all but what is of single rows, and the story's trace at latents of 0."""
    few = batch.take(torch.arange(1, device=batch.device)).whole()
    for _ in range(draws):
        sites = stories.drawn(program, few, local=False)
        nothing = torch.zeros(len(batch), program.latents_count, dtype=batch.dtype, device=batch.device)
        yield sites, stories.told(program, batch, sites | {"z": nothing})


def of_independent_counts(train: CellCounts, group: np.ndarray, cells: CellCounts, groups: np.ndarray) -> np.ndarray:
    """(rows,) log-probabilities where genes are independent negative binomials, of the greatest likelihood in the cells
    `train`: a rate in each of their groups, and a dispersion."""
    rate = np.stack([(train.counts[group == g].sum(0) + 0.5) / train.size[group == g].sum() for g in np.unique(group)])
    mean, out = train.size[:, None] * rate[np.searchsorted(np.unique(group), group)], np.zeros(len(cells.counts))
    new = cells.size[:, None] * rate[np.searchsorted(np.unique(group), groups)]

    def log_p(x: np.ndarray, m: np.ndarray, r: float) -> np.ndarray:
        head = gammaln(x + r) - gammaln(r) - gammaln(x + 1)
        told: np.ndarray = head + x * np.log(m / (r + m)) - r * np.log1p(m / r)
        return told

    for j in range(train.counts.shape[1]):
        x, m = train.counts[:, j], mean[:, j]
        best = minimize_scalar(lambda t, x=x, m=m: -log_p(x, m, math.exp(t)).sum(), bounds=(-6, 10), method="bounded")
        out += log_p(cells.counts[:, j], new[:, j], math.exp(best.x))
    return out


def of_factor_analysis(x: np.ndarray, latents: int, cells: CellCounts) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) log-probabilities under factor analysis of the log counts x (rows, gene) by maximum likelihood; and
    (gene, latent) loadings of standardised genes, rotated by varimax. 0 latents: genes are independent."""
    from sklearn.decomposition import FactorAnalysis

    centre, scale = x.mean(0), x.std(0)
    loadings, variance = np.zeros((x.shape[1], max(latents, 1))), np.ones(x.shape[1])
    if latents:
        found = FactorAnalysis(latents, rotation="varimax", max_iter=200, tol=1e-3, random_state=0)
        found.fit((x - centre) / scale)
        loadings, variance = found.components_.T, np.maximum(found.noise_variance_, 1e-3)
    low, high = (torch.as_tensor((v - centre) / scale) for v in cells.ends)
    entries = Rounded(low, high, torch.zeros_like(high), torch.as_tensor(variance).sqrt())
    with drawing(0), torch.no_grad():
        value, _ = log_probability(entries, torch.as_tensor(loadings), Prior(torch.eye(loadings.shape[1]).double()))
    return value.numpy(), loadings
