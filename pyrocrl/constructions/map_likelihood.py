"""The affine map from rows to latents of a `LatentSEM`, near one that was found: the noise it leaves, its posterior.

The map climbs the likelihood of all rows once more (`affine.descend`). A test asks whether noise of equations is then
standard normal and independent in every environment; a posterior, how far the rows tell the map.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from pyrocrl.constructions.affine import Affine, descend, told
from pyrocrl.parts.latent_sem import LatentSEM, log_prior_of_weights

STEPS = 200  # of a climb
MOST_NUMBERS = 600  # of map and equations, whose information is a matrix
FAR = 10.0  # times a latent's deviation, beyond which a draw of it is another latent
MOST_ROWS = 6_000  # whose scores are taken
WEAK = 0.25  # precision of all numbers a priori, in units of latents
UNTOLD = 0.25  # variance of a latent's zero, in units of latents, from which no row tells it


class Noise(NamedTuple):
    """value (rows, latent): noise of equations in its deviations; parameters: how many numbers were chosen so that its
    means and covariances in all environments are those of a standard normal law, or fewer."""

    value: Tensor
    parameters: int


@torch.no_grad()
def noise_left(z: Tensor, env: Tensor, prior: LatentSEM) -> Noise:
    """Noise that equations leave of rows z (rows, latent) under the affine map of z and the equations of most
    likelihood near those of `prior`: standard normal and independent in every environment where the equations are
    right. Latents are their noise, put through links along an order, so that nothing of their law is lost in it.

    Slopes of relu links, and maps beside them, fit more than means and covariances: they do not count.
    """
    one, white = _best(z, env, prior)
    known = one.sem
    d, edges = prior.latents, prior.before.sum(0)  # (latent,) parents
    there = torch.bincount(env, minlength=prior.environments) > 0
    own = {(int(known.slot[e, k]), int(k)) for e, k in known.target.nonzero() if there[e]}
    count = 2 * d + len(own) * (1 if prior.intervention == "shift" else 2)
    if prior.mechanism == "linear":
        soft = prior.intervention == "soft"
        count += d * (d - 1) + int(edges.sum()) - soft * d * (d - 1) // 2
        count += sum(int(edges[k]) for _, k in own) * soft
    return Noise(known.residuals(white @ one.matrix.mT + one.shift, env), count)


def _best(z: Tensor, env: Tensor, prior: LatentSEM) -> tuple[Affine, Tensor]:
    """The map and equations of most likelihood near z (rows, latent), and z standardised, in double precision."""
    unit, centre = z.std(0), z.mean(0)
    known = told(prior)
    known.before.copy_(prior.before)
    first = Affine(known, torch.diag(unit), centre)
    one, white = copy.deepcopy(first), (z - centre) / unit
    value = descend(one, white, env, STEPS)
    found = math.isfinite(value) and all(bool(v.isfinite().all()) for v in one.parameters())
    return one if found else first.double(), white.double()  # a map that is not told may end nowhere


class _Turned(nn.Module):
    """log p of one row z (latent,) read as z + turn z + shift, turn without a diagonal."""

    def __init__(self, sem: LatentSEM) -> None:
        super().__init__()
        self.sem = sem
        self.turn = nn.Parameter(torch.zeros_like(sem.weight))
        # levels of linear equations take up a shift
        self.shift = nn.Parameter(torch.zeros_like(sem.intercept), requires_grad=sem.mechanism == "relu")

    def forward(self, z: Tensor, env: Tensor) -> Tensor:
        turn = self.turn - torch.diag(self.turn.diagonal())
        log_volume = torch.linalg.slogdet(torch.eye(len(z)).to(z) + turn).logabsdet
        return self.sem.log_prob((z + turn @ z + self.shift)[None], env[None])[0] + log_volume


@torch.no_grad()
def map_draws(
    z: Tensor, env: Tensor, prior: LatentSEM, draws: int, generator: torch.Generator, drawn: Tensor
) -> Tensor | None:
    """(draw, rows, latent) what `drawn` (rows, latent), draws of rows' latents of means z, become under draws of the
    map's posterior; None where the numbers are too many, or the rows do not tell the map.

    It is normal about the map to `drawn`, as wide as it is about the most likely one, each latent of slope 1 on its own
    z, jointly with the equations, whose part is dropped. Its precision is the rows' information, as the mean square of
    their scores, and that of the prior of weights: one that is all but none leaves the map of its child less room. A
    zero of a latent that no link tells is a convention, and stays.
    """
    one, white = _best(z, env, prior)
    best = white @ one.matrix.mT + one.shift  # (rows, latent)
    turned = _Turned(one.sem)
    free = {name: value.detach() for name, value in turned.named_parameters() if value.requires_grad}
    if sum(value.numel() for value in free.values()) > MOST_NUMBERS:
        return None
    rows = torch.linspace(0, len(z) - 1, min(len(z), MOST_ROWS), device=z.device).long()

    def density(number: dict[str, Tensor], row: Tensor, code: Tensor) -> Tensor:
        out: Tensor = functional_call(turned, number, (row, code))
        return out

    with torch.enable_grad():
        each = vmap(grad(density), (None, 0, 0))(free, best[rows], env[rows])
        bend = vmap(grad(grad(lambda w: log_prior_of_weights(w, one.sem.edge_probability, one.sem.spike))))
        sharp = {"sem.weight": -bend(one.sem.weight.detach().flatten()).clamp(max=0.0)}
    score = torch.cat([each[name].flatten(1) for name in free], 1)  # (rows, number)
    extra = torch.cat([sharp.get(name, torch.zeros(value.numel()).to(score)) for name, value in free.items()])
    total = len(z) / len(rows) * score.mT @ score + torch.diag(extra + WEAK)
    told_by = score.norm(dim=0) > 0  # others are of equations that are not there
    if "shift" in free:
        size = free["turn"].numel()
        told_by[size : size + len(z[0])] &= torch.linalg.inv(total).diagonal()[size : size + len(z[0])] < UNTOLD
    root = torch.linalg.cholesky(total[told_by][:, told_by])
    noise = torch.randn(len(root), draws, generator=generator, dtype=root.dtype).to(root)
    number = score.new_zeros(draws, len(told_by))
    number[:, told_by] = torch.linalg.solve_triangular(root.mT, noise, upper=True).mT
    parts = dict(zip(free, number.split([value.numel() for value in free.values()], 1), strict=True))
    turn = parts["turn"].unflatten(1, free["turn"].shape)
    turn = turn - torch.diag_embed(turn.diagonal(dim1=1, dim2=2))
    of = best + (drawn - z).double() / z.std(0).double() @ one.matrix.mT
    moved = of @ turn.mT + (parts["shift"][:, None] if "shift" in parts else 0.0)
    # about the map that the decoder goes with, for predictions go through it; the climb leaves scales anywhere
    out = drawn + moved / (one.matrix.diagonal() / z.std(0).double())
    size = free["turn"].numel()
    still = ~told_by[size : size + len(z[0])] if "shift" in free else torch.ones_like(told_by[: len(z[0])])
    out = out + still * (drawn.mean(0) - out.mean(1))[:, None]  # and zeros that nothing tells
    spread = out.std(1) / drawn.std(0)  # (draw, latent)
    near = bool((spread < FAR).all() and (spread > 1 / FAR).all())  # not where the map is not told, nor if not a number
    return out if near else None
