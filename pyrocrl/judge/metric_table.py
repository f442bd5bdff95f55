"""The one table of metrics: what each number of `evaluate` and of results is called, which way it is better, digits.

Results, README, report and the shell read it. A metric's values of trivial methods bear its name with a word before or
after it: `pca_mcc`, `shd_empty`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

# the same metric of something else than the fit: word in the name -> title of its column
BEFORE = {
    "start": "construction alone",
    "pca": "PCA",
    "ica": "ICA",
    "raw": "raw columns",
    "varimax": "varimax factors",
    "pcavarimax": "PCA, varimax",
    "white": "PCA, whitened",
    "cca": "PCA, then CCA",
    "modulated": "changes of covariance",
    "covariances": "covariances by regions of actions",
    "slopes": "regressions by regions of actions",
    "chance": "chance",
    "amuse": "AMUSE",
    "sobi": "SOBI",
    "difference": "mean differences, inverted",
    "meandiff": "difference of means",
    "lda": "LDA",
    "quadratic": "logistic regression, quadratic forms",
    "regression": "linear regression, told the truth",
    "closed": "closed form for a linear mixing",
    "dictionary": "dictionary learning",
    "surely": "of a probability above .9",
    "icp": "guaranteed (ICP)",
    "lasso": "lasso",
    "pooled": "pooled regression",
    "softimpute": "softImpute",
    "svd": "truncated SVD",
    "means": "columns' means",
    "whole": "the same rows, whole",
    "other": "other model",
    "logged": "of log(1 + x)",
    "nmf": "NMF",
    "reference": "published estimator",
    "pairwise": "canonical correlations of two views",
    "fisherz": "tests of pairs, greedy cover",
}
AFTER = {
    "empty": "empty",
    "none": "none",
    "constant": "the same in all rows",
    "full": "full",
    "greedy": "greedy search by BIC",
    "cells": "weighted by cells",
    "ml": "of maximum likelihood",
    "ledoit": "of Ledoit & Wolf",
    "oracle": "at the true parameters",
    "gmm": "mixture of normals by BIC",
    "gaussian": "with Gaussian noise",
    "darmois": "of the Darmois construction",
}
VARIANTS = BEFORE | AFTER
ARROWS = {"larger": " ↑", "smaller": " ↓", None: ""}
DIGITS = 3
COUNTED = 2  # digits of means of counts


@dataclass(frozen=True)
class Metric:
    """A metric: its name in files, its title in words.

    better: which values are, None = neither. digits: after the point, None = a count, whole for one fit. figure:
    whether tables of figures show it, and beside it its variants `beside`, words of `VARIANTS`. headline: whether it
    stands where there is place for few. worst: whether tables of means show the worst seed; of baselines and of what
    is 0 or 1 it says nothing. A name WORD_* is that of a family, whose member's name stands for the * of its title.
    """

    name: str
    title: str
    better: Literal["larger", "smaller"] | None = None
    digits: int | None = DIGITS
    figure: bool = False
    beside: tuple[str, ...] = ()
    headline: bool = False
    worst: bool = True

    @property
    def label(self) -> str:
        """The title with an arrow in the better direction."""
        return self.title + ARROWS[self.better]

    def shows(self, variant: str) -> bool:
        """Whether tables of figures show this variant ("" = the fit's own value)."""
        return self.figure and (not variant or variant in self.beside)

    def text(self, value: float | None) -> str:
        """A value of one fit; nothing of None, a dash of what is not finite."""
        if value is None:
            return ""
        if not math.isfinite(value):
            return "–"
        whole = self.digits is None and float(value).is_integer()
        return _text(value, 0 if whole else COUNTED if self.digits is None else self.digits)

    def mean(self, found: Mapping[str, float], seeds: int, variant: str = "") -> str:
        """A mean over seeds, the worst of several in brackets; found: `mean`, `min` and `max`."""
        if seeds == 1:
            return self.text(found["mean"])
        digits = COUNTED if self.digits is None else self.digits
        mean = _text(found["mean"], digits)
        if variant or self.better is None or not self.worst:
            return mean
        return f"{mean} ({_text(found['max' if self.better == 'smaller' else 'min'], digits)})"


def _text(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}".replace("-", "−")


CONCEPTS = ("meandiff", "lda", "quadratic", "regression")

_TABLE = (
    # latents
    Metric(
        "mcc",
        "Correlation with the true latents (MCC)",
        "larger",
        figure=True,
        beside=(
            "start",
            "pca",
            "ica",
            "varimax",
            "pcavarimax",
            "amuse",
            "sobi",
            "difference",
            "closed",
            "modulated",
            "covariances",
            "slopes",
            "other",
            "logged",
            "nmf",
            "oracle",
        ),
        headline=True,
    ),
    Metric("mcc_spearman", "Rank correlation with the true latents", "larger"),
    Metric("innovations_mcc", "Correlation with the true innovations (MCC)", "larger", figure=True),
    Metric(
        "concordance", "Concordance with the true latents, up to what is free", "larger", 3, True, ("closed",), True
    ),
    Metric("r2", "R², true latents from the estimates", "larger", figure=True, beside=("cca",), headline=True),
    Metric("own_r2", "R², the worst true latent from its estimate", "larger", figure=True),
    Metric("other_r2", "R², other true latents from an estimate", figure=True),
    Metric("true_other_r2", "... from the true latent itself", figure=True),
    Metric("lagged_errors", "Wrong edges from step to step", "smaller", None, True, ("empty",)),
    Metric("acted_on_errors", "Rows wrong on whether a latent is acted on", "smaller", 3, True, ("none",)),
    Metric("acting_error", "Squared error of the probability that it is", "smaller", 3, True, ("constant",)),
    Metric(
        "intersection_r2",
        "R², what views have in common",
        "larger",
        figure=True,
        beside=("pairwise", "regression"),
        headline=True,
    ),
    Metric("intersection_least", "... of the least", "larger", figure=True),
    Metric("beyond_r2", "R², what only some of the views see, from it", "smaller", figure=True, beside=("pairwise",)),
    Metric("sees_exact", "Which views see what, all right", "larger", 2, figure=True, worst=False),
    Metric("sees_wrong", "... share of entries wrong", "smaller", figure=True),
    Metric("private_r2", "R², private latents of views from the shared estimates", "smaller", figure=True),
    Metric(
        "block_r2", "R², content from its estimate, nonlinear", "larger", figure=True, beside=("cca",), headline=True
    ),
    Metric("style_r2", "R², style from the estimate of content, nonlinear", "smaller", figure=True, beside=("cca",)),
    Metric(
        "content_r2",
        "R², content from its estimate of several blocks, nonlinear",
        "larger",
        figure=True,
        beside=("cca", "pca", "regression"),
        headline=True,
    ),
    Metric(
        "styles_r2",
        "R², styles from estimates of their own, nonlinear",
        "larger",
        figure=True,
        beside=("cca", "pca", "regression"),
        headline=True,
    ),
    Metric("styles_least", "... of the worst style", "larger", figure=True, beside=("cca", "pca")),
    Metric("given_r2", "... of the worst style, from content's estimate as well", "larger", figure=True),
    Metric("leak_r2", "R², other blocks from a block's estimate, the most", "smaller", figure=True, beside=("cca",)),
    Metric("contrast", "Contrast of columns (0: orthogonal)", "smaller", figure=True, beside=("oracle", "darmois")),
    Metric("linear_r2", "R² of linear unmixing (near 1: an easy setting)", figure=True),
    Metric("dci_disentanglement", "Disentanglement (DCI)", "larger"),
    Metric("dci_completeness", "Completeness (DCI)", "larger"),
    Metric("dci_informativeness", "Informativeness (DCI)", "larger"),
    # views
    Metric("foscttm", "Rows nearer than the match in the other view", "smaller", 3, True, ("cca", "chance"), True),
    Metric("match_10", "Match among the 10 nearest rows", "larger", 3, True, ("cca", "chance"), True),
    Metric("translation_error", "Error of a view told from another", "smaller", 3, True, ("cca", "chance")),
    Metric("translation_coverage", "Views inside 90 % intervals", None, figure=True),
    # missing values
    Metric("lacking_mcc", "Correlation with the true latents (MCC)", "larger", 3, True, ("whole", "means"), True),
    Metric("lacking_mask_f1", "Mask F1", "larger", 3, True, ("whole", "means")),
    Metric("fill_error", "Missing values, relative error", "smaller", 3, True, ("softimpute", "svd", "means"), True),
    Metric("fill_coverage", "Missing values inside 90 % intervals", None, 2, figure=True),
    # masks
    Metric("mask_f1", "Mask F1", "larger", 3, True, ("varimax", "pcavarimax", "ica", "other", "logged"), True),
    Metric("mask_precision", "Mask precision", "larger"),
    Metric("mask_recall", "Mask recall", "larger"),
    Metric("mask_hamming", "Mask entries wrong", "smaller", None),
    Metric("mask_ece", "Mask, calibration error", "smaller", figure=True, beside=("other", "logged")),
    Metric("latents_found", "Latents found", None, None, figure=True),
    Metric("latents_there", "Latents there are", None, None, figure=True),
    Metric("cover_exact", "Bipartite graph right", "larger", 2, True, ("fisherz", "empty"), True, False),
    Metric("cover_errors", "Wrong entries of the bipartite graph", "smaller", None, True, ("fisherz", "empty")),
    Metric("count_exact", "Number of latents right", "larger", 2, figure=True, worst=False),
    Metric("count_probability", "Probability of the true number of latents", "larger", 2, figure=True),
    Metric("covariance_error", "Covariance, mean squared error", "smaller", 3, True, ("ml", "ledoit"), headline=True),
    Metric("subspace_error", "Latents' subspace, mean squared sine", "smaller", 4, figure=True, beside=("ml",)),
    Metric("surplus_pip", "Highest inclusion probability of a surplus latent", "smaller"),
    # directions of sparse codes
    Metric(
        "direction_mcc",
        "Cosine with the true directions",
        "larger",
        3,
        True,
        ("dictionary", "nmf", "logged", "chance"),
        True,
    ),
    Metric("direction_mcc_least", "... of the worst chain", "larger", figure=True),
    Metric("direction_agreement", "Cosine of directions of two chains", "larger", figure=True),
    Metric("firing_f1", "Firing F1", "larger", figure=True, beside=("logged",)),
    Metric("firing_precision", "Firing, precision", "larger"),
    Metric("firing_recall", "Firing, recall", "larger"),
    Metric("firing_ece", "Firing, calibration error", "smaller", figure=True),
    Metric("latents_dead", "Latents that never fire", None, None),
    # targets, graphs, weights
    Metric("targets_right", "Environments whose target is right", "larger", 2, figure=True, headline=True),
    Metric("changes_right", "Pairs whose changed latent is right", "larger", 3, True, ("closed", "empty"), True),
    Metric("sizes_exact", "Numbers of latents and states right", "larger", 2, figure=True, worst=False),
    Metric("bipartite_exact", "... and all features' latents", "larger", 2, figure=True, headline=True, worst=False),
    Metric("components_exact", "Number of joint states right", "larger", 2, figure=True, beside=("gmm",), worst=False),
    Metric("states_right", "States of latents that are right", "larger", 3, True, ("empty",), True),
    Metric(
        "shd", "Edges wrong (SHD)", "smaller", None, figure=True, beside=("start", "closed", "empty"), headline=True
    ),
    Metric("edge_tv", "Edge probabilities, total variation from exact", "smaller", figure=True),
    Metric("weight_sd_ratio", "Deviations of weights against exact", figure=True),
    Metric("skeleton_errors", "Adjacencies wrong", "smaller", None),
    Metric("order_right", "Causal order right", "larger", 2, figure=True, worst=False),
    Metric("order_errors", "Edges against the estimated order", "smaller", None),
    Metric("graph_exact", "Edges all right", "larger", 2, figure=True, worst=False),
    Metric("closure_exact", "Ancestor relations all right", "larger", 2, True, ("reference",), worst=False),
    Metric("closure_errors", "Ancestor relations wrong", "smaller", None, True, ("reference",), headline=True),
    Metric("closure_shd", "Ancestor relations wrong (SHD of closures)", "smaller", None),
    Metric("credible_size", "Graphs in the 90 % credible set", "smaller", None, figure=True),
    Metric("credible_holds", "True graph in the 90 % credible set", None, 2, figure=True, worst=False),
    Metric("encoder_error", "Encoder, what else than parents it mixes in", "smaller", 3, True, ("reference",)),
    Metric("encoder_mixes", "Encoder, what it mixes in", "smaller", 3, figure=True),
    Metric("auroc", "Edges, AUROC", "larger"),
    Metric("ece", "Edges, calibration error", "smaller"),
    Metric("weight_coverage", "True edge weights inside 90 % intervals", None, 2, figure=True),
    Metric("weight_covered", "True edge weights inside 90 % intervals, count", None, None),
    Metric("weight_total", "True edges", None, None),
    Metric("loadings_coverage", "True loadings inside 90 % intervals", None, 2, figure=True, beside=("ml",)),
    Metric("loadings_error", "Loadings, error", "smaller", figure=True, beside=("ml",)),
    Metric("latents_coverage", "True latents inside 90 % intervals", None, 2, figure=True),
    Metric("shift_errors", "Changed mechanisms wrong", "smaller", None, figure=True, beside=("empty",)),
    Metric("shifts_exact", "Changed mechanisms all right", "larger", 2, worst=False),
    Metric(
        "class_shd",
        "Pairs joined otherwise than in the true interventional class (SHD)",
        "smaller",
        None,
        figure=True,
        beside=("empty", "greedy", "gaussian"),
        headline=True,
    ),
    Metric("expected_shd", "Edges wrong, mean over posterior graphs", "smaller", 2, True, ("empty", "gaussian")),
    Metric("sure_wrong", "Edges of probability .9 or more that are not there", "smaller", None, True, ("gaussian",)),
    Metric("auprc", "Edges, area under the precision-recall curve", "larger", 2, True, ("empty", "greedy")),
    Metric("sure_right", "Edges of probability .9 or more that are there, share", "larger", 2, figure=True),
    Metric("targets_found", "Targets found", "larger", None, figure=True),
    Metric("targets_there", "Targets there are", None, None, figure=True),
    Metric("targets_false", "Targets called that are none", "smaller", None, figure=True),
    Metric("target_auprc", "Targets, area under the precision-recall curve", "larger", 2),
    Metric("parents_exact", "Parents all right", "larger", 2, True, ("surely", "icp", "lasso", "pooled"), True, False),
    Metric("parents_false", "A false parent", "smaller", 2, True, ("surely", "icp", "lasso", "pooled"), worst=False),
    Metric("parents_called", "Parents called", None, None, figure=True, beside=("icp",)),
    Metric("parents_there", "Parents there are", None, None, figure=True),
    Metric("parents_brier", "Parents, mean squared error of probabilities", "smaller", figure=True, worst=False),
    Metric(
        "shift_error",
        "Error of the response where all columns are shifted",
        "smaller",
        2,
        figure=True,
        beside=("pooled", "oracle"),
    ),
    Metric("edges_right", "Edges called that are in the consensus network", "larger", None, True, ("greedy",)),
    Metric("edges_wrong", "Edges called that are not", "smaller", None, True, ("greedy",)),
    Metric("joined_errors", "Joined latents wrong", "smaller", None, figure=True, beside=("empty", "greedy")),
    Metric("skeleton_exact", "Joined latents all right", "larger", 2, worst=False),
    Metric(
        "clusters_exact",
        "Clusters of features all right",
        "larger",
        2,
        figure=True,
        beside=("varimax",),
        headline=True,
        worst=False,
    ),
    Metric("both_exact", "Clusters and joined latents all right", "larger", 2, figure=True, worst=False),
    Metric("direction", "Probability of the true direction of an edge", None, 2, figure=True),
    Metric("direction_least", "... of the least probable one", None, 2),
    Metric("heavy_found", "Latents surely not Gaussian", None, None, figure=True),
    Metric("identified", "Called identified, share", None, 2, figure=True, worst=False),
    Metric("contradicted", "Called contradicted, share", None, 2, figure=True, worst=False),
    # predictions, in standard deviations of features
    Metric("pair_model", "Pairs never seen, error of the mean", "smaller", figure=True),
    Metric("pair_additive", "... of adding the parts' effects", "smaller", figure=True, worst=False),
    Metric("pair_training", "... of the mean of perturbed rows", "smaller", figure=True, worst=False),
    Metric("pair_control", "... of the mean of control rows", "smaller", figure=True, worst=False),
    Metric("pair_floor", "... of two samples of the pair's size", None, figure=True),
    Metric("action_error", "Actions never tried, error of the mean", "smaller"),
    Metric("action_error_mean", "... of the mean of all rows", "smaller", worst=False),
    Metric("action_error_linear", "... of linear regression on the action", "smaller", worst=False),
    Metric("action_error_quadratic", "... of quadratic regression", "smaller", worst=False),
    Metric("action_error_cubic", "... of cubic regression", "smaller", worst=False),
    Metric("action_error_mlp", "... of a network", "smaller", worst=False),
    Metric("action_error_gp", "... of a Gaussian process", "smaller", worst=False),
    Metric("action_error_best", "... of the best of these", "smaller", worst=False),
    Metric("action_ratio", "Error of the mean over that of the best regression", "smaller", 2, figure=True),
    Metric("action_coverage", "True means inside 90 % intervals", None, 2, figure=True),
    # effects never measured
    Metric("effect_r", "Effects never measured, correlation", "larger", figure=True, headline=True),
    Metric("effect_r2", "Effects never measured, R² a pair", "larger", figure=True, headline=True),
    Metric("effect_cosine", "Effects never measured, cosine a pair", "larger", figure=True),
    Metric("effect_coverage_90", "New effects inside 90 % intervals", None, figure=True),
    Metric("effect_coverage_95", "New effects inside 95 % intervals", None, figure=True),
    Metric("r_*", "Correlation of *", "larger", worst=False),
    Metric("r2_*", "R² a pair of *", "larger", figure=True, worst=False),
    Metric("cosine_*", "Cosine a pair of *", "larger", worst=False),
    # rows that are stored, signatures across contexts
    Metric("contracting", "Rows of spectral radius below 1, worst chain", "larger", None, figure=True, headline=True),
    Metric("stored", "Rows looked at", None, None, figure=True),
    Metric("radius", "Largest spectral radius at a row", "smaller", 2, figure=True),
    Metric("base_r2", "Concepts in new rows of the base, R²", "larger", figure=True, beside=CONCEPTS, headline=True),
    Metric("base_least_r2", "... of the worst concept", "larger", figure=True, beside=CONCEPTS),
    Metric("base_covered_90", "... within 90 % intervals", None, 2, figure=True),
    Metric("recalled_*", "Rows recalled from noise of * deviations, worst chain", "larger", None, figure=True),
    Metric("stored_error", "Largest error of a stored row", "smaller", 6),
    Metric("elsewhere", "Random starts that end at no row, share", None, 2, figure=True),
    Metric(
        "retrieval",
        "Perturbation found in another context",
        "larger",
        figure=True,
        beside=("raw", "pca", "white"),
        headline=True,
    ),
    Metric("retrieval_blind", "... blindly", None, figure=True),
    Metric("retrieval_sd", "... deviation over chains", None, figure=True),
    Metric("abs_cosine", "|cosine| of its signatures in two contexts", None, 2, True, ("raw", "pca", "white")),
    Metric("abs_cosine_different", "|cosine| of two perturbations' ones", None, 2, True, ("raw", "pca", "white")),
    Metric("acute", "Its signatures at an acute angle", "larger", 2, True, ("raw", "pca", "white")),
    Metric("sign_kept", "Sign of their cosine in x kept", None, 2, figure=True),
    Metric("components", "Principal components", None, None),
    # between fits
    Metric("agreement", "Correlation with another model's latents", "larger", 2, figure=True),
    Metric("graphs_differ", "Edges in which the other model's graph differs", "smaller", None, figure=True),
    Metric("chain_agreement", "Agreement of chains, mean over pairs", "larger"),
    # escapees
    Metric("escaped_auroc", "Rows that escaped their intervention, AUROC", "larger", 2, figure=True),
    Metric("escaped_share", "Rows that escaped their intervention, estimated share"),
    # screens
    Metric("auroc_*", "* against control cells by one latent, AUROC", "larger", 2, figure=True, beside=("varimax",)),
    Metric("latent", "The latent that tells knock-outs best", None, None),
    Metric("entries", "Mask entries", None, None, figure=True, beside=("varimax",)),
    Metric("latents_in_use", "Latents in use", None, None, figure=True),
    Metric("pathway_together", "Probability that the pathway's knock-outs share a target", "larger", 2, figure=True),
    Metric("irf1_with_them", "Probability that IRF1 has that target too", "larger", 2, figure=True),
    Metric("irf1_relative_shift", "Shift of IRF1 over the weakest of the pathway", "smaller", 2, figure=True),
    Metric("smad4_apart", "Probability that SMAD4 has another target", "larger", 2, figure=True),
    Metric(
        "nulls_called_none", "Knock-outs without differential genes called without effect", "larger", None, figure=True
    ),
    Metric("nulls", "Knock-outs without differential genes", None, None, figure=True),
    Metric("error_model", "Knock-outs' held-out mean expression, squared error in 1e-4", "smaller", 2, figure=True),
    Metric("error_control", "... of the mean of control cells", "smaller", 2, figure=True, worst=False),
    Metric("error_training", "... of the knock-out's training mean", "smaller", 2, figure=True, worst=False),
    Metric(
        "error_shifted", "... of that mean, control means' difference added", "smaller", 2, figure=True, worst=False
    ),
    Metric("beats_control", "Knock-outs at least as good as the control mean", "larger", None),
    Metric("beats_training", "... as the training mean", "larger", None),
    Metric("beats_shifted", "... as the shifted training mean", "larger", None),
    Metric(
        "changed_beats_control",
        "Knock-outs with differential genes at least as good as the control mean",
        "larger",
        None,
        figure=True,
    ),
    Metric("changed_beats_training", "... as the training mean", "larger", None),
    Metric("changed_beats_shifted", "... as the shifted training mean", "larger", None),
    Metric("changed", "Knock-outs with differential genes", None, None, figure=True),
    # of every fit
    Metric("held_out", "Held-out objective, nats a row", "larger"),
    Metric("mse", "Mean squared error of reconstruction", "smaller", 4),
    Metric("seconds", "Seconds", "smaller", 0),
    Metric("cpu_seconds", "CPU seconds", "smaller", 0, figure=True),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _TABLE}
HEADLINE = tuple(metric.name for metric in _TABLE if metric.headline)


def read(name: str) -> tuple[Metric, str]:
    """The metric that `name` is a value of, and which variant: "" of the fit itself, else a word of `VARIANTS`.

    A name that the table does not know is a metric of its own, without a direction.
    """
    if name in METRICS:
        return METRICS[name], ""
    head, _, tail = name.partition("_")
    if head in BEFORE and tail:
        return read(tail)[0], head
    head, _, tail = name.rpartition("_")
    if tail in AFTER and head in METRICS:
        return METRICS[head], tail
    family = METRICS.get(_family(name))
    if family is not None:
        member = name.removeprefix(family.name[:-1])
        return replace(family, name=name, title=family.title.replace("*", member)), ""
    return Metric(name, name.replace("_", " ")), ""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of figures among `names`, in the order of the table, variants after their metric; others are left out."""
    found = [(name, *read(name)) for name in dict.fromkeys(names)]
    shown = [(_place(metric, variant), name) for name, metric, variant in found if metric.shows(variant)]
    return [name for _, name in sorted(shown)]


def score_rows(scores: Mapping[str, float]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Scores of one fit as a table: titles of columns, and (label, values as text) of each row, a row a metric.

    The first column is the fit's own; the others are the variants that any metric has.
    """
    table: dict[Metric, dict[str, float]] = {}
    for name, value in scores.items():
        metric, variant = read(name)
        table.setdefault(metric, {})[variant] = float(value)
    columns = [word for word in ("", *VARIANTS) if any(word in row for row in table.values())]
    rows = [
        (metric.label, [metric.text(table[metric].get(word)) for word in columns])
        for metric in sorted(table, key=_place)
    ]
    return [VARIANTS.get(word, "this fit") for word in columns], rows


def _family(name: str) -> str:
    """The name of the family that `name` is a member of: "auroc_*" of "auroc_JAK2"."""
    return f"{name.partition('_')[0]}_*"


def _place(metric: Metric, variant: str = "") -> tuple[int, str, int]:
    """Sorts metrics as in the table, members of a family by name, variants after their metric."""
    order = list(METRICS)
    entry = metric.name if metric.name in METRICS else _family(metric.name)
    place = order.index(entry) if entry in METRICS else len(order)
    return place, metric.name, ["", *VARIANTS].index(variant)
