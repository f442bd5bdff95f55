"""Polynomial mixing of latents that interventions fix at constants.

    z_i ~ N(m_e, L_e L_e')  in environment e, but for its target t: z_it = c_e        (data, latent)
    x_i ~ N(kappa(z_i) C, sigma^2)                                                    (data, feature)

kappa(z) (data, monomial) are all monomials of degree 0 to p, C (monomial, feature). An intervention do(z_t = c_e) holds
its target at a constant (within a deviation of FIXED) and may do anything to the others. No graph is claimed. The guide
is Gaussian, centred at a Gauss-Newton step from a linear function of x, with the curvature there as its precision.

*Identified:* latents up to permutation, scale and shift, if an intervention fixes each of them, C has full column rank
(so there are as many features as monomials) and the latents vary freely in some environment. No law of the latents is
assumed. Which latent an environment fixes may be known, known up to relabelling, or unknown.

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

*For a variant, copy this file and change* `prior` (another law of the free latents) or `powers` (other functions).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import Any, Literal

import numpy as np
import pyro
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.dists import MultivariateNormal, Normal
from pyrocrl.errors import one_of, reject
from pyrocrl.program import check_sizes

GIVEN = (
    "interventions hold their target at a constant",
    "x is a polynomial of the latents whose coefficients have full column rank",
    "the latents vary freely in some environment",
)
NEEDS = ("more_features_than_latents", "one_intervention_per_latent", "single_targets")
FIXED = 0.02  # deviation of a latent that is held at a constant, in its own overall deviation
NOISE = 1e-3  # least deviation of x, in that of each feature
ROWS = 2_500  # of the construction's least squares
NEIGHBOURS = 5
STEPS = 80  # of Levenberg and Marquardt
EXACT = 1e-6  # share of a power's variance outside P_p that ends the search
CONSTANT = 0.05  # most variance, of a code's, in an environment that holds it constant
SAME = 0.02  # distance, 1 - |cosine|, between directions of one latent


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
        settings=("ahuja2023",),
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
    ) -> None:
        """degree: of the polynomial. target_matrix: (env, latent) in {0, 1}; not read where targets are unknown.

        Raises InputError for fewer features than monomials, for an environment with more than one target, and for a
        latent without an environment that fixes it.
        """
        super().__init__()
        check_sizes(features, latents)
        one_of("targets", targets, ("known", "relabelled", "unknown"))
        for name, value in (("degree", degree), ("environments", environments)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                reject(name, repr(value), "a whole number from 1 on")
        count = math.comb(latents + degree, degree)
        if features < count - 1:
            reject("features", str(features), f"{count - 1} or more: the monomials of {latents} latents, {degree=}")
        told = targets != "unknown"
        matrix = _checked(target_matrix, environments, latents) if told else np.zeros((environments, latents))
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
        scale = free * self.env_root.diagonal(dim1=-2, dim2=-1).exp() + FIXED
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

    # -- the start and the end of a chain -----------------------------------------------------------------------

    def construct(self, data: Data, generator: torch.Generator) -> None:
        """Latents by the proof (see above) and every other parameter from them.

        Raises InputError for an environment with fewer rows than twice the monomials.
        """
        count, latents = len(self.coefficients), self.config["latents"]
        for e, name in enumerate(data.env_names):
            rows = int((data.env == e).sum())
            if rows < 2 * count:
                reject("env", f"{rows} rows in environment {name!r}", f"{2 * count} or more, for {count} monomials")
        batch = data.tensors(dtype=torch.float64)
        mean, sd = batch.x.mean(0), batch.x.std(0)
        self.centre.copy_(mean)
        self.spread.copy_(torch.where(sd > 1e-12, sd, torch.ones_like(sd)))
        x = (batch.x - mean) / self.spread.double()
        affine = affine_functions(x, batch.env, latents, self.config["degree"], generator)  # (feature, latent)
        code = x @ affine
        parts = [code[batch.env == e] for e in range(len(self.hit))]
        if self.config["targets"] == "unknown":
            self.hit.copy_(constants(parts))
        turn = torch.zeros(latents, latents, dtype=torch.float64)  # z = turn code, up to scale and sign
        held = [k for k in range(latents) if self.hit[:, k].any()]
        for k in held:
            turn[k] = quietest([part for part, hit in zip(parts, self.hit[:, k], strict=True) if hit])[1]
        free = [k for k in range(latents) if k not in held]
        if free:
            rest = torch.linalg.svd(turn[held]).Vh[len(held) :] if held else torch.eye(latents).to(turn)
            turn[free] = torch.linalg.qr(torch.randn(len(free), len(free), generator=generator).to(turn))[0] @ rest
        sign = 2 * torch.randint(2, (latents, 1), generator=generator).to(turn) - 1
        turn = sign * turn / (code @ turn.mT).std(0)[:, None]
        if self.config["targets"] == "unknown":
            order = torch.randperm(latents, generator=generator)
            turn, self.hit[:] = turn[order], self.hit[:, order]
        self.encoder.copy_(turn @ affine.mT)
        z = code @ turn.mT
        value = self.powers(z)[0]
        self.coefficients.copy_(torch.linalg.lstsq(value, x).solution)
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
        floor = torch.diag(FIXED**2 + 2 * error)
        for e in range(len(self.hit)):
            own, free = z[env == e], torch.nonzero(self.hit[e] < 0.5).flatten()
            cov = torch.cov(own.mT).reshape(floor.shape)
            root = torch.zeros_like(cov)
            root[free[:, None], free] = torch.linalg.cholesky((cov + floor)[free][:, free])
            spread = (root.diagonal() - FIXED).clamp_min(1e-3).log()
            self.env_root[e] = root.tril(-1) + torch.diag_embed(spread)
            self.env_mean[e], self.rows_in[e] = own.mean(0), len(own)
            self.log_odds[e] = evidence(cov, floor, len(own))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._posterior(batch).mean

    def targets_matrix(self) -> Tensor:
        return self.log_odds.softmax(-1)[:, :-1] if self.config["targets"] == "unknown" else self.hit

    @torch.no_grad()
    def posterior_sites(self, batch: Batch, sites: dict[str, Tensor]) -> dict[str, Tensor]:
        """targets (env, latent) in {0, 1}, and constant (env, latent): the value that a target is held at, the mean of
        a free latent."""
        if self.config["targets"] == "unknown":
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
        if self.config["targets"] != "unknown":
            return (latents,)
        return (latents, Claim("targets", ("permutation",), GIVEN, NEEDS))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("ahuja2023", seed=seed, samples=400, latents=3, features=20)
        return cls.from_data(data, targets="unknown"), data


# -- the construction --------------------------------------------------------------------------------------------


def affine_functions(x: Tensor, env: Tensor, latents: int, degree: int, generator: torch.Generator) -> Tensor:
    """(feature, latent) combinations of x (rows, feature; centred) that are affine in the latents, white over all rows.

    Steps (1) and (2) of the proof, on as many as ROWS rows.
    """
    count, fewer = math.comb(latents + degree, degree) - 1, math.comb(latents + degree - 1, degree - 1)
    value, vector = torch.linalg.eigh(x.mT @ x / len(x))
    basis = vector[:, -count:] / value[-count:].clamp_min(1e-12 * value[-1]).sqrt()  # (feature, count)
    all_rows = x @ basis  # white
    few = torch.randperm(len(x), generator=generator)[:ROWS]
    u = all_rows[few]  # (rows, count): with a constant, P_p on these rows
    near = torch.cdist(x[few], x[few]).topk(NEIGHBOURS + 1, largest=False).indices[:, 1:]
    apart = (u[:, None] - u[near]).flatten(0, 1)
    slowness = apart.mT @ apart / len(apart)
    full = torch.cat([torch.ones_like(u[:, :1]), u], 1)
    candidates = []
    for e in range(int(env.max()) + 1):
        own = all_rows[env == e]
        level, axes = torch.linalg.eigh(torch.cov(own.mT).reshape(count, count))
        gap = float(level[fewer - 1] / level[fewer]) if fewer < count else float(level[0])
        candidates.append((gap, e, own.mean(0), axes[:, :fewer]))
    local, y, least = full, u[:, 0], math.inf
    for _, _, mean, axes in sorted(candidates, key=lambda one: one[:2]):
        null = (u - mean) @ axes  # (rows, fewer) functions that are 0 in the environment: y P_{p-1}
        start = torch.linalg.eigh(axes.mT @ slowness @ axes).eigenvectors[:, 0]
        found, outside = powers_inside(null, start, full, degree)
        if outside < least:
            local, y, least = null, null @ found, outside
        if least < EXACT:
            break
    # f is affine iff f P_{p-1} is inside P_p; times y, not to divide by it: f (y P_{p-1}) inside y P_p
    image = torch.linalg.qr(y[:, None] * full)[0]
    total, outside_of = torch.zeros(2, count + 1, count + 1).to(full)
    for n in local.mT:
        moved = n[:, None] * full
        kept = image.mT @ moved
        total, outside_of = total + moved.mT @ moved, outside_of + moved.mT @ moved - kept.mT @ kept
    root = torch.linalg.inv(torch.linalg.cholesky(total))
    smallest = root.mT @ torch.linalg.eigh(root @ outside_of @ root.mT).eigenvectors[:, : latents + 1]
    span = basis @ torch.linalg.svd(smallest[1:], full_matrices=False).U[:, :latents]  # without the constant
    code = x @ span
    value, vector = torch.linalg.eigh(torch.cov(code.mT).reshape(latents, latents))
    return span @ vector / value.sqrt()


def powers_inside(null: Tensor, start: Tensor, full: Tensor, degree: int) -> tuple[Tensor, float]:
    """(g, share) minimising the share of the variance of (null g)^2 .. (null g)^degree outside the span of `full`.

    null: (rows, functions), full: (rows, functions). Levenberg and Marquardt's method from `start`.
    """
    inside = torch.linalg.qr(full)[0]

    def residual(g: Tensor) -> tuple[Tensor, Tensor]:
        f = null @ g
        size = f.square().mean().sqrt()  # the residual does not depend on the scale of g
        f = f / size
        parts, slopes = [], []
        for k in range(2, degree + 1):
            power = f**k - (f**k).mean()
            unit = power.norm()
            slope = (k * f ** (k - 1) / unit)[:, None] * null / size
            power, along = power / unit, slope.mT @ power / unit  # how fast the power itself grows
            power = power - inside @ (inside.mT @ power)
            parts.append(power)
            slopes.append(slope - inside @ (inside.mT @ slope) - torch.outer(power, along))
        return torch.cat(parts), torch.cat(slopes)

    g, damping = start / start.norm(), 1e-2
    if degree == 1:
        return g, 0.0
    r, j = residual(g)
    for _ in range(STEPS):
        hessian = j.mT @ j
        shrink = damping * (hessian.diagonal() + 1e-9 * hessian.diagonal().mean())
        new = g - torch.linalg.solve(hessian + torch.diag(shrink), j.mT @ r)
        new = new / new.norm()
        r_new, j_new = residual(new)
        before, after = float(r @ r), float(r_new @ r_new)
        if after < before:
            g, r, j, damping = new, r_new, j_new, max(damping / 5, 1e-12)
        else:
            damping *= 5
        if after < 1e-20 or damping > 1e8 or 0 < before - after < 1e-6 * before:
            break
    return g, float(r @ r) / (degree - 1)


def quietest(parts: Sequence[Tensor]) -> tuple[float, Tensor]:
    """(variance, direction (d,)) of the combination that varies least within all parts (rows, d)."""
    centred = torch.cat([part - part.mean(0) for part in parts])
    value, vector = torch.linalg.eigh(centred.mT @ centred / len(centred))
    return float(value[0]), vector[:, 0]


def constants(parts: Sequence[Tensor]) -> Tensor:
    """(env, d) in {0, 1}: environments that hold the same combination of codes constant, one column a combination.

    parts: the codes (rows, d) of each environment, white over all of them.
    """
    d = parts[0].shape[1]
    found = [quietest([part]) for part in parts]
    held = [e for e, (variance, _) in enumerate(found) if variance < CONSTANT]
    hit = torch.zeros(len(parts), d)
    if not held:
        return hit
    label = np.ones(1, dtype=int)
    if len(held) > 1:
        axes = torch.stack([found[e][1] for e in held])
        apart = (1 - (axes @ axes.mT).abs()).clamp_min(0.0).fill_diagonal_(0.0)
        tree = linkage(squareform(apart.numpy(), checks=False), "complete")
        label = fcluster(tree, SAME, "distance")
        if label.max() > d:
            label = fcluster(tree, d, "maxclust")
    hit[held, torch.as_tensor(label - 1, dtype=torch.long)] = 1.0
    return hit


def evidence(cov: Tensor, floor: Tensor, rows: int) -> Tensor:
    """(d + 1,) log-evidence (BIC) that an environment holds latent k at a constant, or, last, none.

    cov: (d, d) of the latents there; floor: (d, d) diagonal, the variance of a latent that is held.
    """
    d = len(cov)
    seen = cov + floor
    out = [-0.5 * rows * (torch.linalg.slogdet(seen).logabsdet + d) - 0.25 * d * (d + 3) * math.log(rows)]
    for k in reversed(range(d)):
        rest = [j for j in range(d) if j != k]
        deviance = torch.linalg.slogdet(seen[rest][:, rest]).logabsdet + d - 1
        deviance = deviance + floor[k, k].log() + seen[k, k] / floor[k, k]
        size = 0.5 * (d - 1) * (d + 2) + 1
        out.append(-0.5 * rows * deviance - 0.5 * size * math.log(rows))
    return torch.stack(out[::-1])


def _checked(target_matrix: Any, environments: int, latents: int) -> np.ndarray:
    matrix = np.asarray([[]] if target_matrix is None else target_matrix)
    if matrix.shape != (environments, latents) or not np.isin(matrix, (0, 1)).all():
        allowed = f"0 and 1 in the shape ({environments}, {latents}), or targets='unknown'"
        reject("target_matrix", f"shape {matrix.shape}", allowed)
    if (several := np.flatnonzero(matrix.sum(1) > 1)).size:
        reject("targets", f"{int(matrix[several[0]].sum())} targets in environment {several[0]}", "at most one")
    if (missing := np.flatnonzero(matrix.sum(0) == 0)).size:
        reject("targets", f"no environment that fixes latent {missing[0]}", "one or more for each latent")
    return matrix.astype(np.int64)


if __name__ == "__main__":
    run(DoPolynomial)
