"""Sparse perturbations: pairs of rows, before and after a perturbation that moves few latents by fixed offsets.

    targets[u, k] ~ Bernoulli(chance), u a perturbation                        (env, latent)
    offset[u, k] ~ N(0, slab^2) where targets[u, k], else 0                    (env, latent)
    z_i ~ N(0, C), C the covariance of the latents                             (data, latent)
          of rows after: N(z_j + offset[u], diag spread^2), j the row before
    x_i ~ N(f(z_i), diag sigma^2)                                              (data, feature)

The environment of a row after names the perturbation u; rows before are of the control, which moves nothing. f is
linear plus a network, or linear (`decoder`); the guide is q(z | x) = N(h(x), diag t^2). Which law z has does not matter
to h: it is made by differences alone, and C is read off its latents.

`initialise` (see `pyrocrl.constructions.offsets`): h is a network that every perturbation moves by the same in all its
pairs, or principal components; then the axes are taken that the fewest perturbations move. The decoder is a regression;
after it the evidence lower bound is maximised over everything but h. t then is what h errs in rows that the story
tells (`parts.readings`). `model` is the story; given h the posterior of `targets` and `offset` is closed, with an error
that no number of pairs removes (`error`).

*Identified:* latents up to permutation, scale and shift, if offsets of one latent each span all latents, or sparse ones
such that no other axes are moved by as few perturbations (Ahuja et al. 2022). Latents that are always
moved together are not told apart. With as many perturbations as latents any offsets look as if each moved one latent;
and what bends in step with the offsets, a latent plus a function of their period, is moved by fixed offsets as well.

Ahuja, Hartford & Bengio (2022), Weakly supervised representation learning with sparse perturbations.

*Differs from the paper in* offsets and which latents they move, which are a posterior and not guessed; in axes that are
found after the network is trained; and in a decoder, so that the story simulates.

Longer than other models because it has two encoders, a network and a linear one, each with claims of its own.

*For a variant, copy this file and change* `story`: the law of `offset`, or of `z` in rows after.
"""

from __future__ import annotations

from typing import Literal

import pyro
import torch
from pyro import distributions as dist
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import offsets, optimise
from pyrocrl.constructions.subspaces import principal
from pyrocrl.dists import Normal, SpikeSlab
from pyrocrl.errors import reject
from pyrocrl.lab.studies.linked_rows import MeanDifferences
from pyrocrl.options import Positive, Share, Size
from pyrocrl.parts import readings
from pyrocrl.parts.displaced import Displaced
from pyrocrl.parts.guides import DrawnBlock
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.observation import Observation
from pyrocrl.program import Environments, Features, Latents, check_sizes
from pyrocrl.readouts import Offsets

FIXED = "a perturbation moves latents by the same in all its pairs"
SPARSE = "no axes are moved by fewer perturbations than the latents are"
BENT = "the mixing does not bend in step with the offsets"
NEEDS = ("observational_environment", "offsets_span", "axes_apart", "offsets_steady", "little_left")
DRAWS = 200
LEAST, NEVER = 1e-3, -16.0  # deviation of noise and of q(z | x) at first; log odds of what the control moves
ROUNDING = 1e-4  # error of differences under a linear mixing that stays however many pairs there are


class SparsePerturbations(Program):
    card = ModelCard(
        name="sparse_perturbations",
        title="Sparse perturbations",
        family="pairs",
        summary="Latents behind any injective map, told by pairs of rows before and after labelled perturbations, each "
        "of which moves few latents by fixed amounts.",
        when=(
            "rows come in pairs, before and after one of several labelled perturbations, each of which moves one or "
            "few latents by the same amount in all pairs",
            "partners are other cells than those before, effects depend on where a row was, or perturbations are "
            "fewer than latents",
        ),
        assumes=(
            "x is an injective function of latents, with little noise",
            FIXED,
            "perturbations move few latents each",
        ),
        claims=(
            Claim("latents", ("permutation", "scale", "shift"), (FIXED, SPARSE), NEEDS, {"decoder": "linear"}),
            Claim(
                "latents",
                ("permutation", "scale", "shift"),
                (FIXED, SPARSE, BENT),
                (*NEEDS, "offsets_overlap"),
                {"decoder": "nonlinear"},
            ),
            Claim("targets", ("permutation",), (FIXED, SPARSE), NEEDS, {"decoder": "linear"}),
            Claim(
                "targets",
                ("permutation",),
                (FIXED, SPARSE, BENT),
                (*NEEDS, "offsets_overlap"),
                {"decoder": "nonlinear"},
            ),
        ),
        references=(
            Reference(
                "Ahuja, Hartford & Bengio",
                2022,
                "Weakly supervised representation learning with sparse perturbations",
                "NeurIPS",
                "https://arxiv.org/abs/2206.01101",
            ),
        ),
        differs=(
            "offsets, and which latents they move, are a posterior and not guessed",
            "axes are found after the network is trained, as those that the fewest perturbations move",
            "a decoder, so that the story simulates",
        ),
        needs_env=True,
        needs_pairs=True,
    )
    recipe = Recipe.unannealed(epochs=4, least_steps=300, batch_size=512, lr=2e-3, held_out=0.1, chains=2)
    checks = {"displaced": (FIXED,)}
    sites = {
        "z": Site(("data", "latent"), {"latent": "point"}),
        "targets": Site(("env", "latent"), discrete=True),
        "offset": Site(("env", "latent"), {"latent": 1}),
    }

    def __init__(
        self,
        features: Features,
        latents: Latents,
        environments: Environments,
        decoder: Literal["nonlinear", "linear"] = "nonlinear",
        width: Size = 64,
        steps: Size = 4_000,
        chance: Share = 0.5,
        slab: Positive = 1.0,
        error: Share = 0.005,
    ) -> None:
        """decoder: whether x depends linearly on latents, or by a network. width: of networks' layers; steps: of the
        encoder's construction. chance: a priori, that a perturbation moves a latent; slab: prior deviation of an
        offset, in those of latents. error: of offsets, in deviations of latents, that a network leaves however many
        pairs there are.

        Raises InputError for fewer than 2 latents, or more than features, and for fewer perturbations than latents.
        """
        super().__init__()
        check_sizes(features, latents, least=2, square=True)
        if environments - 1 < latents:
            allowed = f"{latents + 1} or more: the control and a perturbation for each latent"
            reject("environments", environments, allowed)
        self.observation = Observation(features, noise=0.1)
        linear = decoder == "linear"
        self.encoder = nn.Linear(features, latents) if linear else Residual(features, latents, width)
        self.encoder.requires_grad_(False)
        self.decoder = nn.Linear(latents, features) if linear else Residual(latents, features, width)
        self.raw_spread = nn.Parameter(torch.full((latents,), 0.1).log())  # of a row after about the one before
        self.raw_width = nn.Parameter(torch.full((latents,), 0.1).log())  # of q(z | x)
        table = torch.zeros(environments, latents)
        self.drawn = DrawnBlock(DRAWS, targets=table.shape, offset=table.shape)
        self.register_buffers(
            signal=torch.eye(features),  # from x to what the encoder sees; h(x) = unmixing encoder(x) + centre
            unmixing=torch.eye(latents),
            centre=torch.zeros(latents),
            tril=torch.eye(latents),
            log_odds=torch.full_like(table, NEVER),  # that a perturbation moves a latent
            mean=table.clone(),  # of differences, and their errors
            error=torch.ones_like(table),
            spanned=torch.zeros(environments - 1),
            mixed=torch.zeros(latents),
        )

    # -- the story and the guide -------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        zero = torch.zeros_like(self.log_odds)  # (env, latent); the control's chance is 0
        chance = torch.cat([zero[:1], zero[1:] + self.config["chance"]])
        targets = pyro.sample("targets", dist.Bernoulli(chance).to_event(2))
        slab = SpikeSlab(targets, Normal(zero, zero + self.config["slab"]))
        offset = pyro.sample("offset", slab.to_event(2))  # (env, latent)
        place, follows = batch.before()
        with self.rows(batch):
            law = Displaced(offset[batch.env], self.raw_spread.exp(), self.tril, place, follows)
            z = pyro.sample("z", law)  # (rows, latent)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        self.drawn.sample()  # targets and offset
        with self.rows(batch):
            mean = self.latents(batch)
            pyro.sample("z", Normal(mean, self.raw_width.exp().expand_as(mean)).to_event(1))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self.encoder(self.observation.inputs(batch) @ self.signal) @ self.unmixing.mT + self.centre

    def targets_matrix(self) -> Tensor:
        return self.log_odds.sigmoid()

    def offsets(self) -> Offsets:
        return Offsets(self.mean, self.error, self.spanned, self.mixed > 0.5)

    @torch.no_grad()
    def displaced(self, batch: Batch) -> Tensor:
        """(rows,) x of each row after, as the decoder moves the row before."""
        place, follows = batch.before()
        z = self.latents(batch)
        step = self.decoder(z[place] + self.mean[batch.env]) - self.decoder(z[place])
        return torch.where(follows[:, None], batch.x[place] + self.observation.spread * step, batch.x)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The encoder, axes, the posterior of offsets, and the decoder by regression.

        Raises InputError for rows before that are not of the control, and for fewer than two pairs of a perturbation.
        """
        batch, own = self.observation.start(data), self.config
        place, follows = batch.before()
        before, after = place[follows], follows.nonzero()[:, 0]
        if (other := batch.env[before] != 0).any():
            name = data.env_names[int(batch.env[before][other][0])]
            reject("env", f"a row before of {name!r}", f"rows before of the control, {data.env_names[0]!r}")
        which, perturbations = batch.env[after], own["environments"] - 1
        pairs = torch.bincount(which, minlength=perturbations + 1)[1:]
        if (few := pairs < 2).any():
            name = data.env_names[1 + int(few.nonzero()[0])]
            reject("pair", f"{int(pairs[few][0])} pairs of {name!r} to fit", "two or more of every perturbation")
        before, after = before[which > 0], after[which > 0]  # where nothing is done, nothing is told
        x, which = self.observation.inputs(batch), which[which > 0] - 1
        y = self._coordinates(x, before, after, which, generator)
        control = batch.pair % 2 == 0
        white = torch.linalg.inv(torch.linalg.cholesky(torch.cov(y[control].mT.double()))).to(y)
        y = (y - y[control].mean(0)) @ white.mT
        found = offsets.differences(y[after] - y[before], which, perturbations)
        tolerance = ROUNDING if own["decoder"] == "linear" else own["error"]
        axes = offsets.axes(found, tolerance, generator)
        rows = axes.rows / (y[control] @ axes.rows.mT).std(0)[:, None]
        z = y @ rows.mT
        mean = found.mean @ rows.mT
        error = (torch.einsum("ki,uij,kj->uk", rows, found.error, rows) + tolerance**2).sqrt()
        if own["decoder"] == "linear":
            self.spanned[: own["latents"]] = offsets.told_directions(found)
        self.put(mixed=axes.mixed.to(z), tril=torch.linalg.cholesky(torch.cov(z[control].mT)))
        self.unmixing.copy_(rows @ white)
        self.centre.copy_(-(self.encoder(x @ self.signal) @ self.unmixing.mT)[control].mean(0))
        self._settle(mean, error, generator)
        apart = (z[after] - z[before] - mean[which]).std(0).clamp_min(LEAST)
        self.raw_spread.copy_(apart.log())
        jitter = 0.1 * torch.randn(len(apart), generator=generator).to(apart)
        self.raw_width.copy_((apart / 2).clamp_min(LEAST).log() + jitter)
        self._decode(z, x, generator)

    def _coordinates(
        self, x: Tensor, before: Tensor, after: Tensor, which: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(rows, latent) y: outputs of the encoder."""
        own = self.config
        if isinstance(self.encoder, nn.Linear):
            found = principal(torch.cov(x.mT), lambda matrix: torch.cov((x[before] @ matrix.mT).mT), own["latents"])
            self.encoder.weight.copy_(found.project)
            self.encoder.bias.zero_()
        else:
            self.signal.copy_(offsets.scaled_components(x))
            y = x @ self.signal
            net, share = offsets.encoder(
                y[before], y[after], which, own["latents"], own["width"], own["steps"], generator
            )
            self.encoder.load_state_dict(net.state_dict())
            self.put(spanned=share)
        out: Tensor = self.encoder(x @ self.signal)
        return out

    def _settle(self, mean: Tensor, error: Tensor, generator: torch.Generator) -> None:
        """The posterior of offsets given their means (perturbation, latent) and errors, and draws of it."""
        slab2, chance = self.config["slab"] ** 2, torch.tensor(self.config["chance"]).to(mean)
        total = slab2 + error.square()
        fits = 0.5 * mean.square() * (1 / error.square() - 1 / total) - 0.5 * (total / error.square()).log()
        self.log_odds[1:] = (chance.logit() + fits).clamp(NEVER, -NEVER)
        self.mean[1:], self.error[1:] = mean, error
        uniform, noise = (make(DRAWS, *mean.shape, generator=generator).to(mean) for make in (torch.rand, torch.randn))
        self.drawn.targets[:, 1:] = (uniform < self.log_odds[1:].sigmoid()).to(mean)
        where = slab2 / total * mean + (slab2 / total).sqrt() * error * noise
        self.drawn.offset[:, 1:] = self.drawn.targets[:, 1:] * where

    def _decode(self, z: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """The decoder by regression, noise by what it leaves."""
        if isinstance(self.decoder, nn.Linear):
            edge = torch.cat([z, torch.ones_like(z[:, :1])], 1)
            found = torch.linalg.lstsq(edge.double(), x.double()).solution.mT.to(x)
            self.decoder.weight.copy_(found[:, :-1])
            self.decoder.bias.copy_(found[:, -1])
        else:
            optimise.regress(self.decoder, z, x, max(1, self.config["steps"] // 3), generator)
        left = (x - self.decoder(z)).square().mean(0).sqrt()
        self.observation.raw_noise.copy_(left.clamp_min(10 * LEAST).log())

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Widths of q by what h errs in rows that the story tells."""
        rows, values = readings.told(self, data.tensors(self.raw_width.device, self.raw_width.dtype))
        self.raw_width.copy_(readings.error(self.latents(rows), values["z"]).log())

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("ahuja2022_pairs", seed=seed, pairs=600, latents=2, features=4, layers=1, draws=100)
        return cls.from_data(data, width=32, steps=300), data

    studies = (
        MeanDifferences("ahuja2022_pairs", {"draws": 10}, held_out=0.1),
        MeanDifferences("ahuja2022_pairs", {"draws": 10, "law": "blocks"}, held_out=0.1),
        MeanDifferences("ahuja2022_pairs", seeds=4, held_out=0.1),
        MeanDifferences("ahuja2022_pairs", {"law": "blocks"}, seeds=4, held_out=0.1),
        MeanDifferences("ahuja2022_pairs", {"layers": 0, "pairs": 1_000, "noise": 0.02}, {"decoder": "linear"}),
    )


if __name__ == "__main__":
    run(SparsePerturbations)
