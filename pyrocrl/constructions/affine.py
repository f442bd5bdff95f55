"""The affine map from features to the latents of a `LatentSEM`, by maximum likelihood: where decoders start.

With y = A z invertible, log p(y | env) = log p(z | env) + log |det M|, z = M y + b. Directions in which environments
differ give a first M, or `directions.search` does, where equations are linear and replaced; equations, M and b then
climb the likelihood under many orders of the latents at once, and orders are improved by moving one latent at a time.
Orders start from regressions. `bend` goes on where mixing is not affine.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from pyrocrl.constructions import contrastive, directions, many_orders
from pyrocrl.constructions.contrastive import Chart
from pyrocrl.exact import linear_sem, orders
from pyrocrl.parts.latent_sem import LatentSEM
from pyrocrl.parts.nets import Residual
from pyrocrl.turns import drawing

FLOOR = 1e-3  # least observational variance, as a share of the mean one: data may have exactly low rank
LR, LINEAR_LR = 0.04, 0.01  # of the search; of the linear part of a map that a network bends
KNOTS = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95)  # where a latent's zero may be, as quantiles of its control rows
RIDGE = 1e-4  # of regressions
EM_STEPS = 50  # of loadings and noise of many latents
CLEAR = 0.01  # gain in log-likelihood a row that turns a latent over


class Effort(NamedTuple):
    """rows, last_rows: of the search of orders and of its end, in equal parts from each environment. starts: orders it
    begins with. steps, last_steps: of a climb there. rounds: of moves of single latents. finalists: orders that are
    climbed to the end. share: of the rows, with which the search of the linear case begins, but for `enough` rows an
    environment, on average; rivals: its starts beside the best one. linear_steps, net_steps: of the map that a network
    bends."""

    rows: int = 1_200
    last_rows: int = 3_000
    starts: int = 8
    steps: int = 120
    last_steps: int = 400
    rounds: int = 8
    finalists: int = 8
    many_rows: int = 200
    many_last_rows: int = 300
    many_rounds: int = 10
    many_finalists: int = 2
    many_steps: int = 150
    many_last_steps: int = 800
    share: float = 0.1
    enough: int = 600
    rivals: int = 2
    linear_steps: int = 250
    net_steps: int = 100


EFFORT = Effort()


class Start(NamedTuple):
    """z = unmixing x + offset (x: `Observation.inputs`), with posterior Cholesky factor `tril` (latent, latent); the
    decoder's output is bias + loadings z, loadings (feature, latent); of counts, log rates beside the observation's own
    offsets."""

    unmixing: Tensor
    offset: Tensor
    tril: Tensor
    loadings: Tensor
    bias: Tensor


def searches_directions(prior: LatentSEM) -> bool:
    """Whether `unmix` begins with `directions.search`, from a bootstrap of its own."""
    return prior.mechanism == "linear" and prior.intervention == "perfect" and prior.latents <= orders.MAX_NODES


def unmix(
    x: Tensor, env: Tensor, prior: LatentSEM, generator: torch.Generator, effort: Effort | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(unmixing (latent, feature), offset (latent,), loadings (feature, latent)): z = unmixing x + offset.

    x: (rows, feature), columns of like scale; env: (rows,) integer codes, 0 observational. z has variance 1 over the
    observational rows. Targets are those of `prior`; where they are unknown, the environments that differ most are
    taken for targets of one latent each, and the others settled by evidence. `prior` is left at equations for z.
    effort: None for `EFFORT`.
    """
    latents, effort = prior.latents, effort or EFFORT
    if prior.many and x.shape[1] > many_orders.WIDE * latents + latents:
        few = many_orders.basis(x, env, latents)  # (feature, direction)
        unmixing, shift, loadings = unmix(x @ few, env, prior, generator, effort)
        return unmixing @ few.mT, shift, few @ loadings
    control = x[env == 0]
    cov = torch.cov(control.mT)
    value, vector = torch.linalg.eigh(cov + FLOOR * cov.diagonal().mean() * torch.eye(len(cov)).to(cov))
    root, back = (vector * value.rsqrt()) @ vector.mT, (vector * value.sqrt()) @ vector.mT
    white = (x - control.mean(0)) @ root
    change = _changes(white, env, prior.environments)  # (env, feature, feature)
    # where environments do not move enough directions, principal components fill up
    span = torch.linalg.eigh(change.sum(0) + 1e-4 * cov / value[-1]).eigenvectors[:, -latents:]  # (feature, latent)
    y = white @ span
    if searches_directions(prior):
        matrix = _linear(y, env, prior, generator, effort)
    else:
        matrix = torch.linalg.inv(_columns(span.mT @ change @ span, y, env, prior, generator))
    matrix = matrix / matrix.norm(dim=1, keepdim=True)
    prior.start(y @ matrix.mT, env)
    search = _search_many if prior.many and not prior.absorbed else _search
    matrix, shift = search(y, env, matrix, prior, generator, effort)
    scale = (y[env == 0] @ matrix.mT).std(0)
    matrix, shift = matrix / scale[:, None], shift / scale
    prior.start(y @ matrix.mT + shift, env)
    unmixing = matrix @ span.mT @ root
    return unmixing, shift - unmixing @ control.mean(0), back @ span @ torch.linalg.inv(matrix)


class Bent(Chart):
    """h (`encoder`) and its inverse, the law of every environment that of a `LatentSEM` of known targets."""

    normality, reconstruction, batch = 3.0, 1.0, 340

    def __init__(self, encoder: Residual, decoder: nn.Module, share: Tensor, prior: LatentSEM, rows: int) -> None:
        """share: (env,) of the `rows` rows."""
        super().__init__(encoder, decoder, share)
        self.sem, self.rows = prior, rows

    def penalty(self) -> Tensor:
        return -self.sem.log_prior_of_weights() / self.rows

    def law(self, z: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        envs = [torch.full_like(member[:, 0], e, dtype=torch.long) for e in range(member.shape[1])]
        density = torch.stack([self.sem.log_prob(z, env) for env in envs], -1)
        return density, self.sem.residuals(z, member.argmax(1))


def bend(
    x: Tensor,
    env: Tensor,
    encoder: Residual,
    decoder: nn.Module,
    prior: LatentSEM,
    generator: torch.Generator,
    effort: Effort | None = None,
) -> None:
    """Train h (`encoder`), from its linear start, to tell environments apart by the equations' densities: its linear
    part first, for what a network bends before directions are right it does not bend back.

    Log-odds between environments are the same for x as for its latents, whatever the mixing; residuals are to be normal
    and `decoder` to give x back (see `contrastive`). `prior` goes from equations for the first latents to those of h.
    effort: None for `EFFORT`.
    """
    known, effort = told(prior), effort or EFFORT
    known.before.copy_(prior.before)
    share = nn.functional.one_hot(env, prior.environments).to(x).mean(0)
    with drawing(int(torch.randint(2**31, (), generator=generator))):
        bent = Bent(encoder, decoder, share, known, len(x))
        every = torch.arange(len(x), device=x.device)
        encoder.linear.requires_grad_(True)
        bent.train_on(x, env, every, effort.linear_steps, generator, LINEAR_LR)
        encoder.net.requires_grad_(True)
        bent.train_on(x, env, every, effort.net_steps, generator)
        encoder.requires_grad_(False)
    prior.start(encoder(x), env)


def _changes(y: Tensor, env: Tensor, environments: int) -> Tensor:
    """(env, d, d) how each environment moves and stretches y, which is white and centred over the observational rows:
    mean mean' + |cov - control's cov|, less what chance alone would give."""
    d, control = y.shape[1], int((env == 0).sum())
    usual = torch.cov(y[env == 0].mT)  # 1, but for directions below the floor
    out = [torch.zeros_like(usual)]
    for e in range(1, environments):
        own = y[env == e]
        n = max(len(own), 1)
        if n < 3:
            out.append(torch.zeros_like(usual))
            continue
        mean = own.mean(0)
        square = mean.square().sum()
        moved = (1 - d * (1 / n + 1 / control) / square).clamp_min(0.0) * torch.outer(mean, mean)
        value, vector = torch.linalg.eigh(torch.cov(own.mT) - usual)
        edge = sum(2 * (d / m) ** 0.5 + d / m for m in (n, control))  # Marchenko & Pastur (1967)
        out.append(moved + (vector * (value.abs() - edge).clamp_min(0.0)) @ vector.mT)
    return torch.stack(out)


def _rows(env: Tensor, environments: int, rows: int, generator: torch.Generator) -> Tensor:
    """Positions of at most `rows` rows in all, as equal a number from each environment as there are."""
    share = max(2, rows // environments)
    parts = torch.argsort(env.cpu(), stable=True).split(torch.bincount(env.cpu(), minlength=environments).tolist())
    picked = [p[torch.randperm(len(p), generator=generator)[:share]] for p in parts]
    return torch.cat(picked).to(env.device)


def _columns(change: Tensor, y: Tensor, env: Tensor, prior: LatentSEM, generator: torch.Generator) -> Tensor:
    """(d, latent) directions that the environments' changes (env, d, d) have first.

    A shift moves the mean along its target's column of total effects, a change of variance stretches along it. Signs
    are such that interventions raise their target. Targets without an environment of their own get random directions.
    """
    d = y.shape[1]
    value, vector = torch.linalg.eigh(change)
    directions = value[:, -1:].clamp_min(0.0).sqrt() * vector[:, :, -1]  # (env, d)
    for e in range(1, len(directions)):
        directions[e] *= torch.where((y[env == e] @ directions[e]).sum() < 0, -1.0, 1.0)
    columns = 0.03 * torch.randn(d, d, generator=generator).to(y)
    if prior.unknown:  # the environments that span most, one after another
        rest = directions.clone()
        for k in range(min(d, len(rest) - 1)):
            e = int(rest.square().sum(1).argmax())
            columns[:, k] += directions[e] / directions[e].norm().clamp_min(1e-9)
            axis = rest[e] / rest[e].norm().clamp_min(1e-9)
            rest = rest - (rest @ axis)[:, None] * axis
        return columns
    single = prior.target * (prior.target.sum(1, keepdim=True) == 1)
    for k in range(d):
        mean = single[:, k] @ directions
        columns[:, k] += mean / mean.norm().clamp_min(1e-9)
    return columns


def _linear(y: Tensor, env: Tensor, prior: LatentSEM, generator: torch.Generator, effort: Effort) -> Tensor:
    """(latent, d) rows of the unmixing of most evidence where equations are linear and replaced (`linear_sem_lin`)."""
    found = contrastive.moments(y, env, prior.target)
    if prior.unknown:
        found = found._replace(target=directions.cluster_targets(found))
    candidates = directions.candidate_rows(directions.resample(found, generator), generator)
    rows = float(found.count.sum() / len(found.count))
    share = min(1.0, max(effort.share, effort.enough / rows))
    pairs = linear_sem.target_pairs(found.target.cpu())

    def objective_at(share: float) -> directions.Objective:
        part = found._replace(count=share * found.count)
        slices, total = linear_sem.slices(part, pairs), part.count.sum()
        return lambda rows: linear_sem.log_marginal(rows, slices, total, prior.edge_probability)

    return directions.search(objective_at, candidates, share, effort.rivals, 1, generator)[0].chart[:, 0].to(y)


class Affine(nn.Module):
    """z = matrix y + shift under a `LatentSEM`; forward gives the negative log-likelihood a row."""

    def __init__(self, prior: LatentSEM, matrix: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.sem = copy.deepcopy(prior)
        self.matrix = nn.Parameter(matrix.clone())
        self.shift = nn.Parameter(shift.clone())

    @torch.no_grad()
    def latents(self, y: Tensor) -> Tensor:
        """(rows, latent) z of rows y."""
        return (y.to(self.matrix) @ self.matrix.mT + self.shift).to(y)

    def forward(self, y: Tensor, env: Tensor) -> Tensor:
        log_prob = self.sem.log_prob(y @ self.matrix.mT + self.shift, env).mean()
        weak = self.sem.log_prior_of_weights() - 0.005 * self.shift.square().sum()
        return -weak / len(y) - log_prob - torch.linalg.slogdet(self.matrix).logabsdet


def _regressed(
    y: Tensor,
    env: Tensor,
    matrix: Tensor,
    prior: LatentSEM,
    order: Tensor,
    likely: list[set[int]] | None = None,
    moved: Tensor | None = None,
) -> Affine:
    """Least squares under an order of the latents (parents first), from rows `matrix` that may mix in parents.

    z_c = y_c - sum_p v_p z_p is a latent if what is left of it follows its equation: y_c regressed on z_p and phi(z_p)
    of all earlier latents, phi where the equation is the natural one, gives v and weights at once. A parent's zero,
    where relu bends, is the one of KNOTS that leaves its children least. likely: of each latent the others that may be
    its parents; None = all. moved: (latent,) a first shift, whose zeros are tried as well.
    """
    z = y @ matrix.mT
    matrix, shift = matrix.clone(), torch.zeros_like(matrix[:, 0])
    if moved is not None:
        z, shift = z + moved, moved.clone()
    natural = 1 - prior.target[env]  # (rows, latent)
    nodes = order.tolist()

    def among(c: int, earlier: list[int]) -> list[int]:
        return earlier if likely is None else [p for p in earlier if p in likely[c]]

    def regress(c: int, seen: list[int]) -> tuple[Tensor, Tensor]:
        """(coefficients of z[seen] (seen,), residual variance) of z_c."""
        free = natural[:, c, None]
        link, own = prior.link(z[:, seen]), 1 - free  # a level of its own for each environment that acts on c
        kept = prior.intervention in ("shift", "variance")
        shared = torch.cat([z[:, seen], free, link if kept else link * free], 1)
        if prior.intervention == "soft":  # and slopes
            own = torch.cat([own, link * own], 1)
        found, left = grouped_ridge(shared, own, env, prior.environments, z[:, c], RIDGE * len(z))
        return found[: len(seen)], left.square().mean()

    for place, k in enumerate(nodes):
        seen = among(k, nodes[:place])
        if seen:
            mixed, _ = regress(k, seen)
            z[:, k] -= z[:, seen] @ mixed
            matrix[k] -= mixed @ matrix[seen]
            shift[k] -= mixed @ shift[seen]
        children = [c for c in nodes[place + 1 :] if likely is None or k in likely[c]]
        if prior.mechanism == "relu" and children:
            free, left = z[:, k].clone(), []
            knots = free[env == 0].quantile(torch.tensor(KNOTS).to(z))
            if moved is not None:
                knots = torch.cat([knots, torch.zeros_like(knots[:1])])
            for knot in knots:
                z[:, k] = free - knot
                left.append(sum(regress(c, among(c, nodes[: place + 1]))[1].log() for c in children))
            knot = knots[int(torch.stack(left).argmin())]
            z[:, k] = free - knot
            shift[k] -= knot
    out = Affine(prior, matrix, shift)
    out.sem.start(z, env, order)
    return out


def grouped_ridge(
    shared: Tensor, own: Tensor, group: Tensor, groups: int, value: Tensor, ridge: float
) -> tuple[Tensor, Tensor]:
    """(coefficients of `shared`, residuals (rows,)) of a ridge regression of `value` (rows,) on `shared` (rows, m) and,
    with coefficients of their own in each group of rows, on `own` (rows, q).

    Linear in the number of groups: their coefficients are solved for first (Frisch & Waugh 1933).
    """
    both = torch.cat([shared, value[:, None]], 1).double()
    mine = own.double()
    eye = torch.eye(mine.shape[1]).to(mine)

    def summed(left: Tensor, right: Tensor) -> Tensor:
        out = left.new_zeros(groups, left.shape[1], right.shape[1])
        return out.index_add_(0, group, left[:, :, None] * right[:, None, :])

    cross = summed(mine, both)  # (group, q, m + 1)
    solved = torch.linalg.solve(summed(mine, mine) + ridge * eye, cross)
    rest = both.mT @ both - torch.einsum("gqa,gqb->ab", cross, solved)
    rest, right = rest[:-1, :-1], rest[:-1, -1]
    found = torch.linalg.solve(rest + ridge * torch.eye(len(rest)).to(rest), right)
    of_group = solved[:, :, -1] - solved[:, :, :-1] @ found  # (group, q)
    left = both[:, -1] - both[:, :-1] @ found - (mine * of_group[group]).sum(1)
    return found.to(shared.dtype), left.to(shared.dtype)


State = dict[str, Tensor]


def _search(
    y: Tensor, env: Tensor, matrix: Tensor, prior: LatentSEM, generator: torch.Generator, effort: Effort
) -> tuple[Tensor, Tensor]:
    """(matrix, shift) of the best order found: from random orders and the one `prior` has, then by moves."""
    d = len(matrix)
    few, more = (_rows(env, prior.environments, rows, generator) for rows in (effort.rows, effort.last_rows))
    first = prior.before.sum(0).argsort()  # parents first
    orders = [first, *(torch.randperm(d, generator=generator).to(first) for _ in range(effort.starts - 1))]
    known = told(prior)
    tried: dict[tuple[int, ...], float] = {}
    best = first
    for _ in range(0 if prior.absorbed else effort.rounds):
        state, value = _climb(
            [_regressed(y[few], env[few], matrix, known, order) for order in orders], y[few], env[few], effort.steps
        )
        tried |= {tuple(order.tolist()): float(v) for order, v in zip(orders, value, strict=True)}
        found = torch.tensor(min(tried, key=tried.__getitem__)).to(first)
        orders = [order for order in _moves(found) if tuple(order.tolist()) not in tried]
        if torch.equal(found, best) or not orders:
            break
        best = found
    finalists = [torch.tensor(o).to(first) for o in sorted(tried, key=tried.__getitem__)[: effort.finalists]] or [first]
    ends = [_regressed(y[more], env[more], matrix, known, order) for order in finalists]
    climbed, value = _climb(ends, y[more], env[more], effort.last_steps)
    state = _at(climbed, int(value.argmin()))
    for _ in range(d if prior.mechanism == "relu" else 0):  # turn latents over while that helps
        same = [_with(copy.deepcopy(ends[int(value.argmin())]), state) for _ in range(d + 1)]
        flips, values = _climb([same[d], *(_flipped(same[k], k) for k in range(d))], y[more], env[more], effort.steps)
        found = int(values.argmin()) if float(values[0] - values.min()) > CLEAR else 0
        state = _at(flips, found)
        if found == 0:
            break
    return state["matrix"], state["shift"]


def _search_many(
    y: Tensor, env: Tensor, matrix: Tensor, prior: LatentSEM, generator: torch.Generator, effort: Effort
) -> tuple[Tensor, Tensor]:
    """(matrix, shift) of the best of the orders that regressions on the latents as they are known so far propose, turn
    by turn: equations and the map to the latents are fitted under each, and give the next latents."""
    envs = prior.environments
    few, more = (_rows(env, envs, each * envs, generator) for each in (effort.many_rows, effort.many_last_rows))
    known = told(prior)
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    turn, shift = many_orders.by_sources(known, y @ matrix.mT, env, KNOTS)
    z = y @ (turn.to(y) @ matrix).mT + shift.to(y)
    tried: list[tuple[float, int, Affine]] = []
    start, moved, last = matrix, None, torch.zeros(0)
    for _ in range(effort.many_rounds):
        order = many_orders.proposed(known, z, env, rng, 1)[0]
        likely = [set(row) for row in known.graphs.candidates.tolist()]
        found = _regressed(y[few], env[few], start, known, order, likely, moved)
        value = descend(found, y[few], env[few], effort.many_steps)
        again = len(tried) > 0 and torch.equal(order, last) and value > min(tried)[0] - CLEAR / 10
        tried.append((value, len(tried), found))
        last = order
        if again:
            break
        z, start, moved = found.latents(y), found.matrix.detach().to(y), found.shift.detach().to(y)
    finalists = sorted(tried)[: effort.many_finalists]
    ends = [(descend(one, y[more], env[more], effort.many_last_steps), place, one) for _, place, one in finalists]
    best = min(ends)[2]
    prior.before.copy_(best.sem.before)
    return best.matrix.detach().to(y), best.shift.detach().to(y)


def descend(one: Affine, y: Tensor, env: Tensor, steps: int) -> float:
    """Its parameters, in place and in double precision, towards a minimum by L-BFGS; the negative log-likelihood."""
    one.double()
    y = y.double()
    free = [value for value in one.parameters() if value.requires_grad]
    optimiser = torch.optim.LBFGS(
        free, max_iter=steps, max_eval=steps, history_size=30, line_search_fn="strong_wolfe", tolerance_change=1e-10
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        out: Tensor = one(y, env)
        out.backward()
        for value in free:
            if value.grad is not None:
                value.grad = value.grad.contiguous()
        return out

    with torch.enable_grad():
        optimiser.step(loss)
    with torch.no_grad():
        return float(one(y, env))


def told(prior: LatentSEM) -> LatentSEM:
    """The same equations with the most probable targets as known ones."""
    target = prior.hard_targets()
    config = (prior.latents, prior.environments, target.tolist(), prior.intervention, prior.mechanism, prior.escapees)
    out = LatentSEM(*config, prior.edge_probability, spike=prior.spike, escape_prior=prior.escape_prior).to(
        prior.weight
    )
    for name, value in prior.named_parameters():
        out.get_parameter(name).data.copy_(value)
    return out


def _moves(order: Tensor) -> list[Tensor]:
    """Every order that moves one latent to another place, once each."""
    found: dict[tuple[int, ...], None] = {}
    nodes = order.tolist()
    for i in range(len(nodes)):
        for j in range(len(nodes)):
            rest = nodes[:i] + nodes[i + 1 :]
            found[(*rest[:j], nodes[i], *rest[j:])] = None
    return [torch.tensor(one, device=order.device) for one in found if list(one) != nodes]


def _with(one: Affine, state: State) -> Affine:
    """Its parameters set to those of `state`; the order stays."""
    for name, value in one.named_parameters():
        value.data.copy_(state[name])
    return one


def _flipped(one: Affine, k: int) -> Affine:
    """Latent k times -1; children z_c = .. + w relu(z_k) become z_c - w z_k = .. + w relu(-z_k)."""
    with torch.no_grad():
        weight = (one.sem.weight * one.sem.before)[k]
        one.matrix -= weight[:, None] * one.matrix[k]
        one.shift -= weight * one.shift[k]
        for value in (one.matrix[k], one.shift[k], one.sem.intercept[k], one.sem.own_intercept[:, k]):
            value.neg_()
        one.sem.weight[:, k].neg_()
        one.sem.own_weight[:, :, k].neg_()
    return one


def _climb(starts: list[Affine], y: Tensor, env: Tensor, steps: int) -> tuple[State, Tensor]:
    """Adam on all starts at once; their parameters stacked, and negative log-likelihoods a row (start,)."""
    skeleton = starts[0]
    params, buffers = stack_module_state(starts)

    def loss(p: State, b: State) -> Tensor:
        return functional_call(skeleton, (p, b), (y, env))

    with torch.enable_grad():
        params = {k: v.detach().clone().requires_grad_() for k, v in params.items()}
        optimiser = torch.optim.Adam(params.values(), lr=LR, betas=(0.9, 0.99))
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 0.05 * LR)
        for _ in range(steps):
            optimiser.zero_grad()
            vmap(loss)(params, buffers).sum().backward()
            optimiser.step()
            decay.step()
    state = {k: v.detach() for k, v in params.items()}
    value = vmap(loss)(state, buffers).detach()
    return state, torch.where(value.isfinite(), value, torch.inf)


def _at(state: State, index: int) -> State:
    return {k: v[index] for k, v in state.items()}


def gaussian_factors(
    x: Tensor, env: Tensor, pick: Tensor, prior: LatentSEM, bent: bool, generator: torch.Generator
) -> tuple[Start, Tensor]:
    """The start by `unmix` of the rows `pick` (positions, with repeats), and the variance (feature,) left of x.

    bent: whether the mixing is not linear. Then environments differ along more directions than there are latents, and
    the unmixing is of as many principal components; `bend` goes on from it.
    """
    eye = torch.eye(x.shape[1]).to(x)
    basis = torch.linalg.eigh(torch.cov(x.mT)).eigenvectors[:, -prior.latents :] if bent else eye
    unmixing, offset, _ = unmix((x @ basis)[pick], env[pick], prior, generator)
    unmixing = unmixing @ basis.mT
    z = x @ unmixing.mT + offset
    z, centre = z - z.mean(0), z.mean(0)
    loadings = torch.linalg.solve(z.mT @ z, z.mT @ x).mT
    residual = (x - x.mean(0) - z @ loadings.mT).var(0).clamp_min(1e-3)
    if prior.many:
        return _as_factors(x, z + centre, loadings, residual)
    precision = loadings.mT @ (loadings / residual[:, None])
    tril = torch.linalg.cholesky(torch.linalg.inv(precision + torch.eye(len(precision)).to(precision)))
    return Start(unmixing, offset, tril, loadings, x.mean(0) - loadings @ centre), residual


def _as_factors(x: Tensor, z: Tensor, loadings: Tensor, noise: Tensor) -> tuple[Start, Tensor]:
    """Loadings and noise of maximum likelihood, by EM from those of least squares on z (rows, latent), which has errors
    of its own, and the posterior of latents of that covariance: means that are held have to be the posterior's."""
    cov, prior = torch.cov(x.double().mT), torch.linalg.inv(torch.cov(z.double().mT))
    w, psi = loadings.double(), noise.double()
    eye = torch.eye(len(prior)).to(prior)
    for step in range(EM_STEPS + 1):
        spread = torch.linalg.inv(prior + w.mT @ (w / psi[:, None]))
        back = spread @ (w / psi[:, None]).mT  # (latent, feature)
        if step == EM_STEPS:
            break
        cross = cov @ back.mT
        w = torch.linalg.solve(spread + back @ cross, cross.mT).mT
        psi = (cov.diagonal() - (w * cross).sum(1)).clamp_min(1e-3)
    seen, level = x.double().mean(0), z.double().mean(0)
    tril = torch.linalg.cholesky(spread + 1e-9 * eye)
    return Start(*(v.to(x) for v in (back, level - back @ seen, tril, w, seen - w @ level))), psi.to(x)


def bootstrap(env: Tensor, environments: int, generator: torch.Generator) -> Tensor:
    """Positions of rows, drawn with replacement within each environment."""
    parts = []
    for rows in torch.argsort(env.cpu(), stable=True).split(torch.bincount(env.cpu(), minlength=environments).tolist()):
        if len(rows):
            parts.append(rows[torch.randint(len(rows), (len(rows),), generator=generator)])
    return torch.cat(parts).to(env.device)
