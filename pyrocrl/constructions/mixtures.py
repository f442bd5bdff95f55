"""Mixtures of Gaussians behind an invertible piecewise affine map: the search that starts chains of `gmm_vae`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyrocrl.parts.piecewise_affine import CORNER, SLOPE, steepened, unmix

WIDE = 1.0  # width of corners at the start of the search, where h is nearly linear


class Effort(NamedTuple):
    """polish: share of the steps with diagonal covariances. rows: a step. kept: starts that are polished."""

    polish: float = 0.25
    rows: int = 500
    kept: int = 6


EFFORT = Effort()


def search(
    y: Tensor,
    components: int,
    layers: int,
    starts: int,
    steps: int,
    generator: torch.Generator,
    effort: Effort = EFFORT,
) -> dict[str, Tensor]:
    """Parameters of h^-1 and the mixture with the best likelihood of y (rows, latent), of many local optima.

    Returns matrix, shift and bend of the map's `Maps`, component_mean, log_spread (component, latent) and logits
    (component,).

    As the proof goes: from many starts at once, maximise the likelihood under full covariances, corners growing
    sharper; that gives the latents up to an affine map. Diagonalise the components' covariances jointly, then
    maximise under diagonal ones. Optima differ by hundredths of a nat a row, which only all rows together can tell.
    """
    state = _random_start(y, components, layers, starts, generator)
    _climb(state, y, steps, effort.rows, 3e-2, (WIDE, CORNER), generator)
    best = _score(y, state).topk(min(effort.kept, starts)).indices
    state = _diagonalised({name: value[best] for name, value in state.items()})
    _climb(state, y, max(1, int(effort.polish * steps)), effort.rows, 1e-2, (CORNER, CORNER), generator)
    winner = int(_score(y, state).argmax())
    return {name: value[winner] for name, value in state.items()}


def _random_start(
    y: Tensor, components: int, layers: int, starts: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """`starts` nearly linear maps with corners in random directions, and components at random rows."""
    latents = y.shape[1]

    def normal(*shape: int) -> Tensor:
        return torch.randn(starts, *shape, generator=generator, dtype=y.dtype)

    matrix = torch.linalg.qr(normal(layers + 1, latents, latents))[0]
    shift = 0.5 * normal(layers + 1, latents)
    bend = torch.full((starts, layers, latents), -math.log(SLOPE), dtype=y.dtype)
    z = y[torch.randperm(len(y), generator=generator)[:2000]].expand(starts, -1, -1)
    for i in range(layers + 1):
        z = z @ matrix[:, i]
        mean, spread = z.mean(1), z.std(1)
        matrix[:, i] /= spread[:, None]  # standardise the layer's input before the shift
        shift[:, i] -= mean / spread
        z = z / spread[:, None] + shift[:, i, None]
        if i < layers:
            z, _ = steepened(z, bend[:, i, None], WIDE)
    at = torch.randint(z.shape[1], (starts, components), generator=generator)
    return {
        "matrix": matrix,
        "shift": shift,
        "bend": bend,
        "component_mean": torch.gather(z, 1, at[..., None].expand(-1, -1, latents)),
        "log_spread": (z.std(1).log() - 0.5)[:, None].repeat(1, components, 1),
        "logits": torch.zeros(starts, components, dtype=y.dtype),
        "skew": torch.zeros(starts, components, latents, latents, dtype=y.dtype),
    }


def _log_density(y: Tensor, state: dict[str, Tensor], corner: float) -> Tensor:
    """(start, rows) log p(y), components' precisions being T'T with T = diag(1 / spread) + the lower part of skew."""
    z, log_det = unmix(y, (state["matrix"], state["shift"], state["bend"]), corner)
    gap = z[:, None] - state["component_mean"][:, :, None]  # (start, component, rows, latent)
    whitened = gap * (-state["log_spread"]).exp()[:, :, None]
    if "skew" in state:
        whitened = whitened + gap @ state["skew"].tril(-1).mT
    log_scale = state["log_spread"].sum(-1) + 0.5 * z.shape[-1] * math.log(2 * math.pi)
    each = state["logits"].log_softmax(-1) - log_scale  # (start, component)
    return (each[..., None] - 0.5 * whitened.square().sum(-1)).logsumexp(1) + log_det


def _score(y: Tensor, state: dict[str, Tensor]) -> Tensor:
    """(start,) mean log-density, -inf where it is not a number."""
    return _log_density(y, state, CORNER).mean(-1).nan_to_num(nan=-torch.inf)


def _climb(
    state: dict[str, Tensor],
    y: Tensor,
    steps: int,
    size: int,
    lr: float,
    corners: tuple[float, float],
    generator: torch.Generator,
    hold: float = 0.6,
) -> None:
    """Adam on the mean log-density of minibatches of `size` rows, for all starts at once; corners and then lr fall."""
    starts, first, last = len(state["shift"]), *corners
    values = list(state.values())
    with torch.enable_grad():
        for value in values:
            value.requires_grad_(True)
        optimiser = torch.optim.Adam(values)
        for step in range(steps):
            at = step / steps
            fall = 0.5 * (1 + math.cos(math.pi * max(0.0, at - hold) / (1 - hold)))
            optimiser.param_groups[0]["lr"] = lr * min(1.0, (step + 1) / 20) * (fall + 1e-3)
            corner = first * (last / first) ** min(1.0, at / hold)
            rows = torch.randint(len(y), (starts, min(size, len(y))), generator=generator)
            loss = -_log_density(y[rows], state, corner).mean(-1)
            gradients = torch.autograd.grad(loss.sum(), values)
            norm = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0).sqrt()
            factor = torch.where(norm.isfinite(), (5.0 / (norm + 1e-6)).clamp(max=1.0), 0.0)
            for value, g in zip(values, gradients, strict=True):
                value.grad = g.nan_to_num() * factor.view(-1, *[1] * (g.dim() - 1))
            optimiser.step()
    for value in values:
        value.requires_grad_(False)


def _diagonalised(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same states in latents that make all components' covariances as diagonal as one matrix can."""
    state = {name: value.clone() for name, value in state.items()}
    factor = state.pop("skew").tril(-1) + torch.diag_embed((-state["log_spread"]).exp())
    covariance = torch.linalg.inv(factor.mT @ factor)
    weights = state["logits"].softmax(-1)
    for start in range(len(covariance)):
        found = joint_diagonaliser(covariance[start].double().numpy(), weights[start].double().numpy())
        turn = torch.as_tensor(found).to(factor)  # z -> turn z
        state["matrix"][start, -1] = state["matrix"][start, -1] @ turn.mT
        state["shift"][start, -1] = state["shift"][start, -1] @ turn.mT
        state["component_mean"][start] = state["component_mean"][start] @ turn.mT
        rotated = turn @ covariance[start] @ turn.mT
        state["log_spread"][start] = 0.5 * rotated.diagonal(dim1=-2, dim2=-1).log()
    return state


def joint_diagonaliser(covariance: np.ndarray, weights: np.ndarray, sweeps: int = 200) -> np.ndarray:
    """B (latent, latent) minimising sum_c w_c [log det diag(B S_c B') - log det(B S_c B')] (Pham 2001).

    covariance: (component, latent, latent), positive definite; weights: (component,). Starts from the eigenvectors of
    several random combinations after whitening by the mean; each sweep takes Pham's step for every pair of rows.
    """
    count, size, _ = covariance.shape
    whiten = np.linalg.inv(np.linalg.cholesky(np.einsum("c,cab->ab", weights, covariance)))
    best, least = whiten, np.inf
    for seed in range(6):
        mix = np.random.default_rng(seed).standard_normal(count)
        turned = np.einsum("c,cab->ab", mix, whiten @ covariance @ whiten.T)
        found = np.linalg.eigh(turned)[1].T @ whiten
        s = found @ covariance @ found.T
        for _ in range(sweeps):
            moved = 0.0
            for i in range(size):
                for j in range(i):
                    g_ij, g_ji = weights @ (s[:, i, j] / s[:, i, i]), weights @ (s[:, i, j] / s[:, j, j])
                    w_ij, w_ji = weights @ (s[:, j, j] / s[:, i, i]), weights @ (s[:, i, i] / s[:, j, j])
                    free = max(w_ij * w_ji - 1.0, 1e-9)
                    h_ij, h_ji = (w_ji * g_ij - g_ji) / free, (w_ij * g_ji - g_ij) / free
                    scale = 1.0 + math.sqrt(max(1.0 - h_ij * h_ji, 1e-12))
                    step = np.eye(size)
                    step[i, j], step[j, i] = -h_ij / scale, -h_ji / scale
                    found, s = step @ found, step @ s @ step.T
                    moved = max(moved, abs(g_ij * h_ij + g_ji * h_ji))
            if moved < 1e-10:
                break
        value = weights @ (np.log(np.diagonal(s, axis1=1, axis2=2)).sum(1) - np.linalg.slogdet(s)[1])
        if value < least:
            best, least = found, value
    spread = np.sqrt(np.diag(best @ np.einsum("c,cab->ab", weights, covariance) @ best.T))
    return best / spread[:, None]
