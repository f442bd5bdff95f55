"""Latents behind a polynomial, by linear algebra: which functions of x are affine in them, and which are held constant.

Where x = C kappa(z), kappa all monomials up to degree p, the principal components of x span P_p, the polynomials of
degree p in z.

1. Those that are constant in environment e are y P_{p-1} for one affine y = z_t - c_e, and y is the one whose powers up
   to p stay inside P_p: least squares from the function that varies most slowly between neighbours.
2. Hence P_{p-1}, and the affine functions are those f with f P_{p-1} inside P_p, an eigenproblem.
3. In each environment the affine function of least variance is its target; environments of one latent have the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from pyrocrl.exact.regression import least_squares

EXACT = 1e-6  # share of a power's variance outside P_p that ends the search
CONSTANT = 0.05  # most variance, of a code's, in an environment that holds it constant
SAME = 0.02  # distance, 1 - |cosine|, between directions of one latent


class Effort(NamedTuple):
    """rows: of the least squares. neighbours: of each of them. steps: of Levenberg and Marquardt."""

    rows: int = 2_500
    neighbours: int = 5
    steps: int = 80


EFFORT = Effort()


def unmixing(
    x: Tensor,
    env: Tensor,
    latents: int,
    degree: int,
    hit: Tensor | None,
    generator: torch.Generator,
    effort: Effort = EFFORT,
) -> tuple[Tensor, Tensor, Tensor]:
    """(unmixing (latent, feature), latents (rows, latent), hit (env, latent)): z = x unmixing', of variance 1.

    x: (rows, feature), centred, double. hit: which environment holds which latent constant; None = found here, and
    latents in random order.
    """
    affine = affine_functions(x, env, latents, degree, generator, effort)  # (feature, latent)
    code = x @ affine
    parts = [code[env == e] for e in range(int(env.max()) + 1)]
    found = constants(parts) if hit is None else hit
    turn = held_directions(parts, found, generator)
    turn = turn / (code @ turn.mT).std(0)[:, None]
    if hit is None:
        order = torch.randperm(latents, generator=generator)
        turn, found = turn[order], found[:, order]
    return turn @ affine.mT, code @ turn.mT, found


def affine_functions(
    x: Tensor, env: Tensor, latents: int, degree: int, generator: torch.Generator, effort: Effort = EFFORT
) -> Tensor:
    """(feature, latent) combinations of x (rows, feature; centred) that are affine in the latents, white over all rows.

    Steps (1) and (2) of the proof, on as many as `effort.rows` rows.
    """
    count = math.comb(latents + degree, degree) - 1
    value, vector = torch.linalg.eigh(x.mT @ x / len(x))
    basis = vector[:, -count:] / value[-count:].clamp_min(1e-12 * value[-1]).sqrt()  # (feature, count)
    few = torch.randperm(len(x), generator=generator)[: effort.rows]
    white = x @ basis
    u = white[few]  # with a constant, P_p on these rows
    parts = [white[env == e] for e in range(int(env.max()) + 1)]
    null, y = _held(x[few], u, parts, latents, degree, effort)
    # f is affine iff f P_{p-1} is inside P_p; times y, not to divide by it: f (y P_{p-1}) inside y P_p
    full = torch.cat([torch.ones_like(u[:, :1]), u], 1)
    image = torch.linalg.qr(y[:, None] * full)[0]
    total, outside = torch.zeros(2, count + 1, count + 1).to(full)
    for n in null.mT:
        moved = n[:, None] * full
        kept = image.mT @ moved
        total, outside = total + moved.mT @ moved, outside + moved.mT @ moved - kept.mT @ kept
    root = torch.linalg.inv(torch.linalg.cholesky(total))
    smallest = root.mT @ torch.linalg.eigh(root @ outside @ root.mT).eigenvectors[:, : latents + 1]
    span = basis @ torch.linalg.svd(smallest[1:], full_matrices=False).U[:, :latents]  # without the constant
    value, vector = torch.linalg.eigh(torch.cov((x @ span).mT).reshape(latents, latents))
    return span @ vector / value.sqrt()


def _held(
    x: Tensor, u: Tensor, parts: Sequence[Tensor], latents: int, degree: int, effort: Effort
) -> tuple[Tensor, Tensor]:
    """Step (1): y P_{p-1} (rows, functions) and y (rows,) of the environment where such a y is clearest.

    x, u: (rows, feature) and their white components (rows, count); parts: those of all rows of each environment.
    """
    fewer = math.comb(latents + degree - 1, degree - 1)
    near = torch.cdist(x, x).topk(effort.neighbours + 1, largest=False).indices[:, 1:]
    apart = (u[:, None] - u[near]).flatten(0, 1)
    slowness = apart.mT @ apart / len(apart)
    candidates = []
    for e, own in enumerate(parts):
        level, axes = torch.linalg.eigh(torch.cov(own.mT).reshape(slowness.shape))
        gap = float(level[fewer - 1] / level[fewer]) if fewer < len(level) else float(level[0])
        candidates.append((gap, e, own.mean(0), axes[:, :fewer]))
    full = torch.cat([torch.ones_like(u[:, :1]), u], 1)
    best, y, least = full, u[:, 0], math.inf
    for _, _, mean, axes in sorted(candidates, key=lambda one: one[:2]):
        null = (u - mean) @ axes  # (rows, fewer) functions that are 0 in the environment: y P_{p-1}
        start = torch.linalg.eigh(axes.mT @ slowness @ axes).eigenvectors[:, 0]
        found, outside = powers_inside(null, start, full, degree, effort.steps)
        if outside < least:
            best, y, least = null, null @ found, outside
        if least < EXACT:
            break
    return best, y


def powers_inside(
    null: Tensor, start: Tensor, full: Tensor, degree: int, steps: int = EFFORT.steps
) -> tuple[Tensor, float]:
    """(g, share) minimising the share of the variance of (null g)^2 .. (null g)^degree outside the span of `full`.

    null: (rows, functions), full: (rows, functions). Levenberg and Marquardt's method from `start`.
    """
    inside = torch.linalg.qr(full)[0]

    def residual(g: Tensor) -> tuple[Tensor, Tensor]:
        f = null @ g
        size = f.square().mean().sqrt()  # the residual does not depend on the scale of g
        f = f / size
        parts, slopes = [], []
        for k in range(2, degree + 1):
            power = f**k - (f**k).mean()
            unit = power.norm()
            slope = (k * f ** (k - 1) / unit)[:, None] * null / size
            power, along = power / unit, slope.mT @ power / unit  # how fast the power itself grows
            power = power - inside @ (inside.mT @ power)
            parts.append(power)
            slopes.append(slope - inside @ (inside.mT @ slope) - torch.outer(power, along))
        return torch.cat(parts), torch.cat(slopes)

    g, damping = start / start.norm(), 1e-2
    if degree == 1:
        return g, 0.0
    r, j = residual(g)
    for _ in range(steps):
        hessian = j.mT @ j
        shrink = damping * (hessian.diagonal() + 1e-9 * hessian.diagonal().mean())
        new = g - torch.linalg.solve(hessian + torch.diag(shrink), j.mT @ r)
        new = new / new.norm()
        r_new, j_new = residual(new)
        before, after = float(r @ r), float(r_new @ r_new)
        if after < before:
            g, r, j, damping = new, r_new, j_new, max(damping / 5, 1e-12)
        else:
            damping *= 5
        if after < 1e-20 or damping > 1e8 or 0 < before - after < 1e-6 * before:
            break
    return g, float(r @ r) / (degree - 1)


def quietest(parts: Sequence[Tensor]) -> tuple[float, Tensor]:
    """(variance, direction (d,)) of the combination that varies least within all parts (rows, d)."""
    centred = torch.cat([part - part.mean(0) for part in parts])
    value, vector = torch.linalg.eigh(centred.mT @ centred / len(centred))
    return float(value[0]), vector[:, 0]


def constants(parts: Sequence[Tensor]) -> Tensor:
    """(env, d) in {0, 1}: environments that hold the same combination of codes constant, one column a combination.

    parts: the codes (rows, d) of each environment, white over all of them.
    """
    d = parts[0].shape[1]
    found = [quietest([part]) for part in parts]
    held = [e for e, (variance, _) in enumerate(found) if variance < CONSTANT]
    hit = torch.zeros(len(parts), d)
    if not held:
        return hit
    label = np.ones(1, dtype=int)
    if len(held) > 1:
        axes = torch.stack([found[e][1] for e in held])
        apart = (1 - (axes @ axes.mT).abs()).clamp_min(0.0).fill_diagonal_(0.0)
        tree = linkage(squareform(apart.numpy(), checks=False), "complete")
        label = fcluster(tree, SAME, "distance")
        if label.max() > d:
            label = fcluster(tree, d, "maxclust")
    hit[held, torch.as_tensor(label - 1, dtype=torch.long)] = 1.0
    return hit


def held_directions(parts: Sequence[Tensor], hit: Tensor, generator: torch.Generator) -> Tensor:
    """(latent, code) directions of the latents, step (3), of random sign; those that nothing holds at random.

    parts: the codes (rows, latent) of each environment; hit: (env, latent) in {0, 1}.
    """
    latents = hit.shape[1]
    turn = torch.zeros(latents, latents, dtype=torch.float64)
    held, free = (torch.nonzero(hit.any(0) == there).flatten().tolist() for there in (True, False))
    for k in held:
        turn[k] = quietest([part for part, own in zip(parts, hit[:, k], strict=True) if own])[1]
    if free:
        rest = torch.linalg.svd(turn[held]).Vh[len(held) :] if held else torch.eye(latents).to(turn)
        turn[free] = torch.linalg.qr(torch.randn(len(free), len(free), generator=generator).to(turn))[0] @ rest
    return turn * (2 * torch.randint(2, (latents, 1), generator=generator).to(turn) - 1)


class Laws(NamedTuple):
    """Gaussian laws of latents in each environment: env_mean (env, latent), env_root (env, latent, latent), a Cholesky
    factor with the log of its diagonal, rows_in (env,); log_odds (env, latent + 1) of each target, and of none."""

    env_mean: Tensor
    env_root: Tensor
    rows_in: Tensor
    log_odds: Tensor


def laws(z: Tensor, error: Tensor, env: Tensor, hit: Tensor, fixed: float) -> Laws:
    """Of latents z (rows, latent) of error variance `error` (latent,), a target being apart from the others.

    hit: (env, latent), which environment holds which latent; fixed: the deviation of one that is held.
    """
    floor = torch.diag(fixed**2 + 2 * error)
    found = []
    for e in range(len(hit)):
        own, free = z[env == e], torch.nonzero(hit[e] < 0.5).flatten()
        cov = torch.cov(own.mT).reshape(floor.shape)
        root = torch.zeros_like(cov)
        root[free[:, None], free] = torch.linalg.cholesky((cov + floor)[free][:, free])
        spread = (root.diagonal() - fixed).clamp_min(1e-3).log()
        rows = z.new_tensor(float(len(own)))
        found.append((own.mean(0), root.tril(-1) + torch.diag_embed(spread), rows, evidence(cov, floor, len(own))))
    return Laws(*(torch.stack(part) for part in zip(*found, strict=True)))


def axis_roots(z: Tensor, env: Tensor, hit: Tensor) -> Tensor:
    """(latent, latent, latent) R_t R_t' the covariance of how much of the others z (rows, latent) there is in latent t.

    What says so are rows where t is held: there what is left of it does not go with the others. So it is that of a
    regression of t on them in these rows, each environment about its mean; a priori N(0, 1).
    """
    d = z.shape[1]
    out = z.new_zeros(d, d, d)
    for t in range(d):
        others = [k for k in range(d) if k != t]
        held = [z[env == e] for e in torch.nonzero(hit[:, t] > 0.5).flatten()]
        precision = torch.eye(d - 1).to(z)
        if held and d > 1:
            rows = torch.cat([own - own.mean(0) for own in held])
            x, y = rows[:, others], rows[:, t]
            left = y - x @ least_squares(x, y[:, None])[:, 0]
            precision = precision + x.mT @ x * max(1, len(y) - len(held) - d + 1) / left.square().sum()
        out[t][torch.as_tensor(others)[:, None], torch.as_tensor(others)] = torch.linalg.cholesky(precision.inverse())
    return out


def evidence(cov: Tensor, floor: Tensor, rows: int) -> Tensor:
    """(d + 1,) log-evidence (BIC) that an environment holds latent k at a constant, or, last, none.

    cov: (d, d) of the latents there; floor: (d, d) diagonal, the variance of a latent that is held.
    """
    d = len(cov)
    seen = cov + floor
    out = [-0.5 * rows * (torch.linalg.slogdet(seen).logabsdet + d) - 0.25 * d * (d + 3) * math.log(rows)]
    for k in reversed(range(d)):
        rest = [j for j in range(d) if j != k]
        deviance = torch.linalg.slogdet(seen[rest][:, rest]).logabsdet + d - 1
        spread = seen[k, k].clamp_max(2 * floor[k, k])  # as of any latent that varies no more than one that is held
        deviance = deviance + spread.log() + seen[k, k] / spread
        size = 0.5 * (d - 1) * (d + 2) + 1
        out.append(-0.5 * rows * deviance - 0.5 * size * math.log(rows))
    return torch.stack(out[::-1])
