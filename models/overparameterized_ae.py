"""Over-parameterised auto-encoder: rows stored as attractors, signatures in a latent space.

    z_i ~ N(0, 4 I)                              (data, latent), more latents than features
    x_i ~ N(V s(z_i) + c, noise^2 I)             (data, feature), in deviations of the features

s is tanh or a leaky ReLU, of each latent; without `bias`, b and c are 0. The guide is q(z_i | x_i) = N(W x_i + b,
diag width^2): with little noise it and the story are an auto-encoder f(x) = V s(W x + b) + c, z before the activation.
`model` is the story: nothing is summed out. Every chain starts from weights of its own, so that chains are an ensemble.

`initialise` maximises the bound of all rows by L-BFGS, to second order in the widths, which follow; `finish` changes V
and c by the least that makes every row a fixed point, f(x_i) = x_i. Where the spectral radius of f's Jacobian at it is
below 1, what is near is drawn to it by f, again and again: then the net is an associative memory. Nothing guarantees
that: `pyrocrl.attractors` measures it, and how far from a row f still finds back. Without biases leaky ReLUs give
f(a x) = a f(x) for a > 0, so that f'(x) x = f(x) = x: 1 is an eigenvalue at every stored row, and none attracts.

`pyrocrl.alignment` compares signatures of perturbations across contexts, told as `batch`, in x, in its principal
components and in z.

In the studies tanh contracts at stored rows of few, in 60 steps not at those of the L1000 table, a third as many as
latents, and leaky ReLUs do not contract, with biases either. Alignment gains little: in the L1000 table z finds a drug
in another cell type somewhat more often than x or its principal components do, but less often than these with variance
1, and |cosine| falls, of two drugs as of one; in `context_effects` z gains nothing.

*Identified:* nothing. z may be permuted, latents may share their work, and f is pinned down at the stored rows alone:
that chains agree there says nothing of latents or of other rows, and q(z | x) is a posterior at stored rows at best.
Cosines of signatures in z are one net's; their spread is that of the chains.

Radhakrishnan, Belkin & Uhler (2020), Overparameterized neural networks implement associative memory; Belyaeva et al.
(2021), Causal network models of SARS-CoV-2 expression and aging to identify candidates for drug repurposing.

*Differs from the paper in* a likelihood with small noise in place of squared error alone, whose guide's widths make
the decoder flat around rows; tanh and biases in place of leaky ReLUs without; second-order training.

*For a variant, copy this file and change* `story`: the line of `z` (its prior) or of `mean` (f).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import pyro
import torch
from torch import Tensor, nn

from pyrocrl import Batch, Data, ModelCard, Program, Recipe, Reference, Site, run
from pyrocrl.constructions import memories
from pyrocrl.dists import Normal
from pyrocrl.errors import reject
from pyrocrl.lab.studies.memories import Contexts, MeasuredContexts, StoredRows
from pyrocrl.options import Positive, Size
from pyrocrl.program import Features

SPREAD = 2.0  # deviation of latents: tanh bends there
PLAIN: dict[str, Any] = {"activation": "leaky_relu", "bias": False}  # as Belyaeva et al. have it
WIDE = {"latents": 1024, "steps": 60}  # as many as they have


class OverparameterizedAE(Program):
    spread: Tensor
    deviation: Tensor
    card = ModelCard(
        name="overparameterized_ae",
        title="Over-parameterised auto-encoder",
        family="associative memory",
        summary="An auto-encoder with more latents than features that stores rows as attractors of its map, and in "
        "whose latent space signatures of perturbations are compared across contexts.",
        when=(
            "rows are to be stored and found again from noisy ones, or signatures of perturbations compared across "
            "contexts, with what features and principal components give beside",
            "latents, a graph or effects are wanted: nothing is identified, and no row is predicted",
        ),
        assumes=("rows are few, and each is worth keeping as it is",),
        references=(
            Reference(
                "Radhakrishnan, Belkin & Uhler",
                2020,
                "Overparameterized neural networks implement associative memory",
                "PNAS",
                "https://arxiv.org/abs/1909.12362",
            ),
            Reference(
                "Belyaeva, Cammarata, Radhakrishnan, Squires, Yang, Shivashankar & Uhler",
                2021,
                "Causal network models of SARS-CoV-2 expression and aging to identify candidates for drug repurposing",
                "Nature Communications",
                "https://doi.org/10.1038/s41467-021-21056-z",
            ),
        ),
        differs=(
            "a likelihood with small noise, whose guide's widths make the decoder flat around rows",
            "tanh and biases in place of leaky ReLUs without",
            "second-order training, and rows that are fixed points exactly",
        ),
    )
    recipe = Recipe.unannealed(
        epochs=10, batch_size=None, lr=1e-4, held_out=0.0, patience=None, keep="last", dtype=torch.float64, chains=4
    )
    auto_encodes = True
    sites = {"z": Site(("data", "latent"), {"latent": "point"})}

    def __init__(
        self,
        features: Features,
        latents: Annotated[
            int, "more than features; read off the data, the power of 2 above them and four times the rows"
        ],
        activation: Literal["tanh", "leaky_relu"] = "tanh",
        bias: bool = True,
        noise: Positive = 0.1,
        steps: Size = 200,
    ) -> None:
        """activation: of every latent. bias: whether b and c are there. noise: of x, in deviations of the features.
        steps: of the start's optimiser, at most.

        Raises InputError unless there are more latents than features.
        """
        super().__init__()
        if latents <= features:
            reject("latents", latents, f"more than the {features} features: the net is over-parameterised")
        self.encoder, self.decoder = nn.Linear(features, latents, bias), nn.Linear(latents, features, bias)
        self.log_width = nn.Parameter(torch.zeros(latents))
        self.activation = memories.ACTIVATIONS[activation][0]
        self.register_buffers(spread=torch.full((latents,), SPREAD), deviation=torch.full((features,), noise))

    # -- model and guide ---------------------------------------------------------------------------------------

    def story(self, batch: Batch) -> None:
        with self.rows(batch):
            z = pyro.sample("z", Normal(torch.zeros_like(self.spread), self.spread).to_event(1))  # (rows, latent)
            mean = self.decoder(self.activation(z))  # (rows, feature)
            pyro.sample("x", Normal(mean, self.deviation).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", Normal(self.encoder(batch.x), self.log_width.exp()).to_event(1))

    # -- read-outs ---------------------------------------------------------------------------------------------

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return self.encoder(batch.x)

    def auto_encode(self, x: Tensor) -> Tensor:
        return self.decoder(self.activation(self.encoder(x)))

    @property
    def reads_batches(self) -> bool:
        """Rows of several contexts are stored like others."""
        return True

    # -- from data ---------------------------------------------------------------------------------------------

    @classmethod
    def from_data(cls, data: Data, **options: Any) -> Program:
        """Raises InputError for fewer latents than rows, which could not all be stored."""
        options = {"latents": 2 ** int(math.log2(max(data.features, 4 * data.rows)) + 1)} | options
        program = super().from_data(data, **options)
        if program.latents_count < data.rows:
            reject("latents", program.latents_count, f"{data.rows} or more: as many as there are rows to store")
        return program

    def initialise(self, data: Data, generator: torch.Generator) -> None:
        """Weights at which no latent knows of another, then the bound's maximum near those."""
        x = data.tensors(dtype=torch.float64).x
        shape, bias = self.encoder.weight.shape, self.encoder.bias is not None
        weight = SPREAD * torch.randn(shape, generator=generator, dtype=x.dtype) / math.sqrt(shape[1])
        offset = SPREAD * torch.randn(shape[0], generator=generator, dtype=x.dtype) if bias else None
        kind, noise, steps = (self.config[name] for name in ("activation", "noise", "steps"))
        found = memories.store(x, weight, offset, kind, SPREAD, noise, steps)
        for layer, matrix, constant in ((self.encoder, *found[:2]), (self.decoder, *found[2:4])):
            layer.weight.copy_(matrix)
            if bias:
                layer.bias.copy_(constant)
        self.log_width.copy_(memories.widths(x, found, kind, SPREAD, noise, generator).log())

    def finish(self, data: Data, generator: torch.Generator) -> None:
        """Every row a fixed point, by the least change of the decoder."""
        x, bias = data.tensors(self.spread.device, self.spread.dtype).x, self.decoder.bias is not None
        matrix, constant = memories.interpolate(self.activation(self.encoder(x)), x - self.auto_encode(x), bias)
        self.decoder.weight.add_(matrix)
        if bias:
            self.decoder.bias.add_(constant)

    @classmethod
    def example(cls, seed: int = 0) -> tuple[Program, Data]:
        from pyrocrl.simulate import draw

        data = draw("context_effects", seed=seed, contexts=6, perturbations=6, features=10, measured=0.8)
        return cls.from_data(data, latents=48, steps=20), data

    studies = (
        StoredRows("stored_rows", {"net": "tanh, biases"}),
        StoredRows("stored_rows", {"net": "leaky ReLU, biases"}, {"activation": "leaky_relu"}),
        StoredRows("stored_rows", {"net": "leaky ReLU, no biases"}, PLAIN),
        StoredRows("stored_rows", {"net": "tanh, biases", "rows": 40}),
        Contexts("context_effects", {"net": "tanh, biases"}, WIDE),
        MeasuredContexts("l1000", {"net": "tanh, biases"}, WIDE, seeds=1),
        MeasuredContexts("l1000", {"net": "tanh, biases", "noise": 0.5}, WIDE | {"noise": 0.5}, seeds=1),
        MeasuredContexts("l1000", {"net": "leaky ReLU, no biases"}, WIDE | PLAIN, seeds=1),
    )


if __name__ == "__main__":
    run(OverparameterizedAE)
