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

from pyrocrl.constructions import affine
from pyrocrl.constructions.affine import Affine
from pyrocrl.exact import zero_groups
from pyrocrl.parts.latent_sem import LatentSEM

STEPS = 200  # of a climb
MOST_NUMBERS = 600  # of map and equations, whose information is a matrix
FAR = 10.0  # times a latent's deviation, beyond which a draw of it is another latent
MOST_ROWS = 6_000  # whose scores are taken
WEAK = 0.25  # precision a priori of numbers that are no weights, in units of latents
SLIGHT = 1e-6  # and of weights, beside that of one row, which may tell some of them nothing
UNTOLD = 0.25  # variance of a latent's zero, in units of latents, from which no row tells it


class Noise(NamedTuple):
    """value (rows, latent): noise of equations in its deviations; parameters: how many numbers were chosen so that its
    means and covariances in all environments are those of a standard normal law, or fewer; bent: whether a network
    reads latents, whose error no affine map takes back."""

    value: Tensor
    parameters: int
    bent: bool = False


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
    known = affine.told(prior)
    known.before.copy_(prior.before)
    first = Affine(known, torch.diag(unit), centre)
    one, white = copy.deepcopy(first), (z - centre) / unit
    value = affine.descend(one, white, env, STEPS)
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

    The likelihood is normal about its maximum, each latent of slope 1 on its own z, jointly with the equations, whose
    part is dropped; edges of the order may be missing (`zero_groups`), so that a map under which few edges are needed
    is as likely as they are. Weights have a unit-information prior. A zero of a latent that no link tells is a
    convention, and stays.
    """
    one, white = _best(z, env, prior)
    best = white @ one.matrix.mT + one.shift  # (rows, latent)
    told = _numbers(_Turned(one.sem), best, env)
    if told is None:
        return None
    parts = _draws(told, one.sem, env, draws, generator)
    turn = parts["turn"] - torch.diag_embed(parts["turn"].diagonal(dim1=1, dim2=2))
    of = best + (drawn - z).double() / z.std(0).double() @ one.matrix.mT
    moved = of + of @ turn.mT + (parts["shift"][:, None] if "shift" in parts else 0.0)
    out = moved / (one.matrix.diagonal() / z.std(0).double())  # the climb leaves scales anywhere
    still = ~told.of("shift") if "shift" in parts else torch.ones_like(of[0], dtype=torch.bool)
    out = out + still * (drawn.mean(0) - out.mean(1))[:, None]  # and zeros that nothing tells
    spread = out.std(1) / drawn.std(0)  # (draw, latent)
    near = bool((spread < FAR).all() and (spread > 1 / FAR).all())  # not where the map is not told, nor if not a number
    return out if near else None


class _Numbers(NamedTuple):
    """Numbers of map and equations: `value` by name; of all one after another, information (number, number) and linear
    part (number,) of a normal likelihood, with weights from 0 and others from `value` on; whether rows tell them."""

    value: dict[str, Tensor]
    information: Tensor
    linear: Tensor
    there: Tensor

    def split(self, whole: Tensor) -> dict[str, Tensor]:
        """(..., number) by name, in their shapes."""
        parts = whole.split([value.numel() for value in self.value.values()], -1)
        return {
            name: part.unflatten(-1, value.shape) for (name, value), part in zip(self.value.items(), parts, strict=True)
        }

    def of(self, name: str) -> Tensor:
        """Whether rows tell the numbers of this name."""
        return self.split(self.there)[name]


def _numbers(turned: _Turned, best: Tensor, env: Tensor) -> _Numbers | None:
    """The likelihood of rows `best` (rows, latent) about its maximum; information is the mean square of the rows'
    scores, which relu links have as well. None of more than `MOST_NUMBERS`."""
    value = {name: v.detach() for name, v in turned.named_parameters() if v.requires_grad}
    if sum(v.numel() for v in value.values()) > MOST_NUMBERS:
        return None

    def density(number: dict[str, Tensor], row: Tensor, code: Tensor) -> Tensor:
        out: Tensor = functional_call(turned, number, (row, code))
        return out

    def whole(number: dict[str, Tensor]) -> Tensor:
        out: Tensor = vmap(density, (None, 0, 0))(number, best, env).sum()
        return out

    rows = torch.linspace(0, len(best) - 1, min(len(best), MOST_ROWS), device=best.device).long()
    with torch.enable_grad():
        each, slope = vmap(grad(density), (None, 0, 0))(value, best[rows], env[rows]), grad(whole)(value)
    score = torch.cat([each[name].flatten(1) for name in value], 1)  # (rows, number)
    information = len(best) / len(rows) * score.mT @ score
    at = torch.cat([(v if name.endswith("weight") else 0.0 * v).flatten() for name, v in value.items()])
    linear = torch.cat([slope[name].flatten() for name in value]) + information @ at
    there = score.norm(dim=0) > 0  # others are of equations that are not there
    if "shift" in value:
        variance = torch.linalg.inv(information + WEAK * torch.eye(len(linear)).to(information)).diagonal()
        zero = torch.cat([torch.full((v.numel(),), name == "shift").to(there) for name, v in value.items()])
        there &= ~zero | (variance < UNTOLD)
    return _Numbers(value, information, linear, there)


def _draws(told: _Numbers, sem: LatentSEM, env: Tensor, draws: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draws of the numbers, by name: (draw, ...)."""
    edge, equation, count = _weights(told.value, sem, env)
    alike = (equation[:, None] == equation) & (edge[:, None] >= 0)
    prior = torch.where(alike, told.information / count, 0.0)
    prior.diagonal().add_(torch.where(edge < 0, WEAK, SLIGHT))
    there = told.there.nonzero()[:, 0]
    group = edge[there]
    group = torch.where(group >= 0, torch.searchsorted(group[group >= 0].unique(), group), -1)
    number = told.linear.new_zeros(draws, len(edge))
    number[:, there] = zero_groups.draw(
        told.information[there][:, there],
        told.linear[there],
        prior[there][:, there],
        group,
        math.log(sem.edge_probability / (1 - sem.edge_probability)),
        draws,
        generator,
    )
    return told.split(number)


def _weights(value: dict[str, Tensor], sem: LatentSEM, env: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(number,) each: the edge that a number is a weight of, -1 = it is none; its equation; the rows it has."""
    d = sem.latents
    rows = {
        "sem.weight": env.new_full((1,), len(env)),
        "sem.own_weight": torch.bincount(env, minlength=sem.environments),
    }
    parts, tables = [], 0
    for name, one in value.items():
        none = env.new_full((one.numel(),), -1)
        if name not in rows:
            parts.append((none, none, torch.ones_like(none)))
            continue
        of = rows[name]
        place = torch.arange(len(of) * d * d, device=env.device)  # of (table, parent, child)
        table, child = place // (d * d), place % d
        parts.append((place % (d * d), (tables + table) * d + child, of[table].clamp_min(1)))
        tables += len(of)
    edge, equation, count = (torch.cat(each) for each in zip(*parts, strict=True))
    return edge, equation, count
