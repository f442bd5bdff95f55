"""The plate diagram of a story: its relations, and a picture in which every site can be read."""

from __future__ import annotations

import io
import warnings
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text

from pyrocrl import Batch, Data, InputError
from pyrocrl.models.linear_sem_lin import LinearSEMLin
from pyrocrl.models.sparse_vae import SparseVAE
from pyrocrl.show import story

FEATURES, LATENTS, TOTAL = 7, 3, 600


def example(batch: Batch) -> None:
    """Loadings with gates in nested plates, latents one after another, observed rows, and a factor."""
    graph = pyro.sample("graph", dist.Bernoulli(0.5 * torch.ones(LATENTS)).to_event(1))
    with pyro.plate("feature", FEATURES, dim=-1):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        with pyro.plate("latent", LATENTS, dim=-2):
            gate = pyro.sample("gate", dist.Bernoulli(torch.tensor(0.5)))
            loadings = pyro.deterministic("loadings", gate * pyro.sample("slab", dist.Normal(0.0, 1.0)))
    pyro.factor("volume", torch.zeros(()))
    with pyro.plate("data", batch.total, subsample=batch.index, dim=-1):
        z: list[torch.Tensor] = []
        for k in range(LATENTS):
            loc = sum((graph[k] * before for before in z), torch.zeros(len(batch)))
            z.append(pyro.sample(f"z_{k}", dist.Normal(loc, 1.0)))
        pyro.sample("x", dist.Normal(torch.stack(z, -1) @ loadings + offset, 1.0).to_event(1), obs=batch.x)


@pytest.fixture(scope="module")
def batch() -> Batch:
    data = Data(np.random.default_rng(0).normal(size=(TOTAL, FEATURES)))
    return data.tensors().take(torch.arange(0, TOTAL, 50))


def drawn(figure: Figure) -> dict[str, Text]:
    """The figure's texts by what they say, after it has been drawn with warnings as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    return {text.get_text(): text for text in figure.axes[0].texts}


def test_relations_are_those_of_the_story(batch: Batch) -> None:
    found = story.relations(SimpleNamespace(story=example), batch)
    assert found["sample_sample"] == {
        "graph": [],
        "offset": [],
        "gate": [],
        "slab": [],
        "loadings": ["gate", "slab"],
        "z_0": [],
        "z_1": ["graph", "z_0"],
        "z_2": ["graph", "z_0", "z_1"],
        "x": ["offset", "loadings", "z_0", "z_1", "z_2"],
    }
    assert found["plate_sample"] == {
        "feature": ["offset", "gate", "slab", "loadings"],
        "latent": ["gate", "slab", "loadings"],
        "data": ["z_0", "z_1", "z_2", "x"],
    }
    assert found["plate_size"] == {"feature": FEATURES, "latent": LATENTS, "data": TOTAL}  # not the batch's rows
    assert found["observed"] == ["x"]
    assert found["sample_dist"]["gate"] == "Bernoulli" and found["sample_dist"]["loadings"] == "Deterministic"


def test_a_plate_that_draws_its_own_rows_is_no_site(batch: Batch) -> None:
    def subsampled(_: Batch) -> None:
        with pyro.plate("data", 20, subsample_size=4):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    found = story.relations(SimpleNamespace(story=subsampled), batch)
    assert found["sample_sample"] == {"z": []} and found["plate_size"] == {"data": 20}


def test_every_site_law_and_plate_is_in_the_picture(batch: Batch) -> None:
    found = story.relations(SimpleNamespace(story=example), batch)
    figure = story.draw(found)
    texts, axes = drawn(figure), figure.axes[0]
    assert set(found["sample_sample"]) | {"Normal", "Bernoulli"} <= set(texts)
    assert {"data  600", "feature  7", "latent  3"} <= set(texts)
    assert "volume" not in texts and "Deterministic" not in texts
    ellipses = {tuple(np.round(p.center, 6)): p for p in axes.patches if isinstance(p, Ellipse)}
    assert len(ellipses) == 8
    grey = [p for p in ellipses.values() if p.get_facecolor()[:3] != (1.0, 1.0, 1.0)]
    x = texts["x"].get_position()
    assert len(grey) == 1 and grey[0].center[0] == pytest.approx(x[0])
    dashed = [p for p in axes.patches if isinstance(p, FancyBboxPatch) and p.get_linestyle() not in ("-", "solid")]
    assert len(dashed) == 1
    arrows = sum(isinstance(p, FancyArrowPatch) for p in axes.patches)
    assert arrows == sum(map(len, found["sample_sample"].values()))


def test_plates_hold_their_sites_and_no_others(batch: Batch) -> None:
    found = story.relations(SimpleNamespace(story=example), batch)
    figure = story.draw(found)
    texts = drawn(figure)
    boxes = [p for p in figure.axes[0].patches if isinstance(p, FancyBboxPatch) and p.get_linestyle() in ("-", "solid")]
    assert len(boxes) == 3
    inside = {}
    for plate in found["plate_sample"]:
        label = texts[f"{plate}  {found['plate_size'][plate]}"].get_position()
        box = min((b for b in boxes if holds(b, label)), key=lambda b: b.get_width() * b.get_height())
        inside[plate] = [name for name in found["sample_sample"] if holds(box, texts[name].get_position())]
    assert inside == found["plate_sample"]


def holds(box: FancyBboxPatch, point: tuple[float, float]) -> bool:
    x, y = point[0] - box.get_x(), point[1] - box.get_y()
    return 0 <= x <= box.get_width() and 0 <= y <= box.get_height()


def test_dozens_of_sites_stay_apart() -> None:
    """40 sites that depend on each other at random, in two crossing plates: no two names overlap, all are inside."""
    rng = np.random.default_rng(0)
    names = [f"quantity_{k}" for k in range(40)]
    parents = {name: [names[j] for j in range(k) if rng.random() < 0.08] for k, name in enumerate(names)}
    found = {
        "sample_sample": parents,
        "sample_dist": {name: "MultivariateNormal" if k % 3 else "Deterministic" for k, name in enumerate(names)},
        "plate_sample": {"env": names[::2], "feature": names[1:20:4], "data": names[3::4]},
        "plate_size": {"env": 3, "feature": 1000, "data": 6},
        "observed": names[-2:],
    }
    figure = story.draw(found)
    texts = drawn(figure)
    boxes = [texts[name].get_window_extent() for name in names]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    width, height = figure.get_size_inches() * figure.dpi
    assert all(b.x0 >= 0 and b.x1 <= width and b.y0 >= 0 and b.y1 <= height for b in boxes)


@pytest.mark.parametrize("model", [LinearSEMLin, SparseVAE], ids=lambda m: m.card.name)
def test_models_of_the_zoo_are_drawn(model: type) -> None:
    program, data = model.example(0)
    texts = drawn(story.figure(program, data))
    assert "x" in texts and f"data  {data.rows:,}" in texts
    assert "Unit" not in texts
    with pytest.raises(InputError, match="features"):
        story.figure(program, Data(np.zeros((4, 2))))


@pytest.mark.parametrize("model", [LinearSEMLin, SparseVAE], ids=lambda m: m.card.name)
def test_pyro_renders_it_as_well(model: type) -> None:
    pytest.importorskip("graphviz")
    program, data = model.example(0)
    dtype = next(program.parameters()).dtype
    source = pyro.render_model(
        program.story, model_args=(data.tensors(dtype=dtype, moments=True).whole(),), render_distributions=True
    ).source
    found = story.relations(program, data.tensors(dtype=dtype, moments=True).whole())
    for name in found["sample_sample"]:
        assert f"\t{name} [" in source.replace('"', ""), name  # "graph" is a word of the language and quoted
