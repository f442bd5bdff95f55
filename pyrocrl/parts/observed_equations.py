"""Programs whose latents are the features themselves, and those with linear equations of them that environments change.

`ObservedLatents` tells x as it is; `ObservedEquations` has the read-outs that do not ask how parents are summed over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.data import Data
from pyrocrl.dists import Normal
from pyrocrl.exact import interventions

_GATHERED: WeakKeyDictionary[Data, dict[str, dict[str, Tensor]]] = WeakKeyDictionary()


class ObservedLatents:
    """x are the latents."""

    @property
    def latents_up_to(self) -> tuple[str, ...]:
        return ("exact",)

    @property
    def own_units(self) -> bool:
        """x are told as they are; equations and priors are of standardised ones."""
        return True


class ObservedEquations(ObservedLatents):
    """Linear equations between standardised columns, some of which environments change.

    The program has `mean` and `spread` (feature,) of the columns, `count` (env,) rows, `candidates` (latent, candidate)
    parents, and `gathered`, the names of its buffers that are functions of the data alone, which `_gather` makes.
    """

    gathered: tuple[str, ...] = ()
    config: dict[str, Any]
    mean: Tensor
    spread: Tensor
    count: Tensor
    evidence: Tensor
    candidates: Tensor
    put: Callable[..., None]
    recovered: Callable[..., dict[str, Tensor]]
    _gather: Callable[[Data], None]

    def _targets(self, sites: dict[str, Tensor]) -> Tensor:
        """(env, latent) in {0, 1} that go with these sites."""
        return sites["targets"]

    def _equations(
        self, graph: Tensor, targets: Tensor, w: Tensor, precision: Tensor, *together: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Constant (case, latent), weights (case, parent, child) and noise (case, latent), in the data's units, where
        the environments of each case act together."""
        acting = w.new_zeros(len(together), len(targets))
        for case, envs in enumerate(together):
            acting[case, list(envs)] = 1.0
        kind, (mean, spread) = self.config.get("intervention", "soft"), (self.mean.double(), self.spread.double())
        offset, weight, s = interventions.equations(graph, targets, w, precision, acting, self.candidates, kind)
        weight = weight * spread / spread[:, None]
        return mean + spread * offset - mean @ weight, weight, spread * s

    def _acting(self, batch: Batch, *drawn: Any) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """(rows,) which of the equations each row follows, and these equations."""
        if batch.together is not None:
            return torch.zeros_like(batch.env), self._equations(*drawn, batch.together)
        return batch.env, self._equations(*drawn, *([e] for e in range(len(self.count))))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | graph, targets, weights, noise)."""
        return Normal(*(law := self._law_of_rows(batch, sites))).log_prob(batch.x.to(law[0])).sum(-1)

    def _law_of_rows(self, batch: Batch, sites: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and noise (rows, latent) of each equation, at its parents' values in the row."""
        if "w" not in sites:
            sites = sites | self.recovered(batch, sites)
        drawn = sites["graph"], self._targets(sites), sites["w"], sites["precision"]
        own, (offset, weight, noise) = self._acting(batch, *drawn)
        x = batch.x.to(weight)
        mean = torch.einsum("rp,epk->rek", x, weight)[torch.arange(len(x), device=own.device), own] + offset[own]
        return mean, noise[own]

    def _gather_once(self, data: Data) -> None:
        """What is gathered of the data, once for the chains of a fit, which start one after another."""
        known = _GATHERED.setdefault(data, {})
        key = repr((type(self), self.config, self.evidence.dtype))
        if key in known:
            self.put(**known[key])
        else:
            self._gather(data)
            known[key] = {name: getattr(self, name).clone() for name in self.gathered}
