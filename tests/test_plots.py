"""Every picture on a small posterior and on the ends of what may come: one chain, one environment, 300 features."""

import io
import warnings

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from scipy.stats import beta
from sklearn.metrics import roc_auc_score

from pyrocrl.errors import InputError
from pyrocrl.show import plots

OF_TREE = (plots.mask, plots.graph, plots.agreement, plots.latents_by_env, plots.predictive)


def latent_names(tree):
    return [str(name) for name in tree["posterior"]["latent"].to_numpy()]


# what each picture of a tree must say, whatever its size
SAID = {
    plots.mask: latent_names,
    plots.graph: latent_names,
    plots.agreement: latent_names,
    plots.latents_by_env: latent_names,
    plots.predictive: lambda _: ["observed", "replicated, 90 % interval"],
}


def make_tree(
    features=7,
    latents=5,
    envs=3,
    chains=3,
    draws=8,
    rows=120,
    *,
    seed=0,
    mask=True,
    graph=True,
    weight=True,
    counts=False,
    names=None,
    controls=True,
):
    """A posterior with the groups of `Fit.posterior`: environment e moves latent (e - 1) % latents."""
    rng = np.random.default_rng(seed)
    labels = [f"knock-out {e}" for e in range(envs)]
    if controls:
        labels[0] = "non-targeting"
    env = np.arange(rows) % envs
    shift = np.zeros((envs, latents))
    shift[np.arange(1, envs), np.arange(envs - 1) % latents] = rng.uniform(1, 3, envs - 1)
    z = rng.normal(size=(rows, latents)) + shift[env]
    loading = np.zeros((features, latents))
    loading[np.arange(features), np.arange(features) % latents] = rng.choice([-1, 1], features)
    x = z @ loading.T + 0.3 * rng.normal(size=(rows, features))
    if counts:
        x = rng.poisson(np.exp(np.clip(0.5 * x, -4, 4))).astype(float)
    repeat = (chains, draws)
    posterior = {
        "z": (("chain", "draw", "data", "latent"), z + 0.1 * rng.normal(size=(*repeat, rows, latents))),
    }
    if mask:
        present = rng.random((*repeat, features, latents)) < np.where(loading != 0, 0.95, 0.03)
        posterior["mask"] = (("chain", "draw", "feature", "latent"), present.astype(np.int8))
    if graph:
        edge = np.triu(rng.choice([0.02, 0.3, 0.9], (latents, latents)), 1)
        drawn = rng.random((*repeat, latents, latents)) < edge
        posterior["graph"] = (("chain", "draw", "parent", "child"), drawn.astype(np.int8))
        if weight:
            value = np.broadcast_to(rng.normal(size=(latents, latents)), drawn.shape)
            posterior["weight"] = (("chain", "draw", "parent", "child"), value.copy())
    ids = [f"latent_{k}" for k in range(latents)]
    coords = {"latent": ids, "parent": ids, "child": ids, "data": np.arange(rows)}
    coords |= {"feature": list(names) if names is not None else [f"gene_{j}" for j in range(features)]}

    def dataset(variables):
        used = {d for dims, _ in variables.values() for d in dims}
        return xr.Dataset(variables, coords={k: v for k, v in coords.items() if k in used})

    replicated = (
        rng.poisson(np.broadcast_to(x, (*repeat, *x.shape)))
        if counts
        else x + 0.3 * rng.normal(size=(*repeat, *x.shape))
    )
    apart = np.abs(np.subtract.outer(np.arange(chains), np.arange(chains)))
    agreement = 1 - 0.01 * apart[..., None] * np.arange(1, latents + 1)
    tree = xr.DataTree.from_dict(
        {
            "posterior": dataset(posterior),
            "posterior_predictive": dataset({"x": (("chain", "draw", "data", "feature"), replicated)}),
            "sample_stats": dataset(
                {
                    "held_out": (("chain",), rng.normal(size=chains)),
                    "chain_weight": (("chain",), np.full(chains, 1 / chains)),
                    "agreement": (("chain", "other_chain", "latent"), agreement),
                }
            ),
            "observed_data": dataset({"x": (("data", "feature"), x)}),
            "constant_data": dataset({"env": (("data",), np.asarray(labels)[env])}),
        }
    )
    tree.attrs |= {"control": labels[0]} if controls else {}
    return tree


@pytest.fixture(scope="module")
def tree():
    return make_tree()


@pytest.fixture(scope="module")
def large():
    return make_tree(features=300, latents=15, envs=26, chains=8, draws=4, rows=780, counts=True)


def drawn(figure):
    """The figure's texts, after it has been drawn with warnings as errors."""
    assert isinstance(figure, Figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(io.BytesIO(), format="png", dpi=40)
    found = []
    for text in figure.findobj(lambda artist: hasattr(artist, "get_text")):
        found.append(text.get_text())
    return [t for t in found if isinstance(t, str) and t]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("plot", OF_TREE, ids=lambda p: p.__name__)
def test_plots_small_and_large(plot, tree, large):
    """Named latents (or chains, or statistics) at both sizes; a picture of 300 features fits a page."""
    for one in (tree, large):
        texts = drawn(plot(one))
        assert set(SAID[plot](one)) <= set(texts)
    width, height = plot(large).get_size_inches()
    assert width < 16 and height < 12


@pytest.mark.parametrize("plot", OF_TREE, ids=lambda p: p.__name__)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"chains": 1}, {"agreement": "one chain: nothing to compare"}),
        ({"envs": 1}, {"latents_by_env": "Posterior means of the latents, non-targeting"}),
        ({"envs": 2, "controls": False}, {"latents_by_env": "Shift from all other rows, in sd"}),
        ({"latents": 1, "features": 2}, {"graph": "No edge has probability ≥ 0.1", "mask": "latent_0:"}),
        ({"weight": False}, {"graph": "≥ 0.5"}),
        ({"rows": 6}, {"predictive": "Mean: "}),
        ({"counts": True}, {"predictive": "Share of zeros: "}),
    ],
    ids=str,
)
def test_the_ends_of_what_may_come(plot, options, words):
    texts = drawn(plot(make_tree(**options)))
    assert any(words.get(plot.__name__, "latent_0" if plot is not plots.predictive else "observed") in t for t in texts)
    if not options.get("weight", True):
        assert "raises" not in texts


def test_nothing_touches_pyplot(tree):
    from matplotlib import pyplot, rcParams

    before = dict(rcParams)
    for plot in OF_TREE:
        plot(tree)
    assert pyplot.get_fignums() == [] and dict(rcParams) == before


@pytest.mark.parametrize(("plot", "lacking"), [(plots.mask, "mask"), (plots.graph, "graph")])
def test_no_such_variable(plot, lacking):
    with pytest.raises(InputError, match=f"tree: found no {lacking}"):
        plot(make_tree(**{lacking: False}))


def test_not_a_tree(tree):
    with pytest.raises(InputError, match="tree: found a dict"):
        plots.agreement({})
    with pytest.raises(InputError, match="posterior_predictive"):
        plots.predictive(
            xr.DataTree.from_dict({"posterior": tree["posterior"], "observed_data": tree["observed_data"]})
        )
    with pytest.raises(InputError, match="reference"):
        plots.latents_by_env(tree, "no such environment")


def test_odd_names_are_drawn_as_they_are():
    names = ["$\\frac$", "a" * 200, "_hidden", "x\ny", "<b>", "nu\x00l", "100 %"]
    texts = drawn(plots.mask(make_tree(names=names)))
    assert "$\\frac$" in texts and "<b>" in texts and "nu�l" in texts
    assert max(map(len, texts)) < 100


def test_mask_names_the_top_features(tree):
    texts = drawn(plots.mask(tree))
    pip, loading = plots.inclusion(tree), plots.loadings(tree)
    for k in range(5):
        best = int(plots.ranking(pip[:, k], loading[:, k])[0])
        assert pip[best, k] > pip[:, k].max() - 0.01
        assert f"{'−' if loading[best, k] < 0 else '+'}gene_{best}" in texts


def test_mask_shows_signed_probabilities_in_the_order_of_the_labels(tree):
    axes = plots.mask(tree).axes[0]
    pip, loading = plots.inclusion(tree).to_numpy(), plots.loadings(tree).to_numpy()
    order = [int(name.removeprefix("gene_")) for name in ticks(axes.yaxis)]
    assert sorted(order) == list(range(7)) and (np.diff(pip[order].argmax(1)) >= 0).all()
    np.testing.assert_allclose(axes.images[0].get_array(), (pip * np.where(loading < 0, -1, 1))[order])
    assert axes.images[0].get_clim() == (-1, 1) and ticks(axes.xaxis) == [f"latent_{k}" for k in range(5)]


def test_mask_without_any_entry(tree):
    empty = tree.copy(deep=True)
    empty["posterior"]["mask"] *= 0
    assert "none (highest 0.00)" in drawn(plots.mask(empty))


def test_mask_leaves_out_features_that_load_nowhere(large):
    empty = large.copy(deep=True)
    empty["posterior"]["mask"][:, :, 100:] = 0
    assert any("100 of 300 features" in t for t in drawn(plots.mask(empty)))


def test_graph_labels_are_edge_probabilities():
    tree = make_tree(latents=3, graph=False, draws=10)
    edges = np.zeros((3, 10, 3, 3), dtype=np.int8)
    edges[..., 0, 1] = 1
    edges[:, :7, 1, 2] = 1
    edges[:, :3, 2, 1] = 1
    weight = np.broadcast_to(np.where(np.arange(3)[:, None] == 1, -1.0, 1.0), edges.shape)  # what 1 causes, it lowers
    dims, ids = ("chain", "draw", "parent", "child"), [f"latent_{k}" for k in range(3)]
    posterior = tree["posterior"].to_dataset().assign_coords(parent=ids, child=ids)
    tree["posterior"] = posterior.assign(graph=(dims, edges), weight=(dims, weight))
    figure = plots.graph(tree)
    assert {"1", ".70", ".30", "raises", "lowers", *ids} <= set(drawn(figure))
    arrows = [p for p in figure.axes[0].patches if isinstance(p, FancyArrowPatch)]  # (0, 1), (1, 2), (2, 1)
    assert [a.get_linewidth() for a in arrows] == pytest.approx([2.5, 1.9, 1.1])
    assert [to_hex(a.get_edgecolor()) for a in arrows] == [plots.style.BLUE, plots.style.RED, plots.style.BLUE]
    assert [a.get_linestyle() == "-" for a in arrows] == [True, True, False]
    (nodes,) = figure.axes[0].collections
    written = {t.get_text(): t.get_position() for t in figure.axes[0].texts}
    np.testing.assert_allclose(nodes.get_offsets(), [written[name] for name in ids])


def test_agreement_is_that_of_the_tree_best_chain_first(tree):
    noisy = tree.copy(deep=True)
    agreement = noisy["sample_stats"]["agreement"].values
    agreement[2, :2, 0] = agreement[:2, 2, 0] = 0.1  # chain 2 lacks latent 0
    agreement[..., 3] = np.nan  # which no chain uses
    noisy["sample_stats"]["held_out"].values = np.array([1.0, 3.0, 2.0])
    noisy["sample_stats"]["chain_weight"].values = np.array([0.2, 0.5, 0.3])
    figure = plots.agreement(noisy)
    texts, (left, right) = drawn(figure), figure.axes[:2]
    r = agreement[np.ix_([1, 2, 0], [1, 2, 0])]
    np.testing.assert_allclose(left.images[0].get_array(), np.nanmean(r, -1))
    assert np.nanmean(r, -1).min() < 0.85
    assert ticks(left.yaxis) == ["1  (0.50)", "2  (0.30)", "0  (0.20)"] and f"{np.nanmean(r[0, 1]):.2f}" in texts
    for k, dots in enumerate(right.collections):
        across, down = np.array(dots.get_offsets()).T
        if k != 3:
            np.testing.assert_allclose(sorted(across), sorted([r[0, 1, k], r[0, 2, k], r[1, 2, k]]))
        assert (np.abs(down - k) < 0.2).all()
    agreement[..., 2] = np.nan  # which has a use in the means of all chains, in no pair of them
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.agreement(noisy)
    with pytest.raises(InputError, match="no agreement in sample_stats"):
        plots.agreement(
            xr.DataTree.from_dict({"posterior": tree["posterior"].to_dataset(), "sample_stats": xr.Dataset()})
        )


def test_the_best_chain_is_the_one_that_is_told():
    history = np.array([[1, -3.0, -2.0], [2, -1.0, -1.5]])
    assert "best (chain 0)" in drawn(plots.objective(history))
    assert "best (chain 1)" in drawn(plots.objective(history, 1))


def test_graph_without_edges(tree):
    empty = tree.copy(deep=True)
    empty["posterior"]["graph"] *= 0
    assert "No edge has probability ≥ 0.1" in drawn(plots.graph(empty))


def test_edges_and_weights_are_those_of_the_draws():
    tree = make_tree(latents=3, graph=False, draws=20, chains=2)
    dims = ("chain", "draw", "parent", "child")
    edges, weight = np.zeros((2, 20, 3, 3), dtype=np.int8), np.zeros((2, 20, 3, 3))
    edges[..., 0, 1] = 1
    edges[:, :6, 1, 2] = 1
    edges[:, :1, 2, 0] = 1  # probability .05: not shown
    weight[..., 0, 1] = -1.0 - 0.01 * np.arange(20)
    weight[..., 1, 2] = np.where(np.arange(20) < 6, 0.5, 99.0)  # 99 where the edge is absent
    names = {"parent": latent_names(tree), "child": latent_names(tree)}
    posterior = tree["posterior"].to_dataset().assign_coords(names)
    tree["posterior"] = posterior.assign(graph=(dims, edges), weight=(dims, weight))
    found = plots.edges(tree)
    pairs = list(zip(found["parent"].values, found["child"].values, found["probability"].values.round(9), strict=True))
    assert pairs == [("latent_0", "latent_1", 1.0), ("latent_1", "latent_2", 0.3)]
    np.testing.assert_allclose(found["weight"], [[-1.19, -1.1, -1.0], [0.5, 0.5, 0.5]], atol=0.011)
    figure = plots.weights(tree)
    assert {"latent_0 → latent_1   1", "latent_1 → latent_2   .30"} <= set(drawn(figure))
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    np.testing.assert_allclose([line.get_xdata()[0] for line in dots], found["weight"].values[:, 1])
    assert [line.get_color() for line in dots] == [plots.style.RED, plots.style.BLUE]


def test_weights_need_weights_and_may_have_no_edge(tree):
    with pytest.raises(InputError, match="no weight"):
        plots.weights(make_tree(weight=False))
    empty = tree.copy(deep=True)
    empty["posterior"]["graph"] *= 0
    assert "No edge above 0.1" in drawn(plots.weights(empty))


def test_effects_show_medians_intervals_and_the_strongest_features():
    of_features = np.zeros((2, 5, 3))
    of_features[0] = [[1, 2, 3], [-3, -2.5, -2], [-1, 0.5, 2], [0, 0, 0], [0.1, 0.2, 0.3]]
    of_latents = np.array([[[1, 1, 1], [-0.6, -0.5, -0.4]], [[0, 0, 0], [1, 1, 1]]], dtype=float)
    names = ["latent_0", "latent_1"]
    found = xr.Dataset(
        {
            "of_latents": (("do", "latent", "level"), of_latents),
            "of_features": (("do", "feature", "level"), of_features),
        },
        coords={"do": names, "latent": names, "feature": [f"gene_{j}" for j in range(5)]},
        attrs={"unit": "log2 ratio of means"},
    )
    assert plots.strongest(found, 0, 2).tolist() == [1, 0] and plots.strongest(found, 1, 2).tolist() == []
    figure = plots.effects(found, top=2)
    texts = drawn(figure)
    assert {"do(latent_0 = mean + 1 sd)", "gene_1", "gene_0", "no feature changes for sure"} <= set(texts)
    assert not {"gene_2", "gene_4"} & set(texts)
    dots = [[line for line in axes.lines if line.get_marker() == "o"] for axes in figure.axes]
    medians = [[float(line.get_xdata()[0]) for line in each] for each in dots]
    assert medians == [[1.0, -0.5], [-2.5, 2.0], [0.0, 1.0], []]
    assert [line.get_color() for line in dots[0]] == [plots.style.INK, plots.style.RED]


def test_targets_show_probabilities_and_shifts():
    tree = make_tree(latents=2, envs=3, draws=10)
    hit = np.zeros((3, 10, 3, 2), dtype=np.int8)
    hit[:, :, 1, 1] = 1
    hit[:, :2, 2, 0] = 1  # probability .2: none is likelier
    shift = 2.0 * hit + 0.01 * np.arange(10)[:, None, None]
    dims = ("chain", "draw", "env", "latent")
    envs = {"env": ["non-targeting", "knock-out 1", "knock-out 2"]}
    posterior = tree["posterior"].to_dataset().assign_coords(envs)
    tree["posterior"] = posterior.assign(targets=(dims, hit), shift=(dims, shift))
    figure = plots.targets(tree)
    assert {"knock-out 1", "knock-out 2", "none"} <= set(drawn(figure))
    image = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(image, [[0.0, 1.0, 0.0], [0.2, 0.0, 0.8]])
    dots = [line.get_xdata() for line in figure.axes[1].lines if line.get_marker() == "o"]
    assert len(dots) == 1  # a target that is not probable has no shift
    assert 2.0 <= dots[0][0] <= 2.1
    tree["posterior"] = posterior.assign(targets=(dims, hit), offset=(dims, shift))
    lines = plots.targets(tree).axes[1].lines
    assert [line.get_xdata() for line in lines if line.get_marker() == "o"] == dots
    offset = (("chain", "draw", "feature"), np.ones((3, 10, 7)))
    tree["posterior"] = posterior.assign(targets=(dims, hit), offset=offset)
    assert not any("Shift" in text for text in drawn(plots.targets(tree)))


def test_targets_need_a_model_of_interventions(tree):
    with pytest.raises(InputError, match="no targets"):
        plots.targets(tree)


def test_averages_use_chain_weights(tree):
    weighted = tree.copy(deep=True)
    weighted["sample_stats"]["chain_weight"].values = np.array([0.0, 1.0, 0.0])
    second = tree["posterior"].isel(chain=1).mean("draw")
    np.testing.assert_allclose(plots.latent_means(weighted), second["z"], rtol=1e-12)
    np.testing.assert_allclose(plots.inclusion(weighted), second["mask"], rtol=1e-12)


def test_shifts_are_those_of_numpy_and_scikit_learn(tree):
    z = plots.latent_means(tree).to_numpy()
    labels = tree["constant_data"]["env"].to_numpy()
    found = plots.shifts(tree)
    assert found.attrs["reference"] == "non-targeting" and found["env"].values[0] == "non-targeting"
    base = z[labels == "non-targeting"]
    for name in ("knock-out 1", "knock-out 2"):
        here = z[labels == name]
        one = found.sel(env=name)
        np.testing.assert_allclose(one["shift"], (here.mean(0) - base.mean(0)) / base.std(0))
        np.testing.assert_allclose(one["spread"], here.std(0) / base.std(0))
        for k in range(z.shape[1]):
            above = np.r_[np.ones(len(here)), np.zeros(len(base))]
            expected = roc_auc_score(above, np.r_[here[:, k], base[:, k]])
            assert one["auroc"].values[k] == pytest.approx(expected)


def test_shifts_against_all_other_rows():
    found = plots.shifts(make_tree(controls=False))
    assert found.attrs["reference"] == "all other rows" and np.isfinite(found["shift"]).all()
    assert np.isnan(plots.shifts(make_tree(envs=1, controls=False))["shift"]).all()


def test_loadings_prefer_those_of_the_model(tree):
    assert plots.loadings(tree).attrs["kind"] == "correlation"
    own = tree.copy(deep=True)
    value = xr.full_like(tree["posterior"]["mask"].astype(float), -2.0)
    own["posterior"] = own["posterior"].to_dataset().assign(loadings=value)
    found = plots.loadings(own)
    assert found.attrs["kind"] == "loading"
    np.testing.assert_allclose(found, -2 * plots.inclusion(tree))


def test_environments_are_coloured_by_their_shift(tree):
    turned = tree.copy(deep=True)
    env = turned["constant_data"]["env"].values  # the first latent is moved by the last environment
    turned["constant_data"]["env"].values = np.select(
        [env == "knock-out 1", env == "knock-out 2"], ["knock-out 2", "knock-out 1"], env
    )
    figure = plots.latents_by_env(turned, most=2)
    texts, found = drawn(figure), plots.shifts(turned)
    heat, *panels = figure.axes
    order = ticks(heat.yaxis)
    assert order == ["non-targeting", "knock-out 2", "knock-out 1"]
    np.testing.assert_allclose(heat.images[0].get_array(), found["shift"].sel(env=order))
    low, high = heat.images[0].get_clim()
    assert high == -low == pytest.approx(float(np.abs(found["shift"]).max()))
    assert f"{float(found['shift'].sel(env='knock-out 2')[0]):+.1f}".replace("-", "−") in texts
    furthest = np.abs(found["shift"]).max("env").to_series().sort_values(ascending=False).index[:2]
    assert [panel.get_title(loc="left") for panel in panels] == list(furthest)
    for panel, latent in zip(panels, furthest, strict=True):
        shift = [float(found["shift"].sel(env=name, latent=latent)) for name in ticks(panel.yaxis)]
        assert shift == sorted(shift, key=lambda v: (v != 0, v))  # the reference, then from below
        expected = [plots.style.GREY if v == 0 else plots.style.RED if v < 0 else plots.style.BLUE for v in shift]
        assert [to_hex(body.get_facecolor()[0][:3]) for body in panel.collections] == expected


def test_predictive_is_red_where_the_interval_misses(tree):
    off = tree.copy(deep=True)
    off["posterior_predictive"]["x"].values[..., 2] += 5.0
    figure = plots.predictive(off)
    texts, (axes, spread) = drawn(figure), figure.axes
    x, replicated = off["observed_data"]["x"].values, off["posterior_predictive"]["x"].values.reshape(24, 120, 7)
    inside, missed = (c for c in axes.collections if len(c.get_offsets()) and not hasattr(c, "get_segments"))
    assert (
        to_hex(missed.get_facecolor()[0][:3]) == plots.style.RED
        and to_hex(inside.get_facecolor()[0][:3]) == plots.style.BLUE
    )
    dots = np.concatenate([inside.get_offsets(), missed.get_offsets()])
    np.testing.assert_allclose(np.sort(dots[:, 0]), np.sort(x.mean(0)))
    assert x.mean(0)[2] in missed.get_offsets()[:, 0]
    for seen, middle in dots:
        j = int(np.abs(x.mean(0) - seen).argmin())
        assert middle == pytest.approx(np.median(replicated[..., j].mean(1)), abs=0.02)
    assert f"Mean: {len(inside.get_offsets())} of 7 inside" in texts
    assert spread.get_title(loc="left").startswith("Standard deviation: ")


@pytest.mark.parametrize("retired", [False, True])
@pytest.mark.parametrize("checks", [1, 3, 40])
def test_objective_of_every_chain(checks, retired):
    h = np.column_stack([np.arange(checks), np.random.default_rng(0).normal(size=(checks, 4))])
    if retired:
        h[checks // 2 :, 2] = np.nan
    figure = plots.objective(h)
    texts, best, lost = drawn(figure), int(np.nanargmax(h[-1, 1:])), retired and checks > 1
    assert ("retired" in texts) == lost and f"best (chain {best})" in texts
    curves = [line for line in figure.axes[0].lines if line.get_marker() != "x"]
    for c, line in enumerate(curves):
        np.testing.assert_array_equal(line.get_ydata(), h[:, 1 + c])
        assert line.get_color() == (
            plots.style.RED if lost and c == 1 else plots.style.BLUE if c == best else plots.style.GREY
        )
    crosses = [line.get_xydata()[0].tolist() for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert crosses == ([h[checks // 2 - 1, [0, 2]].tolist()] if lost else [])


def test_objective_refuses_other_shapes():
    with pytest.raises(InputError, match="history"):
        plots.objective(np.zeros(5))


def test_recovery_sets_each_latent_beside_its_partner():
    z = np.random.default_rng(0).normal(size=(300, 3))
    figure = plots.recovery(z, -z[:, [2, 0, 1]])
    texts = drawn(figure)
    assert "r = −1.000" in texts and any("mean |r| = 1.000" in t for t in texts)
    for k, axes in enumerate(figure.axes):
        np.testing.assert_allclose(axes.collections[0].get_offsets(), np.stack([z[:, k], -z[:, k]], 1))
        assert (axes.get_xlabel(), axes.get_ylabel()) == (f"true {k}", f"latent {(1, 2, 0)[k]}")
    assert "no partner" in drawn(plots.recovery(z, z[:, :2]))


def test_calibration_shows_shares_and_counts_of_each_bin():
    p, t = np.array([0.1, 0.2, 0.2, 0.9, 0.7, 1.0]), np.array([0, 1, 0, 1, 1, 1])
    figure = plots.calibration(p, t, bins=2)
    assert {"3", "entries", "share that is true"} <= set(drawn(figure))
    top, bottom = figure.axes
    np.testing.assert_allclose(top.lines[1].get_xydata(), [[0.5 / 3, 1 / 3], [2.6 / 3, 1.0]])
    ends = [segment[:, 1] for segment in top.collections[0].get_segments()]
    np.testing.assert_allclose(ends, [beta.ppf([0.05, 0.95], 2, 3), beta.ppf([0.05, 0.95], 4, 1)])
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in bottom.patches]
    assert bars == [(0.0, 0.5, 3), (0.5, 0.5, 3)]
    assert drawn(plots.calibration([1.0], [1])).count("1") == 1  # one entry, in the last of ten bins
    for bad, wrong, argument in (
        ([1.5], [1], "probabilities"),
        ([0.5], [2], "truth"),
        ([0.5], [1, 0], "truth"),
    ):
        with pytest.raises(InputError, match=argument):
            plots.calibration(bad, wrong)
