"""Variants: one line of a model's story is changed, what summed out is deleted, and the story is fitted as it stands.

Sites that were summed out before have no guide then: `pyrocrl.infer.completion` gives them one.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
from functools import cache
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import pyrocrl
from pyrocrl import Batch, Data, Fit, InputError, ModelCard, Program, Recipe, zoo
from pyrocrl.dists import Normal
from pyrocrl.infer.elbo import traces

SLAB = "slab = Normal(torch.zeros_like(self.slope.loc), self.slab)"
LIKELIHOOD = "likelihood = self.observation.likelihood(eta, batch, None if self.counts else variance.sqrt())"


LINK = "loc = own.intercept[:, k] + (self.sem.link(z) * own.weight[:, :, k]).sum(-1)"


def methods(text: str) -> dict[str, tuple[int, int]]:
    """(first, last) line, from 0, of each method of the Program in a model file."""
    program = next(
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id == "Program" for base in node.bases)
    )
    return {
        node.name: (min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1, node.end_lineno or node.lineno)
        for node in program.body
        if isinstance(node, ast.FunctionDef)
    }


def body(text: str, method: str) -> list[str]:
    first, last = methods(text)[method]
    return text.splitlines()[first:last]


def variant(
    name: str, old: str, new: str, folder: Path, deleted: tuple[str, ...] = ("model", "recover")
) -> type[Program]:
    """The program of a copy of `models/<name>.py` in which `new` stands for the line `old` of its story and methods are
    deleted; nothing else differs."""
    text = Path(inspect.getfile(zoo.get(name))).read_text()
    lines = text.splitlines()
    for method in sorted(deleted, key=lambda m: -methods(text)[m][0]):
        first, last = methods(text)[method]
        del lines[first:last]
    first, last = methods("\n".join(lines))["story"]
    places = [i for i in range(first, last) if lines[i].strip() == old]
    assert len(places) == 1, f"the story of {name} has {len(places)} lines {old!r}"
    lines[places[0]] = lines[places[0]].replace(old, new)
    changed = "\n".join(lines) + "\n"

    before, after = methods(text), methods(changed)
    assert before.keys() - after.keys() == set(deleted) and after.keys() <= before.keys()
    for method in after:
        difference = [d for d in difflib.ndiff(body(text, method), body(changed, method)) if d[0] in "+-"]
        assert len(difference) == (2 if method == "story" else 0), difference

    path = folder / f"{name}_variant.py"
    path.write_text(changed)
    spec = importlib.util.spec_from_file_location(f"{name}_variant", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    program = getattr(module, zoo.get(name).__name__)
    assert program.model is Program.model and program.story is not zoo.get(name).story
    return program


@cache
def loaded(heavy_tails: bool) -> Data:
    """Ten features, three anchors for each of three latents and one that mixes two; Gaussian noise, or Student's t."""
    rng = np.random.default_rng(0)
    mask = np.array([[1, 0, 0]] * 3 + [[0, 1, 0]] * 3 + [[0, 0, 1]] * 3 + [[1, 1, 0]])
    loadings = mask * rng.uniform(0.8, 1.6, mask.shape) * rng.choice([-1, 1], mask.shape)
    z = rng.normal(size=(600, 3))
    noise = rng.standard_t(2.2, (600, 10)) if heavy_tails else rng.normal(size=(600, 10))
    return Data(z @ loadings.T + 0.3 * noise, truth={"z": z, "mask": mask, "loadings": loadings})


def linear(program: type[Program], data: Data) -> Fit:
    return pyrocrl.fit(program.from_data(data, latents=3, decoder="linear"), data, chains=2, seed=0, progress=False)


def test_another_prior_of_weights_is_fitted_as_it_stands(tmp_path: Path) -> None:
    laplace = variant("sparse_vae", SLAB, SLAB.replace("Normal", "dist.Laplace"), tmp_path)
    data = loaded(False)
    fit = linear(laplace, data)
    assert fit.chains.batched and fit.program.completion.names == ["theta"]
    scores = pyrocrl.evaluate(fit, data)
    assert scores["mcc"] > 0.98
    assert scores["mask_f1"] == 1.0 and scores["surplus_pip"] < 0.1
    assert all(claim.identified for claim in pyrocrl.diagnose(fit, data).claims)
    # theta is sampled now; given the gates its exact law is a Beta
    theta = fit.posterior(200, predictive=False)["posterior"]["theta"].to_numpy().mean((0, 1))
    exact = (1 + fit.mask().sum(0)) / (1 + data.features + data.features)
    np.testing.assert_allclose(theta, exact, atol=0.04)

    again = Fit.restore(fit.save(tmp_path), lambda header: laplace, data)
    np.testing.assert_array_equal(again.latents(), fit.latents())
    for name, draws in fit.posterior(2, predictive=False)["posterior"].data_vars.items():
        np.testing.assert_array_equal(again.posterior(2, predictive=False)["posterior"][name], draws)


def curved(seed: int) -> Data:
    """Three latents in a chain with quadratic links, in units of their observational rows; a perfect intervention on
    each; six features."""
    rng = np.random.default_rng(seed)
    weight = np.array([[0, 0.8, 0], [0, 0, -0.8], [0, 0, 0]])
    env = np.repeat(np.arange(4), 800)
    z = np.zeros((len(env), 3))
    for k in range(3):
        z[:, k] = ((z + 0.3 * z**2 - 0.3) @ weight)[:, k] + rng.normal(size=len(env)) * (0.5 if k else 1.0)
        hit = env == k + 1
        z[hit, k] = 1.0 + 0.6 * rng.normal(size=hit.sum())
    x = z @ rng.normal(size=(6, 3)).T + 0.1 * rng.normal(size=(len(env), 6))
    truth = {"z": z, "graph": (weight != 0).astype(int), "weight": weight}
    names = np.array(["control", "a", "b", "c"])
    return Data(x, env=names[env], targets={"a": (0,), "b": (1,), "c": (2,)}, control="control", truth=truth)


@pytest.mark.slow
def test_a_quadratic_link_of_latents_is_fitted_as_it_stands(tmp_path: Path) -> None:
    """Equations that were parameters are sites now; the graph has gates along the order that the chain started from.

    Chains agree on an edge too many (of seeds 0 to 3 also with 3): that must not be called identified.
    """
    quadratic = variant(
        "discrepancy_vae",
        LINK,
        LINK.replace("self.sem.link(z)", "(z + 0.3 * z.square())"),
        tmp_path,
        deleted=("model",),
    )
    data = curved(0)
    program = quadratic.from_data(data, intervention="perfect", mechanism="linear", hidden=16)
    fit = pyrocrl.fit(program, data, chains=2, seed=0, epochs=120, progress=False)
    assert {"order", "graph", "variance", "slope", "level", "z_0", "z_1", "z_2"} == set(fit.program.completion.names)
    scores = pyrocrl.evaluate(fit, data)
    assert scores["mcc"] > 0.94 > scores["pca_mcc"]
    graph, true = fit.graph(), data.truth["graph"] > 0
    assert (graph[true] > 0.9).all() and scores["shd"] <= 1 < scores["shd_empty"]
    graph_verdict = pyrocrl.diagnose(fit, data)["graph"]
    assert graph_verdict.verdict == "not identified" and "no evidence" in graph_verdict.reason
    # children follow the link: what moves under do is quadratic in what is set
    means = [float(fit.do(data, {"latent_0": v}, draws=100, seed=1)["z"][0, :, 1].mean()) for v in (-1.0, 0.0, 1.0)]
    bend = (means[0] + means[2]) / 2 - means[1]
    slope = (means[2] - means[0]) / 2
    assert bend / slope == pytest.approx(0.3, abs=0.1)


def test_heavy_tailed_noise_is_fitted_as_it_stands(tmp_path: Path) -> None:
    data = loaded(True)
    student = variant(
        "sparse_vae",
        LIKELIHOOD,
        "likelihood = dist.StudentT(3.0, self.observation.mean(eta, batch), variance.sqrt())",
        tmp_path,
    )
    fit, normal = linear(student, data), linear(zoo.get("sparse_vae"), data)
    scores, theirs = pyrocrl.evaluate(fit, data), pyrocrl.evaluate(normal, data)
    assert scores["mcc"] > 0.97 and scores["mcc"] > theirs["mcc"] + 0.01
    assert scores["mask_f1"] == 1.0 and scores["surplus_pip"] < 0.1
    assert scores["held_out"] > theirs["held_out"] + 1.0
    assert np.isfinite(fit.posterior(5, data)["log_likelihood"]["x"]).all()


# -- blocks ------------------------------------------------------------------------------------------------------


class Means(Program):
    """x_ij ~ N(on_j mean_j, noise_j^2): no site but z, which says nothing, has a guide of its own."""

    card = ModelCard(name="means", title="Means", family="test", summary="Global sites without a guide.")
    recipe = Recipe(
        epochs=500, batch_size=None, lr=0.1, lr_end=0.01, kl_warmup=0.1, temperature_span=0.2, chains=2, patience=None
    )
    own_units = True

    def __init__(self, features: int, latents: int = 1) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1))

    def story(self, batch: Batch) -> None:
        zero = torch.zeros((), dtype=batch.dtype, device=batch.device)
        share = pyro.sample("share", dist.Beta(zero + 1, zero + 1))
        with pyro.plate("feature", self.config["features"], dim=-1):
            mean = pyro.sample("mean", Normal(zero, 10.0))
            noise = pyro.sample("noise", dist.LogNormal(zero, 1.0))
            on = pyro.sample("on", dist.Bernoulli(share))
        with pyro.poutine.scale(scale=3.0):
            pyro.sample("apart", Normal(zero, 1.0))
        with self.rows(batch):
            pyro.sample("z", Normal(zero + torch.zeros_like(self.loc), 1.0).to_event(1))
            pyro.sample("x", Normal(on * mean, noise).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            pyro.sample("z", Normal(self.loc, 1.0).expand([len(batch), 1]).to_event(1))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x[:, :1]


def columns() -> Data:
    rng = np.random.default_rng(1)
    return Data(rng.normal(size=(400, 4)) * [1.0, 2.0, 0.5, 1.0] + [3.0, -2.0, 1.0, 0.0])


def test_blocks_find_posteriors_known_in_closed_form() -> None:
    data = columns()
    fit = pyrocrl.fit(Means(4), data, held_out=0.01, progress=False)
    draws = fit.posterior(400, predictive=False)["posterior"]
    sd, rows = data.x.std(0), data.rows
    mean, noise = draws["mean"].to_numpy()[..., :3], draws["noise"].to_numpy()
    np.testing.assert_allclose(mean.mean((0, 1)), data.x.mean(0)[:3], atol=0.05)
    np.testing.assert_allclose(mean.std(1).mean(0), sd[:3] / np.sqrt(rows), rtol=0.25)
    np.testing.assert_allclose(noise.mean((0, 1)), sd, rtol=0.05)
    np.testing.assert_allclose(noise.std(1).mean(0), sd / np.sqrt(2 * rows), rtol=0.25)
    on = draws["on"].to_numpy().mean((0, 1))
    assert set(np.unique(draws["on"])) <= {0, 1} and (on[:3] > 0.95).all()
    expected = (1 + on.sum()) / 6  # Beta(1 + on, 5 - on)
    assert abs(float(draws["share"].mean()) - expected) < 0.05
    # the prior's own, which a block that weighed once and not three times would narrow by the root of 3
    assert float(draws["apart"].std()) == pytest.approx(1.0, abs=0.1)


def test_a_variant_is_resumed_as_if_it_had_not_been_interrupted(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(epoch: int) -> None:
        if epoch == 7:
            raise Stop

    data, options = columns(), {"chains": 2, "epochs": 12, "seed": 4, "progress": False}
    whole = pyrocrl.fit(Means(4), data, **options)
    options |= {"out": tmp_path, "checkpoint_every": 2}
    with pytest.raises(Stop):
        pyrocrl.fit(Means(4), data, on_epoch=stop, **options)
    resumed = pyrocrl.fit(Means(4), data, resume=True, **options)
    assert whole.chains.params.keys() == resumed.chains.params.keys()
    for name, value in whole.chains.params.items():
        assert torch.equal(value, resumed.chains.params[name]), name
    again = Fit.restore(tmp_path, lambda header: Means, data)
    assert [tuple(entry) for entry in again.program.completion.spec] == whole.program.completion.spec
    fresh = whole.program.fresh()
    assert fresh.state_dict().keys() == whole.program.state_dict().keys()
    batch = whole.batch_of(data)
    guide, model = traces(fresh, batch)
    assert {"share", "mean", "noise", "on", "apart"} <= guide.nodes.keys()
    assert guide.nodes["apart"]["scale"] == model.nodes["apart"]["scale"] == 3.0


def test_sites_that_no_block_fits_are_named() -> None:
    class Local(Means):
        def story(self, batch: Batch) -> None:
            super().story(batch)
            with pyro.poutine.block(hide=["data"]):
                rows = self.rows(batch)
            with rows:
                pyro.sample("own", Normal(torch.zeros_like(self.loc[0]), 1.0))

    class Integer(Means):
        def story(self, batch: Batch) -> None:
            super().story(batch)
            pyro.sample("count", dist.Poisson(torch.ones_like(self.loc[0])))

    for program, message in (
        (Local, r"guide: no site 'own', which the story draws for every row; allowed: a line for it in `guide`"),
        (Integer, r"guide: no site 'count', whose support .* has no block; allowed: a line for it in `guide`"),
    ):
        with pytest.raises(InputError, match=message):
            pyrocrl.fit(program(4), columns(), epochs=1, progress=False)
