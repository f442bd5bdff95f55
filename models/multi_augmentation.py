"""Content and styles: pairs of rows that say which blocks of latents they share, behind any invertible map.

    z_i ~ N(0, I), block after block: content, then each style                             (data, latent)
          of rows after: N(r_k z_j, diag 1 - r_k^2), j the row before, k the kind of the pair:
          r_k is near 1 for latents of the blocks that pairs of this kind keep
    x_i ~ N(f(z_i), diag sigma^2)                                                          (data, feature)

The environment of both rows names the kind of their pair by what they share: "content" of two views of one thing under
transforms of other parameters, "content+crop" where the crop is the same in both, "crop" of two things under the same
crop. f is linear plus a network, so styles may depend on content. The guide is q(z | x) = N(h(x), t^2). Which law z has
does not matter to h, which is made by pairs alone.

`initialise` (see `pyrocrl.constructions.kept_blocks`): h is trained by contrasts, in pairs of each kind over the blocks
that it keeps, partners near and other rows far; where x is linear in latents it is closed. The decoder is a regression.
After it the evidence lower bound is maximised over everything but h. `model` is the story. A tenth of the pairs, or
more of few, is not trained on and says how far kept blocks differ between partners, and what else these share (`kept`);
and by how much h errs, which draws of z have besides (`parts.content_pairs.ContentRead`).

*Identified:* each block, up to an invertible map of it and of the blocks that all pairs which keep it keep as well:
of content by itself where pairs of several kinds keep it, and of a style by itself where some pairs keep it and not
content. This if pairs keep what they say, of everything else each direction changes in some pairs of each kind, given
any other, with a density around where it was, and x is an invertible smooth function of all (von Kuegelgen et al. 2021,
theorem 4.4; Yao et al. 2024, theorem 3.2). A style of which all pairs keep content too is told along with content and
no better: turned by an angle that content gives, it would fit as well, be it independent of content or not.

Eastwood, von Kuegelgen, Ericsson, Bouchacourt, Vincent, Schoelkopf & Ibrahim (2023), Self-supervised disentanglement by
leveraging structure in data augmentations.

*Differs from the paper in* a decoder and a law of pairs, so that the story simulates; pairs of any kinds, also of two
things with one style, without which the paper's claim of style blocks holds given content alone; one network, linear
where that is enough; sizes of blocks are checked by pairs that were not trained on.

Longer than other models because names of what pairs share are read here.

*For a variant, copy this file and change* `story`: the law of rows after.
"""

from __future__ import annotations

from typing import Annotated

import pyro
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Claim, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.claims.nested import Kept as KeptGroup
from pyrocrl.constructions import kept_blocks, optimise
from pyrocrl.constructions.kept_blocks import Blocks
from pyrocrl.errors import reject
from pyrocrl.lab.studies.content import StyleBlocks
from pyrocrl.options import Size
from pyrocrl.parts.content_pairs import ContentRead, ContentReader, Repeated, reading_error
from pyrocrl.parts.nets import Residual
from pyrocrl.parts.observation import Observation
from pyrocrl.program import Features, Latents, check_sizes
from pyrocrl.readouts import KeptBlocks

CONTENT = "content"
INVERTIBLE = "x is an invertible, smooth function of the blocks and of what no pair keeps"
VARIES = "no direction stays as it is in all pairs of a kind that does not keep it: what never changes counts as kept"
LEAST = 1e-3  # deviation of noise and of q(z | x) at first
FEW = 20  # pairs of a kind
HELD, HELD_LEAST, HELD_MOST = 10, 300, 3  # a tenth of the pairs of a kind is not trained on, and of few 300 or a third


class MultiAugmentation(ContentRead, Program):
    card = ModelCard(
        name="multi_augmentation",
        title="Content and several styles",
        family="pairs",
        summary="Blocks of latents behind any invertible map, content and a style for each transform, told by pairs of "
        "rows that say which blocks they share.",
        when=(
            "rows come in pairs of which it is known what they share: views of one thing under transforms, some with "
            "the same parameter of one transform, or things under the same transform",
            "nobody knows what partners share (that is `content_style`'s), they share nothing exactly, or single "
            "latents are asked for, not blocks",
        ),
        assumes=(
            "x is an invertible function of the blocks, with little noise",
            "pairs keep exactly the blocks that they name",
            "everything else changes in many pairs of each kind",
        ),
        claims=(Claim("latents", ("kept",), (INVERTIBLE, VARIES), ("blocks_kept", "nothing_else_kept")),),
        references=(
            Reference(
                "Eastwood, von Kügelgen, Ericsson, Bouchacourt, Vincent, Schölkopf & Ibrahim",
                2023,
                "Self-supervised disentanglement by leveraging structure in data augmentations",
                "arXiv",
                "https://arxiv.org/abs/2311.08815",
            ),
            Reference(
                "von Kügelgen, Sharma, Gresele, Brendel, Schölkopf, Besserve & Locatello",
                2021,
                "Self-supervised learning with data augmentations provably isolates content from style",
                "NeurIPS",
                "https://arxiv.org/abs/2106.04619",
            ),
            Reference(
                "Yao, Xu, Lachapelle, Magliacane, Taslakian, Martius, von Kügelgen & Locatello",
                2024,
                "Multi-view causal representation learning with partial observability",
                "ICLR",
                "https://arxiv.org/abs/2311.04056",
            ),
        ),
        differs=(
            "a decoder and a law of pairs, so that the story simulates",
            "pairs may keep a style and not content, without which a style is told along with content alone",
            "one network for all blocks, linear where that is enough",
            "sizes of blocks are checked by pairs that were not trained on",
        ),
        needs_env=True,
        needs_pairs=True,
    )
    recipe = Recipe.unannealed(epochs=1, least_steps=150, batch_size=512, lr=1e-3, held_out=0.05, chains=2)
    sites = {"z": Site(("data", "latent"), {"latent": "point"})}

    def __init__(
        self,
        features: Features,
        latents: Latents,
        kinds: Annotated[list[str], "what pairs of each environment share; read off the data"],
        style: Size | dict[str, Size] = 1,
        width: Size = 64,
        steps: Size = 2_500,
    ) -> None:
        """latents: of all blocks together. kinds: for each environment the names of the blocks that both rows of its
        pairs share, with + between them; "content" is one of them. style: how many latents each style has, one number
        or a number for each name; content has the others. width: of networks' layers; steps: of the encoder's
        construction.

        Raises InputError for more latents than features, kinds of which none keeps content or a style, and for styles
        that leave content no latents.
        """
        super().__init__()
        check_sizes(features, latents, least=2, square=True)
        names, keeps = named_blocks(kinds)
        sizes = block_sizes(names, style, latents)
        self.observation = Observation(features, noise=0.1)
        self.reader = ContentReader(features, latents, width).requires_grad_(False)
        self.decoder = Residual(latents, features, width)
        self.raw_change = nn.Parameter(torch.full((len(kinds), latents), 0.5).logit())
        self.raw_width = nn.Parameter(torch.full((latents,), 0.1).log())  # of q
        both = (len(kinds), len(names))
        self.register_buffers(
            block=torch.repeat_interleave(torch.arange(len(names)), torch.tensor(sizes)),  # of each latent
            keeps=torch.as_tensor(keeps),  # (kind, block)
            gap=torch.zeros(both),
            error=torch.zeros(both),
            most=torch.zeros(both),
            least=torch.zeros(both),
            trained=torch.zeros(both),
            trained_most=torch.zeros(both),
            left=torch.zeros(len(kinds)),
            left_error=torch.zeros(len(kinds)),
            **self.error_buffers(latents),
        )

    @property
    def block_names(self) -> list[str]:
        """Of the blocks, in the order of their latents."""
        return named_blocks(self.config["kinds"])[0]

    # -- the story and the guide -------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        place, follows = batch.before()
        kind = torch.nn.functional.one_hot(batch.env, len(self.raw_change)).to(self.raw_change)
        change = kind @ self.raw_change.sigmoid()  # (rows, latent)
        with self.rows(batch):
            z = pyro.sample("z", Repeated(change, place, follows))  # (rows, latent)
            pyro.sample("x", self.observation.likelihood(self.decoder(z), batch).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            z = self.latents(batch)
            pyro.sample("z", self.law_of(z, self.raw_width.exp()))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        out: Tensor = self.reader(self.observation.inputs(batch))
        return out

    def kept(self) -> KeptBlocks:
        told = {name: self.get_buffer(name) for name in kept_blocks.Kept._fields}
        return KeptBlocks(self.block_names, self.block, self.keeps, kept_blocks.Kept(**told))

    @property
    def group(self) -> KeptGroup:
        return KeptGroup.seen(self.keeps[:, self.block].cpu().numpy())

    # -- from data ---------------------------------------------------------------------------------------------

    def check(self, data: Data) -> None:
        super().check(data)
        check_kinds(data)

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """The encoder by contrasts, and the decoder by regression.

        Raises InputError for fewer than 20 pairs of a kind, and for features that are a function of others.
        """
        batch, own = self.observation.start(data), self.config
        place, follows = batch.before()
        x, after = self.observation.inputs(batch), follows.nonzero()[:, 0]
        blocks = Blocks(self.block.bincount().tolist(), self.keeps.tolist())
        held = []
        for k, name in enumerate(own["kinds"]):
            of_kind = after[batch.env[after] == k]
            if len(of_kind) < FEW:
                reject("pair", f"{len(of_kind)} pairs that share {name!r} to fit", f"{FEW} or more")
            order = of_kind[torch.randperm(len(of_kind), generator=generator).to(of_kind.device)]
            held.append(order[: max(len(order) // HELD, min(HELD_LEAST, len(order) // HELD_MOST))])
        test = torch.cat(held)
        rest = after[~torch.isin(after, test)]
        before, later, kind = x[place[rest]], x[rest], batch.env[rest]
        out = (x[place[test]], x[test], batch.env[test])
        square = own["latents"] == own["features"]
        kept_blocks.train(self.reader, before, later, kind, blocks, out, own["steps"], generator, square)
        told = kept_blocks.kept(self.reader, before, later, kind, out, blocks, own["steps"], generator)
        self.put(**told._asdict())
        z = self.reader(x)
        optimise.regress(self.decoder, z, x, max(1, 2 * own["steps"] // 5), generator)
        left = (x - self.decoder(z)).square().mean(0).sqrt()
        self.observation.raw_noise.copy_(left.clamp_min(10 * LEAST).log())
        apart = (z[place[after]] - z[after]).square() / 2  # 1 - r of white latents
        change = torch.stack([apart[batch.env[after] == k].mean(0) for k in range(len(own["kinds"]))])
        self.put(raw_change=change.clamp(1e-4, 0.99).logit())
        keeps = self.keeps[:, self.block].to(x)  # (kind, latent)
        differ = ((1 - keeps) * change).sum(1) / (1 - keeps).sum(1).clamp_min(1)
        differ = torch.where(keeps.all(1), torch.ones_like(differ), differ)
        unseen = [self.reader(rows) for rows in out[:2]]
        variance, told_by = reading_error(*unseen, keeps[out[2]], differ[out[2]])
        self.put(reading_variance=variance, told_by=told_by)
        jitter = 0.1 * torch.randn(len(self.raw_width), generator=generator).to(x)
        self.raw_width.copy_((change.min(0).values.sqrt() / 2).clamp(LEAST, 0.3).log() + jitter)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("eastwood2023", seed=seed, pairs=300, content=1, styles=2, size=1, layers=1, draws=100)
        return cls.from_data(data, width=16, steps=200), data

    studies = (
        StyleBlocks("eastwood2023", build={"style": 2}, seeds=3, held_out=0.1),
        StyleBlocks("eastwood2023", {"across": True, "layers": 1, "pairs": 4000}, {"style": 2, "steps": 600}, 3, 0.1),
        StyleBlocks("eastwood2023", {"layers": 0, "pairs": 4000}, {"style": 2}, seeds=3, held_out=0.1),
    )


def named_blocks(kinds: list[str]) -> tuple[list[str], list[list[bool]]]:
    """Names of the blocks, content first, and (kind, block) which are kept. Raises InputError for kinds that are named
    otherwise, and where none keeps content or a style."""
    shared = [[name.strip() for name in kind.split("+")] for kind in kinds]
    for kind, names in zip(kinds, shared, strict=True):
        if not all(names) or len(set(names)) < len(names):
            reject("env", repr(kind), "names of blocks that both rows of a pair share, each once, with + between them")
    styles = sorted({name for names in shared for name in names} - {CONTENT})
    if not any(CONTENT in names for names in shared) or not styles:
        found = ", ".join(map(repr, kinds[:4])) + (", ..." if len(kinds) > 4 else "") or "none"
        allowed = f"what both rows of a pair share: {CONTENT}, styles by name, or several with + between them"
        reject("env", found, f"{allowed}; content and a style or more in some pairs")
    names = [CONTENT, *styles]
    return names, [[name in own for name in names] for own in shared]


def block_sizes(names: list[str], style: int | dict[str, int], latents: int) -> list[int]:
    """Latents of each block. Raises InputError for names of styles that pairs do not have, and where content is left
    without any."""
    styles = names[1:]
    if not isinstance(style, int) and sorted(style) != styles:
        reject("style", ", ".join(map(str, sorted(style))) or "none", f"a number for each of {', '.join(styles)}")
    own = [style] * len(styles) if isinstance(style, int) else [style[name] for name in styles]
    if sum(own) >= latents:
        reject("style", f"{sum(own)} latents of {len(own)} styles", f"fewer than the {latents} latents: content is one")
    return [latents - sum(own), *own]


def check_kinds(data: Data) -> None:
    """Raise InputError unless both rows of each pair name the same kind."""
    if data.pair is None:
        return
    after = (data.after & (data.partner >= 0)).nonzero()[0]
    apart = after[data.env[after] != data.env[data.partner[after]]]
    if apart.size:
        one, other = data.env_names[data.env[data.partner[apart[0]]]], data.env_names[data.env[apart[0]]]
        name = data.pair_names[data.pair[apart[0]]]
        reject("env", f"{one!r} and {other!r} in pair {name!r}", "the same in both rows: what they share")


if __name__ == "__main__":
    run(MultiAugmentation)
