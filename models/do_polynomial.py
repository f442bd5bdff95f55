"""Polynomial mixing of latents that interventions fix at constants.

    target_e     ~ one of the latents or none, equally probable, where unknown        (env,)
    constant_ek  ~ N(0, 1)                                                            (env, latent)
    z_i          ~ N(constant_e, L_e L_e')  in environment e                          (data, latent)
    x_i          ~ N(kappa(z_i) C, sigma^2)                                           (data, feature)

kappa(z) (data, monomial) are all monomials of degree 0 to p, C (monomial, feature). An intervention do(z_t = c) holds
its target t at a constant: there L_e is diagonal, with a deviation of `fixed_sd`; it may do anything to the others. No
graph is claimed. The guide is Gaussian, centred at a Gauss-Newton step from a linear function of x, with the curvature
there as its precision; draws have besides the error of the axes that interventions hold, as rows where one is held tell
it. `model` plugs in targets and trained constants; `recover` draws targets from their evidence given the latents'
moments (a latent is held at a constant, or none is), constants from means over their environment.

*Identified:* latents up to permutation, scale and shift, if an intervention fixes each of them, C has full column rank
(so there are as many features as monomials but 1) and the latents that are not held vary freely in every environment.
The claim assumes no law of theirs. Which latent an environment fixes may be known, known up to relabelling, or unknown.

`construct` follows the proof without an auto-encoder, by linear algebra and one least-squares problem on the principal
components of x, see `pyrocrl.constructions.polynomials`. SVI then refines codes and coefficients together, which
matters where x has noise.

Ahuja, Mahajan, Wang & Bengio (2023), Interventional causal representation learning.

*Differs from the paper in* the algebra in place of an auto-encoder's training, in targets that may be unknown (the
paper regresses a constant on the codes of each known target), and in a likelihood with noise.

Longer than other models because targets may be known, relabelled or unknown, and `recover` draws them with constants.

*For a variant, copy this file and change* `story`: the line of `z`, another law of the free latents (then `laws` of
`pyrocrl.constructions.polynomials` too), or of `mean`, another mixing.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import polynomials
from pyrocrl.dists import MultivariateNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact.monomials import powers, slots
from pyrocrl.exact.regression import least_squares
from pyrocrl.lab.studies import Study
from pyrocrl.options import Share, Size
from pyrocrl.parts.readings import WithErrors
from pyrocrl.program import (
    Environments,
    Features,
    Latents,
    TargetMatrix,
    Targets,
    check_rows,
    check_sizes,
    checked_targets,
)

GIVEN = (
    "interventions hold their target at a constant",
    "x is a polynomial of the latents whose coefficients have full column rank",
    "latents that are not held vary freely in every environment",
)
NEEDS = (
    "more_features_than_latents",
    "one_intervention_per_latent",
    "single_targets",
    "free_environment",
    "held_at_constants",
    "perfect_interventions",
)
NOISE = 1e-3  # least deviation of x, in that of each feature


class DoPolynomial(WithErrors, Program):
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
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), GIVEN[1:], NEEDS),
            Claim("targets", ("permutation",), GIVEN[1:], NEEDS, {"targets": "unknown"}),
        ),
        references=(
            Reference(
                "Ahuja, Mahajan, Wang & Bengio",
                2023,
                "Interventional causal representation learning",
                "ICML",
                "https://arxiv.org/abs/2209.11924",
            ),
        ),
        differs=("algebra in place of an auto-encoder", "targets may be unknown", "a likelihood with noise"),
        status="stable",
        needs_env=True,
        targets=("known", "relabelled", "unknown"),
        approximate="Targets and constants are plugged in while latents are fitted: all rows of an environment share "
        "them, so that rows tell them almost exactly; afterwards they are drawn given moments of the latents.",
    )
    counted = "targets"
    infers_targets = True
    checks = {"left": ()}
    recipe = Recipe.unannealed(epochs=8, least_steps=200, batch_size=512, lr=3e-4, lr_end=0.01, check_every=2, chains=4)
    sites = {
        "target": Site(("env",)),  # a position in the chain's own order of latents; the last is none
        "z": Site(("data", "latent"), {"latent": "point"}),
        "targets": Site(("env", "latent"), discrete=True),
        "constant": Site(("env", "latent"), {"latent": "point"}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        environments: Environments,
        target_matrix: TargetMatrix | None = None,
        targets: Targets = "known",
        degree: Size = 2,
        fixed_sd: Share = 0.02,
    ) -> None:
        """degree: of the polynomial. target_matrix: (env, latent) in {0, 1}; not read where targets are unknown.
        fixed_sd: deviation of a latent where it is held at a constant, in its deviation over all rows.

        Raises InputError for fewer features than monomials, several targets of one environment, or a latent never held.
        """
        super().__init__()
        check_sizes(features, latents)
        count = math.comb(latents + degree, degree)
        if features < count - 1:
            reject("features", str(features), f"{count - 1} or more: the monomials of {latents} latents, {degree=}")
        places = slots(latents, degree)
        self.unknown = targets == "unknown"
        matrix = np.zeros((environments, latents))
        if not self.unknown:
            matrix = checked_targets(target_matrix, latents, environments, most=1, observational=False)
        self.encoder = nn.Parameter(0.1 * torch.randn(latents, features))
        self.offset = nn.Parameter(torch.zeros(latents))
        self.coefficients = nn.Parameter(0.1 * torch.randn(count, features))
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.env_mean = nn.Parameter(torch.zeros(environments, latents))
        self.env_root = nn.Parameter(torch.zeros(environments, latents, latents))  # log of the diagonal
        self.register_buffers(centre=torch.zeros(features), spread=torch.ones(features))
        self.register_buffer("slots", places)  # (monomial, degree)
        self.register_buffer("hit", torch.as_tensor(matrix, dtype=torch.get_default_dtype()))  # (env, latent)
        self.register_buffers(log_odds=torch.zeros(environments, latents + 1), rows_in=torch.ones(environments))
        self.register_buffers(axis_root=torch.zeros(latents, latents, latents))  # of axes' errors

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        envs, d = self.hit.shape
        targets, zero = self.hit, torch.zeros_like(self.env_mean)
        with pyro.plate("env", envs, dim=-1):
            if self.unknown:
                target = pyro.sample("target", dist.Categorical(logits=torch.zeros_like(self.log_odds)))  # (env,)
                targets = one_hot(target, d + 1)[:, :d].to(targets)
            constant = pyro.sample("constant", Normal(zero, zero + 1).to_event(1))  # (env, latent)
        pyro.deterministic("targets", targets)  # (env, latent)
        with self.rows(batch):
            z = pyro.sample("z", self._law(constant, targets, batch.env))  # (rows, latent)
            mean = self.centre + self.spread * (powers(z, self.slots)[0] @ self.coefficients)  # (rows, feature)
            pyro.sample("x", Normal(mean, self.spread * self._noise()).to_event(1), obs=batch.x)

    def model(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", self._law(self.env_mean, self.hit, batch.env))  # (rows, latent)
            mean = self.centre + self.spread * (powers(z, self.slots)[0] @ self.coefficients)  # (rows, feature)
            pyro.sample("x", Normal(mean, self.spread * self._noise()).to_event(1), obs=batch.x)

    @torch.no_grad()
    def recover(self, batch: Batch, **kept: Tensor) -> None:
        envs = torch.arange(len(self.hit), device=self.hit.device)
        spread = self._law(self.env_mean, self.hit, envs).variance.sqrt()
        with pyro.plate("env", len(envs), dim=-1):
            if self.unknown:
                pyro.sample("target", dist.Categorical(logits=self.log_odds))
            pyro.sample("constant", Normal(self.env_mean, spread / self.rows_in.sqrt()[:, None]).to_event(1))

    def plugged(self, batch: Batch) -> dict[str, Tensor]:
        target = torch.where(self.hit.sum(1) > 0, self.hit.argmax(1), self.hit.shape[1])
        return {"constant": self.env_mean} | ({"target": target} if self.unknown else {})

    def guide(self, batch: Batch) -> None:
        q = self._posterior(batch)
        if self.with_errors:  # of the axes, in all rows alike
            turn = (self.axis_root @ torch.randn_like(self.axis_root[0])[:, :, None])[..., 0]  # (latent, other)
            middle = self.rows_in / self.rows_in.sum() @ self.env_mean
            q = MultivariateNormal(q.mean + (q.mean - middle) @ turn.mT, scale_tril=q.scale_tril)
        with self.rows(batch):
            pyro.sample("z", q)

    def _law(self, constant: Tensor, targets: Tensor, env: Tensor) -> MultivariateNormal:
        """p(z | environment) of rows with codes `env` (rows,): a target is apart from the others, and constant."""
        free = 1 - targets
        lower = self.env_root.tril(-1) * free[:, :, None] * free[:, None, :]
        scale = free * self.env_root.diagonal(dim1=-2, dim2=-1).exp() + self.config["fixed_sd"]
        return MultivariateNormal(constant[env], scale_tril=(lower + torch.diag_embed(scale))[env])

    def _noise(self) -> Tensor:
        return self.log_noise.exp() + NOISE

    def _posterior(self, batch: Batch) -> MultivariateNormal:
        """One Gauss-Newton step of log p(x | z) + log N(z; start, 1) from the linear encoder's z."""
        x = (batch.x - self.centre) / self.spread
        start = x @ self.encoder.mT + self.offset  # (rows, latent)
        value, slope = powers(start, self.slots)
        weighted = self.coefficients / self._noise().square()  # (monomial, feature)
        gram = weighted @ self.coefficients.mT  # (monomial, monomial)
        precision = slope @ gram @ slope.mT + torch.eye(start.shape[1], dtype=start.dtype, device=start.device)
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

    # -- from data ---------------------------------------------------------------------------------------------

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """Latents by the proof (see above) and every other parameter from them.

        Raises InputError for an environment with fewer rows than twice the monomials.
        """
        count, latents = len(self.coefficients), self.config["latents"]
        check_rows(data, 2 * count, f", for {count} monomials")
        batch = data.tensors(dtype=torch.float64)
        mean, sd = batch.x.mean(0), batch.x.std(0)
        self.put(centre=mean, spread=torch.where(sd > 1e-12, sd, torch.ones_like(sd)))
        x = (batch.x - mean) / self.spread.double()
        known = None if self.unknown else self.hit
        unmixing, z, hit = polynomials.unmixing(x, batch.env, latents, self.config["degree"], known, generator)
        self.put(hit=hit, encoder=unmixing)
        self._given(z, x, batch.env)

    def _given(self, z: Tensor, x: Tensor, env: Tensor) -> None:
        """Decoder, noise and laws of these latents (rows, latent), of standardised x (rows, feature)."""
        value = powers(z, self.slots)[0]
        self.put(coefficients=least_squares(value, x))
        self.log_noise.copy_((x - value @ self.coefficients.to(x)).std(0).clamp_min(NOISE).log())
        self.put(**polynomials.laws(z, 0 * z[0], env, self.hit, self.config["fixed_sd"])._asdict())

    def begin_turned(self, data: Data, turn: Tensor, generator: torch.Generator) -> bool:
        """Encoder turned, and all else from its latents; environments hold what they held."""
        batch, turn = data.tensors(self.centre.device, torch.float64), turn.to(self.centre.device)
        x = (batch.x - self.centre.double()) / self.spread.double()
        self.put(encoder=turn.mT @ self.encoder.double(), offset=self.offset.double() @ turn)
        self._given(x @ self.encoder.double().mT + self.offset.double(), x, batch.env)
        return True

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Moments of the latents of all rows, from which targets and constants are drawn."""
        batch = data.tensors(self.centre.device, self.centre.dtype)
        q = self._posterior(batch)
        z, error, fixed = q.mean.double(), q.variance.double().mean(0), self.config["fixed_sd"]
        self.put(**polynomials.laws(z, error, batch.env, self.hit, fixed)._asdict())
        self.put(axis_root=polynomials.axis_roots(z, batch.env, self.hit))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("ahuja2023", seed=seed, samples=400, latents=3, features=20)
        return cls.from_data(data, targets="unknown"), data

    studies = tuple(Study("ahuja2023", {"degree": p}, {"degree": p, "targets": "unknown"}) for p in (2, 3))


if __name__ == "__main__":
    run(DoPolynomial)
