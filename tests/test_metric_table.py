"""Every number that results or `evaluate` hold has a title, a direction and a place in the one table of metrics."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pyrocrl.judge import metrics
from pyrocrl.judge.metric_table import HEADLINE, METRICS, VARIANTS, in_order, read, score_rows

RESULTS = sorted((Path(__file__).parent.parent / "models" / "results").glob("*.json"))


def in_table(name: str) -> bool:
    found = read(name)[0].name
    return found in METRICS or f"{found.partition('_')[0]}_*" in METRICS


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_results_hold_no_other_metric(path: Path) -> None:
    for entry in json.loads(path.read_text()).get("studies", []):
        names = {name for row in entry["seeds"] for name in row.get("metrics", {})} | entry["summary"].keys()
        assert not [name for name in names - {"failed"} if not in_table(name)]


def test_scores_of_latents_masks_and_graphs_are_in_the_table() -> None:
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(60, 3)), rng.normal(size=(60, 2))
    graph, mask = np.array([[0, 1], [0, 0]]), np.eye(3, 2)
    names = set(metrics.graph_scores(graph, graph)) | {f"dci_{k}" for k in metrics.dci(z, z)}
    names |= {k if k.startswith("surplus") else f"mask_{k}" for k in metrics.mask_scores(mask, mask)}
    names |= {f"{row}_{k}" for row, scores in metrics.baselines(x, z, 2).items() for k in scores}
    assert not [name for name in names if not in_table(name)]


def test_a_name_is_read_as_metric_and_variant() -> None:
    assert read("mcc") == (METRICS["mcc"], "")
    assert read("pca_mcc") == (METRICS["mcc"], "pca")
    assert read("shd_empty") == (METRICS["shd"], "empty")
    assert read("mask_f1_empty") == (METRICS["mask_f1"], "empty")
    assert read("auroc_empty") == (METRICS["auroc"], "empty"), "a variant, no knock-out"
    knockout, variant = read("varimax_auroc_JAK2")
    assert (knockout.name, variant) == ("auroc_JAK2", "varimax") and knockout.title.startswith("JAK2 against")
    assert read("odd_score")[0].label == "odd score" and not in_table("odd_score")


def test_names_of_variants_are_no_metrics() -> None:
    assert not VARIANTS.keys() & METRICS.keys()
    assert all(set(metric.beside) <= VARIANTS.keys() for metric in METRICS.values())
    assert set(HEADLINE) <= METRICS.keys()


def test_figures_are_in_the_order_of_the_table() -> None:
    names = ["cpu_seconds", "shd_empty", "auroc_B", "varimax_auroc_A", "auroc_A", "mse", "odd", "shd", "pca_mcc", "mcc"]
    expected = ["mcc", "pca_mcc", "shd", "shd_empty", "auroc_A", "varimax_auroc_A", "auroc_B", "cpu_seconds"]
    assert in_order(names) == expected, "mse is no figure"
    assert in_order(["shd_full", "raw_mcc"]) == []


def test_values_as_text() -> None:
    assert METRICS["mcc"].text(0.98765) == "0.988"
    assert METRICS["held_out"].text(-1234.5) == "−1,234.500"
    assert METRICS["shd"].text(3.0) == "3" and METRICS["shd"].text(1.5) == "1.50"
    assert METRICS["mcc"].text(None) == "" and METRICS["mcc"].text(float("nan")) == "–"


def test_means_with_the_worst_seed_in_the_metrics_direction() -> None:
    found = {"mean": 1.0, "min": 0.25, "max": 2.0}
    assert METRICS["shd"].mean(found, 8) == "1.00 (2.00)"
    assert METRICS["mcc"].mean(found, 8) == "1.000 (0.250)"
    assert METRICS["mcc"].mean(found, 8, "pca") == "1.000", "of baselines the mean alone"
    assert METRICS["weight_coverage"].mean(found, 8) == "1.00", "of what has no direction as well"
    assert METRICS["shd"].mean(found, 1) == "1"


def test_a_row_a_metric_and_a_column_a_variant() -> None:
    columns, rows = score_rows({"shd": 1.0, "odd": 0.5, "pca_mcc": 0.7, "shd_empty": 4.0, "mcc": 0.98})
    assert columns == ["this fit", "PCA", "empty"]
    assert rows == [
        ("Correlation with the true latents (MCC) ↑", ["0.980", "0.700", ""]),
        ("Edges wrong (SHD) ↓", ["1", "", "4"]),
        ("odd", ["0.500", "", ""]),
    ]
