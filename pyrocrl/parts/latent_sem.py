"""A structural equation model as the prior of rows' latents, for models whose latents cannot be integrated out.

    z_i,k = a_k + sum_j w[j, k] phi(z_i,j) + eps_i,k,   eps ~ N(0, s_k^2)         phi: identity or relu

An environment that intervenes on k changes k's equation: *perfect* (no parents, own mean and scale), *soft* (own
weights, mean and scale), *variance* (own mean and scale, same weights) or *shift* (own mean only). A cell may have
escaped its intervention (`escapees`): a Bernoulli per row, summed out.

While a chain is trained its equations are parameters, with every earlier node of the chain's order a parent. What is
reported is the posterior given the latents: `gather` takes their moments, and graphs, weights, means and scales are
then drawn exactly (conjugacy and the dynamic program over orders), so that every graph is acyclic. Of more than 12
latents (`many`) orders are drawn by sequential Monte Carlo and parents are among each latent's ten likeliest
(`sampled_graphs`); given an order, sets of parents are summed over as exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyrocrl.batch import Batch
from pyrocrl.dists import Law, LogNormal, Normal, PseudoPrior
from pyrocrl.errors import one_of, reject
from pyrocrl.exact import capped_parents, linear_sem, order_sampling, orders
from pyrocrl.parts import escapees, sampled_graphs
from pyrocrl.parts.observation import Observation
from pyrocrl.program import Site, check_between

BLOCK = 4_096  # rows whose squares are held at once
LEVEL = 2.0  # prior deviation of intercepts and shifts, in units of latents
ALONE = 1.0  # rows: equations of as many have no moments, and are left out
MOST = 128  # latents
Kind = Literal["perfect", "soft", "variance", "shift"]
Mechanism = Literal["linear", "relu"]


class Equations(NamedTuple):
    """Drawn equations: order (latent,); targets (env, latent) in {0, 1}; weight (parent, child) and natural intercept
    (latent,) without interventions; everywhere, those of every environment (env, ...)."""

    order: Tensor
    targets: Tensor
    weight: Tensor
    natural: Tensor
    everywhere: linear_sem.LinearSEM


class _Added(sampled_graphs.Shares):
    """Sums over environments, (..., latent) or (..., latent, moments).

    Where an environment leaves the latent's equation alone: rows, first and second moments about 0; elsewhere rows,
    products about their mean and log scores.
    """

    def moved(self, natural: _Added, own: _Added, env: int, target: int, sign: float) -> _Added:
        """With (sign 1) or without (-1) an environment that acts on `target`, or on none where that is the last."""
        out = []
        for part, left, hit in zip(self, natural, own, strict=True):
            change = left[env].expand_as(part).clone()
            if target < len(part):
                change[target] = hit[env, target]
            out.append(part + sign * change)
        return _Added(*out)


class LatentSEM(nn.Module):
    """p(z | environment) of rows (rows, latent), and the posterior of its graph.

    target_matrix: (env, latent) in {0, 1}; None = unknown, one Categorical per environment over the latents and
    "none" (environments 1, 2, ...; environment 0 is observational). Raises InputError for more than 128 latents, or 12
    with several `maps`.
    """

    before: Tensor
    target: Tensor
    slot: Tensor
    count: Tensor
    mean: Tensor
    cov: Tensor
    target_log_prob: Tensor
    ordered: Tensor

    def __init__(
        self,
        latents: int,
        environments: int,
        target_matrix: Sequence[Sequence[int]] | None = None,
        intervention: Kind = "perfect",
        mechanism: Mechanism = "linear",
        escapees: bool = False,
        edge_probability: float | None = None,
        variation: float = 0.0,
        free: bool = False,
        spike: float = 0.02,
        none_probability: float = 0.5,
        escape_prior: escapees.Prior = escapees.PRIOR,
        maps: int = 1,
        readings: int = 0,
    ) -> None:
        """variation: deviation, in units of a latent's noise, by which an environment's mean differs from that of
        environment 0 for reasons other than its intervention (guide, well, passage): its n rows say as much as
        n / (1 + n variation^2) independent ones. free: the decoder is a network, which can absorb relu links as well
        as linear ones. spike: deviation of the weights of absent edges while a chain is trained. none_probability:
        prior probability that an environment of unknown target changes nothing. escape_prior: of the share of rows that
        escaped. maps: how many draws of the affine map to latents there are to hold, of which each draw of the
        graph takes one; 1 = latents as they are. readings: how many readings of rows' latents there are to hold
        (`read`), of which each draw of the graph takes one. edge_probability: None = one half, of more than 12 latents
        two neighbours each, 2 / latents."""
        super().__init__()
        self.many = latents > orders.MAX_NODES
        most = MOST if maps == 1 else orders.MAX_NODES
        if latents > most:
            reject("latents", latents, f"at most {most}")
        if edge_probability is None:
            edge_probability = 2.0 / latents if self.many else 0.5
        one_of("intervention", intervention, get_args(Kind))
        one_of("mechanism", mechanism, get_args(Mechanism))
        check_between("edge_probability", edge_probability, 0, 1)
        if not 0 <= variation < 1:
            reject("variation", variation, "a number from 0 to below 1")
        check_between("spike", spike)
        check_between("none_probability", none_probability, 0, 1)
        for name, value in escape_prior._asdict().items():
            check_between(f"escape_{name}", value)
        self.variation, self.spike, self.none_probability = variation, spike, none_probability
        self.escape_prior = escape_prior
        self.latents, self.environments, self.edge_probability = latents, environments, edge_probability
        self.intervention, self.mechanism, self.escapees = intervention, mechanism, escapees
        self.unknown = target_matrix is None
        self.free = free
        # linear equations that are kept: a linear decoder can absorb any weights, so latents are the innovations
        plain = mechanism == "linear" and intervention in ("shift", "variance")
        target = np.zeros((environments, latents)) if target_matrix is None else np.asarray(target_matrix)
        shape = (environments, latents)
        self.weight = nn.Parameter(torch.zeros(latents, latents), requires_grad=not plain)  # (parent, child)
        self.intercept = nn.Parameter(torch.zeros(latents))
        self.log_scale = nn.Parameter(torch.zeros(latents))
        # of the target's equation in each environment; intercept and log scale are changes unless perfect or soft
        self.own_weight = nn.Parameter(
            torch.zeros(environments, latents, latents), requires_grad=intervention == "soft"
        )
        self.own_intercept = nn.Parameter(torch.zeros(shape))
        self.own_log_scale = nn.Parameter(torch.zeros(shape), requires_grad=intervention != "shift")
        self.target_logits = nn.Parameter(torch.zeros(environments, latents + 1), requires_grad=self.unknown)
        self.escape_logit = nn.Parameter(torch.full((environments,), -1.5), requires_grad=escapees)
        before = torch.ones(latents, latents).triu(1) * (not plain)
        self.register_buffer("before", before)  # (parent, child): the chain's order
        self.register_buffer("target", torch.as_tensor(target, dtype=torch.get_default_dtype()))
        self.register_buffer("slot", torch.as_tensor(_slots(target)))
        # moments of (z, phi(z)) in 2 env groups: affected rows of each environment, then those that escaped
        size = 2 * latents
        self.register_buffer("count", torch.zeros(2 * environments, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(2 * environments, size, dtype=torch.float64))
        self.register_buffer("cov", torch.eye(size, dtype=torch.float64).repeat(2 * environments, 1, 1))
        self.register_buffer("maps", torch.eye(latents, dtype=torch.float64).repeat(maps, 1, 1))
        if readings:
            self.register_buffer("read_mean", torch.zeros(readings, *self.mean.shape, dtype=torch.float64))
            self.register_buffer("read_cov", torch.zeros(readings, *self.cov.shape, dtype=torch.float64))
            self.register_buffer("was_read", torch.zeros((), dtype=torch.bool))
        self.readings, self.erring = readings, False  # `SEMReadouts.reading_errors`
        # log posterior of each environment's target given the moments, "none" last; set by `gather`
        self.register_buffer("target_log_prob", torch.zeros(environments, latents + 1, dtype=torch.float64))
        if self.many:
            self.graphs = sampled_graphs.SampledGraphs(latents, edge_probability)
            self.register_buffer("ordered", torch.zeros((), dtype=torch.bool))  # whether a start has set `before`

    @property
    def keeps(self) -> bool:
        """Whether interventions keep their target's equation and change its noise alone."""
        return self.intervention in linear_sem.KEEP_EQUATIONS

    @property
    def absorbed(self) -> bool:
        """Whether equations are kept by interventions and of a form that the decoder can take into itself: nothing but
        their innovations has a law of its own then. Graph and weights are drawn from their prior."""
        return self.keeps and (self.mechanism == "linear" or self.free)

    # -- density of rows ---------------------------------------------------------------------------------------

    def link(self, z: Tensor) -> Tensor:
        """phi(z), what children see."""
        return z.relu() if self.mechanism == "relu" else z

    def target_probabilities(self) -> Tensor:
        """(env, latent) probability that an environment intervenes on a latent; 0 or 1 where targets are known."""
        if not self.unknown:
            return self.target
        prob = self.target_logits.softmax(-1)[:, :-1]
        return torch.cat([torch.zeros_like(prob[:1]), prob[1:]])

    def log_densities(self, z: Tensor, env: Tensor) -> tuple[Tensor, Tensor]:
        """(rows, latent) twice: log density of each node's natural equation, and of its intervened one minus that."""
        standard, changed, scale = self._standardised(z, env)
        constant = 0.5 * math.log(2 * math.pi)
        log_natural = -0.5 * standard.square() - self.log_scale - constant
        return log_natural, -0.5 * changed.square() - scale - constant - log_natural

    def residuals(self, z: Tensor, env: Tensor) -> Tensor:
        """(rows, latent) noise of every row under its environment's equations, in units of its deviation."""
        standard, changed, _ = self._standardised(z, env)
        return torch.where(self.hard_targets()[env] > 0, changed, standard)

    def _standardised(self, z: Tensor, env: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(rows, latent) noise under the natural and the intervened equations, and the log scale of the latter."""
        seen = self.link(z)
        natural = self.intercept + seen @ (self.weight * self.before)  # (rows, latent)
        own = self.own_intercept.gather(0, self.slot)[env]
        scale = self.own_log_scale.gather(0, self.slot)[env]
        if self.intervention in ("shift", "variance"):
            own = natural + own
            scale = self.log_scale + (scale if self.intervention == "variance" else 0.0 * scale)
        elif self.intervention == "soft":
            own = own + torch.einsum("rj,rjk->rk", seen, (self.own_weight * self.before)[env])
        return (z - natural) / self.log_scale.exp(), (z - own) / scale.exp(), scale

    def log_prob(self, z: Tensor, env: Tensor) -> Tensor:
        """(rows,) log p(z_i | env_i); for unknown targets its expectation under their Categorical, which is exact:
        the log-density is linear in the one-hot target."""
        natural, change = self.log_densities(z, env)
        total = natural.sum(-1)
        if self.unknown:
            return total + (self.target_probabilities()[env] * self._with_escape(change, env[:, None])).sum(-1)
        hit = self.target[env]
        return total + self._with_escape((hit * change).sum(-1), env) * (hit.sum(-1) > 0)

    def _with_escape(self, change: Tensor, env: Tensor) -> Tensor:
        """log(p_escape + (1 - p_escape) exp(change)): the row's Bernoulli summed out."""
        if not self.escapees:
            return change
        logit = self.escape_logit[env].expand_as(change)
        return torch.stack([logsigmoid(logit), logsigmoid(-logit) + change]).logsumexp(0)

    def escaped(self, z: Tensor, env: Tensor) -> Tensor:
        """(rows,) probability that a row's intervention did nothing; 0 without escapees, and for observational rows."""
        if not self.escapees:
            return torch.zeros_like(z[:, 0])
        _, change = self.log_densities(z, env)
        hit = self.target_probabilities()[env]
        return (self.escape_logit[env] - (hit * change).sum(-1)).sigmoid() * (hit.sum(-1) > 0.5)

    def rows(self, env: Tensor) -> Law:
        """The density of the latents of rows with environments `env` (rows,): event (latent,)."""
        return Law(env.shape, (self.latents,), lambda z: self.log_prob(z, env))

    def prior(self) -> None:
        """Log prior of the equations and, less their posterior, of targets: Pyro factors outside the data plate."""
        weak = -0.005 * (self.intercept.square().sum() + self.own_intercept.square().sum())
        pyro.factor("equations_prior", weak + self.log_prior_of_weights())
        if self.unknown:
            q = self.target_logits[1:].log_softmax(-1)
            pyro.factor("targets_prior", (q.exp() * (self._target_log_prior() - q)).sum())
        if self.escapees:
            a, b = self.escape_prior
            log = a * logsigmoid(self.escape_logit) + b * logsigmoid(-self.escape_logit)  # of the logit
            pyro.factor("escape_prior", log.sum())

    def log_prior_of_weights(self) -> Tensor:
        """A slab N(0, 1) or a spike about 0, by the edge probability: of unmixings that fit alike, one that needs few
        parents is taken."""
        return log_prior_of_weights(self.weight, self.edge_probability, self.spike).sum()

    def _target_log_prior(self) -> Tensor:
        d = self.latents
        log = self.target_logits.new_full((d + 1,), math.log((1 - self.none_probability) / d))
        log[d] = math.log(self.none_probability)
        return log

    # -- from latents ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def gather(self, z: Tensor, env: Tensor) -> None:
        """Moments of the rows' latents, or of their innovations where equations are `absorbed`, from which the graph's
        posterior is read; unknown targets are set anew."""
        escaped = self.escaped(z.to(self.weight.dtype), env).double()
        z = self.innovations(z.to(self.weight.dtype)) if self.absorbed else z
        if self.unknown:  # by all rows of an environment: those picked for having changed would seem to have changed
            self._set_moments(z.double(), env, torch.zeros_like(escaped))
            self._settle_targets()
        self._set_moments(z.double(), env, escaped)

    def _set_moments(self, z: Tensor, env: Tensor, escaped: Tensor) -> None:
        values = torch.cat([z, self.link(z)], -1)
        envs, size = self.environments, values.shape[1]
        centre = values.mean(0)
        count, first = z.new_zeros(2 * envs), z.new_zeros(2 * envs, size)
        second = z.new_zeros(2 * envs, size, size)
        block = BLOCK
        if self.many:  # as many squares as there are of the most latents otherwise
            block = max(1, int(BLOCK * (2 * orders.MAX_NODES / size) ** 2))
        for part, code, share in zip(*(t.split(block) for t in (values - centre, env, escaped)), strict=True):
            for group, weight in ((code, 1 - share), (code + envs, share)):
                weighed = weight[:, None] * part
                count.index_add_(0, group, weight)
                first.index_add_(0, group, weighed)
                second.index_add_(0, group, weighed[:, :, None] * part[:, None, :])
        self.count.copy_(count)
        mean = first / count.clamp_min(1e-9)[:, None]
        self.cov.copy_(second / count.clamp_min(1e-9)[:, None, None] - mean[:, :, None] * mean[:, None, :])
        self.mean.copy_(torch.where(count[:, None] > 0, mean + centre, mean))
        rows = count[:envs] + count[envs:]
        rows[0] = 0.0  # observational rows are what the others vary about
        self.count.div_(1.0 + rows.repeat(2) * self.variation**2)
        empty = self.count < 1e-6
        self.cov[empty] = torch.eye(self.cov.shape[-1], dtype=self.cov.dtype, device=self.cov.device)

    @torch.no_grad()
    def read(self, z: Tensor, env: Tensor) -> bool:
        """Moments of readings (reading, rows, latent) of the rows' latents beside those gathered last, which stay.

        False, and none are held, where latents of one are so nearly one another that equations are no numbers."""
        kept = self.count.clone(), self.mean.clone(), self.cov.clone()
        for place, one in enumerate(z):
            self._set_moments(one.double(), env, torch.zeros_like(one[:, 0]))
            self.read_mean[place], self.read_cov[place] = self.mean, self.cov
        for buffer, value in zip((self.count, self.mean, self.cov), kept, strict=True):
            buffer.copy_(value)
        self.was_read.fill_(True)
        held = bool(self.graph().isfinite().all())
        self.was_read.fill_(held)
        return held

    def _readings(self) -> list[tuple[Tensor, Tensor]]:
        """Means and covariances of all readings, or those gathered where there are none."""
        if not self.readings or not bool(self.was_read):
            return [(self.mean, self.cov)]
        return list(zip(self.read_mean, self.read_cov, strict=True))

    @torch.no_grad()
    def temper(self, z: Tensor, variance: Tensor, fewer: float, error: float) -> None:
        """Let the n rows of z (rows, latent) count as m, for errors of which rows are no cure: 1/m = fewer/n + v^2 +
        error^2. v, the share of the variance of q(z | x), `variance` (rows, latent), in a latent's, is the size of
        errors in correlations, and `error` of those that the encoder makes without q's knowing: a decoder undoes them.
        Equations that had rows keep more than one, so that no chain has fewer lines of them than another.
        """
        share = (variance.mean(0) / z.var(0)).mean().double()
        fewer_rows = self.count / (fewer + len(z) * (share.square() + error**2))
        self.count.copy_(torch.where(self.count > ALONE, fewer_rows.clamp_min(ALONE + 1e-6), fewer_rows))

    def changed(self) -> linear_sem.Environments:
        """Moments of the latents of rows that did not escape, as gathered last."""
        envs, d = self.environments, self.latents
        parts = self.count[:envs], self.mean[:envs, :d], self.cov[:envs, :d, :d], self.hard_targets()
        return linear_sem.Environments(*(part.double() for part in parts))

    @torch.no_grad()
    def start(self, z: Tensor, env: Tensor, order: Tensor | None = None) -> None:
        """Equations by least squares from rows' latents (rows, latent). order: (latent,) nodes, parents first; None =
        the most probable one given the latents."""
        self.gather(z, env)
        target = self.hard_targets()
        table, eye = self._slices(target), torch.eye(self.latents).to(self.cov)
        if not self.absorbed:
            place = (self._first_order(table) if order is None else order).argsort()
            self.before.copy_((place[:, None] < place[None, :]).to(self.before))
            if self.many:
                self.ordered.fill_(True)
        fitted = linear_sem.draw_mechanisms(eye, self.before > 0, table, self._conjugate(), noisy=False)
        d = self.latents
        if self.intervention == "variance":  # weights and variance ratios in turn: weighted least squares
            for _ in range(4):
                self._fit_ratios(fitted, target)
                table = self._slices(target)
                fitted = linear_sem.draw_mechanisms(eye, self.before > 0, table, self._conjugate(), noisy=False)
        self.weight.copy_(fitted.weight[:d].mT)
        self.intercept.copy_(fitted.intercept[:d])
        self.log_scale.copy_(fitted.scale[:d].log())
        intercept, scale, weight = self._per_environment(fitted, target)
        change = self.intervention in ("shift", "variance")
        self.own_intercept.copy_(intercept - fitted.intercept[:d] if change else intercept)
        self.own_log_scale.copy_((scale / fitted.scale[:d] if change else scale).log())
        self.own_weight.copy_(weight)
        self.target_logits.copy_(self.target_log_prob.clamp_min(-4.0))  # soft: training may still change its mind

    def _fit_ratios(self, fitted: linear_sem.Mechanisms, target: Tensor) -> None:
        """Set log ratios of the intervened and the natural residual deviations, at the fitted weights."""
        for e, k in self._pairs(target):
            residual = torch.cat([torch.zeros_like(fitted.weight[k]), -fitted.weight[k]])
            residual[k] += 1.0
            own = residual @ self.cov[e] @ residual
            self.own_log_scale[e, k] = 0.5 * own.log() - fitted.scale[k].log()

    def hard_targets(self) -> Tensor:
        """(env, latent) in {0, 1}: the known targets, or the most probable ones."""
        if not self.unknown:
            return self.target
        best = self.target_log_prob.argmax(-1)
        return torch.nn.functional.one_hot(best, self.latents + 1)[:, :-1].to(self.target)

    def _first_order(self, table: linear_sem.Slices) -> Tensor:
        """(latent,) the most probable order given the latents."""
        if not self.many:
            return orders.best_order(self._scores(table, torch.eye(self.latents).to(self.cov)))
        self._choose_parents(table)
        return self.graphs.sample(self._scores(table), sampled_graphs.FEW, np.random.default_rng(0))[0]

    @torch.no_grad()
    def sample_orders(self, generator: torch.Generator) -> None:
        """Of many latents draw orders, and settle unknown targets over them, given the moments as gathered last."""
        if not self.many or self.absorbed:
            return
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        for _ in range(2 if self.unknown else 1):
            table = self._slices(self.hard_targets())
            self._choose_parents(table)
            drawn = self.graphs.sample(self._scores(table), sampled_graphs.ORDERS, rng)
            if self.unknown:
                self._settle_many([drawn[0], *drawn[1 :: len(drawn) // sampled_graphs.AVERAGED]])

    def _choose_parents(self, table: linear_sem.Slices) -> None:
        d = self.latents
        places = torch.arange(d, device=table.node.device).expand(d, -1)
        own = torch.cat([table.node[:d, None], places], 1)
        self.graphs.choose(capped_parents.at(table.cov[:d].double(), own))

    def _settle_many(self, drawn: Sequence[Tensor | None]) -> None:
        """`_settle_targets` of many latents, given orders (latent,), or None = as if there were no edges."""
        d, likely = self.latents, self.graphs.candidates
        own = torch.arange(d, device=likely.device)[:, None]
        columns = torch.cat([own, likely + d], 1)  # z of the latent itself, phi of its likely parents
        count, mean, cov = (part[: self.environments].double() for part in (self.count, self.mean, self.cov))
        ratio = (2.0 * self.own_log_scale.gather(0, self.slot)).double()
        shares = sampled_graphs.shares_of(count, mean, cov, columns, self.intervention, ratio)
        found = sampled_graphs.settled_targets(
            shares, self._target_log_prior().double(), self.graphs.log_odds, list(drawn), likely
        )
        self.target_log_prob.copy_(found.log().clamp_min(-700.0))

    def _settle_targets(self, sweeps: int = 3) -> None:
        """Targets one environment at a time, given the others, by the evidence of all moments; from those of each
        environment with the observational one alone. What an environment adds to the moments is put in and taken out,
        so that the cost is linear in their number."""
        if self.many:
            # interventions move the first latents, which are along their directions, one by one
            return self._settle_many([self.before.sum(0).argsort() if bool(self.ordered) else None])
        d, envs = self.latents, self.environments
        log_prior = self._target_log_prior().double()
        natural, own = self._added()
        table = torch.zeros(envs, d + 1, dtype=torch.float64, device=self.target_log_prob.device)
        places = torch.arange(envs, device=table.device)
        table[0, d] = 1e3  # environment 0 is observational
        for few in places[1:].split(max(1, BLOCK // (d * 2**d))):
            alone = (part[0].expand(len(few), d, *part.shape[1:]) for part in natural)
            table[few] = self._evidence(_Added(*alone), natural, own, few) + log_prior
        current = table.argmax(-1)
        for _ in range(sweeps - 1):
            before, hit = current.clone(), torch.nn.functional.one_hot(current, d + 1)[:, :d].double()
            rest = _Added(
                *(
                    torch.einsum("ek,e...->k...", 1 - hit, a) + torch.einsum("ek,ek...->k...", hit, b)
                    for a, b in zip(natural, own, strict=True)
                )
            )
            for e in range(1, envs):
                rest = rest.moved(natural, own, e, int(current[e]), -1.0)
                others = _Added(*(part[None] for part in rest))
                table[e] = self._evidence(others, natural, own, places[e : e + 1])[0] + log_prior
                current[e] = int(table[e].argmax())
                rest = rest.moved(natural, own, e, int(current[e]), 1.0)
            if bool((current == before).all()):
                break
        self.target_log_prob.copy_(table.log_softmax(-1))

    def _added(self) -> tuple[_Added, _Added]:
        """What each environment adds to every equation's moments: (env, ...) where it leaves the equation alone and
        (env, latent, ...) where it acts on it."""
        d, envs = self.latents, self.environments
        count, mean, cov = (part[:envs].double() for part in (self.count, self.mean, self.cov))
        acting = torch.where(count > ALONE, count, torch.zeros_like(count))  # others are left out
        inside = acting[:, None, None] * cov
        second = count[:, None, None] * (cov + mean[:, :, None] * mean[:, None, :])
        width = 2**d if self.intervention == "soft" else 1
        nothing = count.new_zeros(envs, width)
        natural = _Added(count, count[:, None] * mean, second, 0 * count, 0 * cov, nothing)
        out = _Added(*(torch.zeros_like(part)[:, None].repeat(1, d, *[1] * (part.dim() - 1)) for part in natural))
        if self.intervention in ("shift", "variance"):
            ratio = (2.0 * self.own_log_scale.gather(0, self.slot)).double()  # (env, latent)
            # each group's own mean has a prior of height 1 / (s sqrt(2 pi)); a variance ratio was divided out
            score = -0.5 * torch.where(acting > 0, count.log(), 0.0)[:, None].expand(-1, d)
            within = inside[:, None].expand(-1, d, -1, -1)
            if self.intervention == "variance":
                score = score - 0.5 * acting[:, None] * ratio
                within = within / ratio.exp()[:, :, None, None]
            count_in = acting[:, None].expand(-1, d)
            return natural, out._replace(own_count=count_in, within=within, score=score[:, :, None])
        nodes = torch.arange(d, device=count.device).repeat(envs)
        chosen = self._columns(cov[:, None].expand(-1, d, -1, -1).flatten(0, 1), nodes)
        many = acting[:, None].expand(-1, d).flatten()
        if self.intervention == "soft":
            score = linear_sem.regression_scores(chosen, many, nodes)
        else:
            alone = chosen.diagonal(dim1=1, dim2=2).gather(1, nodes[:, None])[:, 0]
            score = linear_sem.regression_scores(alone[:, None, None], many, torch.zeros_like(nodes))[:, :1]
        return natural, out._replace(score=score.unflatten(0, (envs, d)))

    def _evidence(self, rest: _Added, natural: _Added, own: _Added, envs: Tensor) -> Tensor:
        """(len(envs), latent + 1) log p(z | targets), up to a constant, for each target of these environments, or none;
        graph and equations summed out. rest: (len(envs), latent, ...) the moments of the other environments."""
        d = self.latents
        left = _Added(*(r + a[envs][:, None] for r, a in zip(rest, natural, strict=True)))
        hit = _Added(*(r + b[envs] for r, b in zip(rest, own, strict=True)))
        both = _Added(*(torch.stack(pair).flatten(0, 2) for pair in zip(left, hit, strict=True)))
        total = both.count.clamp_min(1.0)
        mean = both.first / total[:, None]
        cov, count = both.second / total[:, None, None] - mean[:, :, None] * mean[:, None, :], both.count
        if self.intervention in ("shift", "variance"):  # one regression within all groups of a node
            count = both.count + both.own_count
            cov = (both.count[:, None, None] * cov + both.within) / count.clamp_min(1.0)[:, None, None]
        nodes = torch.arange(d, device=cov.device).repeat(len(count) // d)
        scores = linear_sem.regression_scores(self._columns(cov, nodes), count, nodes) + both.score
        scores = (scores.unflatten(0, (2, -1, d)) + self._prior_scores().to(scores)).movedim(0, 1)  # (env, 2, d, 2^d)
        pick = torch.eye(d + 1, d, dtype=torch.long, device=cov.device)  # (option, latent)
        options = scores[:, pick, torch.arange(d)]  # (env, option, latent, 2^d)
        return options[..., 0].sum(-1) if self.absorbed else orders.log_partition(options)

    def _columns(self, cov: Tensor, node: Tensor) -> Tensor:
        """(slice, d, d) covariances of phi of every latent, but z of the slice's own node."""
        column, d = self._column(node), self.latents
        across = cov.gather(1, column[:, :, None].expand(-1, -1, 2 * d))
        return across.gather(2, column[:, None, :].expand(-1, d, -1))

    def _column(self, node: Tensor) -> Tensor:
        """(slice, d) places of phi of every latent, but of z of the slice's own node."""
        column = torch.arange(self.latents, 2 * self.latents, device=node.device).repeat(len(node), 1)
        return column.scatter_(1, node[:, None], node[:, None])

    # -- the posterior given the moments -----------------------------------------------------------------------

    def _conjugate(self) -> Literal["perfect", "soft"]:
        return "soft" if self.intervention == "soft" else "perfect"

    def _pairs(self, target: Tensor) -> list[tuple[int, int]]:
        """(env, latent) of every intervened equation that has rows; of every one before rows are gathered."""
        pairs = linear_sem.target_pairs(target.cpu())
        return [(e, k) for e, k in pairs if self.count[e] > ALONE] if bool(self.count.any()) else pairs

    def _slices(self, target: Tensor, moments: tuple[Tensor, Tensor] | None = None) -> linear_sem.Slices:
        """Moments sorted by equation, z of the slice's node among phi of the others; see `linear_sem.Slices`. moments:
        means and covariances; None = those gathered."""
        count = self.count
        each_mean, each_cov = (self.mean, self.cov) if moments is None else moments
        whole = torch.cat([target, torch.zeros_like(target)]).to(self.count)
        environments = linear_sem.Environments(count, each_mean, each_cov, whole)
        pairs = self._pairs(target)
        out = linear_sem.slices(environments, pairs)
        d = self.latents
        own = torch.tensor([k for _, k in pairs], dtype=torch.long, device=count.device)
        out = out._replace(node=torch.cat([torch.arange(d, device=count.device), own]))
        if self.intervention in ("shift", "variance"):  # one regression within all groups of a node
            total, cov = out.count[:d].clone(), out.cov[:d] * out.count[:d, None, None]
            ratio = (2.0 * self.own_log_scale.gather(0, self.slot)).exp().double()
            for e, k in pairs:
                weight = count[e] / (ratio[e, k] if self.intervention == "variance" else 1.0)
                total[k] += count[e]
                cov[k] = cov[k] + weight * each_cov[e]
            cov = cov / total.clamp_min(1.0)[:, None, None]
            out = linear_sem.Slices(out.node[:d], total, out.mean[:d], cov)
        cov, column = self._columns(out.cov, out.node), self._column(out.node)
        return linear_sem.Slices(out.node, out.count, out.mean.gather(1, column), cov)

    def _scores(self, table: linear_sem.Slices, unmixing: Tensor | None = None) -> Tensor:
        """Log scores of sets of parents, of all other latents or, of many, of the likely ones."""
        if self.many or unmixing is None:
            natural = self.latents if self._conjugate() == "perfect" else len(table.node)
            return self.graphs.scores(table.cov[:natural], table.count[:natural], table.node[:natural])
        return linear_sem.mechanism_scores(unmixing.to(table.cov), table, self.edge_probability, self._conjugate())

    @torch.no_grad()
    def graph(self) -> Tensor:
        """(parent, child) edge probabilities given the moments; for unknown targets given the most probable ones. The
        prior's where weights are `absorbed`."""
        if self.absorbed and self.many:  # of two latents either comes first as often
            return 0.5 * self.edge_probability * (1.0 - torch.eye(self.latents).to(self.weight))
        if self.absorbed:
            return orders.edge_probabilities(self._prior_scores()).to(self.weight)
        table = self._slices(self.hard_targets())
        if self.many:
            return self.graphs.edges(self._scores(table)).to(self.weight)
        tables = [self._slices(self.hard_targets(), moments) for moments in self._readings()]
        each = [orders.edge_probabilities(self._scores(t, unmixing)) for t in tables for unmixing in self.maps]
        return torch.stack(each).mean(0).clamp(0.0, 1.0).to(self.weight)

    def _prior_scores(self) -> Tensor:
        return orders.log_edge_prior(self.latents, self.edge_probability, self.weight.device)

    # -- the story of the equations, before data and after -----------------------------------------------------

    def story(self) -> Equations:
        """Targets, order, graph and every equation from their prior, as Pyro sites; in units of the latents.

        target[e] ~ Categorical(latents, none), order uniform, edges Bernoulli; for each natural equation and, unless
        interventions keep it, each (env, target): variance ~ InverseGamma(1, 1), slopes ~ N(0, 1), level ~ N(0, 2^2).
        An intervention that keeps its equation changes the level by N(0, 2^2), "variance" the scale by a log-normal
        ratio too.
        """
        targets = self._targets(self._target_log_prior().expand(self.environments, -1))
        order, graph = self._any_graph()  # (latent,), (parent, child)
        pairs = self._pairs(targets)
        size = self.latents + (0 if self.keeps else len(pairs))
        like = self.weight.new_ones(size)
        with table_of(size, drawn=self.unknown):  # the natural equations, then one for each (env, target)
            variance = pyro.sample("variance", dist.InverseGamma(like, like))
            law = self._prior_slopes(variance)
            acting = self._acting(graph, [] if self.keeps else pairs).to(like)  # slopes of other latents do nothing
            slope = pyro.sample("slope", PseudoPrior(acting, law, law).to_event(1))  # (mechanism, latent)
            level = pyro.sample("level", Normal(0 * like, LEVEL * like))
        change, ratio = self._changes(pairs, lambda e, k: (self.weight.new_zeros(()), self.weight.new_tensor(LEVEL)))
        out = self._assembled(order, graph, targets, variance, slope, level, change, ratio)
        soft = self.intervention == "soft"
        return out._replace(weight=described(out.weight, targets, out.natural, out.everywhere, soft))

    @torch.no_grad()
    def recover(self) -> Equations:
        """The same sites given the moments of the rows' latents (`gather`), conjugate with a unit-information prior; of
        `absorbed` weights the prior."""
        targets = self._targets(self.target_log_prob)
        read = self._readings() if self.erring else [(self.mean, self.cov)]
        mean, cov = read[0] if len(read) == 1 else read[int(torch.randint(len(read), ()))]
        table, pairs = self._slices(targets, (mean, cov)), self._pairs(targets)
        unmixing = self.maps[0] if len(self.maps) == 1 else self.maps[int(torch.randint(len(self.maps), ()))]
        if self.many and self.absorbed:
            order, graph = self._any_graph()
        elif self.many:
            scores, likely = self._scores(table), self.graphs.candidates
            order = pyro.sample("order", order_sampling.SampledOrder(self.graphs.orders, self.graphs.log_density))
            graph = pyro.sample("graph", order_sampling.Graph(scores, order, likely))
        else:
            scores = self._prior_scores().to(table.cov) if self.absorbed else self._scores(table, unmixing)
            order = pyro.sample("order", orders.Order(scores))
            graph = pyro.sample("graph", orders.Graph(scores, order))
        eye = torch.eye(self.latents).to(table.cov)  # the decoder's latents are those that are read
        known = linear_sem.regressions(eye, graph * (not self.absorbed), table, self._conjugate())
        with table_of(len(table.node), drawn=self.unknown):
            variance = pyro.sample("variance", known.variance())
            law = self._prior_slopes(variance).to_event(1) if self.absorbed else known.slopes(variance)
            slope = pyro.sample("slope", law)
            level = pyro.sample("level", known.level(slope, variance))
        weight = slope * known.parents  # (mechanism, latent)

        def shifted(e: int, k: int) -> tuple[Tensor, Tensor]:
            gap = mean[e, k] - mean[e, self.latents :] @ weight[k] - level[k]
            spread = variance[k].sqrt() * (self._ratio(e, k) if self.intervention == "variance" else 1.0)
            return gap, spread / self.count[e].sqrt()

        change, ratio = self._changes(pairs, shifted, told=True)
        return self._assembled(order, graph, targets, variance, slope, level, change, ratio)

    def _any_graph(self) -> tuple[Tensor, Tensor]:
        """Sites `order` (latent,) and `graph` (parent, child), from their prior."""
        if self.many:
            like = self.weight.detach().double()
            order = pyro.sample("order", order_sampling.AnyOrder(like, self.latents))
            chance = self.edge_probability * orders.earlier(order).to(like)
            return order, pyro.sample("graph", dist.Bernoulli(chance).to_event(2))
        order = pyro.sample("order", orders.Order(self._prior_scores().double()))
        return order, pyro.sample("graph", orders.Graph(self._prior_scores().double(), order))

    def _targets(self, log_prob: Tensor) -> Tensor:
        """(env, latent) known targets, or a draw of the site `target`; log_prob: (env, latent + 1), "none" last."""
        if not self.unknown:
            return self.target
        none = torch.full_like(log_prob[:1], -torch.inf)
        none[0, -1] = 0.0  # environment 0 is observational
        with pyro.plate("env", self.environments, dim=-1):
            pick = pyro.sample("target", dist.Categorical(logits=torch.cat([none, log_prob[1:]])))
        return torch.nn.functional.one_hot(pick, self.latents + 1)[:, :-1].to(self.target)

    def _prior_slopes(self, variance: Tensor) -> Any:
        """N(0, 1); of weights that a decoder absorbs N(0, s_k^2 / s_j^2)."""
        scale = variance.new_ones(len(variance), self.latents)
        if self.absorbed:
            scale = (variance[:, None] / variance[: self.latents]).sqrt()
        return Normal(torch.zeros_like(scale), scale)

    def _acting(self, graph: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """(mechanism, latent) in {0, 1}: the parents in each equation, of which a perfect intervention leaves none."""
        own = graph.mT[[k for _, k in pairs]]
        return torch.cat([graph.mT, own if self.intervention == "soft" else 0 * own])

    def _changes(
        self, pairs: Sequence[tuple[int, int]], law: Callable[[int, int], tuple[Tensor, Tensor]], told: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Changes of level and ratios of scale (pair,) of interventions that keep equations: Normal(*law(env, latent)),
        and log-normal, or where told the fitted ratio."""
        one = self.weight.new_ones(len(pairs))
        if not (self.keeps and pairs):
            return 0 * one, one
        loc, scale = (torch.stack(part) for part in zip(*(law(e, k) for e, k in pairs), strict=True))
        with table_of(len(pairs), drawn=self.unknown, name="pair"):
            change = pyro.sample("change", Normal(loc, scale))
            if self.intervention != "variance":
                return change, one
            fitted = torch.stack([self._ratio(e, k) for e, k in pairs])
            ratio = pyro.sample("ratio", dist.Delta(fitted) if told else LogNormal(0 * one, one))
        return change, ratio

    def _ratio(self, e: int, k: int) -> Tensor:
        return self.own_log_scale[self.slot[e, k], k].exp()

    def _assembled(
        self,
        order: Tensor,
        graph: Tensor,
        targets: Tensor,
        variance: Tensor,
        slope: Tensor,
        level: Tensor,
        change: Tensor,
        ratio: Tensor,
    ) -> Equations:
        d, envs = self.latents, self.environments
        weight = (slope[:d].mT * graph).to(self.weight)  # (parent, child)
        intercept, scale = (v[:d].to(weight).repeat(envs, 1) for v in (level, variance.sqrt()))
        everywhere = weight.repeat(envs, 1, 1)
        for place, (e, k) in enumerate(self._pairs(targets)):
            if self.keeps:
                intercept[e, k] = intercept[e, k] + change[place]
                scale[e, k] = scale[e, k] * ratio[place]
            else:
                intercept[e, k], scale[e, k] = level[d + place], variance[d + place].sqrt()
                soft = self.intervention == "soft"
                everywhere[e, :, k] = slope[d + place] * graph[:, k] if soft else 0.0
        equations = linear_sem.LinearSEM(everywhere, intercept, scale)
        return Equations(order, targets, weight, level[:d].to(weight), equations)

    @torch.no_grad()
    def own(self) -> dict[str, Tensor]:
        """The chain's own equations as values of the story's sites, all earlier latents being parents."""
        hit, d = self.hard_targets(), self.latents
        pairs = self._pairs(hit)
        slots = [(int(self.slot[e, k]), k) for e, k in pairs]
        slope, level, scale = [self.weight.mT], [self.intercept], [self.log_scale]
        if not self.keeps:
            slope += [self.own_weight[e, :, k][None] for e, k in pairs]
            level += [self.own_intercept[s, k][None] for s, k in slots]
            scale += [self.own_log_scale[s, k][None] for s, k in slots]
        out = {
            "order": self.before.sum(0).argsort(stable=True),
            "graph": self.before.double(),
            "variance": torch.cat(scale).mul(2).exp(),
            "slope": torch.cat(slope),
            "level": torch.cat(level),
        }
        if self.unknown:
            out["target"] = torch.where(hit.sum(1) > 0, hit.argmax(1), d)
        if self.keeps and pairs:
            out["change"] = torch.stack([self.own_intercept[s, k] for s, k in slots])
            if self.intervention == "variance":
                out["ratio"] = torch.stack([self.own_log_scale[s, k].exp() for s, k in slots])
        return out

    def of_rows(self, equations: Equations, env: Tensor, together: Sequence[int] | None) -> linear_sem.LinearSEM:
        """The equations of rows with environments `env` (rows,): weight (rows, parent, child), others (rows, latent).

        together: not None = the observational ones, with the interventions of these environments put together. Shifts
        and log variance ratios on one latent add; of two replaced equations the later one stands.
        """
        weights, intercepts, scales = equations.everywhere
        if together is None:
            if self.keeps:  # weights are those of all environments: no copy for each row
                return linear_sem.LinearSEM(weights[0].expand(len(env), -1, -1), intercepts[env], scales[env])
            return linear_sem.LinearSEM(weights[env], intercepts[env], scales[env])
        if not self.keeps:
            return linear_sem.of_rows(equations.everywhere, equations.targets, env, together, 0)
        intercept, scale = intercepts[0], scales[0]
        for e in together:
            hit = equations.targets[e]
            intercept = intercept + hit * (intercepts[e] - intercepts[0])
            scale = scale * torch.where(hit > 0.5, scales[e] / scales[0], torch.ones_like(scale))
        return linear_sem.LinearSEM(*(v.expand(len(env), *v.shape) for v in (weights[0], intercept, scale)))

    def acting(self, env: Tensor) -> Tensor:
        """(rows,) the environments whose equations rows follow: their own or, had they escaped, environment 0."""
        if not self.escapees:
            return env
        escaped = pyro.sample("escaped", dist.Bernoulli(self.escape_logit.sigmoid()[env] * (env > 0)))
        return torch.where(escaped > 0.5, 0, env)

    def _per_environment(self, drawn: linear_sem.Mechanisms, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Intercept and scale (env, latent), weights (env, parent, child) of every environment's fitted equations."""
        d, envs = self.latents, self.environments
        intercept, scale = (v[:d].repeat(envs, 1) for v in (drawn.intercept, drawn.scale))
        weight = drawn.weight[:d].mT.repeat(envs, 1, 1)
        for position, (e, k) in enumerate(self._pairs(target)):
            if self.keeps:
                ratio = self.own_log_scale[self.slot[e, k], k].exp() if self.intervention == "variance" else 1.0
                scale[e, k] = drawn.scale[k] * ratio
                intercept[e, k] = self.mean[e, k] - self.mean[e, d:] @ drawn.weight[k]
            else:
                intercept[e, k] = drawn.intercept[d + position]
                scale[e, k] = drawn.scale[d + position]
                weight[e, :, k] = drawn.weight[d + position]  # 0 where interventions are perfect
        return intercept, scale, weight

    def moved(self, z: Tensor, environment: int) -> Tensor:
        """(rows, latent) what observational latents `z` would be in an environment, by the chain's own equations.

        Their noise, in units of its deviation, is kept. Equations are averaged by the probabilities of the targets.
        """
        weight = self.weight * self.before
        noise = (z - self.intercept - self.link(z) @ weight) / self.log_scale.exp()
        hit = self.target_probabilities()[environment]  # (latent,)
        slot = self.slot[environment][None]
        own = self.own_intercept.gather(0, slot)[0]
        scale = self.own_log_scale.gather(0, slot)[0]
        if self.intervention in ("shift", "variance"):
            intercept, log_scale = self.intercept + hit * own, self.log_scale + hit * scale
        else:
            parents = self.own_weight[environment] * self.before if self.intervention == "soft" else 0.0 * weight
            weight = weight + hit * (parents - weight)
            intercept = self.intercept + hit * (own - self.intercept)
            log_scale = self.log_scale + hit * (scale - self.log_scale)
        return self.solve(intercept + noise * log_scale.exp(), weight)

    def innovations(self, z: Tensor) -> Tensor:
        """(rows, latent) latents less what parents give them, by the chain's own equations."""
        return z - self.link(z) @ (self.weight * self.before)

    def solve(self, innovations: Tensor, weight: Tensor) -> Tensor:
        """(rows, latent) latents of which `innovations` are left under the weights (parent, child)."""
        if self.many and self.mechanism == "linear":
            return torch.linalg.solve(torch.eye(self.latents).to(weight) - weight, innovations, left=False)
        out = torch.zeros_like(innovations)
        for _ in range(self.latents):  # as many rounds as the longest path could need
            out = innovations + self.link(out) @ weight
        return out

    def seen(self, z: Tensor, weight: Tensor) -> Tensor:
        """(rows, latent) what the decoder takes in for latents of drawn equations: where weights are drawn from their
        prior (`absorbed`), latents of the chain's own equations with the same innovations."""
        return self.solve(z - self.link(z) @ weight, self.weight * self.before) if self.absorbed else z


def log_prior_of_weights(weight: Tensor, edge_probability: float, spike: float) -> Tensor:
    """Of each weight, up to a constant: N(0, 1) with the edge's probability, else N(0, spike^2)."""
    slab = -0.5 * weight.square() + math.log(edge_probability)
    none = -0.5 * (weight / spike).square() + math.log((1 - edge_probability) / spike)
    return torch.stack([slab, none]).logsumexp(0)


class SEMReadouts:
    """Read-outs that programs with a `LatentSEM` share: what they tell of graph, targets, new rows and interventions.

    The program has `sem`, a `LatentSEM`; `observation`, an `Observation`; `decoder`, z (rows, latent) -> its eta; and
    `latents`, of which innovations where equations are `absorbed`.
    """

    sem: LatentSEM
    observation: Observation
    decoder: nn.Module
    config: dict[str, Any]
    new_rows = True
    knows_interventions = True
    latents: Callable[[Batch], Tensor]
    sites: ClassVar[Mapping[str, Site]] = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "graph": Site(("parent", "child"), discrete=True),
        "weight": Site(("parent", "child"), {"parent": -1, "child": 1}),
        "env_weight": Site(("env", "parent", "child"), {"parent": -1, "child": 1}),
        "targets": Site(("env", "latent"), discrete=True),
        "shift": Site(("env", "latent"), {"latent": 1}),
        "intercept": Site(("env", "latent"), {"latent": 1}),
        "noise": Site(("env", "latent"), {"latent": "spread"}),
        "escaped": Site(("data",), discrete=True),
    }

    def graph(self) -> Tensor:
        return self.sem.graph()

    @contextmanager
    def reading_errors(self) -> Iterator[bool]:
        """Equations of the latents that draws of the map read, and not of those that the decoder takes."""
        self.sem.erring = True
        try:
            yield bool(self.sem.readings and self.sem.was_read)
        finally:
            self.sem.erring = False

    def targets_matrix(self) -> Tensor | None:
        if self.sem.unknown:
            return self.sem.target_log_prob[:, :-1].exp().to(self.observation.spread.dtype)
        return None if self.config["targets"] == "known" else self.sem.target

    @torch.no_grad()
    def escaped(self, batch: Batch) -> Tensor | None:
        if not self.sem.escapees:
            return None
        z = self.latents(batch)
        if self.sem.absorbed:  # innovations: back to latents of the chain's own equations
            z = self.sem.solve(z, self.sem.weight * self.sem.before)
        return self.sem.escaped(z, batch.env)

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        """Targets, order, graph and equations given the latents of the rows of the fit; which rows escaped; and, where
        weights are the prior's, latents of those equations (the guide's are of the chain's own)."""
        equations = self.sem.recover()
        with self.rows(batch):  # type: ignore[attr-defined]
            if self.sem.escapees:
                pyro.sample("escaped", dist.Bernoulli(self.sem.escaped(kept["z"], batch.env)))
            if self.sem.absorbed:
                z = self.sem.solve(self.sem.innovations(kept["z"]), equations.weight)
                pyro.sample("z", dist.Delta(z, event_dim=1))

    def plugged(self, batch: Batch) -> dict[str, Tensor]:
        """The chain's own equations: parameters while it is trained."""
        return self.sem.own()


@contextmanager
def table_of(size: int, drawn: bool, name: str = "mechanism") -> Iterator[None]:
    """The plate of a table of equations, a line for each (env, target).

    drawn: whether targets are. Then a line is another equation in another draw, if it is there at all: posteriors leave
    these sites out, and read-outs by environment hold what they say.
    """
    with pyro.plate(name, size, dim=-1), pyro.poutine.infer_config(config_fn=lambda _: {"drawn_lines": drawn}):
        yield


def described(weight: Tensor, targets: Tensor, natural: Tensor, everywhere: linear_sem.LinearSEM, soft: bool) -> Tensor:
    """Read-outs of a story's equations, deterministic sites; returns the weights, which a query may have set.

    weight (parent, child) and natural intercepts (latent,) without interventions; targets (env, latent); everywhere:
    equations (env, ...).
    """
    pyro.deterministic("targets", targets)
    pyro.deterministic("intercept", everywhere.intercept)
    pyro.deterministic("noise", everywhere.scale)
    pyro.deterministic("shift", (everywhere.intercept - natural) * targets)
    if soft:
        pyro.deterministic("env_weight", everywhere.weight)
    out: Tensor = pyro.deterministic("weight", weight)
    return out


def _slots(target: np.ndarray) -> np.ndarray:
    """(env, latent) the environment whose own parameters a target uses: an environment with several targets shares
    those of the environment with that single target, where there is exactly one, so that effects add."""
    envs, latents = target.shape
    slots = np.tile(np.arange(envs)[:, None], (1, latents))
    single = target.sum(1) == 1
    for k in range(latents):
        alone = np.flatnonzero(single & (target[:, k] == 1))
        if len(alone) == 1:
            slots[(target.sum(1) > 1) & (target[:, k] == 1), k] = alone[0]
    return slots
