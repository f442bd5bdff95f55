"""Estimates of scores s(x) = grad log p(x) from rows, and what differences of scores say about latents.

Three estimators, each a function of rows (rows, d) that may be called anywhere: `gaussian` (the precision), `stein`
(kernel features, in closed form) and `sliced` (a network, by sliced score matching). With x = G z, score differences of
environments are G^+' times those of the latents, and these are zero but for the target and its parents: see `Varici`
et al. (2024), "Score-based causal representation learning: linear and general transformations".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from pyrocrl.constructions.optimise import minimise
from pyrocrl.errors import one_of
from pyrocrl.parts.nets import MLP, Residual
from pyrocrl.turns import drawing

Score = Callable[[Tensor], Tensor]
Estimator = Literal["gaussian", "stein", "sliced"]
ESTIMATORS = ("gaussian", "stein", "sliced")
WIDTHS = (0.7, 1.0, 1.5)  # of kernels, in units of the rows' median distance
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2)
RECONSTRUCTION = 1.0  # weight beside the general transform's classifiers
LR, DECAY = 3e-3, 1e-5  # of sliced score matching


class Effort(NamedTuple):
    """centres: kernel features of the Stein estimator. held_out: share of the rows, for choosing among its kernels.
    hidden, batch, steps, slices: of sliced score matching. head, pairs_batch: of the general transform's classifiers.
    """

    centres: int = 200
    held_out: float = 0.2
    hidden: int = 64
    batch: int = 512
    steps: int = 400
    slices: int = 4
    head: int = 16
    pairs_batch: int = 1024


EFFORT = Effort()


def gaussian(x: Tensor) -> Score:
    """s(x) = -cov^-1 (x - mean): exact for Gaussian rows."""
    mean, precision = x.mean(0), torch.linalg.inv(torch.cov(x.mT))
    return lambda rows: -(rows - mean) @ precision


def stein(x: Tensor, generator: torch.Generator, effort: Effort = EFFORT) -> Score:
    """s(x) = W' f(x) with features f that meet Stein's identity E[f(x) s(x)' + grad f(x)] = 0, up to a ridge.

    Features are 1, x and Gaussian kernels about `effort.centres` of the rows, so that a Gaussian's score is among the
    solutions. The identity is also where the score-matching loss E[|s|^2 / 2 + div s] of Hyvarinen (2005) is least;
    kernel width and ridge are those of the least such loss on held-out rows. Li & Turner (2018), "Gradient estimators
    for implicit models"; Zhou, Shi & Zhu (2020), "Nonparametric score estimators".
    """
    mean, root = x.mean(0), torch.linalg.cholesky(torch.cov(x.mT))
    white = torch.linalg.solve_triangular(root, (x - mean).mT, upper=False).mT
    order = torch.randperm(len(x), generator=generator).to(x.device)
    cut = max(1, int(effort.held_out * len(x)))
    held, rest = white[order[:cut]], white[order[cut:]]
    centres = rest[: effort.centres]
    median = torch.cdist(centres, centres).median()
    best, weight, width = torch.inf, torch.zeros_like(x[:0]), median
    for scale in WIDTHS:
        c, d = _stein_moments(rest, centres, scale * median)
        c_held, d_held = _stein_moments(held, centres, scale * median)
        eye = torch.eye(len(c), dtype=c.dtype, device=c.device)
        for ridge in RIDGES:
            w = -torch.linalg.solve(c + ridge * eye, d)
            loss = float(0.5 * (w * (c_held @ w)).sum() + (w * d_held).sum())
            if loss < best:
                best, weight, width = loss, w, scale * median
    inverse = torch.linalg.inv(root)

    def score(rows: Tensor) -> Tensor:
        return _features((rows - mean) @ inverse.mT, centres, width) @ weight @ inverse

    return score


def _features(x: Tensor, centres: Tensor, width: Tensor) -> Tensor:
    kernel = (-0.5 * (torch.cdist(x, centres) / width).square()).exp()
    return torch.cat([torch.ones_like(x[:, :1]), x, kernel], 1)


def _stein_moments(x: Tensor, centres: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """(E[f f'] (feature, feature), E[grad f] (feature, d))."""
    f = _features(x, centres, width)
    kernel = f[:, 1 + x.shape[1] :]
    grad = (centres * kernel.sum(0)[:, None] - kernel.mT @ x) / width.square() / len(x)
    eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return f.mT @ f / len(x), torch.cat([torch.zeros_like(x[:1]), eye, grad])


def sliced(x: Tensor, generator: torch.Generator, effort: Effort = EFFORT) -> Score:
    """A network trained by sliced score matching: E[v' (ds/dx) v + |s|^2 / 2] over random directions v.

    Song, Garg, Shi & Ermon (2019), "Sliced score matching". Starts at the Gaussian score. The network draws its weights
    from torch's global generator, whose state is restored.
    """
    mean, sd = x.mean(0), x.std(0)
    unit = (x - mean) / sd
    precision = torch.linalg.inv(torch.cov(unit.mT))
    seed = int(torch.randint(2**31, (), generator=generator))
    with drawing(seed), torch.enable_grad():
        net: nn.Module = MLP([x.shape[1], effort.hidden, effort.hidden, x.shape[1]], "tanh").to(x)
        adam = torch.optim.Adam(net.parameters(), lr=LR, weight_decay=DECAY)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, effort.steps)
        for _ in range(effort.steps):
            pick = torch.randint(len(unit), (effort.batch,), generator=generator).to(x.device)
            rows = unit[pick].requires_grad_(True)
            score = net(rows) - rows @ precision
            loss = 0.5 * score.square().sum(1).mean()
            for _ in range(effort.slices):
                v = torch.randn(rows.shape, generator=generator, dtype=x.dtype).to(x.device)
                (along,) = torch.autograd.grad((score * v).sum(), rows, create_graph=True)
                loss = loss + (along * v).sum(1).mean() / effort.slices
            adam.zero_grad()
            loss.backward()
            adam.step()
            decay.step()
    net.requires_grad_(False)
    return lambda rows: (net((rows - mean) / sd) - (rows - mean) / sd @ precision) / sd


def estimate(x: Tensor, method: Estimator, generator: torch.Generator, effort: Effort = EFFORT) -> Score:
    """The score of the law that the rows x (rows, d) come from, by one of `ESTIMATORS`."""
    one_of("score", method, ESTIMATORS)
    if method == "gaussian":
        return gaussian(x)
    return stein(x, generator, effort) if method == "stein" else sliced(x, generator, effort)


def differences(
    x: Tensor, env: Tensor, target: Tensor, method: Estimator, generator: torch.Generator, effort: Effort = EFFORT
) -> Tensor:
    """R (latent, d, d): second moments, over the observational rows, of each target's score difference.

    x: (rows, d); env: (rows,); target: (env, latent) in {0, 1}, single targets. R_k averages s_0 - s_e over the
    environments e that target k.
    """
    free = target.sum(1) == 0
    natural = x[free[env]]
    base = estimate(natural, method, generator, effort)(natural)
    out = []
    for k in range(target.shape[1]):
        change = torch.zeros_like(natural)
        hits = torch.nonzero(target[:, k] > 0).flatten().tolist()
        for e in hits:
            change += base - estimate(x[env == e], method, generator, effort)(natural)
        change /= len(hits)
        out.append(change.mT @ change / len(natural))
    return torch.stack(out)


class _Pairs(nn.Module):
    """h with a classifier of each latent's environments that sees h_k alone, and a decoder."""

    def __init__(self, inputs: int, counts: list[int], width: int, head: int) -> None:
        super().__init__()
        self.encoder = Residual(inputs, len(counts), width)
        self.decoder = Residual(len(counts), inputs, width)
        self.heads = nn.ModuleList(MLP([1, head, head, count], "silu") for count in counts)


def encoder(
    x: Tensor,
    env: Tensor,
    target: Tensor,
    width: int,
    steps: int,
    generator: torch.Generator,
    effort: Effort = EFFORT,
) -> tuple[Residual, Residual]:
    """(h, decoder) with h_k(x) a function of latent k alone, from two or more hard interventions on each.

    The log-odds of two environments with hard interventions on k are a function of z_k alone, so that their gradients,
    the score differences, are diagonal in the latents (Varici et al. 2024, GSCALE-I). Minimised: the cross-entropies of
    classifiers that tell the environments of k apart by h_k(x), and the error of x decoded from h.
    x: (rows, inputs), standardised. Networks draw their weights from torch's global generator, whose state is restored.
    """
    latents = target.shape[1]
    hits = [torch.nonzero(target[:, k] > 0).flatten() for k in range(latents)]
    label = torch.full((latents, len(target)), -1, device=x.device)
    for k, envs in enumerate(hits):
        label[k, envs] = torch.arange(len(envs), device=x.device)
    seed = int(torch.randint(2**31, (), generator=generator))
    with drawing(seed):
        net = _Pairs(x.shape[1], [len(envs) for envs in hits], width, effort.head).to(x)

        def loss(pick: Tensor, _: float) -> Tensor:
            h = net.encoder(x[pick])
            h = (h - h.mean(0)) / h.std(0)
            total = RECONSTRUCTION * mse_loss(net.decoder(h), x[pick])
            for k, head in enumerate(net.heads):
                own = label[k, env[pick]]
                entropy = cross_entropy(head(h[:, k : k + 1]), own, ignore_index=-1, reduction="sum")
                total = total + entropy / (own >= 0).sum().clamp_min(1)
            return total

        minimise(net, loss, torch.arange(len(x), device=x.device), steps, effort.pairs_batch, generator)
    return net.encoder, net.decoder
