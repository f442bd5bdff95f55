"""The graph's posterior where there are too many latents to sum over orders: a few likely parents of each, and orders
drawn by annealed sequential Monte Carlo (`pyrocrl.exact.order_sampling`). For `LatentSEM`."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyrocrl.exact import capped_parents, order_sampling

ORDERS, FEW = 128, 32  # particles: of what is reported, of a first order
AVERAGED = 16  # orders over which probabilities of targets are averaged


class SampledGraphs(nn.Module):
    """Likely parents (latent, candidate) and drawn orders (draw, latent), parents first, with their log-densities."""

    candidates: Tensor
    orders: Tensor
    log_density: Tensor

    def __init__(self, latents: int, edge_probability: float) -> None:
        super().__init__()
        count = min(latents - 1, capped_parents.MOST)
        self.log_odds = math.log(edge_probability) - math.log1p(-edge_probability)
        self.register_buffer("candidates", (torch.arange(latents)[:, None] + torch.arange(1, count + 1)) % latents)
        self.register_buffer("orders", torch.arange(latents).repeat(ORDERS, 1))
        self.register_buffer("log_density", torch.zeros(ORDERS, dtype=torch.float64))

    def scores(self, cov: Tensor, count: Tensor, node: Tensor) -> Tensor:
        """(latent, 2**candidates) log scores of sets of parents. cov: (slice, latent, latent), the slice's own node
        among what its parents give; the first slices are the latents' natural equations, others are added."""
        places = torch.arange(cov.shape[1], device=cov.device).expand(len(node), -1)
        cov = capped_parents.at(cov.double(), torch.cat([node[:, None], places], 1))
        found = capped_parents.scores(cov, count.double(), self.candidates[node])
        d = len(self.candidates)
        size = order_sampling.members(self.candidates.shape[1], cov.device).sum(1)
        return (found[:d] + self.log_odds * size).index_add(0, node[d:], found[d:])

    def choose(self, cov: Tensor, width: int = 1) -> None:
        """Set the likely parents, of moments as `capped_parents` takes them."""
        self.candidates.copy_(capped_parents.likely(cov, width))

    def sample(self, scores: Tensor, particles: int, rng: np.random.Generator) -> Tensor:
        """(particle, latent) orders, the likeliest first; all of `ORDERS` are kept."""
        run = order_sampling.OrderSampler(scores.cpu(), self.candidates.cpu()).run(particles, rng)
        best = np.argsort(-run.value, kind="stable")
        orders = torch.as_tensor(run.key[best].argsort(1), device=self.orders.device)
        density = torch.as_tensor(run.value[best] - run.log_total, device=self.orders.device)
        again = torch.arange(ORDERS, device=self.orders.device) % particles
        self.orders.copy_(orders[again])
        self.log_density.copy_(density[again])
        return orders

    def best(self) -> Tensor:
        """(latent,) the likeliest order."""
        out: Tensor = self.orders[self.log_density.argmax()]
        return out

    def edges(self, scores: Tensor) -> Tensor:
        """(parent, child) edge probabilities, exact given each drawn order."""
        with torch.enable_grad():
            sets: Tensor = torch.func.grad(lambda s: order_sampling.mean_log_sum(s, self.orders, self.candidates))(
                scores.detach()
            )
        return order_sampling.edges_of(sets, self.candidates)


class Shares(NamedTuple):
    """What each environment adds to the moments of each latent and its likely parents.

    natural, where it leaves the equation alone: count (env,), first (env, latent, m), second (env, latent, m, m) about
    0; where it acts on it: rows (env,) and products (env, latent, m, m) about their mean, which join the same
    regression, and log scores (env, latent, sets or 1) of what does not.
    """

    count: Tensor
    first: Tensor
    second: Tensor
    own_count: Tensor
    within: Tensor
    score: Tensor


def settled_targets(
    shares: Shares, log_prior: Tensor, log_odds: float, orders: list[Tensor | None], candidates: Tensor, sweeps: int = 3
) -> Tensor:
    """(env, latent + 1) probabilities of each environment's target, "none" last, environment 0 having none.

    Targets are settled one environment at a time given the others and the first order, from those of each environment
    with the observational one alone; then averaged over the orders.
    """
    envs, d = shares.first.shape[:2]
    size = order_sampling.members(candidates.shape[1], candidates.device).sum(1)
    open_ = [capped_parents.allowed(order, candidates) for order in orders]

    def sums(rest: tuple[Tensor, ...], inside: Tensor) -> Tensor:
        """(2, latent) log sums over sets of parents, of two stacked moments (2, latent, ...)."""
        count, first, second, own_count, within, score = rest
        total = count.clamp_min(1.0)
        mean = first / total[..., None]
        cov = second / total[..., None, None] - mean[..., :, None] * mean[..., None, :]
        every = count + own_count
        cov = (count[..., None, None] * cov + within) / every.clamp_min(1.0)[..., None, None]
        table = capped_parents.log_evidence(cov.flatten(0, 1), every.flatten()).unflatten(0, (2, d))
        table = table + score + log_odds * size
        return torch.where(inside, table, -torch.inf).logsumexp(-1)

    def adds(e: int, hit: Tensor) -> tuple[Tensor, ...]:
        """What the environment adds to every equation, acting (hit (latent,) 1) on it or not (0)."""
        left, line, matrix = 1.0 - hit, hit[:, None], hit[:, None, None]
        return (
            left * shares.count[e],
            left[:, None] * shares.first[e],
            left[:, None, None] * shares.second[e],
            hit * shares.own_count[e],
            matrix * shares.within[e],
            line * shares.score[e],
        )

    def told(rest: tuple[Tensor, ...], e: int, inside: Tensor) -> Tensor:
        """(latent + 1,) log probabilities of one environment's target, up to a constant."""
        zero = torch.zeros(d, dtype=shares.count.dtype, device=shares.count.device)
        two = tuple(torch.stack([r + a, r + b]) for r, a, b in zip(rest, adds(e, zero), adds(e, zero + 1), strict=True))
        left, hit = sums(two, inside)
        return torch.cat([hit - left, (hit - left)[:1] * 0.0]) + log_prior

    table = torch.zeros(envs, d + 1, dtype=torch.float64, device=shares.count.device)
    table[0, d] = 1e3
    alone = adds(0, torch.zeros(d, dtype=shares.count.dtype, device=shares.count.device))
    for e in range(1, envs):
        table[e] = told(alone, e, open_[0])
    current = table.argmax(-1)

    def sweep(inside: Tensor, move: bool) -> None:
        hot = torch.nn.functional.one_hot(current, d + 1)[:, :d].to(shares.count)
        rest = tuple(sum(parts) for parts in zip(*(adds(e, hot[e]) for e in range(envs)), strict=True))
        for e in range(1, envs):
            rest = tuple(r - a for r, a in zip(rest, adds(e, hot[e]), strict=True))
            table[e] = told(rest, e, inside)
            if move:
                current[e] = int(table[e].argmax())
                hot[e] = torch.nn.functional.one_hot(current[e], d + 1)[:d].to(hot)
            rest = tuple(r + a for r, a in zip(rest, adds(e, hot[e]), strict=True))

    for _ in range(sweeps - 1):
        before = current.clone()
        sweep(open_[0], move=True)
        if bool((current == before).all()):
            break
    mean = torch.zeros_like(table)
    for inside in open_:
        if len(open_) > 1:
            sweep(inside, move=False)
        mean += table.softmax(-1) / len(open_)
    return mean


def shares_of(
    count: Tensor,
    mean: Tensor,
    cov: Tensor,
    columns: Tensor,
    kind: str,
    ratio: Tensor,
) -> Shares:
    """Of moments (env,), (env, column), (env, column, column); columns: (latent, m) each latent's, its own first.

    kind: of intervention; ratio: (env, latent) log variance ratios under changes of variance.
    """
    envs, d = len(count), len(columns)
    here = mean[:, columns]  # (env, latent, m)
    between = cov[:, columns[:, :, None], columns[:, None, :]]  # (env, latent, m, m)
    second = count[:, None, None, None] * (between + here[..., :, None] * here[..., None, :])
    acting = torch.where(count > 1.0, count, torch.zeros_like(count))
    inside = acting[:, None, None, None] * between
    none = count.new_zeros(envs, d, 1)
    natural = count, count[:, None, None] * here, second
    if kind in ("shift", "variance"):
        score = -0.5 * torch.where(acting > 0, count.log(), 0.0)[:, None].expand(-1, d)
        if kind == "variance":
            score = score - 0.5 * acting[:, None] * ratio
            inside = inside / ratio.exp()[:, :, None, None]
        return Shares(*natural, acting, inside, score[:, :, None])
    flat, many = between.flatten(0, 1), acting[:, None].expand(-1, d).flatten()
    if kind == "perfect":
        flat = flat[:, :1, :1]
    score = capped_parents.log_evidence(flat, many).unflatten(0, (envs, d))
    return Shares(*natural, torch.zeros_like(count), 0 * inside, score if kind == "soft" else score + none)
