"""Metrics against their definitions by brute force, scikit-learn and networkx."""

import math
import warnings
from itertools import combinations, permutations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.linear_model import LinearRegression
from sklearn.metrics import f1_score, precision_score, r2_score, recall_score, roc_auc_score

from pyrocrl.claims.indeterminacy import topological_order
from pyrocrl.errors import InputError
from pyrocrl.judge import metrics

SEEDS = st.integers(0, 2**31)
LAWS = settings(max_examples=40, deadline=None)


def random_graph(rng, nodes, density=0.5):
    return (rng.random((nodes, nodes)) < density) & ~np.eye(nodes, dtype=bool)


def random_dag(rng, nodes, density=0.5):
    order = rng.permutation(nodes)
    return np.triu(rng.random((nodes, nodes)) < density, 1)[np.ix_(order, order)]


# Latents


@given(SEEDS, st.integers(1, 4), st.integers(1, 4), st.sampled_from(["pearson", "spearman"]))
@LAWS
def test_mcc_is_the_best_of_all_assignments(seed, true, est, method):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(30, true))
    z_est = z @ rng.normal(size=(true, est)) + rng.normal(size=(30, est))
    r = np.array(
        [[spearmanr(a, b)[0] if method == "spearman" else np.corrcoef(a, b)[0, 1] for b in z_est.T] for a in z.T]
    )
    r = np.abs(r)
    if true <= est:
        best = max(sum(r[k, p[k]] for k in range(true)) for p in permutations(range(est), true))
    else:
        best = max(sum(r[p[k], k] for k in range(est)) for p in permutations(range(true), est))
    score, assignment = metrics.mcc(z, z_est, method, return_assignment=True)
    assert score == pytest.approx(best / true) and score <= 1.0
    assert score == metrics.mcc(z, z_est, method)
    matched = assignment >= 0
    assert matched.sum() == min(true, est)
    assert r[np.flatnonzero(matched), assignment[matched]].sum() == pytest.approx(best)


@given(SEEDS)
@LAWS
def test_mcc_ignores_what_it_should(seed):
    rng = np.random.default_rng(seed)
    z, order = rng.normal(size=(50, 4)), rng.permutation(4)
    moved = (z * rng.uniform(0.1, 9, 4) * rng.choice([-1, 1], 4) + rng.normal(size=4))[:, order]
    score, assignment = metrics.mcc(z, moved, return_assignment=True)
    assert score == pytest.approx(1.0) and score <= 1.0
    np.testing.assert_array_equal(order[assignment], np.arange(4))
    assert metrics.mcc(z, np.column_stack([rng.normal(size=(50, 2)), moved])) == pytest.approx(1.0)
    assert metrics.mcc(z, np.exp(z), "spearman") == pytest.approx(1.0)
    assert metrics.mcc(z, np.exp(z)) < 0.99


def test_constant_columns_count_nothing_and_warn_of_nothing():
    z = np.random.default_rng(0).normal(size=(40, 2))
    collapsed = np.column_stack([z[:, 0], np.full(40, 3.3)])
    assert metrics.mcc(z, collapsed) == pytest.approx(0.5)
    assert metrics.mcc(z, np.zeros((40, 2))) == 0.0
    assert metrics.r2(collapsed, z) == pytest.approx(0.5)
    assert metrics.dci(z, np.zeros((40, 2)))["disentanglement"] == 0.0
    assert metrics.dci(collapsed, z, "lasso")["informativeness"] == pytest.approx(0.5, abs=0.01)


def test_mcc_of_float32_never_exceeds_one():
    z = np.random.default_rng(1).normal(1e3, 1e-2, size=(1000, 3)).astype(np.float32)
    assert 1.0 - 1e-12 < metrics.mcc(z, z) <= 1.0


def test_r2_against_scikit_learn():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 5))
    z = x[:, :2] @ rng.normal(size=(2, 2)) + 0.5 * rng.normal(size=(200, 2))
    fitted = LinearRegression().fit(x, z)
    assert metrics.r2(z, x, held_out=0) == pytest.approx(r2_score(z, fitted.predict(x)))
    held_out = metrics.linear_r2(x, z)
    assert held_out == metrics.r2(z, x) and 0.5 < held_out < 1.0
    assert metrics.r2(z, z @ rng.normal(size=(2, 2)) + 7) == pytest.approx(1.0)
    assert metrics.r2(rng.normal(size=(40, 1)), rng.normal(size=(40, 15))) < 0.2  # nothing to be had out of sample
    assert metrics.r2(z[:, :1], x) <= 1.0


@pytest.mark.parametrize("importance", ["boosting", "lasso"])
def test_dci_tells_aligned_from_mixed_latents(importance):
    rng = np.random.default_rng(3)
    z = rng.normal(size=(300, 3))
    mixed = metrics.dci(z, z @ np.linalg.qr(rng.normal(size=(3, 3)))[0], importance)
    aligned = metrics.dci(z, np.column_stack([-2 * z[:, [2, 0, 1]], 1e-9 * rng.normal(size=300)]), importance)
    assert aligned["disentanglement"] > 0.95 and aligned["completeness"] > 0.95
    assert aligned["informativeness"] > 0.9
    assert mixed["disentanglement"] < 0.6 and mixed["completeness"] < 0.6


def test_dci_is_that_of_its_definition():
    weights = np.array([[3.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    np.testing.assert_allclose(metrics._purity(weights), [1 - entropy, 1.0, 0.0])
    np.testing.assert_allclose(metrics._purity(np.ones((2, 4))), 0.0, atol=1e-12)


def test_baselines_know_a_linear_mixture():
    rng = np.random.default_rng(4)
    z = rng.laplace(size=(2000, 3))
    x = z @ rng.normal(size=(3, 8)) + 0.01 * rng.normal(size=(2000, 8))
    rows = metrics.baselines(x, z, 3)
    assert set(rows) == {"pca", "ica", "raw"}
    assert rows["ica"]["mcc"] > 0.99 > rows["pca"]["mcc"]
    assert all(row["r2"] > 0.99 and 0 <= row["mcc_spearman"] <= 1 for row in rows.values())
    assert rows == metrics.baselines(x, z, 3)


def test_baselines_survive_degenerate_features():
    rng = np.random.default_rng(5)
    z = rng.normal(size=(60, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low_rank = metrics.baselines(np.column_stack([z[:, :1], 2 * z[:, :1], np.ones(60)]), z, 3)
        nothing = metrics.baselines(np.ones((60, 4)), z, 2)
        gaussian = metrics.baselines(rng.normal(size=(60, 6)), z, 5)
    assert low_rank["pca"]["mcc"] > 0.3 and nothing["pca"]["mcc"] == nothing["ica"]["mcc"] == 0.0
    assert set(gaussian) == {"pca", "ica", "raw"}


# Masks


@given(SEEDS, st.integers(1, 3), st.integers(1, 4))
@LAWS
def test_mask_scores_are_the_best_of_all_column_orders(seed, true, est):
    rng = np.random.default_rng(seed)
    mask, pip = rng.random((6, true)) < 0.4, rng.random((6, est))
    scores = metrics.mask_scores(mask, pip)
    size = max(true, est)
    wide, found = np.zeros((6, size), bool), np.zeros((6, size), bool)
    wide[:, :true], found[:, :est] = mask, pip > 0.5
    orders = [found[:, list(p)] for p in permutations(range(size))]
    assert scores["hamming"] == min((wide != order).sum() for order in orders)
    best = max(orders, key=lambda order: (wide & order).sum()).ravel()
    if wide.any() and best.any():
        assert scores["f1"] == pytest.approx(f1_score(wide.ravel(), best))
        assert scores["precision"] == pytest.approx(precision_score(wide.ravel(), best))
        assert scores["recall"] == pytest.approx(recall_score(wide.ravel(), best))
    assert scores["hamming_empty"] == mask.sum()


def test_a_mask_matched_by_a_given_order():
    mask = np.array([[1, 0], [1, 0], [0, 1], [1, 1]])
    pip = np.column_stack([np.full(4, 0.3), mask[:, 1], mask[:, 0]])
    perfect = metrics.mask_scores(mask, pip, permutation=[2, 1])
    assert perfect == metrics.mask_scores(mask, pip)
    assert perfect["f1"] == 1.0 and perfect["hamming"] == 0.0 and perfect["surplus_pip"] == 0.3
    wrong = metrics.mask_scores(mask, pip, permutation=[1, 2])
    assert wrong["recall"] == pytest.approx(2 / 5) and wrong["hamming"] == 6
    lost = metrics.mask_scores(mask, pip[:, :2], permutation=[-1, 1])
    assert lost["precision"] == 1.0 and lost["recall"] == pytest.approx(2 / 5)
    empty = metrics.mask_scores(mask, np.zeros((4, 2)))
    assert (empty["f1"], empty["precision"], empty["hamming"]) == (0.0, 1.0, empty["hamming_empty"])


# Graphs


@given(SEEDS, st.integers(1, 6))
@LAWS
def test_shd_and_skeleton_by_their_definition(seed, nodes):
    rng = np.random.default_rng(seed)
    a, b, order = random_graph(rng, nodes), random_graph(rng, nodes), rng.permutation(nodes)
    pairs = list(combinations(range(nodes), 2))
    assert metrics.shd(a, b) == sum((a[i, j], a[j, i]) != (b[i, j], b[j, i]) for i, j in pairs)
    assert metrics.skeleton_errors(a, b) == sum((a[i, j] | a[j, i]) != (b[i, j] | b[j, i]) for i, j in pairs)
    for metric in (metrics.shd, metrics.skeleton_errors, metrics.closure_errors):
        assert metric(a, a) == 0 and metric(a, b) == metric(b, a)
        assert metric(a[np.ix_(order, order)], b[np.ix_(order, order)]) == metric(a, b)
    assert metrics.skeleton_errors(a, b) <= metrics.shd(a, b)


@given(SEEDS, st.integers(1, 6))
@LAWS
def test_closure_and_order_errors_against_networkx(seed, nodes):
    rng = np.random.default_rng(seed)
    a, b = random_dag(rng, nodes), random_dag(rng, nodes)
    ancestors = [{(i, j) for j in range(nodes) for i in nx.ancestors(nx.DiGraph(g), j)} for g in (a, b)]
    assert metrics.closure_errors(a, b) == len(ancestors[0] ^ ancestors[1])
    order = topological_order(a)
    assert metrics.order_errors(a, order) == 0 and metrics.order_right(a, order)
    assert metrics.order_errors(a, order[::-1]) == a.sum()
    assert metrics.order_right(a, order[::-1]) == (not a.any())
    place = {node: k for k, node in enumerate(topological_order(b))}
    assert metrics.order_errors(a, topological_order(b)) == sum(place[i] > place[j] for i, j in np.argwhere(a))
    assert metrics.order_right(a, metrics.likely_order(a.astype(float) * 0.9))


@given(SEEDS, st.integers(1, 5))
@LAWS
def test_the_chance_of_a_random_order(seed, nodes):
    graph = random_graph(np.random.default_rng(seed), nodes, 0.3)
    fits = [metrics.order_right(graph, order) for order in permutations(range(nodes))]
    assert metrics.random_order_right(graph) == pytest.approx(np.mean(fits))
    errors = [metrics.order_errors(graph, order) for order in permutations(range(nodes))]
    assert np.mean(errors) == pytest.approx(graph.sum() / 2)


def test_a_reversal_counts_once():
    chain = np.eye(4, k=1, dtype=int)
    reversed_first = chain.copy()
    reversed_first[0, 1], reversed_first[1, 0] = 0, 1
    assert metrics.shd(chain, reversed_first) == 1
    assert metrics.skeleton_errors(chain, reversed_first) == 0
    assert metrics.shd(chain, chain.T) == 3


def test_graph_scores_stand_beside_the_empty_and_the_full_graph():
    rng = np.random.default_rng(6)
    graph = random_dag(rng, 5, 0.7)
    edges, closure = graph.sum(), nx.transitive_closure(nx.DiGraph(graph)).number_of_edges()
    scores = metrics.graph_scores(graph, 0.8 * graph)
    assert (scores["shd"], scores["skeleton_errors"], scores["closure_errors"]) == (0, 0, 0)
    assert (scores["order_errors"], scores["order_right"], scores["auroc"]) == (0, 1, 1)
    assert scores["ece"] == pytest.approx(0.2 * edges / 20)
    assert scores["shd_empty"] == scores["skeleton_errors_empty"] == edges
    assert scores["closure_errors_empty"] == closure
    assert (scores["shd_full"], scores["skeleton_errors_full"]) == (10, 10 - edges)
    assert scores["closure_errors_full"] == 20 - closure
    assert scores["order_errors_empty"] == scores["order_errors_full"] == edges / 2
    assert 0 < scores["order_right_empty"] < 1 and scores["auroc_empty"] == 0.5
    assert scores["ece_empty"] == pytest.approx(edges / 20) and scores["ece_full"] == pytest.approx(1 - edges / 20)
    stems = {key for key in scores if not key.endswith(("_empty", "_full"))}
    assert set(scores) == {stem + end for stem in stems for end in ("", "_empty", "_full")}
    assert all(isinstance(value, float) for value in scores.values())
    empty = metrics.graph_scores(graph, np.zeros((5, 5)))
    for stem in ("shd", "skeleton_errors", "closure_errors", "auroc", "ece"):
        assert empty[stem] == scores[stem + "_empty"]
    backwards = metrics.graph_scores(graph, 0.8 * graph, order=topological_order(graph)[::-1])
    assert backwards["order_errors"] == edges


def test_closure_shd_forgives_edges_that_the_paths_imply():
    rng = np.random.default_rng(8)
    for _ in range(20):
        a, b = random_dag(rng, 5, 0.5), random_dag(rng, 5, 0.5)
        closures = [nx.to_numpy_array(nx.transitive_closure(nx.DiGraph(g))).astype(bool) for g in (a, b)]
        assert metrics.closure_shd(a, b) == metrics.shd(*closures)
    chain = np.diag([True, True], 1)
    shortcut = chain.copy()
    shortcut[0, 2] = True
    assert metrics.closure_shd(chain, shortcut) == 0 and metrics.shd(chain, shortcut) == 1
    assert metrics.closure_shd(chain, chain.T) == 3
    cycle = chain.copy()
    cycle[2, 0] = True
    assert metrics.closure_shd(chain, cycle) == 3  # every pair is joined both ways


def test_edge_tables_pool_into_one_calibration():
    rng = np.random.default_rng(9)
    tables, hits = [], []
    for _ in range(30):
        p = rng.random((4, 4)) * (1 - np.eye(4))
        graph = np.triu(np.ones((4, 4), dtype=bool), 1)
        table = metrics.edge_table(graph, p)
        assert len(table) == 12 and all(len(row) == 2 for row in table)
        assert sum(hit for _, hit in table) == 6
        tables += table
        hits.append(metrics.graph_scores(graph, p)["ece"])
    prob, hit = np.array(tables).T
    pooled = metrics.expected_calibration_error(hit, prob)
    assert pooled == pytest.approx(0.25, abs=0.05)  # half of the pairs at any probability: mean of |1/2 - p|
    assert pooled < np.mean(hits)  # bins of few entries look worse than they are
    with pytest.raises(InputError, match="probs"):
        metrics.edge_table(graph, np.zeros((3, 3)))


def test_graphs_with_nothing_to_tell():
    single = metrics.graph_scores([[0]], [[0.0]])
    assert single["shd"] == 0 and single["order_right"] == 1 and math.isnan(single["auroc"])
    assert math.isnan(metrics.edge_auroc(np.zeros((3, 3)), np.zeros((3, 3))))
    assert math.isnan(metrics.random_order_right(np.zeros((17, 17))))


@given(SEEDS)
@LAWS
def test_edge_auroc_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    graph, off = random_dag(rng, 5), ~np.eye(5, dtype=bool)
    probs = np.round(rng.random((5, 5)) * off, 1)
    if graph.any():
        assert metrics.edge_auroc(graph, probs) == pytest.approx(roc_auc_score(graph[off], probs[off]))


# Calibration


def test_calibration_error_by_its_definition():
    hits, probs = np.array([0, 1, 1, 0, 1]), np.array([0.05, 0.15, 0.15, 0.95, 1.0])
    expected = (0.05 + abs(2 - 0.3) + abs(1 - 1.95)) / 5
    assert metrics.expected_calibration_error(hits, probs) == pytest.approx(expected)
    assert metrics.expected_calibration_error(hits, probs, bins=1) == pytest.approx(abs(3 - probs.sum()) / 5)
    assert metrics.expected_calibration_error(hits, hits) == 0.0
    rng = np.random.default_rng(7)
    probs = rng.random((200, 100))
    assert metrics.expected_calibration_error(rng.random(probs.shape) < probs, probs) < 0.02


def test_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(8)
    centre = rng.normal(size=(40, 50))
    draws = centre + rng.normal(size=(400, 40, 50))
    truth = centre + rng.normal(size=(40, 50))
    for level in (0.5, 0.9):
        assert metrics.interval_coverage(truth, draws, level) == pytest.approx(level, abs=0.03)
    assert metrics.interval_coverage(centre + 9, draws) == 0.0
    assert metrics.interval_coverage(0.0, np.zeros(5)) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.mcc(np.ones(4), np.ones((4, 1))), r"z_true: found shape \(4,\)"),
        (lambda: metrics.mcc(np.ones((4, 1)), np.ones((5, 1))), "z_est: found 5 rows; allowed: 4 rows"),
        (lambda: metrics.mcc(np.ones((4, 1)), np.full((4, 1), np.inf)), "z_est: found NaN or infinity"),
        (lambda: metrics.mcc(np.eye(4), np.eye(4), "kendal"), "method: found 'kendal'"),
        (lambda: metrics.r2(np.eye(4), np.eye(4), held_out=1.0), "held_out: found 1.0"),
        (lambda: metrics.r2(np.eye(4), np.eye(4), held_out=0.1), "two rows or more"),
        (lambda: metrics.linear_r2(np.eye(4), np.ones(4)), "z: found"),
        (lambda: metrics.dci(np.eye(9), np.eye(9)), "folds: found 2 for 9 rows"),
        (lambda: metrics.dci(np.eye(30), np.eye(30), "forest"), "importance"),
        (lambda: metrics.baselines(np.eye(9), np.eye(9), 10), "latents: found 10; allowed: 1 to 9"),
        (lambda: metrics.mask_scores(np.ones((3, 2)), np.ones((4, 2))), "mask_est_pip: found shape"),
        (lambda: metrics.mask_scores(np.ones((3, 2)), np.full((3, 2), 1.5)), "probabilities"),
        (lambda: metrics.mask_scores(np.full((3, 2), 0.5), np.ones((3, 2))), "mask_true: .*0 and 1"),
        (lambda: metrics.mask_scores(np.ones((3, 2)), np.ones((3, 2)), permutation=[0, 2]), "permutation"),
        (
            lambda: metrics.mask_scores(np.ones((3, 2)), np.ones((3, 2)), permutation=[1, 1]),
            "no column twice",
        ),
        (lambda: metrics.shd(np.zeros((2, 2)), np.zeros((3, 3))), "est: found shape"),
        (lambda: metrics.shd(np.eye(2), np.zeros((2, 2))), "true: found an edge from a node to itself"),
        (lambda: metrics.shd(np.zeros((2, 2)), np.full((2, 2), 0.4)), "est: .*0 and 1"),
        (lambda: metrics.order_errors(np.zeros((3, 3)), [0, 1, 1]), "order: .*every node"),
        (lambda: metrics.edge_auroc(np.zeros((3, 3)), np.zeros((2, 2))), "probs: found shape"),
        (lambda: metrics.graph_scores(np.zeros((2, 2)), np.full((2, 2), np.nan)), "probs"),
        (lambda: metrics.likely_order(np.eye(2)), "diagonal of 0"),
        (lambda: metrics.expected_calibration_error([0, 1], [0.5]), "one for each"),
        (lambda: metrics.expected_calibration_error([0, 1], [0.5, 0.5], bins=0), "bins"),
        (lambda: metrics.interval_coverage(np.zeros(3), np.zeros((5, 4))), "draws"),
        (lambda: metrics.interval_coverage(np.zeros(3), np.zeros((5, 3)), 90), "level"),
        (lambda: metrics.interval_coverage([np.nan], np.zeros((5, 1))), "finite"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
