"""Latents z = M y of the principal subspace of x, in which there is no noise: what programs of such latents share."""

from __future__ import annotations

import torch
from torch import Tensor

from pyrocrl.batch import Batch
from pyrocrl.parts.guides import DrawnBlock
from pyrocrl.parts.mixing import LinearMixing


def frame_buffers(features: int, latents: int) -> dict[str, Tensor]:
    """Buffers of `Unmixed`, for `constructions.subspaces.frame` and a search to fill."""
    double = torch.double
    return {
        "project": torch.eye(latents, features, dtype=double),
        "lift": torch.eye(features, latents, dtype=double),
        "offset": torch.zeros(features, dtype=double),
        "tau": torch.ones((), dtype=double),
        "log_jacobian": torch.zeros((), dtype=double),
        "unmixing": torch.eye(latents, dtype=double),
    }


class Unmixed:
    """Read-outs of programs whose latents are a linear map of x.

    The program has `frame_buffers`, of which `unmixing` (latent, y) is the most probable map of y = project (x -
    offset) to z, and `drawn` with draws of its inverse, `mixing` (draw, y, latent), or `drawn_unmixing` of its own.
    """

    project: Tensor
    lift: Tensor
    offset: Tensor
    tau: Tensor
    log_jacobian: Tensor
    unmixing: Tensor
    drawn: DrawnBlock

    def _y(self, batch: Batch) -> Tensor:
        """(rows, latent) white coordinates of the principal subspace."""
        return (batch.x.double() - self.offset.double()) @ self.project.double().mT

    def _mixed(self, z: Tensor, unmixing: Tensor) -> LinearMixing:
        """The law of x given z (rows, latent)."""
        parts = (self.project, self.lift, self.offset, self.tau, self.log_jacobian)
        return LinearMixing(z, unmixing, *(part.double() for part in parts))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return (self._y(batch) @ self.unmixing.double().mT).to(batch.dtype)

    def drawn_unmixing(self) -> Tensor:
        """(draw, latent, y)"""
        return torch.linalg.inv(self.drawn.mixing.double())

    def rotated(self) -> Tensor:
        drawn, mode = self.drawn_unmixing(), self.unmixing.double()  # of y, which is white
        return 1 - torch.nn.functional.cosine_similarity(drawn, mode, -1).square().mean(0)

    def noise_share(self, batch: Batch) -> Tensor | None:
        latents, features = self.project.shape
        if features == latents:
            return None
        unmixing = self.unmixing.double()
        noise = self.tau.double().square() * (unmixing @ self.project.double()).square().sum(1)
        return noise / (self._y(batch) @ unmixing.mT).var(0)
