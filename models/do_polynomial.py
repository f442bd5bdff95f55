"""Polynomial mixing of latents that interventions fix at constants.

    z_i ~ N(m_e, L_e L_e')  in environment e, but for its target t: z_it = c_e        (data, latent)
    x_i ~ N(kappa(z_i) C, sigma^2)                                                    (data, feature)

kappa(z) (data, monomial) are all monomials of degree 0 to p, C (monomial, feature). An intervention do(z_t = c_e) holds
its target at a constant (within a deviation of `fixed_sd`) and may do anything to the others. No graph is claimed. The
guide is Gaussian, centred at a Gauss-Newton step from a linear function of x, with the curvature there as its
precision.

*Identified:* latents up to permutation, scale and shift, if an intervention fixes each of them, C has full column rank
(so there are as many features as monomials but 1) and the latents that are not held vary freely in every environment.
The claim assumes no law of theirs. Which latent an environment fixes may be known, known up to relabelling, or unknown.

`construct` follows the proof without an auto-encoder. Principal components of x span P_p, the polynomials of degree p.
(1) Those that are constant in environment e are y P_{p-1} for one affine y = z_t - c_e, and y is the one whose powers
up to p stay inside P_p: least squares from the function that varies most slowly between neighbours. (2) Hence P_{p-1},
and the affine functions are those f with f P_{p-1} inside P_p, an eigenproblem. (3) In each environment the affine
function of least variance is its target; environments of one latent have the same. SVI then refines codes and
coefficients together, which matters where x has noise. Targets are drawn from their evidence given the latents' moments
in each environment: a latent is held at a constant, or none is.

Ahuja, Mahajan, Wang & Bengio (2023), Interventional causal representation learning.

*Differs from the paper in* the algebra in place of an auto-encoder's training, in targets that may be unknown (the
paper regresses a constant on the codes of each known target), and in a likelihood with noise.

*For a variant, copy this file and change* `prior` and `_moments`: another law of the free latents.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement
from typing import Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import polynomials
from pyrocrl.dists import MultivariateNormal, Normal
from pyrocrl.errors import one_of, reject
from pyrocrl.exact.regression import least_squares
from pyrocrl.lab.studies import Study
from pyrocrl.program import check_between, check_rows, check_sizes, check_whole, checked_targets

GIVEN = (
    "interventions hold their target at a constant",
    "x is a polynomial of the latents whose coefficients have full column rank",
    "latents that are not held vary freely in every environment",
)
NEEDS = ("more_features_than_latents", "one_intervention_per_latent", "single_targets", "perfect_interventions")
NOISE = 1e-3  # least deviation of x, in that of each feature


class DoPolynomial(Program):
    centre: Tensor
    spread: Tensor
    slots: Tensor
    hit: Tensor
    log_odds: Tensor
    rows_in: Tensor
    card = ModelCard(
        name="do_polynomial",
        title="Polynomial mixing under do-interventions",
        family="interventions",
        summary="Latents behind a polynomial, from environments that hold one of them at a constant; which one may be "
        "unknown. Needs no law of the latents and no graph.",
        when=(
            "interventions hold a latent at a constant, as a set point does, and x is a polynomial of few latents",
            "interventions only shift or rescale their target, a graph is wanted, or features are fewer than the "
            "monomials of the latents",
        ),
        assumes=("x is a polynomial of the latents, with noise", *GIVEN[:1]),
        claims=(Claim("latents", ("permutation", "scale", "shift"), GIVEN, NEEDS),),
        references=(
            Reference(
                "Ahuja, Mahajan, Wang & Bengio",
                2023,
                "Interventional causal representation learning",
                "ICML",
                "https://arxiv.org/abs/2209.11924",
            ),
        ),
        differs=(
            "polynomials, affine functions and targets are found by linear algebra and one least-squares problem, "
            "not by an auto-encoder",
            "targets may be unknown",
            "a likelihood with noise",
        ),
        status="stable",
        needs_env=True,
        targets=("known", "relabelled", "unknown"),
    )
    recipe = Recipe(
        epochs=8,
        least_steps=200,
        batch_size=512,
        lr=3e-4,
        lr_end=0.01,
        kl_warmup=0.0,
        temperature_span=0.0,
        check_every=2,
        chains=4,
    )
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "targets": Site(("env", "latent"), discrete=True),
        "constant": Site(("env", "latent"), {"latent": "point"}),
    }

    def __init__(
        self,
        features: int,
        latents: int,
        environments: int,
        target_matrix: list[list[int]] | None = None,
        targets: Literal["known", "relabelled", "unknown"] = "known",
        degree: int = 2,
        fixed_sd: float = 0.02,
    ) -> None:
        """degree: of the polynomial. target_matrix: (env, latent) in {0, 1}; not read where targets are unknown.
        fixed_sd: deviation of a latent where it is held at a constant, in its deviation over all rows.

        Raises InputError for fewer features than monomials, for an environment with more than one target, and for a
        latent without an environment that fixes it.
        """
        super().__init__()
        check_sizes(features, latents)
        one_of("targets", targets, ("known", "relabelled", "unknown"))
        check_whole("degree", degree, 1)
        check_whole("environments", environments, 1)
        check_between("fixed_sd", fixed_sd, 0, 1)
        count = math.comb(latents + degree, degree)
        if features < count - 1:
            reject("features", str(features), f"{count - 1} or more: the monomials of {latents} latents, {degree=}")
        self.unknown = targets == "unknown"
        matrix = np.zeros((environments, latents))
        if not self.unknown:
            matrix = checked_targets(target_matrix, latents, environments, most=1, observational=False)
        slots = list(combinations_with_replacement(range(latents + 1), degree))  # of (1, z); each once
        self.encoder = nn.Parameter(0.1 * torch.randn(latents, features))
        self.offset = nn.Parameter(torch.zeros(latents))
        self.coefficients = nn.Parameter(0.1 * torch.randn(count, features))
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.env_mean = nn.Parameter(torch.zeros(environments, latents))
        self.env_root = nn.Parameter(torch.zeros(environments, latents, latents))  # log of the diagonal
        self.register_buffer("slots", torch.tensor(slots))  # (monomial, degree)
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("spread", torch.ones(features))
        self.register_buffer("hit", torch.as_tensor(matrix, dtype=torch.get_default_dtype()))  # (env, latent)
        self.register_buffer("log_odds", torch.zeros(environments, latents + 1))  # of each target, of none
        self.register_buffer("rows_in", torch.ones(environments))

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        if data.targets is None:
            options = {"targets": "unknown"} | options
        return super().from_data(data, **options)

    # -- model and guide ---------------------------------------------------------------------------------------

    def prior(self, env: Tensor) -> MultivariateNormal:
        """p(z | environment) of rows with codes `env` (rows,): a target is apart from the others, and constant."""
        free = 1 - self.hit
        lower = self.env_root.tril(-1) * free[:, :, None] * free[:, None, :]
        scale = free * self.env_root.diagonal(dim1=-2, dim2=-1).exp() + self.config["fixed_sd"]
        return MultivariateNormal(self.env_mean[env], scale_tril=(lower + torch.diag_embed(scale))[env])

    def model(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", self.prior(batch.env))  # (rows, latent)
            mean = self.decode(z, batch)  # (rows, feature)
            pyro.sample("x", Normal(mean, self.spread * self._noise()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", self._posterior(batch))

    def decode(self, z: Tensor, batch: Batch) -> Tensor:
        return self.centre + self.spread * (self.powers(z)[0] @ self.coefficients)

    def powers(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """kappa(z) (rows, monomial), and its derivatives (rows, latent, monomial)."""
        factors = torch.cat([torch.ones_like(z[:, :1]), z], 1)[:, self.slots]  # (rows, monomial, degree)
        value, slope = factors.prod(-1), torch.zeros_like(z)[:, :, None]
        for s in range(factors.shape[-1]):
            rest = torch.ones_like(value)
            for other in range(factors.shape[-1]):
                rest = rest if other == s else rest * factors[..., other]
            own = self.slots[:, s] == torch.arange(1, z.shape[1] + 1, device=z.device)[:, None]
            slope = slope + rest[:, None] * own
        return value, slope

    def _noise(self) -> Tensor:
        return self.log_noise.exp() + NOISE

    def _posterior(self, batch: Batch) -> MultivariateNormal:
        """One Gauss-Newton step of log p(x | z) + log N(z; start, 1) from the linear encoder's z."""
        x = (batch.x - self.centre) / self.spread
        start = x @ self.encoder.mT + self.offset  # (rows, latent)
        value, slope = self.powers(start)
        weighted = self.coefficients / self._noise().square()  # (monomial, feature)
        gram = weighted @ self.coefficients.mT  # (monomial, monomial)
        precision = slope @ gram @ slope.mT + torch.eye(start.shape[1]).to(start)
        gradient = slope @ (x @ weighted.mT - value @ gram)[..., None]  # (rows, latent, 1)
        cov = torch.linalg.inv_ex(precision).inverse
        tril = torch.linalg.cholesky_ex(0.5 * (cov + cov.mT)).L
        return MultivariateNormal(start + (cov @ gradient).squeeze(-1), scale_tril=tril)

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._posterior(batch).mean

    def targets_matrix(self) -> Tensor:
        return self.log_odds.softmax(-1)[:, :-1] if self.unknown else self.hit

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """targets (env, latent) in {0, 1}, and constant (env, latent): the value that a target is held at, the mean of
        a free latent."""
        if self.unknown:
            draw = torch.multinomial(self.log_odds.softmax(-1), 1).squeeze(-1)
            targets = torch.nn.functional.one_hot(draw, self.log_odds.shape[1])[:, :-1].to(self.hit)
        else:
            targets = self.hit
        spread = self.prior(torch.arange(len(self.hit), device=self.hit.device)).variance.sqrt()
        noise = torch.randn_like(spread) * spread / self.rows_in.sqrt()[:, None]
        return {"targets": targets, "constant": self.env_mean + noise}

    @property
    def latents_up_to(self) -> tuple[str, ...]:
        """Known targets name the latents."""
        return ("scale", "shift") if self.config["targets"] == "known" else ("permutation", "scale", "shift")

    def claims(self) -> tuple[Claim, ...]:
        latents = Claim("latents", self.latents_up_to, GIVEN, NEEDS)
        if not self.unknown:
            return (latents,)
        return (latents, Claim("targets", ("permutation",), GIVEN, NEEDS))

    # -- from data ---------------------------------------------------------------------------------------------

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """Latents by the proof (see above) and every other parameter from them.

        Raises InputError for an environment with fewer rows than twice the monomials.
        """
        count, latents = len(self.coefficients), self.config["latents"]
        check_rows(data, 2 * count, f", for {count} monomials")
        batch = data.tensors(dtype=torch.float64)
        mean, sd = batch.x.mean(0), batch.x.std(0)
        self.centre.copy_(mean)
        self.spread.copy_(torch.where(sd > 1e-12, sd, torch.ones_like(sd)))
        x = (batch.x - mean) / self.spread.double()
        known = None if self.unknown else self.hit
        unmixing, z, hit = polynomials.unmixing(x, batch.env, latents, self.config["degree"], known, generator)
        self.hit.copy_(hit)
        self.encoder.copy_(unmixing)
        value = self.powers(z)[0]
        self.coefficients.copy_(least_squares(value, x))
        self.log_noise.copy_((x - value @ self.coefficients.to(x)).std(0).clamp_min(NOISE).log())
        self._moments(z, torch.zeros_like(z[0]), batch.env)

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The construction."""
        self.construct(data, generator)

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Moments of the latents of all rows, from which targets and constants are drawn."""
        batch = data.tensors(self.centre.device, self.centre.dtype)
        q = self._posterior(batch)
        self._moments(q.mean.double(), q.variance.double().mean(0), batch.env)

    def _moments(self, z: Tensor, error: Tensor, env: Tensor) -> None:
        """Law of the latents in each environment, and the evidence for its target.

        z: (rows, latent), of error variance `error` (latent,).
        """
        fixed = self.config["fixed_sd"]
        floor = torch.diag(fixed**2 + 2 * error)
        for e in range(len(self.hit)):
            own, free = z[env == e], torch.nonzero(self.hit[e] < 0.5).flatten()
            cov = torch.cov(own.mT).reshape(floor.shape)
            root = torch.zeros_like(cov)
            root[free[:, None], free] = torch.linalg.cholesky((cov + floor)[free][:, free])
            spread = (root.diagonal() - fixed).clamp_min(1e-3).log()
            self.env_root[e] = root.tril(-1) + torch.diag_embed(spread)
            self.env_mean[e], self.rows_in[e] = own.mean(0), len(own)
            self.log_odds[e] = polynomials.evidence(cov, floor, len(own))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("ahuja2023", seed=seed, samples=400, latents=3, features=20)
        return cls.from_data(data, targets="unknown"), data

    studies = tuple(
        Study("ahuja2023", {"degree": degree}, {"degree": degree, "targets": "unknown"}) for degree in (2, 3)
    )


if __name__ == "__main__":
    run(DoPolynomial)
