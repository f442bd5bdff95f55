"""observed_dag: evidence of sets of parents under interventions, orders summed and sampled, classes, and recovery."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import pyro
import pytest
import torch
from scipy.stats import multivariate_t

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.claims.indeterminacy import cpdag, differing_pairs, graph_distance, interventional_cpdag
from pyrocrl.exact import all_subsets, goodness, interventions, orders, student_rows
from pyrocrl.exact import order_sampling as sampling
from pyrocrl.judge.equivalence import equivalence_class
from pyrocrl.judge.fit_tests import laws
from pyrocrl.lab.greedy import search
from pyrocrl.models.observed_dag import ObservedDAG

KINDS = ("perfect", "shift", "soft")


def table(d: int, seed: int, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of all sets of parents drawn at random, and the candidates: all other nodes."""
    scores = spread * torch.randn(d, 2 ** (d - 1), generator=torch.Generator().manual_seed(seed)).double()
    none = torch.zeros(1, d + 1, d + 1).double()
    return scores, sampling.likely_parents(none, torch.ones(1, d), torch.zeros(d).double(), d)


def keys_of(order: np.ndarray) -> np.ndarray:
    """Keys whose orders these are."""
    return (np.argsort(order, 1) + 0.5) / order.shape[1]


def started(data: Data, seed: int = 0, **options: object) -> ObservedDAG:
    program = ObservedDAG.from_data(data, **options).double()
    with torch.no_grad():
        program.initialise(data, torch.Generator().manual_seed(seed))
    return program


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_that_of_a_student_t_for_every_set_of_parents_and_targets(kind: str) -> None:
    rng, n = np.random.default_rng(0), 6
    z = rng.standard_normal((3, n, 4))
    moments = torch.stack([(m := torch.as_tensor(np.column_stack([np.ones(n), own]))).mT @ m for own in z])
    count = torch.full((3,), float(n)).double()
    candidates = sampling.likely_parents(moments, torch.ones(3, 4).double(), count, 3)
    own, k = interventions.families(moments, candidates), 1
    hit = torch.tensor([[0, 0, 1.0], [0, 1, 1]]).double()
    slab = torch.tensor(10.0).double()
    found = interventions.log_evidence(interventions.with_slab(own[k], slab), count, hit, kind)

    def law(envs: list[int], parents: list[int], shifted: list[int]) -> float:
        rows = np.concatenate([z[e] for e in envs]) if envs else np.zeros((0, 4))
        cov = np.eye(len(rows)) + interventions.OFFSET**2 + 100.0 * rows[:, parents] @ rows[:, parents].T
        for place, e in enumerate(envs):
            at = np.repeat(np.arange(len(envs)), n) == place
            cov += interventions.SHIFT**2 * np.outer(at, at) * (e in shifted)
        a, b = all_subsets.SHAPE, all_subsets.RATE
        return float(multivariate_t(np.zeros(len(rows)), b / a * cov, df=2 * a).logpdf(rows[:, k]))

    for g, s in itertools.product(range(2), range(8)):
        parents = [int(candidates[k, c]) for c in range(3) if s >> c & 1]
        touched = [e for e in range(3) if hit[g, e]]
        rest = [e for e in range(3) if not hit[g, e]]
        if kind == "shift":
            expected = law([0, 1, 2], parents, touched)
        else:
            expected = law(rest, parents, []) + sum(law([e], parents * (kind == "soft"), []) for e in touched)
        assert float(found[g, s]) == pytest.approx(expected, abs=1e-8)


def test_evidence_of_all_candidates_is_that_of_the_last_subset() -> None:
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0)).double()
    moments, count = (x.mT @ x)[None], torch.tensor([30.0]).double()
    every = all_subsets.log_evidence(moments, count)
    torch.testing.assert_close(all_subsets.log_evidence_of_all(moments, count), every[:, -1:])
    kept = torch.tensor([1.0, 0, 1, 0, 1, 1]).double()  # candidates 1 and 3
    some = all_subsets.log_evidence_of_all(moments * kept[:, None] * kept, count)
    torch.testing.assert_close(some, every[:, 0b1010][:, None])


def test_candidates_are_the_neighbours() -> None:
    data = simulate.draw("squires2020", 103, latents=30, samples=2000)
    program = started(data, intervention="shift", candidates=8, particles=4)
    candidates, graph = program.candidates.numpy(), data.truth["graph"] > 0
    assert candidates.shape == (30, 8) and all(k not in candidates[k] for k in range(30))
    found = sum(j in candidates[k] for j, k in zip(*np.nonzero(graph), strict=True))
    assert found >= graph.sum() - 1 and graph.sum() > 15


@pytest.mark.parametrize("d", [3, 5])
def test_sampled_orders_give_the_graphs_that_enumeration_gives(d: int) -> None:
    """Total variation over all graphs, each given the sampled orders, and the sum over all orders."""
    scores, candidates = table(d, seed=d)
    sampler = sampling.OrderSampler(scores, candidates)
    run = sampler.run(8_000, np.random.default_rng(0))
    exact = float(orders.log_partition(sampling.over_nodes(scores, candidates)))
    assert run.log_total == pytest.approx(exact, abs=0.1)
    every = np.array(list(itertools.permutations(range(d))))
    values = sampler.values(keys_of(every))
    assert np.logaddexp.reduce(values) == pytest.approx(exact, abs=1e-9)
    code = every @ d ** np.arange(d)
    share = np.array([(run.key.argsort(1) @ d ** np.arange(d) == c).mean() for c in code])
    graphs = np.stack([*orders.all_dags(d)])
    place = np.argsort(every, 1)
    backwards = place[:, :, None] > place[:, None, :]  # (order, parent, child)
    fits = np.einsum("gpk,opk->go", graphs.astype(float), backwards.astype(float)) == 0
    sets = (graphs[:, candidates.numpy(), np.arange(d)[:, None]] * 2 ** np.arange(d - 1)).sum(-1)  # (graph, child)
    score = scores.numpy()[np.arange(d), sets].sum(1)
    true = fits.sum(1) * np.exp(score - exact)
    found = np.exp(score) * (fits @ (share * np.exp(-values)))
    assert true.sum() == pytest.approx(1.0) and found.sum() == pytest.approx(1.0)
    assert 0.5 * np.abs(true - found).sum() <= 0.02


def test_moving_a_node_leaves_the_law_of_orders_as_it_is() -> None:
    scores, candidates = table(4, seed=1)
    sampler, rng = sampling.OrderSampler(scores, candidates), np.random.default_rng(1)
    every = np.array(list(itertools.permutations(range(4))))
    weight = np.exp(0.7 * (values := sampler.values(keys_of(every))) - (0.7 * values).max())
    start = every[rng.choice(len(every), 60_000, p=weight / weight.sum())]
    key = np.take_along_axis(np.sort(rng.random(start.shape), 1), np.argsort(start, 1), 1)
    before = key.copy()
    sampler.move(key, 2, 0.7, rng)
    assert (key[:, [0, 1, 3]] == before[:, [0, 1, 3]]).all() and (key > 0).all() and (key < 1).all()
    moved = key.argsort(1)
    assert (moved != start).any()
    np.testing.assert_allclose(np.sort(key, 1).mean(0), [0.2, 0.4, 0.6, 0.8], atol=0.004)  # uniform, whatever the order
    code = 4 ** np.arange(4)
    share = np.array([(moved @ code == c).mean() for c in every @ code])
    np.testing.assert_allclose(share, weight / weight.sum(), atol=0.006)


def test_graph_of_an_order_is_drawn_as_often_as_its_density_says() -> None:
    scores, candidates = table(3, seed=4, spread=1.0)
    law = sampling.Graph(scores, torch.tensor([2, 0, 1]), candidates)
    torch.manual_seed(0)
    draws = [law.sample() for _ in range(4_000)]
    total = 0.0
    for graph in orders.all_dags(3):
        value = torch.as_tensor(graph).double()
        density = float(law.log_prob(value).exp())
        total += density
        assert np.mean([torch.equal(value, draw) for draw in draws]) == pytest.approx(density, abs=0.03)
    assert total == pytest.approx(1.0)


def log_prob_of(method: Callable, batch: pyrocrl.Batch, values: dict, **kept: torch.Tensor) -> float:
    trace = pyro.poutine.trace(pyro.poutine.condition(method, data=values)).get_trace(batch, **kept)
    return float(trace.log_prob_sum())


@pytest.mark.parametrize(
    ("kind", "told", "way", "noise"),
    [
        *itertools.product(KINDS, [True, False], ["summed", "sampled"], ["gaussian"]),
        *zip(KINDS, [True, False, False], ["summed", "sampled", "summed"], ["student"] * 3, strict=True),
    ],
)
def test_story_less_recover_is_model(kind: str, told: bool, way: str, noise: str) -> None:
    """For every graph, targets, slab, noise and weights, not only those that are probable."""
    data = simulate.draw("squires2020", 1, samples=30, latents=4, settings=2, told=told, noise="rows")
    program = started(data, intervention=kind, orders=way, particles=8, noise=noise)
    batch = data.tensors(dtype=torch.float64, moments=True)
    with torch.no_grad():
        kept = {"edge": torch.tensor(-0.4).double()}
        if way == "sampled":
            kept["order"] = torch.tensor([3, 1, 0, 2])
        lost = program.recovered(batch, kept)
        graph = torch.zeros(4, 4).double()
        graph[3, 1] = graph[1, 2] = graph[3, 2] = 1.0
        moved = {"graph": graph, "slab": (lost["slab"] + 1) % 3, "precision": 1.3 * lost["precision"]}
        moved |= {"w": lost["w"] + 0.1, "order": torch.tensor([3, 1, 0, 2])}
        if not told:
            moved["targets"] = (1 - lost["targets"]) * program.free[:, None]
        moved = {name: value for name, value in moved.items() if name in lost}
        model = log_prob_of(program.model, batch, kept)
        for each in (lost, *({**lost, name: moved[name]} for name in ("precision", "w", "slab")), {**lost, **moved}):
            story = log_prob_of(program.story, batch, {**kept, **each})
            recover = log_prob_of(program.recover, batch, each, **kept)
            assert math.isfinite(story)
            assert story - recover == pytest.approx(model, abs=1e-7)
        rows = program.row_log_likelihood(batch, {**kept, **lost})
        trace = pyro.poutine.trace(pyro.poutine.condition(program.story, data={**kept, **lost})).get_trace(batch)
        trace.compute_log_prob()
        each = torch.stack([site["unscaled_log_prob"] for name, site in trace.nodes.items() if name.startswith("z_")])
        if noise == "student":  # p(x) = p(x | scale) p(scale) / p(scale | x)
            scale, half = lost["scale"], lost["freedom"] / 2
            volume = trace.nodes["noise"]["value"][batch.env].log().sum(1) + 2 * (2 * math.pi / scale).log()
            square = -2 * (each.sum(0) + volume) / scale
            law = torch.distributions.Gamma(half + 2.0, half + square / 2)
            each = torch.cat([each, trace.nodes["scale"]["unscaled_log_prob"][None], -law.log_prob(scale)[None]])
        torch.testing.assert_close(rows, each.sum(0))


def test_scales_of_rows_are_found_and_given_them_rows_are_normal() -> None:
    """Moments of the law of rows: degrees of freedom, centres and scatter, whatever the columns' units."""
    rng = np.random.default_rng(0)
    scale, env = rng.chisquare(3, 4_000) / 3, np.repeat([0, 1], 2_000)
    mixing = rng.standard_normal((5, 5))
    z = rng.standard_normal((4_000, 5)) / np.sqrt(scale)[:, None] @ mixing.T + 3.0 * env[:, None]
    told = torch.as_tensor(z), torch.as_tensor(env)
    law = student_rows.fitted(*told, 2, alike=True)
    assert float(law.freedom) == pytest.approx(3.0, abs=0.3)
    np.testing.assert_allclose(law.centre, np.repeat([[0.0], [3.0]], 5, 1), atol=0.25)
    scatter = (law.root @ law.root.mT)[0].numpy()
    np.testing.assert_allclose(scatter, mixing @ mixing.T, atol=0.06 * np.abs(scatter).max())
    found = law.scales(*told).numpy()
    assert found.mean() == pytest.approx(1.0, abs=0.01) and np.corrcoef(np.log(found), np.log(scale))[0, 1] > 0.8
    unit, origin = torch.tensor([1.0, 10, 0.1, 2, 5]).double(), torch.arange(5.0).double()
    moved = student_rows.fitted((told[0] - origin) / unit, told[1], 2, alike=True)
    np.testing.assert_allclose(moved.root, law.moved(origin, unit).root, rtol=1e-4)
    np.testing.assert_allclose(law.moved(origin, unit).scales((told[0] - origin) / unit, told[1]), found, rtol=1e-9)
    normal = student_rows.fitted(torch.as_tensor(rng.standard_normal((4_000, 5))), told[1], 2, alike=False)
    assert float(normal.freedom) > 60


@cache
def heavy(noise: str, rows: str = "rows") -> tuple[Fit, Data]:
    data = simulate.draw("squires2020", 112, samples=300, latents=5, settings=3, noise=rows)
    program = ObservedDAG.from_data(data, intervention="shift", noise=noise)
    return pyrocrl.fit(program, data, chains=2, epochs=8, seed=0, progress=False), data


def test_tails_that_columns_share_are_no_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of heavy rows Gaussian noise asks for edges that are none, is contradicted, and the advice is the option."""
    class_of = {}
    for noise in ("gaussian", "student"):
        fit, data = heavy(noise)
        arcs = equivalence_class(fit, draws=20)["arc"].to_numpy() > 0.5
        wanted = interventional_cpdag(data.truth["graph"], data.target_matrix(5))
        class_of[noise] = differing_pairs(arcs, wanted)
        verdict = pyrocrl.diagnose(fit, data)["graph"]
        assert (verdict.verdict == "contradicted") == (noise == "gaussian")
        assert ('noise="student"' in verdict.reason) == (noise == "gaussian")
        assert any("Student's law" in one.assumption for one in verdict.evidence) == (noise == "student")
    assert class_of["student"] == 0 < class_of["gaussian"]
    assert 2 < float(next(iter(fit.programs())).freedom) < 5 and fit.program.config["noise"] == "student"
    tree = fit.posterior(draws=2, predictive=False, thin=30)
    assert tree["posterior"]["scale"].dims == ("chain", "draw", "data")
    assert 0.6 < fit.program.row_worth() < 0.9  # of five columns, see below
    found = pyrocrl.next_interventions(fit, {"feature_0": 1.0}, acquisition="lookahead", rows=100, draws=10)
    monkeypatch.setattr(ObservedDAG, "row_worth", lambda self: 1.0)
    normal = pyrocrl.next_interventions(fit, {"feature_0": 1.0}, acquisition="lookahead", rows=100, draws=10)
    assert (found["left"] > normal["left"]).all() and found.attrs["rows"] == 100


def test_rows_of_students_law_tell_what_they_are_worth() -> None:
    """The variance of a slope's estimate over tables, beside that of normal rows of the same scale."""
    slopes = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        z = rng.standard_normal((200, 2)) / np.sqrt(rng.chisquare(3.0, (200, 1)) / 3.0)
        law = student_rows.fitted(torch.as_tensor(z), torch.zeros(200, dtype=torch.long), 1, alike=True)
        scatter = law.root[0] @ law.root[0].mT
        slopes.append(float(scatter[0, 1] / scatter[0, 0]))
    worth = float(student_rows.worth(torch.tensor(3.0), 2))
    assert worth == pytest.approx(5 / 7) and 200 * np.var(slopes) == pytest.approx(1 / worth, rel=0.25)


def test_gaussian_rows_have_as_many_edges_with_either_noise() -> None:
    fits = {noise: heavy(noise, "gaussian")[0] for noise in ("gaussian", "student")}
    np.testing.assert_allclose(fits["student"].graph(), fits["gaussian"].graph(), atol=0.1)
    assert float(fits["student"].scores.max()) == pytest.approx(float(fits["gaussian"].scores.max()), abs=0.02)
    assert pyrocrl.diagnose(fits["student"])["graph"].verdict != "contradicted"


@pytest.mark.parametrize("freedom", [3.0, math.inf])
def test_rows_of_the_law_that_is_fitted_are_seldom_refused(freedom: float) -> None:
    """The p-value of rows brought from Student's law to a normal one."""
    p = []
    for seed in range(100, 130):
        rng = np.random.default_rng(seed)
        scale = rng.chisquare(freedom, (400, 1)) / freedom if freedom < math.inf else 1.0
        z = torch.as_tensor(rng.standard_normal((400, 4)) / np.sqrt(scale))
        law = student_rows.fitted(z, env := torch.arange(400) % 2, 2, alike=False)
        away, square = law.apart(z, env)
        p.append(goodness.mardia(laws.to_normal(away.numpy(), square.numpy(), float(law.freedom)), env.numpy()).p)
    assert min(p) > 0.001 and np.mean(np.array(p) < 0.05) <= 0.1


def test_summed_and_sampled_orders_agree() -> None:
    data = simulate.draw("squires2020", 102, samples=60, latents=7, settings=3, told=False)
    summed, sampled = (started(data, intervention="shift", orders=way) for way in ("summed", "sampled"))
    with torch.no_grad():
        summed.loc.copy_(sampled.loc)
        np.testing.assert_allclose(summed.graph(), sampled.graph(), atol=0.08)
        np.testing.assert_allclose(summed.targets_matrix(), sampled.targets_matrix(), atol=0.08)
        assert float(summed.graph().sum()) > 2


@cache
def fitted(kind: str, told: bool, way: str = "auto", latents: int = 6) -> tuple[Fit, Data]:
    data = simulate.draw("squires2020", 104, samples=800, latents=latents, settings=3, intervention=kind, told=told)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = ObservedDAG.from_data(data, intervention=kind, orders=way)
        return pyrocrl.fit(program, data, chains=2, epochs=40, seed=0, progress=False), data


@pytest.mark.parametrize(("kind", "told", "way"), [("shift", False, "auto"), ("perfect", True, "sampled")])
def test_class_and_targets_are_found(kind: str, told: bool, way: str) -> None:
    fit, data = fitted(kind, told, way)
    hit = np.zeros((4, 6))
    for env, nodes in data.truth["targets"].items():
        hit[fit.names["env"].index(env), list(nodes)] = 1
    wanted = interventional_cpdag(data.truth["graph"], hit)
    found = equivalence_class(fit, draws=20)
    assert differing_pairs(found["arc"].to_numpy() > 0.5, wanted) == 0 < wanted.sum()
    assert (found["directed"] <= found["arc"] + 1e-12).all()
    undirected = wanted & wanted.T
    if undirected.any():
        assert found["splits"].to_numpy()[undirected.any(0)].max() >= 0.5
    np.testing.assert_array_equal(fit.targets() > 0.5, hit > 0)
    verdict = pyrocrl.diagnose(fit, data)
    assert all(claim.identified or claim.verdict == "identified, undecided at this n" for claim in verdict.claims)
    assert told or verdict["targets"].identified
    weight = fit.posterior(draws=30, predictive=False, thin=100)["posterior"]["weight"].mean(("chain", "draw"))
    sure = (wanted & ~wanted.T) & (data.truth["graph"] > 0)
    np.testing.assert_allclose(weight.to_numpy()[sure], data.truth["weight"][sure], atol=0.12)


def test_more_variables_than_orders_are_summed_over() -> None:
    data = simulate.draw("squires2020", 105, samples=400, latents=16, settings=4)
    program = ObservedDAG.from_data(data, intervention="shift", candidates=8, particles=64)
    fit = pyrocrl.fit(program, data, chains=2, epochs=20, seed=0, progress=False)
    graph, true = fit.graph(), data.truth["graph"] > 0
    assert graph is not None and ((graph + graph.T > 0.5) != (true | true.T)).sum() <= 4
    again = fit.posterior(draws=3, predictive=False, thin=200)["posterior"]
    assert again["graph"].shape == (2, 3, 16, 16)


def test_too_few_rows_identify_no_graph() -> None:
    data = simulate.draw("squires2020", 106, samples=8, latents=6, settings=2)
    fit = pyrocrl.fit(ObservedDAG.from_data(data), data, chains=2, epochs=20, seed=0, progress=False)
    verdict = pyrocrl.diagnose(fit, data)["graph"]
    assert verdict.verdict != "identified" and verdict.numbers["overlap_least"] < 0.8


def test_environments_that_act_together_add_shifts_and_replace_equations() -> None:
    graph, hit = torch.tensor([[0, 1.0], [0, 0]]), torch.tensor([[0, 0], [0, 1.0], [1, 1]])
    candidates, acting = torch.tensor([[1], [0]]), torch.tensor([[0.0, 1, 1], [0, 0, 0]])
    w = torch.tensor([[[1.0, 9, 0.0, 0.0, 4], [2, 3, 0, 5, 7]]])
    offset, weight, _ = interventions.equations(graph, hit, w, torch.ones(1, 2), acting, candidates, "shift")
    assert offset.tolist() == [[5, 14], [1, 2]]
    assert weight.tolist() == [[[0, 3], [0, 0]]] * 2
    w = torch.arange(16.0).reshape(4, 2, 2)  # mechanism, node, (1, the other)
    for kind, of_last in (("perfect", 0.0), ("soft", 15.0)):
        offset, weight, _ = interventions.equations(graph, hit, w, torch.ones(4, 2), acting, candidates, kind)
        assert offset.tolist() == [[12, 14], [0, 2]]
        assert weight[:, 0, 1].tolist() == [of_last, 3.0] and (weight[:, 1, 0] == 0).all()


def test_interventional_class_of_a_chain() -> None:
    chain = np.eye(4, k=1, dtype=bool)
    np.testing.assert_array_equal(interventional_cpdag(chain, np.zeros((1, 4))), cpdag(chain))
    second = interventional_cpdag(chain, np.eye(4)[[1]])
    assert second[0, 1] and not second[1, 0] and second[1, 2] and not second[2, 1]
    assert second[2, 3] and not second[3, 2]  # else 3 -> 2 <- 1 were a v-structure
    first = interventional_cpdag(chain, np.eye(4)[[0]])
    assert (first == chain).all()
    last = interventional_cpdag(chain, np.eye(4)[[3]])
    assert last[2, 3] and not last[3, 2] and last[1, 0] and last[0, 1]
    both = interventional_cpdag(np.eye(2, k=1), np.ones((1, 2)))
    assert both[0, 1] and both[1, 0]  # nothing tells nodes apart that are targets together
    assert graph_distance(chain, chain.T, "markov equivalence") == 0


def test_greedy_search_finds_a_graph_of_many_rows() -> None:
    data = simulate.draw("squires2020", 107, samples=5_000, latents=6, settings=3, intervention="perfect")
    true = interventional_cpdag(data.truth["graph"], data.target_matrix(6))
    assert differing_pairs(interventional_cpdag(search(data), data.target_matrix(6)), true) <= 1 < true.sum()


def test_settings_are_as_they_say() -> None:
    data = simulate.draw("squires2020", 3, samples=40_000, latents=4, settings=2, neighbours=3.0)
    weight = data.truth["weight"]
    own = data.x[data.env == 0]
    for k in range(4):
        parents = np.flatnonzero(weight[:, k])
        left = own[:, k] - own[:, parents] @ weight[parents, k]
        assert left.mean() == pytest.approx(0.0, abs=0.03) and left.std() == pytest.approx(1.0, abs=0.02)
    for e, hit in enumerate(data.target_matrix(4)):
        rows = data.x[data.env == e]
        np.testing.assert_allclose((rows - rows @ weight).mean(0), 2.0 * hit, atol=0.04)
    free = simulate.draw("hagele2023", 3)
    assert free.targets is None and free.control == "observational" and len(free.env_names) == 11
    assert free.truth["graph"].sum() == 37 and free.rows == 400
    left = {}
    for noise in ("gaussian", "student", "rows"):
        heavy = simulate.draw("squires2020", 3, samples=20_000, latents=4, settings=1, noise=noise)
        own = (heavy.x - heavy.x @ heavy.truth["weight"])[heavy.env == 0]
        left[noise] = own
        assert np.median(np.abs(own)) == pytest.approx(0.6745 if noise == "gaussian" else 0.4416, abs=0.01)
    rank = {noise: np.corrcoef(np.abs(own).argsort(0).argsort(0).T)[0, 1] for noise, own in left.items()}
    assert rank["rows"] > 0.15 > 0.03 > max(abs(rank["student"]), abs(rank["gaussian"]))
    far = simulate.draw("squires2020", 3, samples=20_000, latents=4, settings=1, outlying=0.1)
    own = np.abs(far.x - far.x @ far.truth["weight"])[far.env == 0]
    assert (own.min(1) > 2.0).mean() == pytest.approx(0.1 * 0.8415**4, abs=0.01)
    assert simulate.draw("hagele2023", 3, graph="erdos_renyi").truth["graph"].sum() > 20


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"latents": 3}, "latents"),
        ({"features": 14, "latents": 14, "orders": "summed"}, "orders"),
        ({"intervention": "variance"}, "intervention"),
        ({"targets": "relabelled"}, "targets"),
        ({"noise": "cauchy"}, "noise"),
        ({"target_matrix": [[0, 0, 0, 2], [0, 0, 0, 0]]}, "target_matrix"),
        ({"target_matrix": [[0, 0, 0]]}, "target_matrix"),
        ({"target_probability": 1.0}, "target_probability"),
        ({"candidates": 30}, "candidates"),
    ],
)
def test_bad_options_are_refused(options: dict, word: str) -> None:
    with pytest.raises(InputError, match=word):
        ObservedDAG(**{"features": 4, "latents": 4, "environments": 2} | options)


def test_bad_data_are_refused() -> None:
    x = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(InputError, match="targets"):
        ObservedDAG.from_data(Data(x, ["a"] * 10 + ["b"] * 10, {"b": (3,)}))
    with pytest.raises(InputError, match="settings"):
        simulate.draw("squires2020", 0, settings=0)
    with pytest.raises(InputError, match="latents"):
        simulate.draw("hagele2023", 0, latents=2)
    program, data = pyrocrl.build("vae", Data(x), latents=2), Data(x)
    fit = pyrocrl.fit(program, data, chains=1, epochs=1, progress=False)
    with pytest.raises(InputError, match="a model of a graph"):
        equivalence_class(fit)


def test_observational_rows_alone_are_enough_for_a_class() -> None:
    data = simulate.draw("squires2020", 108, samples=600, latents=5, settings=1)
    rows = data.x[data.env == 0]
    fit = pyrocrl.fit(ObservedDAG.from_data(Data(rows)), Data(rows), chains=2, epochs=20, seed=0, progress=False)
    found = equivalence_class(fit, draws=20)["arc"].to_numpy() > 0.5
    assert differing_pairs(found, cpdag(data.truth["graph"])) <= 1
