"""Nonlinear mixing of a linear latent structural equation model, under perfect interventions.

    z_i,k = a_k + sum_j w[j, k] z_i,j + eps_i,k,  eps ~ N(0, s_k^2)                   (data, latent)
    environment e cuts the parents of its targets k: z_i,k ~ N(m[e, k], s[e, k]^2)
    x_i  ~ N(f(z_i), sigma^2) or NegativeBinomial(s_i exp(f(z_i)), r)                 (data, feature)

f is linear plus a network; the guide is q(z | x) = N(h(x), diag t(x)^2), the same for all environments.

*Identified:* latents up to scale and shift (and permutation, where targets are known up to relabelling only) and the
graph exactly, if every latent is the target of a perfect intervention, there is an observational environment, the SEM
is linear and Gaussian and f is injective.

`construct` (see `pyrocrl.constructions.contrastive`): h makes every environment's latents Gaussian, first with laws of
their own, which gives h up to an affine map, then with those of equations that intervene on targets. Of counts h sees
the principal components that stand out of noise. `initialise` adds the decoder by regression of x on h(x); then the
evidence lower bound is maximised over everything but h: reconstruction would trade the law of the latents, which
identifies them, for a little noise. Rows may have missed their intervention (`escapees`), a Bernoulli each, summed out;
h is trained on a draw of which rows did, from Gaussian mixtures of leading principal components. Those of log counts
tell it; behind a stronger mixing they do not.

Given the latents, graphs and equations are drawn exactly (sums over orders, conjugacy) from the moments of all rows.
Latents carry an error of which rows are no cure, so that all n rows count as m: 1/m = D/n + v^2 + c^2. D is the
dispersion (deviance over degrees of freedom) of the moments from the fitted equations, as in quasi-likelihood; v, the
share of q's variance in a latent's, is the size of errors in correlations, and c (`contrastive.ERROR`) of those that h
makes without q's knowing: a decoder undoes them.

Buchholz, Rajendran, Rosenfeld, Aragam, Schoelkopf & Ravikumar (2023), Learning linear causal representations from
interventions under general nonlinear mixing.

*Differs from the paper in* the stage without equations, which starts them (the paper's loss alone has solutions in
which the latents are the log-odds themselves, and local optima), in the normality of residuals as a part of the loss,
in a likelihood with a decoder after it, and in a posterior of graphs in place of a threshold on weights.

*For a variant, copy this file and change* `Decoder`, or the intervention in `LatentSEM`.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import pyro
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, softplus

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, run
from pyrocrl.constructions import contrastive, optimise
from pyrocrl.dists import Normal
from pyrocrl.errors import InputError, one_of, reject
from pyrocrl.exact import linear_sem
from pyrocrl.parts import escapees, nets
from pyrocrl.parts.latent_sem import LatentSEM, SEMReadouts
from pyrocrl.parts.observation import Observation
from pyrocrl.program import check_sizes, check_whole, checked_targets

GIVEN = ("interventions are perfect", "noise is Gaussian", "equations are linear", "mixing is injective")
NEEDS = (
    *("observational_environment", "one_intervention_per_latent", "more_features_than_latents"),
    "perfect_interventions",
)
NOISE = 0.02  # least standard deviation of q(z | x) and of x, in those of latents and features
ROWS = 1024  # a step, of the decoder's regression
FIRST_SPREAD = 0.1  # of q(z | x), in deviations of z


class LinearSEMNonlin(SEMReadouts, Program):
    card = ModelCard(
        name="linear_sem_nonlin",
        title="Nonlinear causal disentanglement",
        family="interventions",
        summary="Linear Gaussian causal latents behind a nonlinear mixing, with a perfect intervention on each: which "
        "latents, which graph, how strong, and how sure.",
        when=(
            "the mixing is nonlinear, equations between latents are linear, and every latent has a perfect "
            "intervention whose target is known",
            "interventions are soft or shifts, targets are unknown, or the mixing is linear: `linear_sem_lin` is "
            "then closer to the truth and takes seconds",
        ),
        assumes=(
            "x is an injective function of latents, with noise",
            "z follows a linear Gaussian structural equation model without cycles",
            *GIVEN[:1],
        ),
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), GIVEN, NEEDS),
            Claim("graph", ("permutation",), GIVEN, NEEDS),
        ),
        references=(
            Reference(
                "Buchholz, Rajendran, Rosenfeld, Aragam, Schoelkopf & Ravikumar",
                2023,
                "Learning linear causal representations from interventions under general nonlinear mixing",
                "NeurIPS",
                "https://arxiv.org/abs/2306.02235",
            ),
        ),
        differs=(
            "laws of environments are Gaussian without equations at first: the start of the equations",
            "residuals are compared with a normal law while the encoder is trained",
            "a likelihood with a decoder, and a posterior of graphs in place of a threshold",
        ),
        likelihoods=("gaussian", "negative_binomial"),
        settings=("buchholz2023", "buchholz2023_hard"),
        status="stable",
        needs_env=True,
        targets=("known", "relabelled"),
    )
    recipe = Recipe(
        epochs=10,
        least_steps=800,
        batch_size=512,
        lr=1e-3,
        kl_warmup=0.0,
        temperature_span=0.0,
        check_every=2,
        chains=4,
    )
    signal: Tensor
    unmixing: Tensor
    offset: Tensor

    def __init__(
        self,
        features: int,
        latents: int,
        target_matrix: list[list[int]],
        targets: Literal["known", "relabelled"] = "known",
        likelihood: Literal["gaussian", "negative_binomial"] = "gaussian",
        batches: int = 1,
        escapees: bool = False,
        width: int = 64,
        steps: int = 400,
    ) -> None:
        """target_matrix: (env, latent) in {0, 1}. escapees: whether rows may have missed their intervention; of
        counts alone. width: of networks' layers; steps: of the encoder's construction.

        Raises InputError for a latent that no environment targets, or no observational environment.
        """
        super().__init__()
        check_sizes(features, latents, least=2)
        one_of("targets", targets, ("known", "relabelled"))
        check_whole("width", width, 1)
        check_whole("steps", steps, 1)
        if escapees and likelihood != "negative_binomial":
            reject("escapees", escapees, "False, or likelihood='negative_binomial'")
        matrix = checked_targets(target_matrix, latents)
        self.sem = LatentSEM(latents, len(matrix), matrix.tolist(), "perfect", escapees=escapees)
        self.observation = Observation(features, likelihood, batches, noise=0.1)
        self.encoder = nets.Residual(features, latents, width).requires_grad_(False)
        self.spread = nets.Residual(features, latents, width, layers=1)
        self.decoder = nets.Residual(latents, features, width)
        self.register_buffer("signal", torch.eye(features))  # from x to what the encoder sees
        # h(x) = unmixing encoder(x) + offset
        self.register_buffer("unmixing", torch.eye(latents))
        self.register_buffer("offset", torch.zeros(latents))

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        if data.targets is None and "target_matrix" not in options:
            raise InputError(
                "targets: found None in the data; allowed: a mapping environment -> latents, known or up to relabelling"
            )
        if options.get("targets") == "unknown":
            reject("targets", "'unknown'", "'known' or 'relabelled'")
        return super().from_data(data, **options)

    def check(self, data: Data) -> None:
        super().check(data)
        if len(data.env_names) != self.sem.environments:
            reject("data", f"{len(data.env_names)} environments", f"the program's {self.sem.environments}")

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """The contrastive construction of h, and equations by least squares from its latents.

        Raises InputError for an environment of fewer than two rows.
        """
        for position, name in enumerate(data.env_names):
            rows = int((data.env == position).sum())
            if rows < 2:
                reject("env", f"{rows} row(s) in environment {name!r}", "2 or more")
        batch = self.observation.start(data)
        if self.observation.counts:
            self.signal.copy_(signal_components(self.observation.inputs(batch), self.config["latents"]))
        x = self._inputs(batch)
        width, steps = self.config["width"], self.config["steps"]
        env, share = batch.env, torch.zeros_like(self.sem.escape_logit)
        if self.sem.escapees:
            env, share = self._changed(x, env, generator)
        encoder, unmixing = contrastive.construct(x, env, self.sem.target, width, steps, generator)
        self.encoder.load_state_dict(encoder.state_dict())
        z = encoder(x) @ unmixing.to(x).mT
        mean, sd = z.mean(0), z.std(0)
        self.unmixing.copy_(unmixing / sd[:, None])
        self.offset.copy_(-mean / sd)
        self.sem.escape_logit.fill_(-math.inf)  # of the rows as they are drawn, none did
        self.sem.start((z - mean) / sd, env)
        self.sem.escape_logit.copy_(share.clamp_min(1e-3).logit())
        self.spread.constant(math.log(math.expm1(FIRST_SPREAD)))
        self._gather(batch)

    def _changed(self, x: Tensor, env: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """((rows,) environments, the observational one for a draw of the rows that escaped; (env,) their share), as the
        leading principal components tell."""
        observational = self.sem.target.sum(1) == 0
        vector = torch.linalg.eigh(torch.cov(x.mT.double()))[1][:, -self.config["latents"] :]
        found = escapees.changed_moments(x.double() @ vector, env, observational)
        uniform = torch.rand(len(x), generator=generator, dtype=torch.float64).to(x.device)
        return torch.where(uniform < found.escaped, observational.nonzero()[0], env), found.share

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The construction, then the decoder by regression of features on latents."""
        self.construct(data, generator)
        batch = data.tensors(dtype=self.unmixing.dtype)
        x, z = self.observation.inputs(batch), self._mean(batch)
        eta = x * self.observation.spread if self.observation.counts else x
        seed = int(torch.randint(2**31, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)

            def loss(pick: Tensor, _: float) -> Tensor:
                noisy = z[pick] + FIRST_SPREAD * torch.randn_like(z[pick])
                return mse_loss(self.decoder(noisy), eta[pick])

            rows, steps = torch.arange(len(x), device=x.device), max(1, self.config["steps"] // 2)
            optimise.minimise(self.decoder, loss, rows, steps, ROWS, generator)
        if not self.observation.counts:
            residual = (x - self.decoder(z)).square().mean(0).sqrt().clamp_min(NOISE)
            self.observation.raw_noise.copy_(residual.log())

    # -- model and guide ---------------------------------------------------------------------------------------

    def model(self, batch: Batch) -> None:
        self.sem.prior()
        with self.rows(batch):
            z = pyro.sample("z", self.sem.rows(batch.env))  # (rows, latent)
            likelihood = self.observation.likelihood(self.decoder(z), batch)  # (rows, feature)
            pyro.sample("x", likelihood.to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", self._posterior(batch).to_event(1))

    def _inputs(self, batch: Batch) -> Tensor:
        return self.observation.inputs(batch) @ self.signal

    def _mean(self, batch: Batch) -> Tensor:
        return self.encoder(self._inputs(batch)) @ self.unmixing.mT + self.offset

    def _posterior(self, batch: Batch) -> Normal:
        spread = softplus(self.spread(self._inputs(batch))) + NOISE
        return Normal(self._mean(batch), spread)

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Moments of the latents of all rows, from which graph and equations are then drawn exactly."""
        batch = data.tensors(self.unmixing.device, self.unmixing.dtype)
        self._gather(batch)

    @torch.no_grad()
    def _gather(self, batch: Batch) -> None:
        q = self._posterior(batch)
        self.sem.gather(q.mean, batch.env)
        error = (q.stddev.square().mean(0) / q.mean.var(0)).mean()  # share of a latent's variance
        more = dispersion(self.sem.changed())
        self.sem.count.div_(more + len(batch) * (error.double().square() + contrastive.ERROR**2))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._mean(batch)

    def claims(self) -> tuple[Claim, ...]:
        free = () if self.config["targets"] == "known" else ("permutation",)
        return (Claim("latents", (*free, "scale", "shift"), GIVEN, NEEDS), Claim("graph", free, GIVEN, NEEDS))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("buchholz2023_hard", seed=seed, samples=200, latents=3)
        return cls.from_data(data, width=32, steps=40), data


def signal_components(x: Tensor, least: int) -> Tensor:
    """(feature, feature) projection of x (rows, feature), of unit variances, on principal components that stand out of
    noise, at least `least` of them, each scaled to variance 1.

    Those above the edge (1 + sqrt(features / rows))^2 of white noise (Marchenko & Pastur 1967): a network would learn
    the rest by heart.
    """
    value, vector = torch.linalg.eigh(torch.cov(x.mT.double()))
    keep = value > (1.0 + (x.shape[1] / len(x)) ** 0.5) ** 2
    keep[-least:] = True
    scale = torch.where(keep, value.clamp_min(1e-6).rsqrt(), torch.zeros_like(value))
    return (vector * scale @ vector.mT).to(x)


def dispersion(environments: linear_sem.Environments) -> float:
    """How far the laws of z lie from equations under the best order: deviance over degrees of freedom, at least 1.

    The deviance is twice the log-likelihood ratio of a Gaussian of its own for every environment. Environments without
    targets share one law.
    """
    latents = environments.target.shape[1]
    free = environments.target.sum(1) == 0
    both = torch.cat([free[None].double(), torch.nn.functional.one_hot(torch.nonzero(~free).flatten(), len(free))])
    count, mean, cov = environments.pooled(both.double())
    target = torch.cat([torch.zeros_like(environments.target[:1]), environments.target[~free]])
    merged = linear_sem.Environments(count, mean, cov, target)
    expected, law = contrastive.laws(contrastive.fitted(merged), target[1:])
    precision = torch.linalg.inv(law)
    gap = mean - expected
    each = (precision @ cov).diagonal(dim1=-2, dim2=-1).sum(-1) - latents
    each = each - torch.linalg.slogdet(precision @ cov).logabsdet + torch.einsum("ei,eij,ej->e", gap, precision, gap)
    saturated = len(count) * (latents + latents * (latents + 1) / 2)
    used = latents * (latents - 1) / 2 + 2 * latents + 2 * float(target.sum())
    return max(1.0, float((count * each).sum()) / (saturated - used))


if __name__ == "__main__":
    run(LinearSEMNonlin)
