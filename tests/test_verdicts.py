"""Verdicts of settings whose answer theory knows, the tests that they rest on, and how outcomes follow from them."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from scipy import stats

import pyrocrl
from pyrocrl import zoo
from pyrocrl.claims.card import CONDITIONS, IMPLIED, ON_WORD, OUTCOMES, Claim
from pyrocrl.exact import goodness
from pyrocrl.judge.checks.environments import open_directions
from pyrocrl.judge.diagnose import ClaimVerdict, Finding, Outcome, Verdict, _Known, _no_surer_than_latents, _undecided
from pyrocrl.lab import assumptions, verdicts
from pyrocrl.lab.suite import cases
from pyrocrl.show import report

CASES = {case.name: case for case in cases()}


def uniform(p: list[float]) -> float:
    """p that these p-values are those of true hypotheses."""
    return float(stats.kstest(p, "uniform").pvalue)


def gaussian_environments(seed: int, rows: int, bent: float = 0.0) -> tuple[Any, ...]:
    """Moments of z0 -> z1 -> z2 under perfect interventions on each, and the targets."""
    rng = np.random.default_rng(seed)
    target = np.vstack([np.zeros(3), np.eye(3)]).astype(bool)
    mean, cov = [], []
    for hit in target:
        z = np.zeros((rows, 3))
        for k, parents in enumerate(([], [0], [1])):
            own = z[:, parents].sum(1)
            z[:, k] = (0 if hit[k] else own + bent * own**2) + (2 if hit[k] else 1) * rng.normal(size=rows) + hit[k]
        mean.append(z.mean(0))
        cov.append(np.cov(z.T, bias=True))
    return np.full(4, float(rows)), np.array(mean), np.array(cov), target, [0, 1, 2], "perfect"


@pytest.mark.parametrize("rows", [100, 1000])
def test_the_likelihood_ratio_of_moments_is_calibrated(rows: int) -> None:
    """With the unmixing known it has d (d - 1) degrees more than where it is fitted."""
    found = [goodness.implied(*gaussian_environments(seed, rows)) for seed in range(200)]
    p = [goodness.likelihood_ratio(one._replace(parameters=one.parameters - 6)).p for one in found]
    assert uniform(p) > 0.001
    refused = goodness.likelihood_ratio(goodness.implied(*gaussian_environments(0, rows, bent=0.6)))
    assert refused.p < 1e-6 and refused.freedom == 15


def test_the_unmixing_is_tried_again_where_it_is_not_the_best() -> None:
    count, mean, cov, target, order, kind = gaussian_environments(3, 1000)
    turn = np.eye(3) + 0.2 * np.random.default_rng(0).normal(size=(3, 3))
    moved = count, mean @ turn.T, turn @ cov @ turn.T, target, order, kind
    assert goodness.likelihood_ratio(goodness.implied(*moved)).p < 1e-6
    assert goodness.likelihood_ratio(goodness.implied_at_best(*moved)).p > 0.01


@pytest.mark.parametrize("kind", ["perfect", "soft", "variance", "shift"])
def test_implied_moments_are_those_of_the_equations(kind: str) -> None:
    """Of every kind: the observational moments are those fitted, up to what is pooled, in a world of that kind."""
    rng = np.random.default_rng(1)
    target = np.vstack([np.zeros(2), np.eye(2)]).astype(bool)
    mean, cov = [], []
    for hit in target:
        w = 0.0 if kind in ("variance", "shift") or (kind == "perfect" and hit[1]) else 2.0 if hit[1] else 1.0
        s = np.where(hit & (kind != "shift"), 2.0, 1.0)
        e = rng.normal(size=(50_000, 2)) * s + 1.5 * hit * (kind != "variance")
        z = np.column_stack([e[:, 0], w * e[:, 0] + e[:, 1]])
        mean.append(z.mean(0))
        cov.append(np.cov(z.T, bias=True))
    found = goodness.implied(np.full(3, 5e4), np.array(mean), np.array(cov), target, [0, 1], kind)
    np.testing.assert_allclose(found.fitted_mean, found.mean, atol=0.05)
    np.testing.assert_allclose(found.fitted_cov, found.cov, atol=0.15)
    assert goodness.likelihood_ratio(found._replace(parameters=found.parameters - 2)).p > 0.001


@pytest.mark.parametrize("rows, columns", [(40, 2), (100, 5)])
def test_mardia_rejects_as_seldom_as_it_says(rows: int, columns: int) -> None:
    """By the limits of both statistics it would reject too often there."""
    rng, group = np.random.default_rng(rows), np.zeros(rows, int)
    p = np.array([goodness.mardia(rng.normal(size=(rows, columns)), group).p for _ in range(4000)])
    assert (p < 0.001).mean() < 0.0035 and 0.004 < (p < 0.01).mean() < 0.016


@pytest.mark.parametrize("rows", [100, 1000])
def test_mardia_is_calibrated_and_sees_tails(rows: int) -> None:
    rng = np.random.default_rng(rows)
    group = np.repeat(np.arange(3), rows)
    p = np.array([goodness.mardia(rng.normal(size=(3 * rows, 2)), group).p for _ in range(200)])
    assert (p < 0.05).mean() < 0.11 and (p < 0.5).mean() > 0.3
    assert goodness.mardia(rng.standard_t(4, size=(3 * rows, 2)), group).p < 0.001
    assert goodness.mardia(rng.normal(size=(6, 2)), np.zeros(6, int)).p == 1.0, "too few rows tell nothing"


def test_the_number_of_factors_is_tested() -> None:
    rng = np.random.default_rng(0)
    loadings = rng.normal(size=(9, 3))
    x = rng.normal(size=(400, 3)) @ loadings.T + rng.uniform(0.3, 1, 9) * rng.normal(size=(400, 9))
    enough, few = goodness.enough_factors(x, 3), goodness.enough_factors(x, 2)
    assert enough is not None and enough > 0.01 and few is not None and few < 1e-6
    exact = rng.normal(size=(400, 3)) @ loadings.T
    assert goodness.enough_factors(exact, 3) == 1.0 and goodness.enough_factors(exact, 2) == 0.0
    assert goodness.enough_factors(x[:, :4], 3) is None, "three factors explain any four features"


def test_two_samples_of_one_law_are_not_told_apart_and_others_are() -> None:
    rng = np.random.default_rng(0)
    p = np.array([goodness.samples_differ(rng.normal(size=(80, 3)), rng.normal(size=(120, 3))) for _ in range(100)])
    assert (p < 0.05).mean() < 0.12
    a = rng.normal(size=(300, 2))
    assert goodness.samples_differ(a, 1.6 * rng.normal(size=(300, 2))) < 1e-3
    joint = rng.normal(size=(300, 1)) + 0.7 * rng.normal(size=(300, 2))
    assert goodness.samples_differ(a, joint / joint.std(0)) < 1e-3


def test_components_that_scale_alike_are_no_better_told_apart() -> None:
    rng = np.random.default_rng(0)
    mean, part = np.array([[-3.0, 0.0], [3.0, 1.0]]), rng.integers(2, size=800)
    for scale, apart in (([[1, 0.4], [0.4, 1]], True), ([[1, 0.5], [0.4, 0.2]], False)):
        wide = np.array(scale, dtype=float)
        z = mean[part] + wide[part] * rng.normal(size=(800, 2))
        start = np.array([0.5, 0.5]), mean, wide
        gain = goodness.mixture_log_likelihood(z, *start) - goodness.mixture_log_likelihood(z, *start, alike=(0, 1))
        assert (gain > 10) == apart and gain > -0.01


def test_holm_corrects_for_the_number_of_tests() -> None:
    assert goodness.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert goodness.holm([]) == []


# -- which assumption buys what --------------------------------------------------------------------------------

# no setting of the suite breaks them: without, `fit` refuses, or `test_diagnose` holds a verdict
ELSEWHERE = {
    "more_features_than_latents",
    "observational_environment",
    "enough_settings",
    "clusters_apart",  # in `test_linear_latent_sem`
    "box_told",  # in `test_independent_support`
    "map_told",  # in `test_contrastive`
    "readings_apart",  # in `test_contrastive`
    "axes_told",  # in `test_heavy_tailed_fa`
}


def test_what_a_setting_breaks_is_on_the_card_of_its_model() -> None:
    for case in CASES.values():
        card = zoo.get(case.model).card
        words = {*card.assumes, *(text for claim in card.claims for text in (*claim.conditions, *claim.given))}
        assert not case.breaks or case.breaks in words, case.name
        assert bool(case.breaks) == (case.kind in ("open", "word", "misspecified")) or case.name.endswith("as shifts")


@pytest.mark.parametrize(
    ("verdict", "wrong_pairs", "right"),
    [
        ("identified if", 0.0, True),
        ("identified if", 1.0, False),
        ("identified, undecided at this n", 0.0, False),
        ("identified, undecided at this n", 1.0, True),
        ("not identified", 1.0, False),
    ],
)
def test_a_sure_graph_with_a_wrong_pair_is_wrong(verdict: Outcome, wrong_pairs: float, right: bool) -> None:
    case = next(one for one in CASES.values() if one.kind == "identified")
    graph = ClaimVerdict("graph exactly", "graph", verdict, "why")
    assert case.right(graph, {"mcc": 1.0, "wrong_pairs": wrong_pairs}) is right


def test_every_condition_is_broken_in_a_setting() -> None:
    needed = {need for card in zoo.cards() for claim in card.claims for need in claim.conditions}
    assert needed - {case.breaks for case in CASES.values()} == ELSEWHERE


def test_the_table_of_assumptions_tells_where_they_break() -> None:
    found = {(one.assumption, one.model): one for one in assumptions.table()}
    one = found[CONDITIONS["one_intervention_per_latent"], "linear_sem_lin"]
    assert one.broken["one latent without intervention"] == ("not identified",) and one.shown_by == "data and fit"
    assert "latents up to permutation and scale" in one.claims
    assert found[CONDITIONS["perfect_interventions"], "linear_sem_lin"].shown_by == "your word"
    assert found["noise is Gaussian", "linear_sem_lin"].shown_by == "a test of the fit"
    assert {model for _, model in found} == {card.name for card in zoo.cards() if card.claims}
    assert all(part in assumptions.text(found.values()) for part in ("broken in: Laplace noise", "gmm_vae"))


def test_the_suite_is_counted_on_the_site() -> None:
    count = json.loads(assumptions.RESULTS.read_text())["summary"]
    text = assumptions.markdown()
    assert f"{count['all']['right']} of {count['all']['verdicts']} verdicts are right" in text
    assert all(one.split(", seed ")[0] in text for one in count["unearned"])


# -- how outcomes follow ---------------------------------------------------------------------------------------


def test_every_outcome_has_words_a_place_and_a_sign() -> None:
    assert set(get_args(Outcome)) == set(OUTCOMES) == set(report.OUTCOMES)
    assert set(IMPLIED.values()) | set(IMPLIED) | set(ON_WORD) <= set(CONDITIONS)


def test_a_graph_is_never_surer_than_its_latents() -> None:
    for outcome in OUTCOMES:
        latents = ClaimVerdict("latents exactly", "latents", outcome, "why", rows=500.0)  # type: ignore[arg-type]
        graph = ClaimVerdict("graph exactly", "graph", "identified", "fine")
        mask = ClaimVerdict("mask exactly", "mask", "identified", "fine")
        found = _no_surer_than_latents([latents, graph, mask])
        assert found[1].verdict == outcome and found[2].verdict == "identified"
        assert outcome == "identified" or "why" in found[1].reason
    open_graph = ClaimVerdict("graph exactly", "graph", "not identified", "open")
    assert _no_surer_than_latents([latents, open_graph])[1] == open_graph


def known(graph: Any, rows: int = 100) -> _Known:
    names = {"latent": [f"latent_{k}" for k in range(len(graph))]}
    fit = SimpleNamespace(graph=lambda: np.asarray(graph, dtype=float), names=names)
    return _Known(fit, SimpleNamespace(rows=rows), np.ones(2, bool), ())  # type: ignore[arg-type]


def test_probabilities_between_are_no_answer() -> None:
    which, rows = _undecided(known([[0, 0.6], [0.02, 0]]), Claim("graph", ()))
    assert which == ("latent_0 -> latent_1 (0.60)",) and 100 < rows < 300
    assert _undecided(known([[0, 0.97], [0.02, 0]]), Claim("graph", ())) == ((), 0.0)
    absent = _undecided(known([[0, 0.25], [0.02, 0]]), Claim("graph", ()))[1]
    assert 250 < absent < 450, "chance wears off"
    turning = [[0, 0.5], [0.5, 0]]
    assert open_directions(np.array(turning)) == [(0, 1)]
    assert len(_undecided(known(turning), Claim("graph", ()))[0]) == 2
    assert _undecided(known(turning), Claim("graph", ("markov equivalence",))) == ((), 0.0)
    joined = _undecided(known([[0, 0.06], [0.05, 0]]), Claim("graph", ("markov equivalence",)))
    assert joined[0] == ("latent_0 - latent_1 (0.11)",), "of a pair, whatever the direction"


def test_a_closure_is_decided_where_open_edges_do_not_change_it() -> None:
    claim = Claim("graph", ("transitive closure",))
    assert _undecided(known([[0, 0.99, 0.5], [0, 0, 0.99], [0, 0, 0]]), claim) == ((), 0.0)
    assert _undecided(known([[0, 0.99, 0.5], [0, 0, 0.0], [0, 0, 0]]), claim)[0] == ("latent_0 -> latent_2 (0.50)",)


def test_a_verdict_survives_its_json_and_names_its_assumptions() -> None:
    given = {"interventions are perfect": "soft ones mix latents", "mixing is injective": ""}
    evidence = (Finding("noise is Gaussian", "Mardia", "holds", "fine", 0.4),)
    claim = ClaimVerdict("latents exactly", "latents", "identified if", "they agree", given=given, evidence=evidence)
    verdict = Verdict("m", (claim,), {"held_out": [0.0], "ties": 1}, "digest")
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    text = str(verdict)
    assert "IDENTIFIED IF interventions are perfect; mixing is injective" in text and "Otherwise: soft ones" in text
    open_ = dataclasses.replace(claim, verdict="identified, undecided at this n")
    assert "given that interventions are perfect" in str(open_) and not open_.identified and claim.identified
    old = {
        "model": "m",
        "chains": {},
        "claims": [{"claim": "c", "what": "mask", "verdict": "identified", "reason": "r"}],
    }
    assert Verdict.from_dict(old)["mask"].identified, "files of before still read"


# -- the suite -------------------------------------------------------------------------------------------------


def test_half_of_the_suite_must_not_be_identified() -> None:
    assert len(CASES) == len(cases()) >= 60, "names are told apart"
    sound = sum(case.kind in ("identified", "small") for case in CASES.values())
    assert 0.4 <= sound / len(CASES) <= 0.6


@pytest.mark.parametrize(
    "name",
    [
        "unknown_targets: features of their own",
        "unknown_targets: latents that share all their features",
        "unknown_targets: skewed features",
        "mechanism_shift: linear, told nonlinear, no shift",
        "linear_sem_lin: changes of variance",
        "linear_sem_lin: 5 % bad rows",
    ],
)
def test_a_part_of_the_suite(name: str) -> None:
    row = verdicts.run_case(CASES[name], 200)
    assert row["claims"] and all(claim["right"] for claim in row["claims"].values()), verdicts.line(
        {"name": name, "kind": CASES[name].kind, "seeds": [row]}
    )


def test_right_and_wrong_are_told_apart() -> None:
    said = {outcome: ClaimVerdict("c", "latents", outcome, "r") for outcome in get_args(Outcome)}
    good, bad = {"mcc": 0.99}, {"mcc": 0.5}
    case = CASES["linear_sem_lin: perfect"]
    right = {
        kind: dataclasses.replace(case, kind=kind).right for kind in ("identified", "small", "open", "misspecified")
    }
    assert right["identified"](said["identified if"], good) and not right["identified"](said["not identified"], good)
    assert right["small"](said["identified"], good) and not right["small"](said["identified"], bad)
    assert right["open"](said["contradicted"], bad) and not right["open"](said["identified, undecided at this n"], bad)
    assert right["misspecified"](said["identified"], good) and not right["misspecified"](said["identified if"], bad)
    word = dataclasses.replace(said["identified if"], given={"interventions are perfect": ""})
    assert dataclasses.replace(case, kind="word").right(word, bad)
    assert not dataclasses.replace(case, kind="word").right(said["identified"], bad)


def test_the_command_writes_what_it_says(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verdicts.main(
        ["--only", "unknown_targets: features of their own, 60", "--seeds", "201", "--json", str(tmp_path / "v.json")]
    )
    table = json.loads((tmp_path / "v.json").read_text())
    assert table["summary"]["settings"] == 1 and "verdicts right in 1 settings" in capsys.readouterr().out
    assert pyrocrl.__version__ == table["versions"]["pyrocrl"]


def test_committed_results_are_right_and_call_nothing_identified_that_the_data_refute() -> None:
    table = json.loads(assumptions.RESULTS.read_text())
    assert table["summary"] == verdicts.summarise(table["cases"])
    assert {entry["name"] for entry in table["cases"]} == set(CASES)
    found = table["summary"]["all"]
    assert found["right"] >= 0.95 * found["verdicts"]
    kinds = {entry["name"]: entry["kind"] for entry in table["cases"]}
    assert {kinds[one.split(", seed ")[0]] for one in table["summary"]["unearned"]} <= {"small"}


def test_what_latents_leave_is_noise_of_each_features_own_or_seen() -> None:
    rng = np.random.default_rng(0)
    group, own = np.repeat(np.arange(4), 500), 0.3 * rng.normal(size=(2000, 5))
    p = [goodness.shared(0.3 * rng.normal(size=(2000, 5)), group, 0.0).p for _ in range(100)]
    assert np.mean(np.array(p) < 0.05) < 0.12, "calibrated where nothing is tolerated"
    assert goodness.shared(own, group, 0.03).p == 1.0
    common = own + 0.4 * rng.normal(size=(2000, 1)) * np.array([1, 0, 1, 0, 0])
    found = goodness.shared(common, group, 0.03)
    assert found.p < 1e-6 and {found.column, found.other} == {0, 2} and found.group is None
    wider = own * np.where((group == 2)[:, None] & (np.arange(5) == 3), 2.0, 1.0)
    found = goodness.shared(wider, group, 0.03)
    assert found.p < 1e-6 and (found.column, found.other) == (3, None) and found.group is not None
    assert goodness.shared(own, np.zeros(2000, int), 0.03).p == 1.0, "one group"
