"""What is taken where nobody says: the control, size factors, and whether whole numbers count something."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse

import pyrocrl
from pyrocrl import Data, InputError, cli, io, zoo
from pyrocrl.batch import Batch
from pyrocrl.cli import runs
from pyrocrl.judge.choose import choose
from pyrocrl.parts.observation import Observation
from pyrocrl.predict import pair_errors
from pyrocrl.show import plots, report
from pyrocrl.show.effects import observational_rows

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 6))
SIZE = RNG.uniform(0.3, 3.0, 60)
COUNTS = RNG.poisson(8.0 * SIZE[:, None], (60, 6))
SUMS = COUNTS.sum(1)
RATINGS = RNG.integers(1, 6, (60, 6))

# -- the control ---------------------------------------------------------------------------------------------

CUSTOMARY = """ctrl|Control|CONTROLS|NT|NTC|non-targeting|non_targeting|Non Targeting Control|nontargeting|neg|
neg. ctrl|negative control|DMSO|vehicle|Vehicle-control|WT|wild type|Wild-Type|unperturbed|untreated|mock|Mock-ctl|
observational|scramble""".replace("\n", "").split("|")


def labelled(*labels: str, x: np.ndarray = X, **more: Any) -> Data:
    return Data(x, np.resize(labels, len(x)), **more)


@pytest.mark.parametrize("label", CUSTOMARY)
def test_a_customary_name_is_taken_for_the_control_and_said(label: str) -> None:
    data = labelled("A", "B", "a first", label)
    assert data.control == data.env_names[0] == label and data.control_rows.sum() == 15
    assert f"control={label!r} (its name)" in repr(data) and data.assumed == {"control": f"{label!r} (its name)"}


@pytest.mark.parametrize("label", ["A", "KO_ctrl_3", "NT5E", "positive control", "WT1", "--", "controlled", "non", "0"])
def test_no_other_name_is(label: str) -> None:
    data = labelled("B", "C", label)
    assert data.control is None and not data.control_rows.any() and "control" not in repr(data)


def test_two_customary_names_are_none_and_what_is_told_stays() -> None:
    assert labelled("A", "ctrl", "DMSO").control is None
    assert labelled("A", "ctrl", "DMSO", control="DMSO").env_names[0] == "DMSO"
    told = labelled("A", "B", "ctrl", control="B")
    assert told.control == told.env_names[0] == "B" and not told.assumed
    assert not Data(X).assumed, "nothing to say of one environment"


@pytest.mark.parametrize(
    ("targets", "control", "said"),
    [
        ({"A": [0], "ctrl": [1]}, "B", False),  # the only one that targets leave out, whatever it is called
        ({"A": [0]}, "ctrl", True),
        ({"A": [0], "B": [], "ctrl": []}, "ctrl", True),
        ({"ctrl": [0]}, None, False),  # never the first of several
    ],
)
def test_known_targets_tell_the_control_before_names_do(targets: Any, control: str | None, said: bool) -> None:
    data = labelled("A", "B", "ctrl", targets=targets)
    assert data.control == control and ("control" in data.assumed) == said


ASK = {"causal_flow", "discrepancy_vae", "linear_sem_lin", "unknown_targets"}


def test_models_that_compare_with_a_control_ask_for_one_and_the_others_go_on() -> None:
    nameless, named = labelled("A", "B", "C", "D", "E"), labelled("A", "B", "C", "D", "ctrl")
    asked, built = set(), set()
    for name in zoo.built_in():
        modes = zoo.get(name).card.targets
        if name in (
            "extrapolation",
            "causal_imputation",
            "weakly_supervised_pairs",
            "weakly_supervised_nonlin",
            "overparameterized_ae",
            "cross_modal",
            "multiview",
            "snica_lin",
            "sparse_perturbations",
            "content_style",
            "multi_augmentation",
            "equivariant_mechanism",
            "mechanism_sparsity",
            "biscuit",
        ):
            continue
        if modes and "unknown" not in modes:
            continue
        options: dict[str, Any] = {"latents": 2}
        if name in ("mechanism_shift", "observed_dag", "invariant_prediction"):
            options = {"latents": 6, **({"response": 0} if name == "invariant_prediction" else {})}
        options |= {"targets": "unknown"} if len(modes) > 1 else {}
        columns = 2 if name in ("causal_flow", "ima") else 6  # which have as many latents
        zoo.build(name, labelled(*named.env_labels()[:5], x=X[:, :columns]), **options)
        try:
            zoo.build(name, labelled(*nameless.env_names, x=X[:, :columns]), **options)
            built.add(name)
        except InputError as error:
            assert str(error).startswith("control: found none told, nor known by its name; allowed: the control's name")
            asked.add(name)
    assert asked == ASK and {"mechanism_shift", "do_polynomial", "sparse_vae", "vae"} <= built
    free = {"A": [0], "B": [1]}
    zoo.build("linear_sem_lin", labelled(*"ABCD", targets=free), latents=2)  # all that have no targets together
    with pytest.raises(InputError, match=r"control: found none told.* one of 'C', 'D'"):
        zoo.build("discrepancy_vae", labelled(*"ABCD", targets=free), latents=2)
    with pytest.raises(InputError, match="control: found none told"):
        zoo.build("mechanism_shift", nameless, reference=True)
    pairs = {"sparse_perturbations"}  # which asks for pairs as well
    # `causal_flow` needs as many features as latents
    for data, lack in ((nameless, ASK - {"causal_flow"} | pairs), (named, set())):
        lacks = {choice.model: " ".join(choice.lacks) for choice in choose(data, 2, values="binary")}
        lacks |= {c.model: " ".join(c.lacks) for c in choose(data, 2) if c.model != "unknown_targets"}
        assert {name for name, text in lacks.items() if "control: found none told" in text} == lack


def test_the_baseline_of_counts_is_the_controls_or_that_of_all_rows() -> None:
    def offset(data: Data) -> np.ndarray:
        observation = Observation(6, "negative_binomial")
        observation.start(data)
        offset = np.asarray(observation.offset.detach()[0])
        return offset - offset.mean()  # the unit of sizes apart

    counts = COUNTS * np.where(np.arange(60) % 2, 1, 3)[:, None] ** np.arange(6)  # the two environments differ
    first, last = (offset(labelled(*names, x=counts)) for names in (("A", "B"), ("B", "A")))
    np.testing.assert_array_equal(first, last)
    np.testing.assert_array_equal(first, offset(Data(counts)))
    own = offset(labelled("A", "ctrl", x=counts))
    np.testing.assert_allclose(own, offset(Data(counts[1::2])), atol=1e-5)
    assert np.abs(own - first).max() > 0.5


# -- one reference -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def screen() -> tuple[Data, pyrocrl.Fit]:
    """Three quarters of the rows are moved; those of "null" are like those of "zero", the control."""
    env = np.repeat(["null", "zero", *(f"hit {e}" for e in range(6))], 40)
    x = np.random.default_rng(1).normal(size=(len(env), 5)) + 3.0 * np.char.startswith(env, "hit")[:, None]
    data = Data(x, env, control="zero")
    return data, pyrocrl.fit(pyrocrl.build("vae", data, latents=1, hidden=8), data, 1, 60, lr=0.03, progress=False)


def test_the_report_compares_with_the_control_and_nulls_move_nothing(
    screen: tuple[Data, pyrocrl.Fit], tmp_path: Path
) -> None:
    data, fit = screen
    tree = io.read_tree(io.write_tree(fit.posterior(2, predictive=False), tmp_path / "p.nc"))
    for found in (report._reference(fit, tree), None):  # of the fit's data; of the file alone
        said = report._programmes(tree, found, [])
        assert said["reference"] == "zero" == plots.shifts(tree).attrs["reference"]
        movers = {mover["name"] for mover in said["rows"][0]["movers"]}
        assert movers and all(name.startswith("hit") for name in movers)
    others = plots.shifts(tree, "hit 0").sel(env="null")["auroc"]
    assert max(others, 1 - others) > 0.9, "against others a null would be a mover"
    del tree.attrs["control"]
    assert plots.shifts(tree).attrs["reference"] == "all other rows"
    elsewhere = SimpleNamespace(data=data.coded_as([*data.env_names[1:], "zero"]))
    assert report._reference(elsewhere, tree) == "zero"  # type: ignore[arg-type]


def test_effects_and_predictions_start_from_the_control(screen: tuple[Data, pyrocrl.Fit]) -> None:
    data, fit = screen
    assert set(data.env_labels()[observational_rows(data)]) == {"zero"}
    turned = data.coded_as([*data.env_names[1:], "zero"])
    assert set(turned.env_labels()[observational_rows(turned)]) == {"zero"}
    free = labelled("A", "B", "C", targets={"A": [0]})
    assert set(free.env_labels()[observational_rows(free)]) == {"B", "C"}
    assert len(observational_rows(labelled("A", "B"))) == 60
    with pytest.raises(InputError, match="train: found no control rows"):
        pair_errors(fit, labelled("A", "B"), labelled("A+B"), {"A+B": ["A", "B"]})


# -- whole numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "counts", "said"),
    [
        (COUNTS, True, "counts=True (whole numbers)"),
        (scipy.sparse.csr_matrix(COUNTS), True, "counts=True (whole numbers)"),
        ((np.arange(60)[:, None] + np.arange(6)) % 3 == 0, True, "counts=True (whole numbers)"),
        (RATINGS, False, "counts=False (whole numbers below 0, or all from 1 to 100)"),
        (RATINGS.astype(np.int8) - 3, False, "counts=False (whole numbers below 0, or all from 1 to 100)"),
        (RATINGS + 96, True, "counts=True (whole numbers)"),
        (COUNTS.astype(float), False, "counts=False (whole numbers, but as floats)"),
        (X, False, None),
    ],
)
def test_whole_numbers_are_counts_or_not_and_it_is_said(x: Any, counts: bool, said: str | None) -> None:
    data = Data(x)
    assert data.counts == counts and repr(data).count("assumed") == (said is not None)
    assert said is None or said in repr(data)
    for told in {False, counts}:
        assert "counts" not in Data(x, counts=told).assumed


# -- size factors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "found", "rule"),
    [(None, SUMS, "sums"), (1, np.ones(60), "none"), ("none", np.ones(60), "none"), (SIZE, SIZE, "given")],
)
def test_size_factors_are_sums_of_rows_unless_told(told: Any, found: np.ndarray, rule: str, tmp_path: Path) -> None:
    for x in (COUNTS, scipy.sparse.csr_matrix(COUNTS.astype(np.uint8)), COUNTS.astype(float)):
        data = Data(x, counts=True, size_factor=told)
        np.testing.assert_array_equal(data.size_factor, found)
        assert data.size_rule == rule and data.assumed == ({"size_factor": "sums of rows"} if told is None else {})
    again = io.read(io.write(data, tmp_path / "d.npz"))
    np.testing.assert_array_equal(again.size_factor, found)
    assert again.size_rule == rule and io.read(tmp_path / "d.npz", size_factor="none").size_rule == "none"
    assert Data(X, size_factor=told).size_rule is None, "floats have no sizes"


def test_library_size_is_no_part_of_what_an_encoder_sees() -> None:
    def seen(**more: Any) -> np.ndarray:
        data = Data(np.concatenate([COUNTS, 4 * COUNTS]), **more)
        observation = Observation(6, "negative_binomial").double()
        batch: Batch = observation.start(data)
        return np.asarray(observation.inputs(batch))

    np.testing.assert_allclose(*np.split(seen(), 2))
    assert np.abs(np.diff(np.split(seen(size_factor=1), 2), axis=0)).mean() > 1.0


TABLE = pd.DataFrame(COUNTS, columns=list("abcdef"))


@pytest.mark.parametrize("way", ["frame", "csv", "parquet", "anndata", "h5ad"])
def test_columns_of_totals_are_taken_first_in_every_file(way: str, tmp_path: Path) -> None:
    def read(columns: dict[str, Any], **told: Any) -> Data:
        table = TABLE.assign(env="A", **columns)
        if way == "frame":
            return io.from_frame(table, "env", **told)
        path = tmp_path / f"t.{way}"
        if way in ("csv", "parquet"):
            getattr(table, f"to_{way}")(path, index=False)
            return io.read(path, "env", **told)
        obs = table.drop(columns=list("abcdef")).set_axis([str(i) for i in range(60)])
        cells = anndata.AnnData(COUNTS.astype(np.float32), obs=obs, var=pd.DataFrame(index=list("abcdef")))
        if way == "anndata":
            return io.from_anndata(cells, "env", **told)
        cells.write_h5ad(path)
        return io.read(path, "env", **told)

    both = {"total_counts": SIZE + 1, "n_counts": SIZE}
    for columns, told, found, said in (
        ({}, {}, SUMS, "sums of rows"),
        (both, {}, SIZE, "column 'n_counts'"),
        ({"nCount_RNA": 3 * SUMS}, {}, 3 * SUMS, "column 'nCount_RNA'"),
        (both, {"size_factor": "none"}, np.ones(60), None),
        ({"library": SIZE}, {"size_factor": "library"}, SIZE, None),
    ):
        data = read(columns, **told)
        assert data.counts and data.feature_names == list("abcdef")
        np.testing.assert_allclose(data.size_factor, found)
        assert data.assumed.get("size_factor") == said and data.assumed["counts"] == "True (whole numbers)"
    floats = read({"n_counts": SIZE}, counts=False)
    assert floats.size_factor is None and floats.features == 6 + (way in ("frame", "csv", "parquet"))


@pytest.fixture(scope="module")
def fits() -> dict[str, pyrocrl.Fit]:
    out = {}
    for rule, told in {"sums": None, "none": 1, "given": SIZE}.items():
        data = Data(COUNTS, size_factor=told)
        program = pyrocrl.build("vae", data, latents=1, hidden=4)
        out[rule] = pyrocrl.fit(program, data, 1, 1, progress=False)
    return out


@pytest.mark.parametrize(
    ("rule", "told", "same"),
    [
        ("sums", None, True),
        ("sums", SUMS[:20], True),
        ("sums", SIZE[:20], "found other numbers than in the fit; allowed: None, for the sums of rows"),
        ("sums", 1, "found other numbers than in the fit"),
        ("none", None, True),
        ("none", 1, True),
        ("none", SIZE[:20], "found other numbers than in the fit; allowed: None, for 1"),
        ("given", SIZE[:20], True),
        ("given", None, "found none given; allowed: one number per row"),
        ("given", 1, "found none given"),
    ],
)
def test_new_rows_have_size_factors_by_the_rule_of_the_fit(
    fits: dict[str, pyrocrl.Fit], rule: str, told: Any, same: bool | str
) -> None:
    fit, new = fits[rule], Data(COUNTS[:20], size_factor=told)
    if isinstance(same, str):
        for read in (fit.latents, fit.held_out_objective):
            with pytest.raises(InputError, match=f"size_factor: {same}"):
                read(new)
        return
    np.testing.assert_allclose(fit.latents(new), fit.latents()[:20], rtol=1e-5)
    np.testing.assert_allclose(fit.batch_of(new).size_factor, fit.batch_of(fit.data).size_factor[:20])


def test_a_fit_that_kept_no_rule_had_no_sizes_where_none_were_told(fits: dict[str, pyrocrl.Fit]) -> None:
    data = Data(COUNTS)
    assert (
        data.sized_as(None).size_rule == "none" and Data(COUNTS, size_factor=SIZE).sized_as(None).size_rule == "given"
    )
    taken = Data(COUNTS, size_factor=SIZE)
    taken.assumed["size_factor"] = "column 'n_counts'"
    np.testing.assert_array_equal(taken.sized_as("sums").size_factor, SUMS)


# -- the shell -----------------------------------------------------------------------------------------------


def test_the_first_line_and_the_record_say_what_is_assumed(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrocrl.show.report.write", lambda *given: given[4].write_text(""))
    TABLE.assign(env=np.resize(["A", "ctrl"], 60)).to_csv(tmp_path / "t.csv", index=False)
    more = ["--latents", "1", "--chains", "1", "--epochs", "1", "--draws", "2", "--option", "hidden=4", "--quiet"]
    for told, assumed, rule in (
        ([], {"counts": "True (whole numbers)", "control": "'ctrl' (its name)", "size_factor": "sums of rows"}, "sums"),
        (["--size-factor", "none", "--counts", "--control", "A"], {}, "none"),
    ):
        out = tmp_path / rule
        source = ["--data", str(tmp_path / "t.csv"), "--env", "env", *told]
        assert cli.main(["fit", "vae", *source, "--out", str(out), *more]) == 0
        line = capsys.readouterr().out.splitlines()[0]
        assert all(f"{argument}={words}" in line for argument, words in assumed.items())
        assert ("assumed" in line) == bool(assumed)
        record = json.loads((out / runs.RUN).read_text())
        assert record["assumed"] == assumed and record["size_factor"] == rule and record["counts"] is True
        assert record["control"] == ("A" if told else "ctrl")
        assert cli.main(["report", str(out)]) == 0
        capsys.readouterr()
    assert cli.main(["choose", "--data", str(tmp_path / "t.csv"), "--env", "env"]) == 0
    assert "assumed unless told: counts=True" in capsys.readouterr().out.splitlines()[0]
