"""Latents whose law an environment modulates, from contrasts between environments: how chains of `ivae` start.

Where z_k given environment u is of an exponential family with statistics T and natural parameters l_k(u),

    log p(u | x) = sum_k l_k(u)' T(z_k) - log normaliser(u) + log share(u) + const(x)

whatever the injective mixing (Khemakhem et al. 2020, theorem 1), so h and the laws that classify environments best give
T(h(x)) affine in T(z). Rows say more than their environment: given it, residuals are independent with a known law, and
x is a function of h. h minimises the cross-entropy, the distance of residuals from their law, without which a network
fits the environments of the rows it is trained on by latents that are no such law's, and the error of x decoded from h.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from pyrocrl.constructions.contrastive import law_distance, slice_directions
from pyrocrl.constructions.optimise import minimise
from pyrocrl.parts.nets import Residual
from pyrocrl.turns import drawing

BATCH = 512  # rows a step
LAW, DECODED = 3.0, 1.0  # weights of the residuals' distance from their law, and of the standardised inputs' error
SLICES = 32
APART = 0.1  # deviation of log scales at the start


class Modulated(nn.Module):
    """h (`encoder`), its inverse (`decoder`), and what environments do: log_scale and level (env, latent).

    laplace: residuals are Laplace, not normal; levels: environments have levels, otherwise 0.
    """

    def __init__(
        self, inputs: int, latents: int, width: int, share: Tensor, *, laplace: bool = False, levels: bool = False
    ) -> None:
        """share: (env,) of the rows."""
        super().__init__()
        self.encoder, self.decoder = Residual(inputs, latents, width), Residual(latents, inputs, width)
        self.log_scale = nn.Parameter(APART * torch.randn(len(share), latents))
        self.level = nn.Parameter(torch.zeros(len(share), latents), requires_grad=levels)
        self.laplace, self.share = laplace, share.log()

    def log_odds(self, z: Tensor) -> Tensor:
        """(rows, env) log density of z in each environment, but for constants, plus that of its share."""
        if self.laplace:
            inside = z.abs() @ (-self.log_scale).exp().mT
        else:
            precision = (-2 * self.log_scale).exp()
            linear = self.level * precision
            inside = 0.5 * (z.square() @ precision.mT + (self.level * linear).sum(-1)) - z @ linear.mT
        return self.share - inside - self.log_scale.sum(-1)

    def loss(self, x: Tensor, env: Tensor) -> Tensor:
        z = self.encoder(x)
        residual = (z - self.level[env]) * (-self.log_scale).exp()[env]
        direction = slice_directions(z.shape[1], SLICES, z)
        average = z.new_full((1, len(z)), 1 / len(z))
        distance = law_distance(residual @ direction, average, direction if self.laplace else None)
        error = mse_loss(self.decoder(z), x)
        return cross_entropy(self.log_odds(z), env) + LAW * distance + DECODED * error

    @torch.no_grad()
    def standardise(self) -> None:
        """Let log scales, and levels where there are some, have mean 0 over environments, and h follow."""
        scale, level = self.log_scale.mean(0).exp(), self.level.mean(0)
        self.encoder.followed_by(torch.diag(1 / scale), -level / scale)
        for layer in (self.decoder.linear, self.decoder.net[0]):
            assert isinstance(layer, nn.Linear)
            layer.bias.add_(layer.weight @ level)
            layer.weight.mul_(scale)
        self.log_scale.sub_(scale.log())
        self.level.copy_((self.level - level) / scale)


def construct(
    x: Tensor,
    env: Tensor,
    environments: int,
    latents: int,
    width: int,
    steps: int,
    generator: torch.Generator,
    *,
    laplace: bool = False,
    levels: bool = False,
) -> Modulated:
    """h, its inverse and the environments' laws, of standardised x (rows, feature) and env (rows,).

    width: of the networks; steps: of optimisation. h starts at the principal components, turned at random.
    """
    share = torch.bincount(env, minlength=environments).to(x).clamp_min(1.0) / len(x)
    seed = int(torch.randint(2**31, (), generator=generator))
    with drawing(seed):
        found = Modulated(x.shape[1], latents, width, share, laplace=laplace, levels=levels).to(x)
        value, vector = torch.linalg.eigh(x.double().mT @ x.double() / len(x))
        turn = torch.linalg.qr(torch.randn(latents, latents, dtype=torch.float64)).Q.to(value)
        root = value[-latents:].clamp_min(1e-6 * float(value[-1])).sqrt()
        with torch.no_grad():
            found.encoder.near((turn @ (vector[:, -latents:] / root).mT).to(x))
            if levels:
                member = one_hot(env, environments).to(x)
                found.level.copy_(member.mT @ found.encoder(x) / member.sum(0).clamp_min(1.0)[:, None])
        every = torch.arange(len(x), device=x.device)
        minimise(found, lambda pick, _: found.loss(x[pick], env[pick]), every, steps, min(BATCH, len(x)), generator)
    found.standardise()
    return found
