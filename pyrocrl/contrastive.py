"""Latents behind a nonlinear mixing, from contrasts between environments: how chains of `linear_sem_nonlin` start.

For perfect interventions on a linear Gaussian structural equation model the log-odds between an environment and the
observational one are quadratic in the latents,

    l_c(z) = sum_{k in targets of c} log N(z_k; m_ck, s_ck^2) - log N(z_k; a_k + sum_j z_j w[j, k], s_k^2),

and so are the log-odds of a classifier of x, whatever the injective mixing (Buchholz et al. 2023, equation 5). Fitting
h with l_c(h(x)) as logits is not enough: with w = 0 and s_ck = s_k, logits are linear in h, and h = l itself is as
good a classifier as the latents are. Steps here, in which that solution cannot win:

1. a free classifier gives l(x) without any latents (`log_odds`);
2. the equations (w, a, s, m) follow from the law of l in each environment alone, since means and covariances of
   quadratic forms of Gaussians are known in closed form (`match`): many starts, all at once;
   The linear case (`linear_case`) gives further ones, and a short trial of the next step chooses among all;
3. with these equations as the start, h and equations minimise the classifier's cross-entropy, a distance between the
   law of the standardised residuals in every environment and N(0, I), and the error of x decoded from h, since h must
   be injective (`Contrast.terms`);
4. h is now affine in the latents; `affine` ends with the linear case (`sem.log_marginal`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from . import graphs, sem
from .nets import MLP

HELD_OUT = 0.1  # of the rows, for choosing among candidates
BATCH = 2048
LR, MUON_LR = 3e-3, 0.02
MATCHES, MATCH_STEPS, MATCH_LR = 64, 500, 0.03
CANDIDATES, TRIAL = 4, 0.5  # equations tried, and the share of the steps that a trial takes
SLICES = 32  # directions a step along which residuals are compared with a normal law
WEIGHT = (1.0, 5.0)  # of that comparison, first and last
RECONSTRUCTION = 1.0  # of the mean squared error of the standardised inputs
SPARSITY = 2e-4  # of a Cauchy-like prior of standardised weights, whose half-width is NEGLIGIBLE
NEGLIGIBLE = 0.05
CLASSIFIER_WIDTH = 64
FREQUENCIES = torch.linspace(0.4, 2.8, 7)


class Equations(NamedTuple):
    """weight (..., parent, child), intercept and log_scale (..., latent) of the observational law; own_intercept and
    own_log_scale (..., class, latent) of targets, class 0 being the observational one and not listed."""

    weight: Tensor
    intercept: Tensor
    log_scale: Tensor
    own_intercept: Tensor
    own_log_scale: Tensor


class Residual(nn.Module):
    """A linear map plus a network: (rows, inputs) -> (rows, outputs)."""

    def __init__(self, inputs: int, outputs: int, width: int, layers: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.net = MLP([inputs, *(width,) * layers, outputs], "silu")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.net(x)
        return out

    @torch.no_grad()
    def constant(self, value: float) -> None:
        """Let the map be about `value` everywhere, until it is trained."""
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        for parameter in (self.linear.weight, last.weight):
            parameter.mul_(0.01)
        last.bias.zero_()
        self.linear.bias.fill_(value)


# -- optimisation ------------------------------------------------------------------------------------------------


def orthogonalised(matrix: Tensor) -> Tensor:
    """About U V' of matrix = U S V', by five Newton-Schulz steps (Jordan et al. 2024, "Muon")."""
    out = matrix / (matrix.norm() + 1e-7)
    out = out.mT if len(out) > out.shape[1] else out
    for _ in range(5):
        gram = out @ out.mT
        out = 3.4445 * out + (-4.7750 * gram + 2.0315 * gram @ gram) @ out
    return out.mT if len(matrix) > matrix.shape[1] else out


def minimise(
    module: nn.Module,
    loss: Callable[[Tensor, float], Tensor],
    rows: Tensor,
    steps: int,
    batch: int,
    generator: torch.Generator,
) -> None:
    """Steps on loss(positions of rows, progress): orthogonalised momentum for networks' matrices, Adam for the rest.

    Five times fewer steps than Adam's alone for the same held-out error of these networks.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() == 2 and min(p.shape) >= 16]
    others = [p for p in parameters if not any(p is q for q in matrices)]
    momentum = [torch.zeros_like(p) for p in matrices]
    adam = torch.optim.Adam(others)
    order = rows[:0]
    with torch.enable_grad():
        for step in range(steps):
            rate = min(1.0, (step + 1) / 50) * min(1.0, (1 - step / steps) / 0.7)
            if len(order) < batch:
                order = torch.cat([order, rows[torch.randperm(len(rows), generator=generator).to(rows.device)]])
            pick, order = order[:batch], order[batch:]
            gradients = torch.autograd.grad(loss(pick, step / steps), [*matrices, *others])
            adam.param_groups[0]["lr"] = LR * rate
            for parameter, gradient in zip(others, gradients[len(matrices) :], strict=True):
                parameter.grad = gradient
            adam.step()
            for parameter, gradient, mean in zip(matrices, gradients, momentum, strict=False):
                mean.lerp_(gradient, 0.05)
                shape = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
                step_along = orthogonalised(gradient.lerp(mean, 0.95))
                parameter.data.add_(step_along, alpha=-MUON_LR * rate * shape)
    for parameter in others:
        parameter.grad = None


# -- 1 and 2: equations from log-odds ----------------------------------------------------------------------------


def log_odds(
    x: Tensor, group: Tensor, rows: Tensor, classes: int, width: int, steps: int, generator: torch.Generator
) -> Tensor:
    """(all rows, classes - 1) log p(x | class) / p(x | class 0), by a classifier trained on `rows`."""
    net = Residual(x.shape[1], classes, width).to(x)
    minimise(net, lambda pick, _: cross_entropy(net(x[pick]), group[pick]), rows, steps, BATCH // 2, generator)
    with torch.no_grad():
        logits = net(x)
    share = one_hot(group[rows], classes).to(x).mean(0).log()
    logits = logits - share
    return logits[:, 1:] - logits[:, :1]


def laws(equations: Equations, hit: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., class, latent) and covariance (..., class, latent, latent) of z, observational class first."""
    hit = torch.cat([torch.zeros_like(hit[:1]), hit])  # (class, latent)
    pad = (0, 0, 1, 0)
    intercept, scale = equations.intercept[..., None, :], equations.log_scale.exp()[..., None, :]
    own = torch.nn.functional.pad(equations.own_intercept, pad)
    own_scale = torch.nn.functional.pad(equations.own_log_scale, pad).exp()
    weight = equations.weight[..., None, :, :] * (1 - hit)[:, None, :]
    return sem.sem_moments(
        sem.LinearSEM(weight, torch.where(hit > 0, own, intercept), torch.where(hit > 0, own_scale, scale))
    )


def log_det_change(weight: Tensor, hit: Tensor) -> Tensor:
    """(..., class) log det of I - w with the targets' parents cut, minus that of I - w: 0 without cycles."""
    eye = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
    cut = weight[..., None, :, :] * (1 - hit)[:, None, :]
    return torch.linalg.slogdet(eye - cut).logabsdet - torch.linalg.slogdet(eye - weight).logabsdet[..., None]


def odds_moments(equations: Equations, hit: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (..., class, odds) and covariance (..., class, odds, odds) of the log-odds l(z) in every class.

    l = z'Qz + b'z + c with z ~ N(mu, S) has mean tr(QS) + mu'Q mu + b'mu + c and covariances
    2 tr(Q S Q* S) + (2 Q mu + b)' S (2 Q* mu + b*).
    """
    eye = torch.eye(hit.shape[1], dtype=hit.dtype, device=hit.device)
    scale, own_scale = equations.log_scale.exp(), equations.own_log_scale.exp()
    row = (eye - equations.weight).mT / scale[..., None]  # residual of k is row[k] z - offset[k]
    offset = equations.intercept / scale
    natural = torch.einsum("ck,...ki,...kj->...cij", hit, row, row)
    q = 0.5 * (natural - torch.diag_embed(hit / own_scale.square()))
    b = hit * equations.own_intercept / own_scale.square() - torch.einsum("ck,...ki,...k->...ci", hit, row, offset)
    own = (equations.own_intercept / own_scale).square()
    constant = 0.5 * offset.square()[..., None, :] - 0.5 * own
    constant = constant + equations.log_scale[..., None, :] - equations.own_log_scale
    c = (hit * constant).sum(-1) + log_det_change(equations.weight, hit)
    mu, cov = laws(equations, hit)
    qs = torch.einsum("...oij,...cjk->...coik", q, cov)
    q_mu = torch.einsum("...oij,...cj->...coi", q, mu)
    mean = qs.diagonal(dim1=-2, dim2=-1).sum(-1) + torch.einsum("...coi,...ci->...co", q_mu, mu)
    mean = mean + torch.einsum("...oi,...ci->...co", b, mu) + c[..., None, :]
    slope = 2 * q_mu + b[..., None, :, :]
    spread = 2 * torch.einsum("...coij,...cpji->...cop", qs, qs)
    return mean, spread + torch.einsum("...coi,...cij,...cpj->...cop", slope, cov, slope)


def match(
    odds: Tensor, group: Tensor, hit: Tensor, generator: torch.Generator, steps: int = MATCH_STEPS
) -> list[Equations]:
    """Equations whose log-odds have the means and covariances of `odds` (rows, odds) in every class, best first.

    Adam from many random starts; local minima are listed once. Weights are (parent, child) of an acyclic graph: what
    the log-odds leave open (two directions for each target) is settled by `sem`'s sum over graphs.
    """
    classes, latents = len(hit) + 1, hit.shape[1]
    hit = hit.double()
    parts = [odds[group == c].double() for c in range(classes)]
    mean = torch.stack([part.mean(0) for part in parts])
    cov = torch.stack([torch.cov(part.mT, correction=0).reshape(len(hit), len(hit)) for part in parts])
    sd = cov.diagonal(dim1=-2, dim2=-1).clamp_min(1e-6).sqrt()

    def normal(*shape: int) -> Tensor:
        return torch.randn(MATCHES, *shape, generator=generator, dtype=torch.float64)

    values = [
        0.5 * normal(latents, latents),
        torch.zeros(MATCHES, latents, dtype=torch.float64),
        0.1 * normal(latents),
        1.0 + 0.3 * normal(*hit.shape),
        0.1 * normal(*hit.shape),
    ]
    values = [value.to(hit.device).requires_grad_(True) for value in values]
    off = 1 - torch.eye(latents, dtype=hit.dtype, device=hit.device)

    def equations() -> Equations:
        return Equations(values[0] * off, *values[1:])

    def misfit() -> Tensor:
        m, s = odds_moments(equations(), hit)
        shape = (s - cov) / (sd[:, :, None] * sd[:, None, :])
        return ((m - mean) / sd).square().sum((1, 2)) + shape.square().sum((1, 2, 3))

    with torch.enable_grad():
        adam = torch.optim.Adam(values)
        for step in range(steps):
            adam.param_groups[0]["lr"] = MATCH_LR * 0.5 * (1 + math.cos(math.pi * step / steps))
            gradients = torch.autograd.grad(misfit().log1p().nan_to_num(0.0).sum(), values)
            for value, gradient in zip(values, gradients, strict=True):
                value.grad = gradient.nan_to_num(0.0).clamp(-1, 1)
            adam.step()
    found: list[Equations] = []
    last = -1.0
    with torch.no_grad():
        final = misfit().nan_to_num(torch.inf)
        for i in final.argsort().tolist():
            if len(found) == CANDIDATES or not final[i].isfinite():
                break
            if last < 0 or float(final[i]) > 1.02 * last + 1e-3:
                last = float(final[i])
                found.append(_acyclic(Equations(*(value[i] for value in equations())), hit, parts, generator))
    return found


def _acyclic(equations: Equations, hit: Tensor, parts: list[Tensor], generator: torch.Generator) -> Equations:
    """The equations of an acyclic graph that fit the same laws best, latents in units of their deviations."""
    mean, cov = laws(equations, hit)
    count = torch.tensor([float(len(part)) for part in parts], dtype=mean.dtype, device=mean.device)
    target = torch.cat([torch.zeros_like(hit[:1]), hit])
    environments = sem.Environments(count, mean, cov, target)
    unmixing, _ = affine(environments, generator, rivals=0)
    return fitted(standardised(environments.transform(unmixing)))


def fitted(environments: sem.Environments) -> Equations:
    """Least-squares equations of z under the most probable order; environment 0 is the observational one."""
    target, latents = environments.target, environments.target.shape[1]
    eye = torch.eye(latents, dtype=environments.cov.dtype, device=environments.cov.device)
    slices = sem.slices(environments, sem.target_pairs(target.cpu()))
    place = graphs.best_order(sem.mechanism_scores(eye, slices, 0.5)).argsort()
    least = sem.draw_mechanisms(eye, place[:, None] < place[None, :], slices, noisy=False)
    own = environments.cov.diagonal(dim1=-2, dim2=-1).log() / 2
    return Equations(
        least.weight[:latents].mT,
        least.intercept[:latents],
        least.scale[:latents].log(),
        environments.mean[1:],
        own[1:],
    )


def affine(environments: sem.Environments, generator: torch.Generator, rivals: int) -> tuple[Tensor, Tensor]:
    """(unmixing (latent, latent), log-likelihood a row) of the linear case: rows that make y's law that of a graph.

    With rivals = 0 the theorem's own rows, without the maximisation of the likelihood.
    """
    root = sem.whitening(environments.pooled((environments.target.sum(1) == 0).to(environments.cov))[2])
    white = environments.transform(root)
    slices, total = sem.slices(white, sem.target_pairs(white.target.cpu())), white.count.sum()

    def objective(rows: Tensor) -> Tensor:
        return sem.log_marginal(rows, slices, total, 0.5)

    rows = sem.choose_rows(sem.candidate_rows(white, generator), objective, rivals, generator)
    if rivals == 0:
        return rows[0] @ root, objective(rows[0]) / total
    best = sem.climb(objective, rows)[0]
    return best.chart[:, 0] @ root, best.value / total


# -- 3 and 4: latents --------------------------------------------------------------------------------------------


class Contrast(nn.Module):
    """h (`encoder`) with equations: the logits of the classes, and how far residuals are from N(0, I).

    hit: (class - 1, latent), which latents each class but the observational one intervenes on.
    """

    hit: Tensor
    share: Tensor

    def __init__(self, inputs: int, hit: Tensor, share: Tensor, equations: Equations, width: int) -> None:
        super().__init__()
        self.encoder = Residual(inputs, hit.shape[1], width).to(share)
        self.decoder = Residual(hit.shape[1], inputs, width).to(share)
        for name, value in equations._asdict().items():
            setattr(self, name, nn.Parameter(value.to(share)))
        self.register_buffer("hit", hit.to(share))
        self.register_buffer("share", share.log())  # (class,) of the rows

    def equations(self) -> Equations:
        weight = self.weight * (1 - torch.eye(len(self.weight)).to(self.weight))
        return Equations(weight, *(getattr(self, name) for name in Equations._fields[1:]))

    def sparsity(self) -> Tensor:
        """Minus the log prior of the weights, in units of the noise: the same whatever the latents' scales."""
        weight, _, log_scale, *_ = self.equations()
        unit = weight * (log_scale[:, None] - log_scale).exp()
        return SPARSITY * (unit / NEGLIGIBLE).square().log1p().sum()

    def terms(self, x: Tensor, group: Tensor, slices: int) -> tuple[Tensor, Tensor, Tensor]:
        """(cross-entropy, distance of the residuals from N(0, I), squared error of the inputs decoded from h).

        x: (rows, inputs) of the classes `group` (rows,).

        The distance: over random directions v, half of them with two non-zero coordinates, the squared difference of
        the characteristic functions of v'r and N(0, 1) (Epps & Pulley 1983), class by class.
        """
        z, equations = self.encoder(x), self.equations()
        natural = (z - equations.intercept - z @ equations.weight) / equations.log_scale.exp()  # (rows, latent)
        own = (z[:, None] - equations.own_intercept) / equations.own_log_scale.exp()  # (rows, class - 1, latent)
        each = 0.5 * (natural.square()[:, None] - own.square())
        each = each + equations.log_scale - equations.own_log_scale
        logits = (self.hit * each).sum(-1) + log_det_change(equations.weight, self.hit)
        logits = torch.cat([torch.zeros_like(logits[:, :1]), logits], 1) + self.share
        member = one_hot(group, logits.shape[1]).to(z)
        target = torch.cat([torch.zeros_like(self.hit[:1]), self.hit])[group] > 0
        mine = own.gather(1, (group - 1).clamp_min(0)[:, None, None].expand(-1, 1, z.shape[1])).squeeze(1)
        residual = torch.where(target, mine, natural)
        latents = z.shape[1]
        direction = torch.randn(latents, slices, device=z.device, dtype=z.dtype)
        pairs = one_hot(torch.randint(latents, (2, slices // 2), device=z.device), latents).sum(0).clamp(max=1).mT
        direction = torch.cat([direction[:, : slices // 2] * pairs, direction[:, slices // 2 :]], 1)
        along = residual @ (direction / direction.norm(dim=0))
        average = member / member.sum(0).clamp_min(1.0)
        distance = z.new_zeros(())
        for t in FREQUENCIES.tolist():
            real, imaginary = average.mT @ (t * along).cos(), average.mT @ (t * along).sin()
            gap = (real - math.exp(-0.5 * t * t)).square() + imaginary.square()
            distance = distance + math.exp(-0.25 * t * t) * gap.mean()
        return cross_entropy(logits, group), distance, (self.decoder(z) - x).square().mean()


class Construction(NamedTuple):
    """encoder: (rows, inputs) -> h; z = unmixing h. score: held-out objective, lower is better."""

    encoder: Residual
    unmixing: Tensor
    score: float


def construct(
    x: Tensor, env: Tensor, target: Tensor, width: int, steps: int, generator: torch.Generator
) -> Construction:
    """The four steps of this file. x: (rows, inputs), standardised; target: (env, latent) in {0, 1}.

    steps: of the last stage; the others take shares of it. Networks draw their weights from torch's global
    generator, whose state is restored.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _construct(x, env, target, width, steps, generator)


def _construct(
    x: Tensor, env: Tensor, target: Tensor, width: int, steps: int, generator: torch.Generator
) -> Construction:
    changed = torch.nonzero(target.sum(1) > 0).flatten()
    group = torch.zeros_like(env)
    for position, e in enumerate(changed.tolist()):
        group[env == e] = position + 1
    hit, classes = target[changed], len(changed) + 1
    order = torch.randperm(len(x), generator=generator).to(x.device)
    cut = int(HELD_OUT * len(x))
    held_out, rows = order[:cut], order[cut:]
    share = one_hot(group[rows], classes).to(x).mean(0)

    def score(contrast: Contrast) -> float:
        with torch.no_grad():
            torch.manual_seed(0)
            entropy, distance, error = contrast.terms(x[held_out], group[held_out], 8 * SLICES)
        return float(entropy + WEIGHT[0] * distance + RECONSTRUCTION * error)

    def train(contrast: Contrast, many: int) -> Contrast:
        def loss(pick: Tensor, progress: float) -> Tensor:
            entropy, distance, error = contrast.terms(x[pick], group[pick], SLICES)
            at = min(1.0, max(0.0, (progress - 0.3) / 0.5))
            return (
                entropy
                + WEIGHT[0] * (WEIGHT[1] / WEIGHT[0]) ** at * distance
                + RECONSTRUCTION * error
                + contrast.sparsity()
            )

        minimise(contrast, loss, rows, many, BATCH, generator)
        return contrast

    odds = log_odds(x, group, rows, classes, CLASSIFIER_WIDTH, steps, generator)
    linear = linear_case(x[rows], group[rows], hit, generator)
    candidates = [*match(odds[rows], group[rows], hit, generator, min(steps, MATCH_STEPS)), linear]

    def fresh(candidate: Equations) -> Contrast:
        return Contrast(x.shape[1], hit, share, candidate, width)

    trials = [score(train(fresh(candidate), max(1, int(TRIAL * steps)))) for candidate in candidates]
    contrast = train(fresh(candidates[min(range(len(trials)), key=lambda i: trials[i])]), steps)
    with torch.no_grad():
        environments = moments(contrast.encoder(x), group, torch.cat([torch.zeros_like(hit[:1]), hit]))
    return Construction(contrast.encoder, affine(environments, generator, rivals=1)[0], score(contrast))


def linear_case(x: Tensor, group: Tensor, hit: Tensor, generator: torch.Generator) -> Equations:
    """Equations as if the leading principal components of x were affine in the latents."""
    principal = torch.linalg.eigh(torch.cov(x.mT.double()))[1][:, -hit.shape[1] :].mT  # (latent, inputs)
    y = moments(x.double() @ principal.mT, group, torch.cat([torch.zeros_like(hit[:1]), hit]))
    unmixing, _ = affine(y, generator, rivals=0)
    return fitted(standardised(y.transform(unmixing)))


def standardised(environments: sem.Environments) -> sem.Environments:
    """The same with latents in units of their deviation over all environments."""
    scale = environments.pooled(torch.ones_like(environments.count))[2].diagonal().sqrt()
    return environments.transform(torch.diag(1 / scale))


def moments(z: Tensor, group: Tensor, target: Tensor) -> sem.Environments:
    """Statistics of rows z (rows, latent) in each environment, float64."""
    parts = [z[group == c].double() for c in range(len(target))]
    return sem.Environments(
        torch.tensor([float(len(part)) for part in parts], dtype=torch.float64, device=z.device),
        torch.stack([part.mean(0) for part in parts]),
        torch.stack([torch.cov(part.mT, correction=0).reshape(z.shape[1], z.shape[1]) for part in parts]),
        target.double(),
    )
