"""Training of a construction's networks: Muon for matrices, Adam for the rest; minima of few numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from pyrocrl.turns import drawing

LR, MUON_LR = 3e-3, 0.02
ROWS = 1024  # a step, of a regression


# -- optimisation ------------------------------------------------------------------------------------------------


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V' of each matrix (..., rows, columns) = U S V', by five Newton-Schulz steps (Jordan et al. 2024,
    "Muon")."""
    out = matrix / (torch.linalg.matrix_norm(matrix, keepdim=True) + 1e-7)
    tall = matrix.shape[-2] > matrix.shape[-1]
    out = out.mT if tall else out
    stack = out.flatten(0, -3) if out.dim() > 2 else out[None]
    for _ in range(5):
        gram = stack @ stack.mT
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        stack = torch.baddbmm(stack, gram, stack, beta=3.4445)
    out = stack.view(out.shape)
    return out.mT if tall else out


def minimise(
    module: nn.Module,
    loss: Callable[[Tensor, float], Tensor],
    rows: Tensor,
    steps: int,
    batch: int,
    generator: torch.Generator,
    lr: float = LR,
    heat: float = 1.0,
) -> None:
    """Steps on loss(positions of rows, progress): orthogonalised momentum for networks' matrices, Adam for the rest.

    lr: Adam's rate; heat: factor of both rates. Five times fewer steps than Adam's alone for the same held-out error of
    these networks.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    of_shape: dict[torch.Size, list[nn.Parameter]] = {}  # matrices of one shape step together
    for parameter in parameters:
        if parameter.dim() == 2 and min(parameter.shape) >= 16:
            of_shape.setdefault(parameter.shape, []).append(parameter)
    matrices = list(of_shape.values())
    ordered = [p for group in matrices for p in group]
    others = [p for p in parameters if not any(p is q for q in ordered)]
    momentum = [torch.zeros_like(torch.stack(group)) for group in matrices]
    adam = torch.optim.Adam(others, fused=True)
    order = rows[:0]
    with torch.enable_grad():
        for step in range(steps):
            rate = heat * min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.7)
            if len(order) < batch:
                order = torch.cat([order, rows[torch.randperm(len(rows), generator=generator).to(rows.device)]])
            pick, order = order[:batch], order[batch:]
            gradients = iter(torch.autograd.grad(loss(pick, step / steps), [*ordered, *others]))
            for group, mean in zip(matrices, momentum, strict=True):
                gradient = torch.stack([next(gradients) for _ in group])
                mean.lerp_(gradient, 0.05)
                shape = max(1.0, gradient.shape[-2] / gradient.shape[-1]) ** 0.5
                along = orthogonalised(gradient.lerp_(mean, 0.95))
                for parameter, step_along in zip(group, along, strict=True):
                    parameter.data.add_(step_along, alpha=-MUON_LR * rate * shape)
            adam.param_groups[0]["lr"] = lr * rate
            for parameter, gradient in zip(others, gradients, strict=True):
                parameter.grad = gradient
            adam.step()
    for parameter in others:
        parameter.grad = None


def regress(
    network: nn.Module,
    inputs: Tensor,
    outputs: Tensor,
    steps: int,
    generator: torch.Generator,
    rows: int = ROWS,
    noise: float = 0.0,
) -> None:
    """Least squares of outputs (rows, ..) on network(inputs + noise), by `minimise`; rows: a step.

    noise: deviation of what is added to inputs, drawn anew each step from torch's global generator, whose state is
    restored.
    """

    def loss(pick: Tensor, _: float) -> Tensor:
        at = inputs[pick]
        return mse_loss(network(at + noise * torch.randn_like(at) if noise else at), outputs[pick])

    every = torch.arange(len(inputs), device=inputs.device)
    if not noise:
        return minimise(network, loss, every, steps, rows, generator)
    seed = int(torch.randint(2**31, (), generator=generator))
    with drawing(seed):
        return minimise(network, loss, every, steps, rows, generator)


# -- few numbers -------------------------------------------------------------------------------------------------


def descend(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Where the smooth `loss` is least near `start`, of any shape: L-BFGS in float64. `start` where nothing is less."""
    at = start.detach().clone().requires_grad_()
    search = torch.optim.LBFGS(
        [at], max_iter=steps, history_size=20, line_search_fn="strong_wolfe", tolerance_change=1e-9
    )
    with torch.no_grad():
        first = loss(at)
    wall = 1e3 + 10 * first.abs()  # in place of what is not finite, which the line search cannot take

    def step() -> Tensor:
        value = loss(at)
        finite = bool(torch.isfinite(value))
        at.grad = torch.autograd.grad(value, at)[0] if finite else torch.zeros_like(at)
        return value if finite else wall

    with torch.enable_grad():
        search.step(step)
    with torch.no_grad():
        found = at.detach()
        return found if loss(found) <= first else start.detach()


def optimum(loss: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """(where the smooth `loss` of a vector is least, near `start`; the Hessian there), see `descend`."""
    found = descend(loss, start, steps)
    with torch.enable_grad():
        return found, torch.autograd.functional.hessian(loss, found)
