"""Equivariant mechanisms: pairs of rows, before and after an action that is known to map latents affinely.

    z_i ~ N(mu, C)                                                                    (data, latent)
          of rows after: N(A_u z_j + b_u, diag spread^2), j the row before, u its action
    x_i ~ N(f(z_i), diag sigma^2)                                                     (data, feature)
    b_u ~ N(0, slab^2) where it is not told                                           (action, latent)

The environment of a row after names the action u; rows before are of the control. A_u and b_u are told (`mechanisms`).
f is linear plus a network, or linear (`decoder`); the guide is q(z | x) = N(h(x), diag t^2). Which law z has does not
matter to h: it is made by h(x') = A_u h(x) + b_u alone, and mu and C are read off its latents.

`initialise` (see `pyrocrl.constructions.equivariant`): h is a network with that property, or principal components; then
coordinates are taken, by two-stage least squares, in which mechanisms act as they were told. The decoder is a
regression; after it the evidence lower bound is maximised over everything but h. t then is what h errs in rows that the
story tells (`parts.readings`). `model` is the story.

*Identified:* an encoder with that property is a(z) with a in the maps that commute with all mechanisms. Which affine
ones do is computed (`pyrocrl.exact.equivariances`), and chains are aligned by exactly these: offsets that span all
latents leave shifts; a matrix of distinct factors leaves the scale of each latent, and with offsets beside it nothing.
A rotation leaves what commutes with it, so that latents are not identified, nor are they where offsets are not told.
Behind a network, latents whose scale is free are not identified either: z + |z| commutes with a scaling of z, and what
networks find is as bent. Where offsets fix the scale, what bends in step with them commutes as well.

Latents have the order and the units of what was told, which no data can show: other latents, under mechanisms that then
read otherwise, fit as well.

Ahuja, Hartford & Bengio (2022), Properties from mechanisms: an equivariance perspective on identifiable representation
learning.

*Differs from the paper in* the group, which is computed; in mechanisms that may be random up to `spread`; and in a
decoder, so that the story simulates.

Longer than other models because it has two encoders, a network and a linear one, and offsets that are told or are not.

*For a variant, copy this file and change* `story`: the law of `z` in rows after.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.claims.commuting import Commuting
from pyrocrl.constructions import equivariant, offsets, optimise
from pyrocrl.constructions.subspaces import frame
from pyrocrl.dists import Normal
from pyrocrl.errors import reject
from pyrocrl.exact import equivariances
from pyrocrl.lab.studies.linked_rows import KnownMechanisms
from pyrocrl.options import Positive, Share, Size
from pyrocrl.parts import mechanisms as parts
from pyrocrl.parts import readings
from pyrocrl.parts.displaced import Carried
from pyrocrl.parts.guides import NormalBlock
from pyrocrl.parts.mechanisms import UNKNOWN
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.observation import Observation
from pyrocrl.program import Environments, Features, Latents, check_sizes
from pyrocrl.readouts import Carries
from pyrocrl.simulate.ahuja import known_mechanisms

TOLD = "actions map latents as they were told to, which other latents under other mechanisms would do as well"
FOLLOWED = "rows after are where the mechanisms told take latents of rows before"
BENT = "the mixing does not bend in step with the mechanisms"
NEEDS = ("observational_environment", "mechanisms_tell", "mechanisms_apart", "mechanisms_steady", "little_left")
LEAST, ROUNDING = 1e-3, 1e-4  # deviation of noise; error of latents of a linear mixing, in their deviations


LINEAR = {"layers": 0, "pairs": 1_000, "noise": 0.02}


class EquivariantMechanism(Program):
    card = ModelCard(
        name="equivariant_mechanism",
        title="Equivariant mechanisms",
        family="pairs",
        summary="Latents behind any injective map, told by pairs of rows before and after actions whose effect on "
        "latents is known: what they leave free is computed.",
        when=(
            "rows come in pairs, before and after one of several labelled actions, and how each maps the latents is "
            "known: by a step of known size, a scaling, a rotation",
            "how actions map latents is not known, or they are not affine; partners are other cells than those before",
        ),
        assumes=(
            "x is an injective function of latents, with little noise",
            TOLD,
            FOLLOWED,
        ),
        claims=(
            Claim("latents", ("scale", "shift"), (TOLD, FOLLOWED), NEEDS, {"decoder": "linear"}),
            Claim(
                "latents",
                ("scale", "shift"),
                (TOLD, FOLLOWED, BENT),
                (*NEEDS, "steps_overlap"),
                {"decoder": "nonlinear"},
            ),
        ),
        references=(
            Reference(
                "Ahuja, Hartford & Bengio",
                2022,
                "Properties from mechanisms: an equivariance perspective on identifiable representation learning",
                "ICLR",
                "https://arxiv.org/abs/2110.15796",
            ),
        ),
        differs=(
            "which maps commute with the mechanisms is computed, and chains are aligned by these",
            "mechanisms may be random, by a deviation that is fitted",
            "a decoder, so that the story simulates",
        ),
        needs_env=True,
        needs_pairs=True,
    )
    recipe = Recipe.unannealed(epochs=4, least_steps=300, batch_size=512, lr=2e-3, held_out=0.1, chains=2)
    checks = {"displaced": (FOLLOWED,), "carried": (FOLLOWED,)}
    sites = {"z": Site(("data", "latent"), {"latent": "point"}), "offset": Site(("action", "latent"), {"latent": 1})}

    def __init__(
        self,
        features: Features,
        latents: Latents,
        environments: Environments,
        mechanisms: Annotated[list[Any] | dict[str, Any] | str, "what actions do to latents"],
        decoder: Literal["nonlinear", "linear"] = "nonlinear",
        width: Size = 64,
        steps: Size = 2_000,
        slab: Positive = 1.0,
        error: Share = 0.02,
    ) -> None:
        """mechanisms: z' = matrix z + offset of each action, by names of environments, {"heat": {"offset": [1, 0]},
        "turn": {"matrix": [[0, -1], [1, 0]]}}, or a .json file of these; a matrix left out is the identity, an offset 0
        and "unknown" where nobody knows it. decoder: whether x depends linearly on latents, or by a network. width: of
        networks' layers; steps: of the encoder's construction. slab: prior deviation of offsets that are not told, in
        those of latents; error: of latents, in their deviations, that a network leaves however many pairs there are.

        Raises InputError for more latents than features, for mechanisms of another form, number or size, for matrices
        that are not invertible, and for offsets that are not told unless all are and matrices are left out.
        """
        super().__init__()
        check_sizes(features, latents, square=True)
        known = parts.told(mechanisms, latents, environments)
        if not known.told.all() and environments - 1 < latents:
            reject("environments", environments, f"{latents + 1} or more, where offsets are not told")
        self.known, self.unknown = known, not known.told.all()
        self.free = equivariances.affine(known)
        self.observation = Observation(features, noise=0.1)
        linear = decoder == "linear"
        self.encoder = nn.Linear(features, latents) if linear else Residual(features, latents, width)
        self.encoder.requires_grad_(False)
        self.decoder = nn.Linear(latents, features) if linear else Residual(latents, features, width)
        self.raw_spread = nn.Parameter(torch.full((latents,), 0.1).log())  # of a row after about where it is taken
        self.raw_width = nn.Parameter(torch.full((latents,), 0.1).log())  # of q(z | x)
        if self.unknown:
            self.offset = NormalBlock(environments - 1, latents)
        eye = torch.eye(latents)
        self.register_buffers(
            signal=torch.eye(features),  # from x to what the encoder sees; h(x) = unmixing encoder(x) + centre
            unmixing=eye.clone(),
            centre=torch.zeros(latents),
            mean=torch.zeros(latents),  # of rows before, and their covariance's root
            tril=eye.clone(),
            turn=torch.cat([eye[None], torch.as_tensor(known.matrix).to(eye)]),
            shift=torch.cat([0 * eye[:1], torch.as_tensor(np.nan_to_num(known.offset)).to(eye)]),
        )

    # -- the story and the guide -------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        shift = self.shift
        if self.unknown:
            zero = torch.zeros_like(self.offset.loc)
            own = pyro.sample("offset", Normal(zero, zero + self.config["slab"]).to_event(2))  # (action, latent)
            shift = torch.cat([torch.zeros_like(own[:1]), own])
        place, follows = batch.before()
        # of rows whose partner is not here: (env, latent, latent)
        cov = self.turn @ (self.tril @ self.tril.mT) @ self.turn.mT + torch.diag_embed(self.raw_spread.mul(2).exp())
        root = torch.linalg.cholesky_ex(cov).L
        tril = torch.cat([self.tril[None], root[1:]])
        centre = (self.turn @ self.mean) + shift
        u = batch.env
        with self.rows(batch):
            law = Carried(self.turn[u], shift[u], self.raw_spread.exp(), centre[u], tril[u], place, follows)
            z = pyro.sample("z", law)  # (rows, latent)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        if self.unknown:
            pyro.sample("offset", self.offset().to_event(2))
        with self.rows(batch):
            mean = self.latents(batch)
            pyro.sample("z", Normal(mean, self.raw_width.exp().expand_as(mean)).to_event(1))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self.encoder(self.observation.inputs(batch) @ self.signal) @ self.unmixing.mT + self.centre

    @torch.no_grad()
    def displaced(self, batch: Batch) -> Tensor:
        """(rows,) x of each row after, as the decoder moves the row before."""
        place, follows = batch.before()
        z = self.latents(batch)[place]
        there = (self.turn[batch.env] @ z[..., None])[..., 0] + self.shift[batch.env]
        step = self.decoder(there) - self.decoder(z)
        return torch.where(follows[:, None], batch.x[place] + self.observation.spread * step, batch.x)

    def carries(self) -> Carries:
        names = [f"latent_{k}" for k in range(self.config["latents"])]
        linear = self.config["decoder"] == "linear"
        lost = [name for name, one in zip(names, equivariances.collapsing(self.free), strict=True) if one]
        bent = () if linear else tuple(lost)
        mixing = () if equivariances.elementwise(self.free) else tuple(equivariances.words(self.free, names))
        error = ROUNDING if linear else self.config["error"]
        return Carries(self.turn, self.shift, torch.as_tensor(self.free), mixing, bent, error)

    @property
    def _up_to(self) -> tuple[str, ...]:
        """What is left free of each latent; all of a latent's scale and shift where they mix, which is refused then."""
        return equivariances.up_to(self.free) if equivariances.elementwise(self.free) else ("scale", "shift")

    @property
    def group(self) -> Commuting:
        return Commuting.spanned(self.free, self._up_to)

    def claims(self) -> tuple[Claim, ...]:
        return tuple(replace(claim, up_to=self._up_to) for claim in super().claims())

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        """Mechanisms by names of environments, or from a .json file, become those in the order of environments."""
        if "mechanisms" in options:
            options = options | {"mechanisms": parts.in_order(options["mechanisms"], data.env_names[1:])}
        return super().from_data(data, **options)

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The encoder, the coordinates in which mechanisms act as they were told, and the decoder by regression.

        Raises InputError for rows before that are not of the control, and for fewer than two pairs of an action.
        """
        batch = self.observation.start(data)
        before, after, which = self._pairs(data, batch)
        x = self.observation.inputs(batch)
        y, noise = self._coordinates(x, before, after, which, generator)
        control = batch.pair % 2 == 0
        if self.unknown:
            white = torch.linalg.inv(torch.linalg.cholesky(torch.cov(y[control].mT.double())))
            placed = equivariant.Placed(white.numpy(), -(white @ y[control].mean(0).double()).numpy())
        else:
            own = (y[before].double().cpu().numpy(), y[after].double().cpu().numpy(), which.cpu().numpy())
            placed = equivariant.affine(*own, self.known, self.free, noise, generator)
        rows, centre = (torch.as_tensor(value).to(y) for value in placed)
        self.put(unmixing=rows, centre=centre)
        if isinstance(self.encoder, nn.Linear):
            self.encoder.bias.zero_()
        z = y @ rows.mT + centre
        here, there = z[before], z[after]
        if self.unknown:
            found = offsets.differences(there - here, which, len(self.known.matrix))
            self.shift[1:] = found.mean
            deviation = found.error.diagonal(dim1=-2, dim2=-1).sqrt()
            self.offset.set(found.mean, deviation.clamp_min(LEAST))
        self.put(mean=z[control].mean(0), tril=torch.linalg.cholesky(torch.cov(z[control].mT)))
        act = which + 1
        apart = (there - (self.turn[act] @ here[..., None])[..., 0] - self.shift[act]).std(0)
        apart = torch.maximum(apart, LEAST * z[control].std(0))
        self.raw_spread.copy_(apart.log())
        jitter = 0.1 * torch.randn(len(apart), generator=generator).to(apart)
        self.raw_width.copy_((apart / 2).log() + jitter)
        self._decode(z, x, generator)

    def _pairs(self, data: Data, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(pair,) positions of rows before and after, and actions from 0 on, of pairs in which something is done."""
        place, follows = batch.before()
        before, after = place[follows], follows.nonzero()[:, 0]
        if (other := batch.env[before] != 0).any():
            name = data.env_names[int(batch.env[before][other][0])]
            reject("env", f"a row before of {name!r}", f"rows before of the control, {data.env_names[0]!r}")
        which = batch.env[after]
        pairs = torch.bincount(which, minlength=self.config["environments"])[1:]
        if (few := pairs < 2).any():
            name = data.env_names[1 + int(few.nonzero()[0])]
            reject("pair", f"{int(pairs[few][0])} pairs of {name!r} to fit", "two or more of every action")
        return before[which > 0], after[which > 0], which[which > 0] - 1

    def _coordinates(
        self, x: Tensor, before: Tensor, after: Tensor, which: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, np.ndarray]:
        """(rows, latent) y: outputs of the encoder; (latent, latent) covariance of features' noise in them, as
        directions without latents tell of it."""
        own = self.config
        if isinstance(self.encoder, nn.Linear):
            found = frame(x.double(), torch.ones(len(x), dtype=torch.bool), own["latents"], 0.0)
            self.encoder.weight.copy_(found.project)
            self.encoder.bias.zero_()
            noise = found.tau.square() * found.project @ found.project.mT
            noise = noise if own["features"] > own["latents"] else 0 * noise
            return x @ self.encoder.weight.mT, noise.cpu().numpy()
        self.signal.copy_(offsets.scaled_components(x))
        y, budget = x @ self.signal, (own["width"], own["steps"], generator)
        if self.unknown:
            net = offsets.encoder(y[before], y[after], which, own["latents"], *budget)[0]
        else:
            net = equivariant.encoder(y[before], y[after], which, self.known, self.free, *budget)
        self.encoder.load_state_dict(net.state_dict())
        out: Tensor = self.encoder(y)
        return out, np.zeros((own["latents"],) * 2)

    def _decode(self, z: Tensor, x: Tensor, generator: torch.Generator) -> None:
        """The decoder by regression, noise by what it leaves."""
        if isinstance(self.decoder, nn.Linear):
            edge = torch.cat([z, torch.ones_like(z[:, :1])], 1)
            found = torch.linalg.lstsq(edge.double(), x.double()).solution.mT.to(x)
            self.decoder.weight.copy_(found[:, :-1])
            self.decoder.bias.copy_(found[:, -1])
        else:
            middle, unit = z.mean(0), z.std(0)
            optimise.regress(self.decoder, (z - middle) / unit, x, max(1, self.config["steps"] // 3), generator)
            self.decoder.preceded_by(1 / unit, -middle / unit)
        left = (x - self.decoder(z)).square().mean(0).sqrt()
        self.observation.raw_noise.copy_(left.clamp_min(10 * LEAST).log())

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Widths of q by what h errs in rows that the story tells."""
        rows, values = readings.told(self, data.tensors(self.raw_width.device, self.raw_width.dtype))
        self.raw_width.copy_(readings.error(self.latents(rows), values["z"]).log())

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("ahuja2022_mechanisms", seed=seed, pairs=600, latents=2, features=4, layers=1, draws=100)
        return cls.from_data(data, mechanisms=known_mechanisms(2), width=32, steps=300), data

    studies = (
        KnownMechanisms(
            "ahuja2022_mechanisms", LINEAR, {"decoder": "linear", "mechanisms": known_mechanisms()}, held_out=0.1
        ),
        KnownMechanisms(
            "ahuja2022_mechanisms",
            {**LINEAR, "mechanism": "scaling"},
            {"decoder": "linear", "mechanisms": known_mechanisms(4, "scaling")},
            held_out=0.1,
        ),
        KnownMechanisms(
            "ahuja2022_mechanisms",
            {**LINEAR, "pairs": 2_000},
            {"decoder": "linear", "mechanisms": {f"action_{u}": {"offset": UNKNOWN} for u in range(4)}},
            held_out=0.1,
        ),
        KnownMechanisms("ahuja2022_mechanisms", {}, {"mechanisms": known_mechanisms()}, held_out=0.1),
        KnownMechanisms(
            "ahuja2022_mechanisms",
            {"mechanism": "rotation"},
            {"mechanisms": known_mechanisms(4, "rotation")},
            seeds=2,
            held_out=0.1,
        ),
    )


if __name__ == "__main__":
    run(EquivariantMechanism)
