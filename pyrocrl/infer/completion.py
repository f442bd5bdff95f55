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

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrocrl.data import Batch
from pyrocrl.dists import Gate
from pyrocrl.errors import InputError
from pyrocrl.exact import orders
from pyrocrl.infer.elbo import is_local, latent_values, sample_sites
from pyrocrl.parts.guides import GateBlock, NormalBlock
from pyrocrl.program import Program

SCALE = 0.1  # first deviation of a block on the unconstrained scale
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

    def after(self, guide: Callable[[Batch], Any]) -> Callable[[Batch], None]:
        """The guide, then these blocks."""

        def completed(batch: Batch) -> None:
            kept = pyro.poutine.trace(guide).get_trace(batch)
            drawn = latent_values(kept)
            for name, kind, shape in self.spec:
                if kind == "column":
                    with pyro.poutine.block(hide=["data"]):  # the guide has its plate of rows already
                        rows = Program.rows(batch)
                    with rows:
                        drawn[name] = pyro.sample(name, dist.Delta(drawn["z"][..., shape[0]], event_dim=0))
                else:
                    law = self._law(name, kind, batch, drawn)
                    drawn[name] = pyro.sample(name, law)

        return completed

    def _law(self, name: str, kind: str, batch: Batch, drawn: Mapping[str, Tensor]) -> Any:
        if kind == "order":
            value = getattr(self, f"order_{name}")
            return dist.Delta(value, event_dim=1)
        block = self.blocks[name]
        if kind == "graph":
            return EdgeGates(block.logits, orders.earlier(drawn["order"]).to(block.logits), batch.temperature)
        if kind == "boolean":
            law = Gate(block.logits, batch.temperature)
        else:
            law = block()
            if kind != "real":
                law = Transformed(law, [torch.distributions.biject_to(TRANSFORMS[kind])])
        return law.to_event(len(block.logits.shape if kind == "boolean" else block.loc.shape))

    @torch.no_grad()
    def probabilities(self, name: str) -> Tensor | None:
        """Probabilities of a 0/1 site or of a graph's edges; None where there is no such block."""
        kind = {site: kind for site, kind, _ in self.spec}.get(name)
        if kind not in ("boolean", "graph"):
            return None
        out = self.blocks[name].probabilities
        order = next((site for site, kind, _ in self.spec if kind == "order"), None)
        return out * orders.earlier(getattr(self, f"order_{order}")).to(out) if kind == "graph" else out


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


def fits_story(program: Program) -> bool:
    """Whether the story itself is fitted: nothing of it is summed out."""
    return type(program).model is Program.model


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
    except (AttributeError, NotImplementedError, RuntimeError):
        mean = None
    return mean if isinstance(mean, Tensor) and bool(torch.isfinite(mean).all()) else site["value"]
