"""Estimates of scores s(x) = grad log p(x) from rows, and what differences of scores say about latents.

Three estimators, each a function of rows (rows, d) that may be called anywhere: `gaussian` (the precision), `stein`
(kernel features, in closed form) and `sliced` (a network, by sliced score matching). With x = G z, score differences of
environments are G^+' times those of the latents, and these are zero but for the target and its parents: see `Varici`
et al. (2024), "Score-based causal representation learning: linear and general transformations".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from pyrocrl.constructions.optimise import minimise
from pyrocrl.errors import one_of
from pyrocrl.parts.nets import MLP, Residual

Score = Callable[[Tensor], Tensor]
Estimator = Literal["gaussian", "stein", "sliced"]
ESTIMATORS = ("gaussian", "stein", "sliced")
CENTRES = 200  # kernel features of the Stein estimator
WIDTHS = (0.7, 1.0, 1.5)  # of kernels, in units of the rows' median distance
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2)
HELD_OUT = 0.2  # of the rows, for choosing among these
HEAD, PAIRS_BATCH, RECONSTRUCTION = 16, 1024, 1.0  # of the general transform's classifiers
HIDDEN, BATCH, STEPS, LR, SLICES, DECAY = 64, 512, 400, 3e-3, 4, 1e-5  # of sliced score matching


def gaussian(x: Tensor) -> Score:
    """s(x) = -cov^-1 (x - mean): exact for Gaussian rows."""
    mean, precision = x.mean(0), torch.linalg.inv(torch.cov(x.mT))
    return lambda rows: -(rows - mean) @ precision


def stein(x: Tensor, generator: torch.Generator) -> Score:
    """s(x) = W' f(x) with features f that meet Stein's identity E[f(x) s(x)' + grad f(x)] = 0, up to a ridge.

    Features are 1, x and Gaussian kernels about `CENTRES` of the rows, so that a Gaussian's score is among the
    solutions. The identity is also where the score-matching loss E[|s|^2 / 2 + div s] of Hyvarinen (2005) is least;
    kernel width and ridge are those of the least such loss on held-out rows. Li & Turner (2018), "Gradient estimators
    for implicit models"; Zhou, Shi & Zhu (2020), "Nonparametric score estimators".
    """
    mean, root = x.mean(0), torch.linalg.cholesky(torch.cov(x.mT))
    white = torch.linalg.solve_triangular(root, (x - mean).mT, upper=False).mT
    order = torch.randperm(len(x), generator=generator).to(x.device)
    cut = max(1, int(HELD_OUT * len(x)))
    held, rest = white[order[:cut]], white[order[cut:]]
    centres = rest[:CENTRES]
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


def sliced(x: Tensor, generator: torch.Generator) -> Score:
    """A network trained by sliced score matching: E[v' (ds/dx) v + |s|^2 / 2] over random directions v.

    Song, Garg, Shi & Ermon (2019), "Sliced score matching". Starts at the Gaussian score. The network draws its weights
    from torch's global generator, whose state is restored.
    """
    mean, sd = x.mean(0), x.std(0)
    unit = (x - mean) / sd
    precision = torch.linalg.inv(torch.cov(unit.mT))
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net: nn.Module = MLP([x.shape[1], HIDDEN, HIDDEN, x.shape[1]], "tanh").to(x)
        adam = torch.optim.Adam(net.parameters(), lr=LR, weight_decay=DECAY)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
        for _ in range(STEPS):
            pick = torch.randint(len(unit), (BATCH,), generator=generator).to(x.device)
            rows = unit[pick].requires_grad_(True)
            score = net(rows) - rows @ precision
            loss = 0.5 * score.square().sum(1).mean()
            for _ in range(SLICES):
                v = torch.randn(rows.shape, generator=generator, dtype=x.dtype).to(x.device)
                (along,) = torch.autograd.grad((score * v).sum(), rows, create_graph=True)
                loss = loss + (along * v).sum(1).mean() / SLICES
            adam.zero_grad()
            loss.backward()
            adam.step()
            decay.step()
    net.requires_grad_(False)
    return lambda rows: (net((rows - mean) / sd) - (rows - mean) / sd @ precision) / sd


def estimate(x: Tensor, method: Estimator, generator: torch.Generator) -> Score:
    """The score of the law that the rows x (rows, d) come from, by one of `ESTIMATORS`."""
    one_of("score", method, ESTIMATORS)
    if method == "gaussian":
        return gaussian(x)
    return stein(x, generator) if method == "stein" else sliced(x, generator)


def differences(x: Tensor, env: Tensor, target: Tensor, method: Estimator, generator: torch.Generator) -> Tensor:
    """R (latent, d, d): second moments, over the observational rows, of each target's score difference.

    x: (rows, d); env: (rows,); target: (env, latent) in {0, 1}, single targets. R_k averages s_0 - s_e over the
    environments e that target k.
    """
    free = target.sum(1) == 0
    natural = x[free[env]]
    base = estimate(natural, method, generator)(natural)
    out = []
    for k in range(target.shape[1]):
        change = torch.zeros_like(natural)
        hits = torch.nonzero(target[:, k] > 0).flatten().tolist()
        for e in hits:
            change += base - estimate(x[env == e], method, generator)(natural)
        change /= len(hits)
        out.append(change.mT @ change / len(natural))
    return torch.stack(out)


class _Pairs(nn.Module):
    """h with a classifier of each latent's environments that sees h_k alone, and a decoder."""

    def __init__(self, inputs: int, counts: list[int], width: int) -> None:
        super().__init__()
        self.encoder = Residual(inputs, len(counts), width)
        self.decoder = Residual(len(counts), inputs, width)
        self.heads = nn.ModuleList(MLP([1, HEAD, HEAD, count], "silu") for count in counts)


def encoder(
    x: Tensor, env: Tensor, target: Tensor, width: int, steps: int, generator: torch.Generator
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _Pairs(x.shape[1], [len(envs) for envs in hits], width).to(x)

        def loss(pick: Tensor, _: float) -> Tensor:
            h = net.encoder(x[pick])
            h = (h - h.mean(0)) / h.std(0)
            total = RECONSTRUCTION * mse_loss(net.decoder(h), x[pick])
            for k, head in enumerate(net.heads):
                own = label[k, env[pick]]
                entropy = cross_entropy(head(h[:, k : k + 1]), own, ignore_index=-1, reduction="sum")
                total = total + entropy / (own >= 0).sum().clamp_min(1)
            return total

        minimise(net, loss, torch.arange(len(x), device=x.device), steps, PAIRS_BATCH, generator)
    return net.encoder, net.decoder
