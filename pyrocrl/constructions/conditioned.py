"""Affine concepts behind a nonlinear mixing, from environments that condition on them: how chains of `concepts` start.

Where environment e has p_e(z) ~ p_0(z) prod_k exp(-(a_k'z - b_ek)^2 / 2), over its concepts k, the log-odds of e and
the base environment are

    l_e(z) = sum_k b_ek a_k'z - (a_k'z)^2 / 2 + const,

and so are those of a classifier of x, whatever the injective mixing (Rajendran et al. 2024): the head of
`pyrocrl.constructions.contrastive` with quadratic forms of low rank. As there, a network alone finds local optima of
it, and is trained in steps:

1. h starts at the leading principal components, as an encoder that a decoder can undo, and becomes a `Chart`: every
   class has a Gaussian law of its own, so that there are no concepts to be wrong about;
2. in coordinates in which the base environment is N(0, I), `optima` finds the concepts of the Gaussian moments;
3. h and the concepts minimise the same loss with the law of conditioning (`Conditioned`), which has fewer numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from pyrocrl.constructions.contrastive import Chart, linear_start, moments
from pyrocrl.constructions.optimise import descend, minimise
from pyrocrl.exact import linear_sem
from pyrocrl.exact.goodness import Misfit
from pyrocrl.exact.regression import quadratic
from pyrocrl.parts.nets import Residual
from pyrocrl.turns import drawing

STARTS, CLIMB = 6, 150  # of the search for concepts, and steps of each
ALIKE = 0.97  # correlation from which two answers read the same concept
CHART, LAWS = (1.0, 1.0), (3.0, 3.0)  # weights of normality and of reconstruction in steps 1 and 3
LEAST_ERROR, MOST_ERROR = 1e-4, 0.9  # share of a concept's variance that its error may be told to have
LEAST_STEPS = 100  # of a network of half of the rows
MIN_HALF = 20  # rows of a class in its half
PRETRAIN = 0.25  # steps as an encoder, in those of the others


class Law(NamedTuple):
    """Of every class, the base environment first: precision (class, latent, latent), mean (class, latent)."""

    precision: Tensor
    mean: Tensor


def laws(rows: Tensor, level: Tensor, hit: Tensor, base: Tensor) -> Law:
    """Laws of z where each class conditions a base N(0, base^-1).

    rows (concept, latent) in units of the conditioning's deviation; level, hit (class, concept), 0 of the base.
    """
    precision = base + (rows.mT * hit[:, None, :]) @ rows
    mean = torch.linalg.solve(precision, ((hit * level) @ rows)[..., None])[..., 0]
    return Law(precision, mean)


def divergence(environments: linear_sem.Environments, law: Law) -> Tensor:
    """(class,) twice the Kullback-Leibler divergence of the law from a Gaussian of the class's own moments."""
    product = law.precision @ environments.cov
    trace = product.diagonal(dim1=-2, dim2=-1).sum(-1) - product.shape[-1]
    return trace - torch.linalg.slogdet(product).logabsdet + quadratic(environments.mean - law.mean, law.precision)


class Optimum(NamedTuple):
    """rows (concept, latent), level (class, concept), and the deviance from Gaussians of the classes' own moments."""

    rows: Tensor
    level: Tensor
    deviance: float


def optima(environments: linear_sem.Environments, generator: torch.Generator, starts: int = STARTS) -> list[Optimum]:
    """Concepts whose conditioning explains the moments of z, the best first, no two of which read the same concepts.

    z: in coordinates in which class 0, the base, has mean 0 and covariance I; `environments.target` says which class
    conditions on which concept. Each start is random rows, but for the first one: of a class with one concept, the
    direction in which its precision differs most from the base's.
    """
    hit, latents = environments.target, environments.cov.shape[-1]
    (classes, concepts), share = hit.shape, environments.count / environments.count.sum()
    eye = torch.eye(latents).to(hit)

    def told(flat: Tensor) -> tuple[Tensor, Tensor]:
        return flat[: concepts * latents].view(concepts, latents), flat[concepts * latents :].view(classes, concepts)

    def loss(flat: Tensor) -> Tensor:
        return share @ divergence(environments, laws(*told(flat), hit, eye))

    first = torch.randn(starts, concepts, latents, generator=generator, dtype=torch.float64).to(hit)
    for e in torch.nonzero(hit.sum(1) == 1).flatten().tolist():
        value, vector = torch.linalg.eigh(torch.linalg.inv(environments.cov[e]))
        first[0, int(hit[e].argmax())] = vector[:, -1] * (value[-1] - 1.0).clamp_min(0.1).sqrt()
    found = []
    for rows in first:
        level = hit * (environments.mean @ rows.mT)
        rows, level = told(descend(loss, torch.cat([rows.flatten(), level.flatten()]), CLIMB))
        flat = torch.cat([rows.flatten(), level.flatten()])
        found.append(Optimum(rows, level, float(environments.count.sum() * loss(flat))))
    kept: list[Optimum] = []
    for one in sorted(found, key=lambda each: each.deviance):
        if not any(_same(one.rows, better.rows) for better in kept):
            kept.append(one)
    return kept


def _same(rows: Tensor, others: Tensor) -> bool:
    return bool((nn.functional.cosine_similarity(rows, others, dim=-1).abs() > ALIKE).all())


def misfit(z: Tensor, group: Tensor, hit: Tensor, law: Law) -> Misfit:
    """How far z (row, latent) is in every class from its law, in Gaussian moments."""
    found, latents = moments(z, group, hit), z.shape[1]
    each = latents + latents * (latents + 1) / 2
    used = each + hit.shape[1] + float(hit.sum())  # the base law, deviations of conditioning and its levels
    return Misfit(float(found.count @ divergence(found, law)), len(hit) * each - used)


def coordinates(rows: Tensor, cov: Tensor) -> Tensor:
    """(latent, latent) a map of z, of covariance `cov`: concepts rows z (concept, latent) in their deviations, then
    latents of covariance I that are uncorrelated with them."""
    root = torch.linalg.cholesky(cov)
    span = torch.linalg.qr((rows @ root).mT, mode="complete").Q
    beside = span[:, len(rows) :].mT @ torch.linalg.inv(root)
    return torch.cat([rows / quadratic(rows, cov).sqrt()[:, None], beside])


class Conditioned(Chart):
    """A chart whose law is N(0, I) in the base environment and its conditioning in every other class.

    hit: (class, concept), 0 of class 0, the base.
    """

    normality, reconstruction = LAWS
    hit: Tensor

    def __init__(self, chart: Chart, hit: Tensor, start: Optimum) -> None:
        super().__init__(chart.encoder, chart.decoder, chart.share.exp())
        self.rows, self.level = (nn.Parameter(value.to(chart.share)) for value in (start.rows, start.level))
        self.register_buffer("hit", hit.to(chart.share))

    def law(self, z: Tensor, member: Tensor) -> tuple[Tensor, Tensor]:
        """As `Chart.law`, densities over the base's."""
        linear = (self.hit * self.level) @ self.rows  # (class, latent)
        law = laws(self.rows, self.level, self.hit, torch.eye(z.shape[1]).to(z))
        value = z @ self.rows.mT  # (rows, concept)
        odds = value @ (self.hit * self.level).mT - 0.5 * value.square() @ self.hit.mT
        odds = odds + 0.5 * torch.linalg.slogdet(law.precision).logabsdet - 0.5 * (linear * law.mean).sum(-1)
        root = torch.linalg.cholesky(law.precision)
        each = ((z[:, None, None] - law.mean[:, None]) @ root)[:, :, 0]  # (rows, class, latent)
        return odds, (member[..., None] * each).sum(1)


class Start(NamedTuple):
    """encoder: h; rows (concept, latent) of concepts in h's coordinates, in which the base is about N(0, I), and level
    (class, concept), in units of the conditioning's deviation. rival: by how many nats the best other concepts, of
    those that were tried, explain the moments less well; infinite where there were none."""

    encoder: Residual
    rows: Tensor
    level: Tensor
    rival: float


def construct(
    x: Tensor, group: Tensor, hit: Tensor, latents: int, width: int, steps: int, generator: torch.Generator
) -> Start:
    """h and the concepts, by the steps of this file.

    x: (rows, inputs), standardised; group (rows,) classes, 0 the base; hit (class, concept) in {0, 1}; latents: of h,
    as many as concepts or more; steps: of steps 1 and 3 each. Networks draw their weights from torch's global
    generator, whose state is restored.
    """
    seed = int(torch.randint(2**31, (), generator=generator))
    with drawing(seed):
        encoder, decoder = Residual(x.shape[1], latents, width).to(x), Residual(latents, x.shape[1], width).to(x)
        linear_start(encoder, decoder, x)
        chart = Chart(encoder, decoder, torch.bincount(group, minlength=len(hit)).to(x) / len(x))
        chart.normality, chart.reconstruction = CHART
        rows = torch.arange(len(x), device=x.device)

        def decoded(pick: Tensor, _: float) -> Tensor:
            return mse_loss(decoder(encoder(x[pick])), x[pick])

        minimise(chart, decoded, rows, max(1, int(PRETRAIN * steps)), chart.batch * len(hit), generator)
        chart.train_on(x, group, rows, steps, generator)
        with torch.no_grad():
            base = moments(encoder(x[group == 0]), group[group == 0], hit[:1])
            white = torch.linalg.inv(torch.linalg.cholesky(base.cov[0]))
            chart.reparametrise(white.to(x), -(white @ base.mean[0]).to(x))
            found = optima(moments(encoder(x), group, hit), generator)
        near = found[1].deviance - found[0].deviance if len(found) > 1 else float("inf")
        bent = Conditioned(chart, hit, found[0])
        bent.train_on(x, group, rows, steps, generator)
        return Start(encoder, bent.rows.detach(), bent.level.detach(), near / 2)


def construct_with_error(
    x: Tensor, group: Tensor, hit: Tensor, latents: int, width: int, steps: int, generator: torch.Generator
) -> tuple[Start, Tensor]:
    """(`construct` of all rows, (concept,) the share of each concept's variance in the base that its error has).

    The error is what another h, of half of each class's rows, has that this one has not. Where errors fell as one over
    the rows, it would have as much more as this one has in all; they fall more slowly, and other errors are common.
    """
    own = construct(x, group, hit, latents, width, steps, generator)
    half = torch.cat(
        [(rows := torch.nonzero(group == g).flatten())[_shuffled(rows, generator)] for g in range(len(hit))]
    )
    fewer = max(steps // 2, min(steps, LEAST_STEPS))  # as many passes over its rows
    other = construct(x[half], group[half], hit, latents, width, fewer, generator)
    base = x[group == 0]
    with torch.no_grad():
        read = [(one.encoder(base) @ one.rows.mT).double() for one in (own, other)]
    a, b = ((z - z.mean(0)) / z.std(0) for z in read)
    return own, (1 - (a * b).mean(0).square()).clamp(LEAST_ERROR, MOST_ERROR)


def _shuffled(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of half of these rows, of all where they are few."""
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    return order[: max(len(rows) // 2, min(len(rows), MIN_HALF))]


def quadratic_directions(x: Tensor, env: Tensor, hit: Tensor, steps: int) -> Tensor:
    """(concept, inputs) concepts of a linear mixing: multinomial logistic regression of environments on x (rows,
    inputs), with the model's quadratic forms. hit (env, concept)."""
    value, vector = torch.linalg.eigh(torch.cov(x.mT.double()))
    white = vector / value.clamp_min(1e-9 * float(value[-1])).sqrt()
    y, hit = (x.double() - x.double().mean(0)) @ white, hit.double()
    concepts, inputs = hit.shape[1], y.shape[1]
    share = torch.bincount(env, minlength=len(hit)).double().log()

    def parts(flat: Tensor) -> list[Tensor]:
        sizes = [concepts * inputs, hit.numel(), len(hit)]
        rows, level, offset = flat.split(sizes)
        return [rows.view(concepts, inputs), level.view(hit.shape), offset]

    def loss(flat: Tensor) -> Tensor:
        rows, level, offset = parts(flat)
        c = y @ rows.mT
        return cross_entropy(c @ (hit * level).mT - 0.5 * c.square() @ hit.mT + offset + share, env)

    generator = torch.Generator().manual_seed(0)
    size = concepts * inputs + hit.numel() + len(hit)
    starts = [0.3 * torch.randn(size, generator=generator).double() for _ in range(4)]
    best = min((descend(loss, start, steps) for start in starts), key=lambda one: float(loss(one)))
    return parts(best)[0] @ white.mT
