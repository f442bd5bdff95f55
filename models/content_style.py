"""Content and style: pairs of rows that share content, behind any invertible map.

    z_i ~ N(0, I)                                                          (data, latent)
          of rows after: N(r z_j, diag 1 - r^2), j the row before, r near 1: content, the same in both rows
    private_i ~ N(0, I)                                                    (data, style)
          of rows after: N(k private_j, diag 1 - k^2): style, which changes
    x_i ~ N(f(z_i, private_i), diag sigma^2)                               (data, feature)

f is linear plus a network. Style may depend on content: a part that content gives is in f. The guide is
q(z | x) = N(h(x), t^2), and alike for style. Which law z has does not matter to h, which is made by pairs alone.

`initialise` (see `pyrocrl.constructions.content_pairs`): h is trained by the contrast of the paper, partners near and
other rows far, after features were bent back one by one; style is what of the features content leaves, by principal
components; the decoder is a regression. After it the evidence lower bound is maximised over everything but h. `model`
is the story. A tenth of the pairs is not trained on and says how far content differs between partners, and whether
they share more than it (`partners_share`); and by how much h errs, which draws of z have besides (`ContentRead`).

*Identified:* content as a block, up to an invertible map of it, if content is the same in both rows of a pair, each
direction of style changes in some, given any other, with a density around where it was, and f is invertible and smooth
(von Kuegelgen et al. 2021, theorem 4.4). A style that never changes is content here, and no data show it. Of style
nothing is claimed.

Von Kuegelgen, Sharma, Gresele, Brendel, Schoelkopf, Besserve & Locatello (2021), Self-supervised learning with data
augmentations provably isolates content from style.

*Differs from the paper in* a decoder and a law of pairs, so that the story simulates; features are bent one by one
before the network; the number of content latents is checked by pairs that were not trained on.

*For a variant, copy this file and change* `story`: the law of `style`, of rows after.
"""

from __future__ import annotations

import pyro
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import content_pairs, optimise
from pyrocrl.dists import Normal
from pyrocrl.errors import reject
from pyrocrl.lab.studies.content import ContentBlock
from pyrocrl.options import Size
from pyrocrl.parts.content_pairs import ContentRead, ContentReader, Repeated, reading_error
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.observation import Observation
from pyrocrl.program import Features, Latents, check_whole
from pyrocrl.readouts import PartnersShare

INVERTIBLE = "x is an invertible, smooth function of content and style"
VARIES = "no style stays as it is in all pairs: what never changes counts as content"
LEAST = 1e-3  # deviation of noise and of q(z | x) at first
FEW = 40  # pairs, of which a tenth is not trained on


class ContentStyle(ContentRead, Program):
    card = ModelCard(
        name="content_style",
        title="Content and style",
        family="pairs",
        summary="Content that both rows of a pair share, told from style that differs, behind any invertible map.",
        when=(
            "rows come in pairs, such as two views, augmentations or moments of one thing, and nobody says what "
            "changes between them",
            "partners share nothing exactly, as two cells of one kind do, or single latents are asked for, not a block",
        ),
        assumes=(
            "x is an invertible function of content and style, with little noise",
            "content is the same in both rows of a pair",
            "every style changes in many pairs",
        ),
        claims=(Claim("latents", ("block",), (INVERTIBLE, VARIES), ("content_shared", "nothing_else_shared")),),
        references=(
            Reference(
                "von Kuegelgen, Sharma, Gresele, Brendel, Schoelkopf, Besserve & Locatello",
                2021,
                "Self-supervised learning with data augmentations provably isolates content from style",
                "NeurIPS",
                "https://arxiv.org/abs/2106.04619",
            ),
        ),
        differs=(
            "a decoder and a law of pairs, so that the story simulates",
            "features are bent one by one before the network",
            "the number of content latents is checked by pairs that were not trained on",
        ),
        needs_pairs=True,
    )
    recipe = Recipe.unannealed(epochs=1, least_steps=150, batch_size=512, lr=1e-3, held_out=0.05, chains=2)
    sites = {"z": Site(("data", "latent"), {"latent": "point"}), "private": Site(("data", "private"))}

    def __init__(
        self,
        features: Features,
        latents: Latents,
        style: Size | None = None,
        width: Size = 64,
        steps: Size = 2_500,
    ) -> None:
        """latents: of content; style: how many latents style has, None = features less latents. width: of networks'
        layers; steps: of the encoder's construction.

        Raises InputError unless content and style together have at most as many latents as there are features.
        """
        super().__init__()
        check_whole("features", features, 2)
        if latents >= features:
            reject("latents", latents, f"fewer than the {features} features: style has the others")
        count = features - latents if style is None else style
        if latents + count > features:
            reject("style", count, f"at most {features - latents}: {features} features less {latents} latents")
        self.observation = Observation(features, noise=0.1)
        self.reader = ContentReader(features, latents, width).requires_grad_(False)
        self.given = Residual(latents, features, width).requires_grad_(False)  # of features, by content
        self.decoder = Residual(latents + count, features, width)
        self.raw_change = nn.Parameter(torch.full((latents,), 0.01).logit())
        self.raw_style_change = nn.Parameter(torch.full((count,), 0.5).logit())
        self.raw_width = nn.Parameter(torch.full((latents + count,), 0.1).log())  # of q
        self.register_buffers(
            basis=torch.eye(features)[:, :count].clone(),  # of what content leaves of features, to style
            gap=torch.zeros(latents),
            gap_error=torch.zeros(()),
            trained=torch.zeros(latents),
            left=torch.zeros(()),
            left_error=torch.zeros(()),
            **self.error_buffers(latents),
        )

    # -- the story and the guide -------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        place, follows = batch.before()
        with self.rows(batch):
            z = pyro.sample("z", Repeated(self.raw_change.sigmoid(), place, follows))  # (rows, latent)
            change = self.raw_style_change.sigmoid()
            private = pyro.sample("private", Repeated(change, place, follows))  # (rows, style)
            mean = self.decoder(torch.cat([z, private], -1))
            pyro.sample("x", self.observation.likelihood(mean, batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        latents, width = self.config["latents"], self.raw_width.exp()
        with self.rows(batch):
            z, style = self._read(batch)
            pyro.sample("z", self.law_of(z, width[:latents]))
            pyro.sample("private", Normal(style, width[latents:].expand_as(style)).to_event(1))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _read(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Means of z (rows, latent) and of style (rows, style) given x."""
        x = self.observation.inputs(batch)
        z = self.reader(x)
        return z, (x - self.given(z)) @ self.basis

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self._read(batch)[0]

    def beside(self, batch: Batch) -> dict[str, Tensor]:
        return {"private": self._read(batch)[1]}

    def partners_share(self) -> PartnersShare:
        return PartnersShare(self.gap, self.gap_error, self.trained, self.left, self.left_error)

    # -- from data ---------------------------------------------------------------------------------------------

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The encoder by contrasts, style by what content leaves, and the decoder by regression.

        Raises InputError for fewer than 40 pairs, and for features that are a function of others.
        """
        batch, own = self.observation.start(data), self.config
        place, follows = batch.before()
        x, pairs = self.observation.inputs(batch), int(follows.sum())
        if pairs < FEW:
            reject("pair", f"{pairs} pairs to fit", f"{FEW} or more")
        order = follows.nonzero()[:, 0][torch.randperm(pairs, generator=generator).to(follows.device)]
        test, rest = order[: pairs // 10], order[pairs // 10 :]
        before, after, out = x[place[rest]], x[rest], (x[place[test]], x[test])
        square = own["latents"] + len(self.raw_style_change) == own["features"]
        content_pairs.train(self.reader, before, after, own["steps"], generator, square)
        self.put(**content_pairs.shared(self.reader, before, after, out, own["steps"], generator)._asdict())
        steps = max(1, own["steps"] // 5)
        z = self.reader(x)
        optimise.regress(self.given.requires_grad_(True), z, x, steps, generator)
        self.given.requires_grad_(False)
        rest_of_x = x - self.given(z)
        value, vector = torch.linalg.eigh(torch.cov(rest_of_x.mT.double()))
        count = len(self.raw_style_change)
        self.basis.copy_(vector[:, -count:] / value[-count:].clamp_min(1e-6).sqrt())
        style = rest_of_x @ self.basis
        optimise.regress(self.decoder, torch.cat([z, style], 1), x, 2 * steps, generator)
        left = (x - self.decoder(torch.cat([z, style], 1))).square().mean(0).sqrt()
        self.observation.raw_noise.copy_(left.clamp_min(10 * LEAST).log())
        apart = [(v[place[follows]] - v[follows]).square().mean(0) / 2 for v in (z, style)]
        change = [v.clamp(1e-4, 0.99) for v in apart]  # 1 - r of white latents
        jitter = 0.1 * torch.randn(len(self.raw_width), generator=generator).to(x)
        self.put(raw_change=change[0].logit(), raw_style_change=change[1].logit())
        unseen = [self.reader(rows) for rows in out]
        variance, told_by = reading_error(*unseen, torch.ones_like(unseen[0]), change[1].mean().expand(len(test)))
        self.put(reading_variance=variance, told_by=told_by)
        self.raw_width.copy_((torch.cat(change).sqrt() / 2).clamp(LEAST, 0.3).log() + jitter)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("kuegelgen2021", seed=seed, pairs=300, content=2, style=2, layers=1, draws=100)
        return cls.from_data(data, width=16, steps=300), data

    studies = (ContentBlock("kuegelgen2021", seeds=3, held_out=0.1),)


if __name__ == "__main__":
    run(ContentStyle)
