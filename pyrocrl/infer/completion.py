"""Guide blocks for sites of a model that its guide lacks, so that a changed story can be fitted as it stands.

A variant that changes its story and drops `model` and `recover` has sites that were summed out before. Each gets a
mean-field block: normal on the unconstrained scale, a straight-through gate for 0/1 sites; an order of latents stays as
the chain's start has it, and a graph has a gate for every edge that its order allows. Latents that the guide draws
together, `z`, are the story's `z_<k>`. Slower than sums in closed form, and no better than mean-field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyrocrl.batch import Batch
from pyrocrl.dists import Gate, PseudoPrior
from pyrocrl.errors import InputError
from pyrocrl.exact import orders
from pyrocrl.infer.elbo import is_local, latent_values, sample_sites
from pyrocrl.parts.guides import GateBlock, NormalBlock
from pyrocrl.program import Program
from pyrocrl.turns import reseed

SCALE = 0.1  # first deviation of a block on the unconstrained scale
MOST, DRAWS, SURELY = 400, 8, 12.0  # gates to settle, draws for each, largest log odds
SURE = 0.9  # first probability of a 0/1 site's starting value
TRANSFORMS = {
    "real": torch.distributions.constraints.real,
    "positive": torch.distributions.constraints.positive,
    "unit_interval": torch.distributions.constraints.unit_interval,
}


class Completion(nn.Module):
    """spec: (site, kind, shape) of each block, in the order in which the model samples them.

    kind: "real", "positive", "unit_interval", "boolean", "order", "graph", or "column" of the guide's z, k in `shape`.
    """

    def __init__(self, spec: list[tuple[str, str, list[int]]]) -> None:
        super().__init__()
        self.spec = [(name, kind, list(shape)) for name, kind, shape in spec]
        self.blocks = nn.ModuleDict()
        for name, kind, shape in self.spec:
            if kind in TRANSFORMS:
                self.blocks[name] = NormalBlock(*shape, scale=SCALE)
            elif kind in ("boolean", "graph"):
                self.blocks[name] = GateBlock(*shape)
            elif kind == "order":
                self.register_buffer(f"order_{name}", torch.arange(shape[0]))

    @property
    def names(self) -> list[str]:
        """The sites that have a block."""
        return [name for name, _, _ in self.spec]

    @property
    def vmappable(self) -> bool:
        """Whether chains run as one: not where each draws its latents in an order of its own."""
        return all(kind not in ("order", "column") for _, kind, _ in self.spec)

    def fresh(self) -> Completion:
        return Completion(self.spec)

    @torch.no_grad()
    def start(self, values: Mapping[str, Tensor]) -> None:
        """Begin at these values of the sites."""
        for name, kind, _ in self.spec:
            if name not in values:
                continue
            value = values[name]
            if kind in TRANSFORMS:
                raw = torch.distributions.biject_to(TRANSFORMS[kind]).inv(value.to(self.blocks[name].loc))
                self.blocks[name].loc.copy_(raw.clamp(-20, 20))
            elif kind in ("boolean", "graph"):
                logit = math.log(SURE / (1 - SURE))
                self.blocks[name].logits.copy_((2 * value.to(self.blocks[name].logits) - 1) * logit)
            elif kind == "order":
                getattr(self, f"order_{name}").copy_(value)

    def after(self, program: Program, told: Mapping[str, Tensor] | None = None) -> Callable[[Batch], None]:
        """The program's guide, then these blocks, each where the story has its site: in its plates, with its scale.

        told: values that sites with a block are to have."""

        def completed(batch: Batch) -> None:
            kept = latent_values(pyro.poutine.trace(program.guide).get_trace(batch))
            with _Filled(self, kept, batch, told or {}):
                program.story(batch)

        return completed

    def law(self, name: str, prior: Any, drawn: Mapping[str, Tensor], temperature: Tensor | float) -> Any:
        """The block's law of a site, in the place of `prior`, given the sites that were drawn before."""
        kind, shape = next((kind, shape) for site, kind, shape in self.spec if site == name)
        if kind == "order":
            return dist.Delta(getattr(self, f"order_{name}"), event_dim=1)
        if kind == "column":
            return dist.Delta(drawn["z"][..., shape[0]], event_dim=0)
        block = self.blocks[name]
        if kind == "graph":
            return EdgeGates(block.logits, orders.earlier(prior.order).to(block.logits), temperature)
        if kind == "boolean":
            return Gate(block.logits, temperature).to_event(prior.event_dim)
        law = block() if kind == "real" else Transformed(block(), [torch.distributions.biject_to(TRANSFORMS[kind])])
        inner = prior.base_dist if isinstance(prior, torch.distributions.Independent) else prior
        if isinstance(inner, PseudoPrior):  # of values that do not act, any law will do
            law = Acting(inner.gate, law, inner.pseudo)
        return law.to_event(prior.event_dim)

    @torch.no_grad()
    def settle(self, program: Program, batch: Batch, seed: int) -> None:
        """Set every gate to its optimum given all else: log odds = gain of the objective when it opens, prior included.

        Straight-through gradients are too noisy to close a gate that earns nothing. The same noise for open and shut;
        left as trained where there are more than MOST gates.
        """
        for name, kind, _ in self.spec:
            if kind not in ("boolean", "graph") or self.blocks[name].logits.numel() > MOST:
                continue
            logits = self.blocks[name].logits
            hard = (logits > 0).to(logits)
            if kind == "graph":
                order = next(site for site, kind, _ in self.spec if kind == "order")
                hard = hard * orders.earlier(getattr(self, f"order_{order}")).to(hard)
            gain = torch.zeros_like(logits)
            for place in np.ndindex(*logits.shape):
                for draw in range(DRAWS):
                    for state in (1.0, 0.0):
                        value = hard.clone()
                        value[place] = state
                        reseed((seed + draw) % 2**63)
                        change = _objective(program, batch, name, value)
                        gain[place] += (2 * state - 1) * change / DRAWS
            logits.copy_(gain.nan_to_num(nan=-SURELY, posinf=SURELY, neginf=-SURELY).clamp(-SURELY, SURELY))

    @torch.no_grad()
    def probabilities(self, name: str) -> Tensor | None:
        """Probabilities of a 0/1 site or of a graph's edges; None where there is no such block."""
        kind = {site: kind for site, kind, _ in self.spec}.get(name)
        if kind not in ("boolean", "graph"):
            return None
        out = self.blocks[name].probabilities
        order = next((site for site, kind, _ in self.spec if kind == "order"), None)
        return out * orders.earlier(getattr(self, f"order_{order}")).to(out) if kind == "graph" else out


def _objective(program: Program, batch: Batch, name: str, value: Tensor) -> Tensor:
    """One draw of the ELBO with a site at a value, its own guide's density left out."""
    guide = pyro.poutine.trace(program.completion.after(program, {name: value})).get_trace(batch)
    model = pyro.poutine.trace(pyro.poutine.replay(program.model, trace=guide)).get_trace(batch)
    for trace in (guide, model):
        trace.compute_log_prob()
    total = sum(site["log_prob_sum"] for _, site in sample_sites(model))
    out: Tensor = total - sum(site["log_prob_sum"] for key, site in sample_sites(guide) if key != name)
    return out


class _Filled(Messenger):
    """Runs a story as a guide: sites that have a block get its law, all others the values that were drawn, unseen from
    outside."""

    def __init__(
        self, completion: Completion, kept: Mapping[str, Tensor], batch: Batch, told: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.completion, self.batch, self.told = completion, batch, told
        self.drawn = dict(kept)
        self.names = set(completion.names)

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.names:
            msg["fn"] = self.completion.law(name, msg["fn"], self.drawn, self.batch.temperature)
            if name in self.told:
                msg["value"], msg["done"] = self.told[name], True
            return
        if name in self.drawn:
            msg["value"], msg["done"] = self.drawn[name], True
        msg["stop"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            self.drawn[msg["name"]] = msg["value"]


class Acting(TorchDistribution):
    """Values of a law where a gate is open, and of which nothing is asked elsewhere: there the density is that of the
    pseudo-prior, so that prior over guide is what open gates cost."""

    arg_constraints: dict = {}
    has_rsample = True

    def __init__(self, gate: Tensor, law: Any, pseudo: Any, validate_args: bool | None = None) -> None:
        self.gate, self.law, self.pseudo = gate, law, pseudo
        super().__init__(law.batch_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.law.support

    @property
    def mean(self) -> Tensor:
        return self.law.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> Acting:
        parts = self.law.expand(batch_shape), self.pseudo.expand(batch_shape)
        return Acting(self.gate.expand(batch_shape), *parts)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.law.rsample(sample_shape)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        return self.gate * self.law.log_prob(value) + (1 - self.gate) * self.pseudo.log_prob(value)


class Transformed(dist.TransformedDistribution):
    """A normal on the unconstrained scale; stands at its median where a guide's site is put at its mean."""

    @property
    def mean(self) -> Tensor:
        out: Tensor = self.base_dist.mean
        for transform in self.transforms:
            out = transform(out)
        return out


class EdgeGates(Gate):
    """Independent gates (parent, child) where `allowed` is 1, no edge elsewhere; event (parent, child)."""

    def __init__(self, logits: Tensor, allowed: Tensor, temperature: Tensor | float) -> None:
        super().__init__(logits, temperature, validate_args=False)
        self.allowed = allowed
        self._batch_shape, self._event_shape = torch.Size(), logits.shape

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return super().rsample(sample_shape) * self.allowed

    def log_prob(self, value: Tensor) -> Tensor:
        return (super().log_prob(value) * self.allowed).sum((-2, -1))


def complete(program: Program, batch: Batch) -> None:
    """Give the program blocks for the sites that its guide lacks, started from what `initialise` has set.

    Raises InputError for a site of single rows, or of a law that no block fits: such a site needs a line in `guide`.
    """
    guide = pyro.poutine.trace(program.guide).get_trace(batch)
    model = pyro.poutine.trace(pyro.poutine.replay(program.model, trace=guide)).get_trace(batch)
    have = set(latent_values(guide))
    spec: list[tuple[str, str, list[int]]] = []
    values: dict[str, Tensor] = {}
    hints = program.plugged(batch)
    for name, site in sample_sites(model):
        if site["is_observed"] or name in have or site["infer"].get("is_auxiliary"):
            continue
        spec.append((name, *_kind(name, site, have)))
        mean = hints.get(name, _mean(site))
        values[name] = mean.expand(site["value"].shape)
    if spec:
        completion = Completion(spec).to(batch.device, batch.dtype)
        completion.start(values)
        program.complete_with(completion)


def _kind(name: str, site: dict, have: set[str]) -> tuple[str, list[int]]:
    law, shape = site["fn"], list(site["value"].shape)
    if is_local(site):
        if name.startswith("z_") and name[2:].isdigit() and "z" in have:
            return "column", [int(name[2:])]
        raise InputError(
            f"guide: no site {name!r}, which the story draws for every row; allowed: a line for it in `guide`"
        )
    if isinstance(law, orders.Order):
        return "order", shape
    if isinstance(law, orders.Graph):
        return "graph", shape
    support = law.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    for kind, constraint in {**TRANSFORMS, "boolean": torch.distributions.constraints.boolean}.items():
        if support is constraint:
            return kind, shape
    raise InputError(
        f"guide: no site {name!r}, whose support {support} has no block; allowed: a line for it in `guide`, or a real, "
        "positive, unit-interval or 0/1 site"
    )


def _mean(site: dict) -> Tensor:
    """The law's mean where it has one, else the value that was drawn."""
    try:
        mean = site["fn"].mean
    except NotImplementedError:
        mean = None
    return mean if isinstance(mean, Tensor) and bool(torch.isfinite(mean).all()) else site["value"]
