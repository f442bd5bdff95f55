"""Independent mechanism analysis: independent latents behind a smooth map, each of which moves features in a direction
of its own, at right angles to the others'.

    roughness ~ LogNormal(log .03, 1)                                                      ()
    units_j ~ LogNormal(0, .5)                                                             (feature,)
    pole_j ~ N(0, 1)                                                                       (feature,)
    coefficients_kt ~ N(0, s_t^2), s 1 for lines, roughness 2^(2 - degree) beyond          (latent, monomial)
    heights_k ~ N(level, a random walk that bends little)                                  (latent, bump)
    z_ik ~ mixture of normal bumps on a grid, of weights softmax(heights_k)                (data, latent)
    x_i = g(z_i):  z = coefficients kappa(u), u = c(x / units; pole), c special conformal  (data, feature)
    orthogonality_i = -strength (sum_k log |dg/dz_k| - log |det dg/dz|), added to log p    (data,)

kappa are all monomials up to a degree. The last line is the local contrast of independent mechanism analysis, of
dg/dz with features in their units: 0 where columns are orthogonal, larger elsewhere. Conformal maps do not change it.
x tells z, and nothing is summed out: the story is fitted.

Each chain starts from the conformal map that makes rows most likely independent, polynomials bend it towards the mode
(`constructions.orthogonal`), and the guide draws units, pole, coefficients and heights together from the normal law
about it: of a latent and its law only the two together are told, and given one of them the other would be told too
well. Maps are kept to those whose slopes are less than a quarter circle away from their mean, which are one to one.

*Identified:* latents up to permutation and a map of each, if they are independent and behind columns that are
orthogonal (put to the test), turns of latents' normal scores would make these oblique (looked at as well; of normal
latents of a linear or conformal map they do not), and no other map with such columns makes rows independent. That is
proved of conformal maps alone; of others it is known that none which are near do (Buchholz et al. 2022): no data tell.

Gresele, von Kuegelgen, Stimper, Schoelkopf & Besserve (2021), Independent mechanism analysis, a new concept?; Ghosh,
Gresele, von Kuegelgen, Besserve & Schoelkopf (2023), Independent mechanism analysis and the manifold hypothesis.

*Differs from the paper in* features' units, which are learned, since columns that are orthogonal in one are not in
another; in polynomials behind conformal maps in place of a residual flow, and a posterior of them; in as many features
as latents alone.

*For a variant, copy this file and change* `story`: a law of `z`, or another form of `orthogonality`; with it `Climb` in
`pyrocrl.constructions.orthogonal`.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import pyro
import torch
from torch import Tensor

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import orthogonal
from pyrocrl.dists import LogNormal, MultivariateNormal, Normal
from pyrocrl.errors import reject
from pyrocrl.exact import orthogonal_maps as maps
from pyrocrl.exact.monomials import slots
from pyrocrl.lab.studies.nonlinear import Mechanisms
from pyrocrl.options import Bounds, check_memory
from pyrocrl.parts.guides import DrawnBlock, LogNormalBlock
from pyrocrl.parts.mixing import InvertibleMixing
from pyrocrl.program import Features, Latents, check_rows
from pyrocrl.readouts import Columns

INDEPENDENT = "latents are independent"
SMOOTH = "x is a smooth invertible function of as many latents, nearly without noise"
ONLY = "no other map with orthogonal columns makes rows independent"
DRAWS = 25
LEAST_ROWS, MOST_ROWS = 100, 2_000  # of a fit, and of the search for a map; more are drawn from
ANGLE = 0.3  # of the turns that are looked at: latents that are turned by it correlate by .955 with themselves


class IMA(Program):
    card = ModelCard(
        name="ima",
        title="Independent mechanism analysis",
        family="nonlinear ICA",
        summary="Independent latents behind a smooth map of as many features, each of which moves features at right "
        "angles to the others.",
        when=(
            "features are as many as their independent causes, act on by any smooth map, and causes are thought to act "
            "in ways that have nothing to do with each other",
            "features are linear in the latents (`heavy_tailed_fa`), more than these (`structural_sparsity_ica`), or "
            "columns of the mixing need not be orthogonal",
        ),
        assumes=(INDEPENDENT, SMOOTH, ONLY),
        claims=(
            Claim(
                "latents",
                ("permutation", "elementwise"),
                (INDEPENDENT, SMOOTH, ONLY),
                ("columns_orthogonal", "turns_told"),
            ),
        ),
        references=(
            Reference(
                "Gresele, von Kuegelgen, Stimper, Schoelkopf & Besserve",
                2021,
                "Independent mechanism analysis, a new concept?",
                "NeurIPS",
                "https://arxiv.org/abs/2106.05200",
            ),
            Reference(
                "Buchholz, Besserve & Schoelkopf",
                2022,
                "Function classes for identifiable nonlinear independent component analysis",
                "NeurIPS",
                "https://arxiv.org/abs/2208.06406",
            ),
            Reference(
                "Ghosh, Gresele, von Kuegelgen, Besserve & Schoelkopf",
                2023,
                "Independent mechanism analysis and the manifold hypothesis",
                "arXiv",
                "https://arxiv.org/abs/2312.13438",
            ),
        ),
        differs=(
            "features' units are learned",
            "polynomials behind conformal maps, and a posterior of them, in place of a residual flow",
            "as many features as latents",
        ),
        approximate="The guide is normal about one mode of a map and of the latents' laws, on 2,000 rows at most. "
        "Draws of the story alone are not held to orthogonal columns.",
    )
    recipe = Recipe.unannealed(epochs=2, most_steps=10, batch_size=512, lr=0.02, dtype=torch.float64, chains=2)
    checks = {"independent_read": (INDEPENDENT,)}
    new_rows = True
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "units": Site(("feature",), unit=1),
        "orthogonality": Site(("data",)),
    }

    def __init__(
        self,
        features: Features,
        latents: Annotated[Latents, Bounds(2, 6)],
        degree: Annotated[int, Bounds(1, 5)] = 3,
        strength: Annotated[float, Bounds(0, 100, "[]")] = 1.0,
        starts: Annotated[int, Bounds(1, 100)] = 12,
        steps: Annotated[int, Bounds(1, 10_000)] = 80,
    ) -> None:
        """latents: as many as features. degree: of the polynomials. strength: by how much of its contrast each row's
        log density is lowered; 0 leaves columns as they come. starts: special conformal maps that a chain tries;
        steps: of a climb from one, or with polynomials.

        Raises InputError unless there are as many features as latents, 2 to 6.
        """
        super().__init__()
        if latents != features:
            reject("latents", latents, f"as many as features ({features}), at most 6")
        places = slots(latents, degree)
        check_memory("degree", degree, 8.0 * 3 * (latents * len(places)) ** 2)
        self.roughness = LogNormalBlock(loc=math.log(orthogonal.ROUGH))
        shapes = {"units": (features,), "pole": (features,), "coefficients": (latents, len(places))}
        shapes |= {"heights": (latents, maps.BUMPS)}
        self.mode, self.drawn = DrawnBlock(1, **shapes), DrawnBlock(DRAWS, **shapes)
        for block in (self.mode, self.drawn):
            block.units.fill_(1.0)
            block.coefficients[..., (places > 0).sum(1) == 1] = torch.eye(latents)
        self.register_buffers(slots=places, fitted_rows=torch.ones(()))

    def story(self, batch: Batch) -> None:
        features, latents = self.config["features"], self.config["latents"]
        one = torch.ones((), dtype=batch.dtype, device=batch.device)
        roughness = pyro.sample("roughness", LogNormal(math.log(orthogonal.ROUGH) * one, one))
        units = pyro.sample("units", LogNormal(0 * one.expand(features), orthogonal.UNITS * one).to_event(1))
        pole = pyro.sample("pole", Normal(0 * one.expand(features), one).to_event(1))
        scale = maps.spread(self.slots, roughness).expand(latents, -1)  # (latent, monomial)
        coefficients = pyro.sample("coefficients", Normal(0 * scale, scale).to_event(2))
        walk = maps.prior_heights(one)
        heights = pyro.sample(
            "heights", MultivariateNormal(walk.level.expand(latents, -1), scale_tril=walk.tril).to_event(1)
        )

        def unfold(x: Tensor) -> maps.Unfolded:
            return maps.unfold(x, units, pole, coefficients, self.slots)

        def fold(z: Tensor, _: Tensor) -> Tensor:
            return maps.fold(z, units, pole, coefficients, self.slots)

        with self.rows(batch):
            told = None if batch.x is None else unfold(batch.x).z
            z = pyro.sample("z", maps.marginals(heights).to_event(1), obs=told)  # (rows, latent)
            eye = torch.eye(latents, dtype=batch.dtype, device=batch.device)
            x = pyro.sample("x", InvertibleMixing(z, eye, fold, lambda x: unfold(x)[:2]), obs=batch.x)
            contrast = maps.contrast(unfold(x).columns)
            pyro.factor("orthogonality", -self.config["strength"] * contrast)

    def guide(self, batch: Batch) -> None:
        pyro.sample("roughness", self.roughness())
        self.drawn.sample()

    def row_log_likelihood(self, batch: Batch, sites: dict[str, Tensor]) -> Tensor:
        """(rows,) log p(x_i | map, laws)."""
        seen = maps.unfold(batch.x, sites["units"], sites["pole"], sites["coefficients"], self.slots)
        return maps.log_bumps(seen.z, sites["heights"]) + seen.log_volume

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._mode(batch.x).z

    def _mode(self, x: Tensor) -> maps.Unfolded:
        return maps.unfold(x, self.mode.units[0], self.mode.pole[0], self.mode.coefficients[0], self.slots)

    def columns(self, batch: Batch) -> Columns:
        seen = self._mode(batch.x)
        u, _ = maps.inverted(batch.x / self.mode.units[0], self.mode.pole[0])
        _, rate = maps.normal_scores(seen.z, self.mode.heights[0])
        columns = maps.columns_of_features(u, self.mode.pole[0], seen.columns) / rate[:, None, :]
        turn = maps.least_turn(columns, ANGLE, torch.Generator().manual_seed(0))
        bends = self.config["latents"] * int(((self.slots > 0).sum(1) > 1).sum())
        chance = bends / (2 * self.fitted_rows)  # of a contrast of half a nat for each coefficient
        return Columns(maps.contrast(seen.columns), torch.tensor(turn.rise), chance, turn.axes)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The search for a map, and draws about it, on a part of the rows."""
        check_rows(data, LEAST_ROWS)
        x = data.tensors("cpu", torch.float64).x
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        x = x[torch.as_tensor(rng.permutation(len(x))[:MOST_ROWS])]
        degree, strength, *effort = (self.config[name] for name in ("degree", "strength", "starts", "steps"))
        found = orthogonal.search(x, degree, strength, orthogonal.Effort(*effort), DRAWS, rng)
        for name in self.mode.names:
            getattr(self.mode, name).copy_(getattr(found, name)[:1])
            getattr(self.drawn, name).copy_(getattr(found, name)[1:])
        self.put(fitted_rows=torch.tensor(float(len(x))))
        self.roughness.set(torch.tensor(found.roughness).log(), torch.tensor(found.error))

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("gresele2021", seed=seed, rows=250)
        return cls(features=2, latents=2, degree=2, starts=3, steps=25), data

    studies = (
        Mechanisms("gresele2021"),
        Mechanisms("gresele2021", {"latents": 3}),
        Mechanisms("gresele2021", {"latents": 5}, {"degree": 2}),
        Mechanisms("gresele2021", {"mixing": "sheared"}),
    )


if __name__ == "__main__":
    run(IMA)
