"""Bad input, told in one line that names the argument, what was found and what is allowed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import pyrocrl
from pyrocrl import Data, InputError, cli, io, simulate
from pyrocrl.cli import runs

RNG = np.random.default_rng(0)
X = RNG.standard_normal((40, 7))
COUNTS = RNG.poisson(3.0, (40, 7))
ENV = np.repeat(["ctrl", "KO_a"], 20)


def put(x: np.ndarray, value: float) -> np.ndarray:
    x = x.astype(float)
    x[3, 2] = value
    return x


def plain() -> Data:
    return Data(X, name="plain")


def build(model: str = "vae", data: Data | None = None, **options: object) -> pyrocrl.Program:
    return pyrocrl.build(model, plain() if data is None else data, **{"latents": 2, **options})


def run(**options: object) -> object:
    return pyrocrl.fit(build(hidden=4), plain(), progress=False, **{"chains": 1, "epochs": 1, **options})


def linear(env: object, targets: object, latents: int = 2) -> pyrocrl.Program:
    """Interventional data and a model that needs interventions."""
    data = Data(X, env, targets)  # type: ignore[arg-type]
    return pyrocrl.build("linear_sem_lin", data, latents=latents)


def without_rows(but: int = 0) -> object:
    """A fit whose data have lost all rows of an environment but these."""
    env = np.resize(["ctrl", "KO_a", "KO_b"], 40)
    data = Data(X, env, {"KO_a": (0,), "KO_b": (1,)})
    program = pyrocrl.build("linear_sem_lin", data, latents=2)
    own = np.flatnonzero(data.env_labels() == "KO_b")
    return pyrocrl.fit(program, data.rows_at(np.delete(np.arange(40), own[but:])), chains=1, progress=False)


# what is called, and the message: argument, what was found, what is allowed
PYTHON: dict[str, tuple[Callable[[], object], str]] = {
    "nan": (
        lambda: Data(put(X, np.nan)),
        "x: found 1 missing value in 1 of 7 features, the first at row 3: 'feature_2' (1); allowed: ",
    ),
    "inf": (lambda: Data(put(X, -np.inf)), "x: found -inf at row 3, in 'feature_2'; allowed: finite numbers"),
    "empty": (lambda: Data(np.zeros((0, 3))), "x: found 0 rows; allowed: at least 1 row, and 2 to fit to"),
    "one row": (lambda: pyrocrl.choose(Data(X[:1])), "x: found 1 row; allowed: at least 2 rows to fit to"),
    "one feature": (lambda: Data(X[:, :1]), "x: found 1 feature; allowed: at least 2 features"),
    "one dimension": (lambda: Data(X[0]), "x: found shape (7,); allowed: two dimensions (data, feature)"),
    "texts": (lambda: Data(X.astype(str)), "x: found dtype <U32; allowed: floats or integer counts"),
    "constant": (
        lambda: pyrocrl.choose(Data(X * (np.arange(7) != 4))),
        "x: found constant feature 'feature_4'; allowed: features that vary",
    ),
    "negative counts": (
        lambda: Data(put(COUNTS, -1), counts=True),
        "x: found -1 at row 3, column 2; allowed: counts: whole numbers from 0 on",
    ),
    "fractional counts": (
        lambda: Data(put(COUNTS, 0.5), counts=True),
        "x: found 0.5 at row 3, column 2; allowed: counts: whole numbers from 0 on",
    ),
    "env of another length": (
        lambda: Data(X, ENV[:5]),
        "env: found shape (5,); allowed: one label per row of x, shape (40,)",
    ),
    "env with gaps": (
        lambda: Data(X, np.where(np.arange(40) > 3, 1.0, np.nan)),
        "env: found 4 missing labels of 40 (the first at row 0); allowed: a label for every row",
    ),
    "names of another length": (
        lambda: Data(X, feature_names=["a"]),
        "feature_names: found 1 names; allowed: one per column of x, 7",
    ),
    "the same name twice": (
        lambda: Data(X, feature_names=list("abcdefa")),
        "feature_names: found 'a' more than once; allowed: unique names",
    ),
    "targets of no environment": (
        lambda: Data(X, ENV, {"KO_b": (0,)}),
        "targets: found unknown environment 'KO_b'; allowed: one of 'KO_a', 'ctrl'",
    ),
    "targets that are names": (
        lambda: Data(X, ENV, {"KO_a": ("latent_0",)}),  # type: ignore[dict-item]
        "targets: found 'latent_0' for environment 'KO_a'; allowed: positions of latents, 0, 1, ...",
    ),
    "targets of no latent": (
        lambda: build(data=Data(X, ENV, {"KO_a": (2,)})),
        "targets: found latent 2 for environment 'KO_a'; allowed: latents 0 to 1",
    ),
    "one label for two environments": (
        lambda: Data(X, np.repeat([0, 1], 20), {1: (0,), "1": (1,)}),
        "targets: found two environments with the label '1'; allowed: labels that differ as texts",
    ),
    "labels that read alike": (
        lambda: Data(X, np.array([0, 1, "1", "0"] * 10, dtype=object)),
        "env: found two environments with the label '",
    ),
    "a target that is absent": (
        lambda: linear(ENV, {"KO_a": (2,)}),
        "targets: found latent 2 for environment 'KO_a'; allowed: latents 0 to 1",
    ),
    "no intervention on a latent": (
        lambda: linear(ENV, {"KO_a": (0,)}),
        "targets: found no environment that intervenes on latent 1; allowed: one or more for each latent",
    ),
    "no observational environment": (
        lambda: linear(ENV, {"KO_a": (0,), "ctrl": (1,)}),
        "targets: found no observational environment; allowed: one environment or more without targets",
    ),
    "a single environment": (
        lambda: linear(None, {}),
        "targets: found no environment that intervenes on latent 0; allowed: one or more for each latent",
    ),
    "an environment without rows": (
        without_rows,
        "env: found 0 row(s) to fit in environment 'KO_b'; allowed: 3 or more, for 2 latents",
    ),
    "an environment of as many rows as latents": (
        lambda: without_rows(2),
        "env: found 2 row(s) to fit in environment 'KO_b'; allowed: 3 or more, for 2 latents",
    ),
    "targets of another kind": (
        lambda: Data(X, ENV, [0, 1]),  # type: ignore[arg-type]
        "targets: found a list; allowed: a mapping environment -> latents, or None",
    ),
    "control that is no environment": (
        lambda: Data(X, ENV, control="DMSO"),
        "control: found unknown environment 'DMSO'; allowed: one of 'KO_a', 'ctrl'",
    ),
    "control with targets": (
        lambda: Data(X, ENV, {"KO_a": (0,)}, control="KO_a"),
        "control: found 'KO_a', which has targets; allowed: an environment without targets",
    ),
    "size factors of 0": (
        lambda: Data(COUNTS, size_factor=np.zeros(40)),
        "size_factor: found 0.0; allowed: finite numbers above 0",
    ),
    "batch of another length": (
        lambda: Data(X, batch=["a"]),
        "batch: found shape (1,); allowed: one label per row of x, shape (40,)",
    ),
    "aux with NaN": (
        lambda: Data(X, aux=np.full(40, np.nan)),
        "aux: found NaN or infinite values; allowed: finite numbers",
    ),
    "truth of another kind": (lambda: Data(X, truth={"w": X}), "truth: found 'w'; allowed: any of z, mask"),
    "truth of another shape": (
        lambda: Data(X, truth={"z": X[:3]}),
        "truth['z']: found 3 rows; allowed: one per row of x, 40",
    ),
    "no such model": (
        lambda: build("sparse_vea"),
        "model: found 'sparse_vea' (did you mean 'sparse_vae'?); allowed: ",
    ),
    "as many latents as features": (
        lambda: build(latents=8),
        "latents: found 8; allowed: at most the 7 features",
    ),
    "no latents": (lambda: build(latents=0), "latents: found 0; allowed: a whole number from 1 on"),
    "latents that are no number": (lambda: build(latents="two"), "latents: found 'two'; allowed: a whole number"),
    "no such option": (
        lambda: build(layers=3),
        "layers: not an option of vae (did you mean 'latents'?); allowed: features, latents, likelihood, hidden",
    ),
    "no such likelihood": (
        lambda: build(likelihood="poisson"),
        "likelihood: found 'poisson'; allowed: gaussian, negative_binomial",
    ),
    "floats for counts": (
        lambda: build(likelihood="negative_binomial"),
        "data: found floats (counts=False); allowed: counts, for likelihood='negative_binomial'",
    ),
    "an array for data": (lambda: build(data=X), "data: found a ndarray; allowed: a pyrocrl.Data"),  # type: ignore[arg-type]
    "no targets": (
        lambda: build("linear_sem_lin", latents=2),
        "targets: found None in the data; allowed: a mapping environment -> latents, or targets='unknown'",
    ),
    "no targets where none are inferred": (
        lambda: build("score_crl", latents=2),
        "targets: found None in the data; allowed: a mapping environment -> latents, known or up to relabelling",
    ),
    "targets told in a way that is not accepted": (
        lambda: build("linear_sem_nonlin", Data(X, ENV, {"KO_a": (0,)}), targets="unknown"),
        "targets: found 'unknown'; allowed: known, relabelled",
    ),
    "unknown targets without a control": (
        lambda: build("discrepancy_vae", Data(X, np.resize(["KO_a", "KO_b"], 40))),
        "control: found none told, nor known by its name; allowed: the control's name (in the shell --control), one of "
        "'KO_a', 'KO_b'",
    ),
    "two controls by their names": (
        lambda: build("unknown_targets", Data(X, np.resize(["KO_a", "NT", "dmso"], 40))),
        "control: found 'NT', 'dmso', which are all called as controls are; allowed: the control's name (in the shell "
        "--control), one of 'KO_a', 'NT', 'dmso'",
    ),
    "a program of one's own and no control": (
        lambda: pyrocrl.fit(
            pyrocrl.zoo.get("unknown_targets")(features=7, latents=2, environments=2),
            Data(X, np.resize(["KO_a", "KO_b"], 40)),
        ),
        "control: found none told",
    ),
    "counts that sum to 0": (
        lambda: Data(np.where(np.isin(np.arange(40), (3, 5))[:, None], 0, COUNTS)),
        "size_factor: found counts that sum to 0 in row 3 and in 1 more; allowed: rows that hold a count, or "
        "size_factor=1 (--size-factor none), or counts=False (--no-counts)",
    ),
    "one size for all rows": (
        lambda: Data(COUNTS, size_factor=2.0),
        "size_factor: found 2.0; allowed: one number per row of x, None, or 1 or 'none' for no sizes",
    ),
    "other targets than the program's": (
        lambda: pyrocrl.fit(
            build("do_polynomial", Data(X, np.resize(list("abc"), 40), {"a": (0,), "b": (1,)})),
            Data(X, np.resize(list("abc"), 40), {"a": (0, 1)}),
        ),
        "targets: found other targets than the program's; allowed: [[0, 0], [1, 0], [0, 1]]",
    ),
    "other data than the program's": (
        lambda: pyrocrl.fit(build(), Data(X[:, :5])),
        "data: found 5 features; allowed: the program's 7",
    ),
    "no chains": (lambda: run(chains=0), "chains: found 0; allowed: a whole number from 1 on"),
    "half an epoch": (lambda: run(epochs=0.5), "epochs: found 0.5; allowed: a whole number from 1 on"),
    "a seed below 0": (lambda: run(seed=-1), "seed: found -1; allowed: a whole number from 0 on"),
    "a rate of 0": (lambda: run(lr=0.0), "lr: found 0.0; allowed: a number above 0"),
    "no such argument of fit": (
        lambda: run(steps=3),
        "steps: not an argument of fit (did you mean 'most_steps'?); allowed: batch_size, ",
    ),
    "no such device": (
        lambda: run(device="cuda:99"),
        f"device: found 'cuda:99' with {torch.cuda.device_count()} CUDA devices here; allowed: auto",
    ),
    "no device at all": (lambda: run(device="toaster"), "device: found 'toaster'; allowed: auto, cpu or cuda[:index]"),
    "resume without a place": (lambda: run(resume=True), "resume: found True without out; allowed: "),
    "a file for a folder": (
        lambda: run(out=__file__),
        f"out: found {__file__} (File exists); allowed: a folder that can be written",
    ),
    "no draws": (lambda: FITTED.posterior(0), "draws: found 0; allowed: a whole number from 1 on"),
    "do on no latent": (
        lambda: FITTED.do(None, {"latent_7": 1.0}),
        "values: found 'latent_7' (did you mean 'latent_1'?); allowed: latent_0, latent_1",
    ),
    "do with NaN": (
        lambda: FITTED.do(None, {"latent_0": float("nan")}),
        "values['latent_0']: found nan; allowed: a finite number",
    ),
    "do of nothing": (
        lambda: FITTED.do(None),
        "values: found {}; allowed: a mapping of latent names to values",
    ),
    "do of no environment": (
        lambda: FITTED.do(None, environments=["KO_a"]),
        "environments: found 'KO_a'; allowed: observational",
    ),
    "do of one environment as a text": (
        lambda: FITTED.do(None, environments="observational"),
        "environments: found 'observational'; allowed: a list",
    ),
    "do of an environment twice": (
        lambda: FITTED.do(None, environments=["observational"] * 2),
        "environments: found ['observational', 'observational']; allowed: a list of names, each once",
    ),
    "do of environments that the model does not know": (
        lambda: FITTED.do(None, environments=["observational"]),
        "environments: found 1; allowed: none: vae does not model what an intervention does",
    ),
    "do without draws": (
        lambda: FITTED.do(None, {"latent_0": 1.0}, draws=0),
        "draws: found 0; allowed: a whole number from 1 on",
    ),
    "scores without truth": (
        lambda: pyrocrl.evaluate(FITTED, plain()),
        "data: found no truth; allowed: simulated data with truth",
    ),
    "no such setting": (lambda: simulate.draw("moran22"), "setting: found 'moran22' (did you mean 'moran2022'?)"),
    "no such option of a setting": (
        lambda: simulate.draw("moran2022", r=1),
        "r: not an option of moran2022; allowed: seed, rows, rho, noise",
    ),
    "a correlation of 2": (lambda: simulate.draw("moran2022", rho=2), "rho: found 2.0; allowed: a correlation between"),
    "too many anchors": (
        lambda: simulate.draw("perturb_seq", anchors=20),
        "anchors: found 20 for each of 4 latents; allowed: at most 15",
    ),
    "no such data set": (
        lambda: pyrocrl.datasets.load("papalexi"),
        "name: found 'papalexi' (did you mean 'papalexi2021'?); allowed: ",
    ),
    "no checkpoint": (lambda: pyrocrl.load("nowhere"), "path: no checkpoint at nowhere; allowed: a file"),
    "a column that is not there": (
        lambda: io.from_frame(pd.DataFrame(X), env="cond"),
        "env: found no column 'cond'; allowed: one of '0', '1', '2', '3', '4', '5', ... (7)",
    ),
}


class _Fitted:
    """One tiny fit for all, made when first asked for."""

    __class__ = pyrocrl.Fit  # type: ignore[assignment]  # for `isinstance`

    def __getattr__(self, name: str) -> object:
        if "fit" not in self.__dict__:
            self.__dict__["fit"] = run(chains=2)
        return getattr(self.__dict__["fit"], name)


FITTED: pyrocrl.Fit = _Fitted()  # type: ignore[assignment]


@pytest.mark.parametrize("name", PYTHON)
def test_python(name: str) -> None:
    call, message = PYTHON[name]
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert message in said
    assert "; allowed: " in said and "\n" not in said and len(said) < 500


# -- files and the shell ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a good table, bad ones, and a finished fit."""
    folder = tmp_path_factory.mktemp("files")
    good = pd.DataFrame(COUNTS, columns=list("abcdefg")).assign(cond=ENV)
    tables = {
        "good": good,
        "nan": good.assign(c=[np.nan, *COUNTS[1:, 2]]),
        "text": good.assign(tissue="liver"),
        "header": good[:0],
        "one": good[:1],
        "constant": good.assign(b=2),
        "negative": good.assign(a=-COUNTS[:, 0] - 1),
        "fraction": good.assign(a=COUNTS[:, 0] + 0.5),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    (folder / "empty.csv").write_text("")
    (folder / "twice.csv").write_text("a,b,a\n1,2,3\n4,5,7\n")
    (folder / "ragged.csv").write_text("a,b\n1,2\n3,4,5,6\n")
    (folder / "good.txt").write_text("a b\n")
    for name in ("broken.npz", "broken.h5ad", "broken.parquet"):
        (folder / name).write_bytes(b"PK\x03\x04 not what it says")
    np.savez(folder / "nameless.npz", y=X)
    io.write(Data(COUNTS, ENV), folder / "whole.npz")
    (folder / "short.npz").write_bytes((folder / "whole.npz").read_bytes()[:300])
    (folder / "targets.json").write_text('{"KO_z": [0]}')
    (folder / "one.json").write_text('{"KO_a": [0]}')
    (folder / "absent.json").write_text('{"KO_a": [5]}')
    (folder / "list.json").write_text("[0]")
    (folder / "double.json").write_text('{"KO_a": [0], "KO_a": [1]}')
    (folder / "half.json").write_text('{"KO_a": [')
    (folder / "wide.csv").write_text("KO_a,0,1\n")
    (folder / "full").mkdir()
    (folder / "full" / "mine.txt").write_text("")
    FITTED.save(folder / "run")
    source = {"data": str(folder / "good.csv"), "env": "cond", "seed": 0}
    io.write_json({"seed": 0, "fit": FITTED.digest, "source": source}, folder / "run/run.json")
    whole = (folder / "run" / runs.CHECKPOINT).read_bytes()
    for name, content in {"cut": whole[:-50], "edited": whole[:-1] + b"!", "foreign": b"checkpoint"}.items():
        (folder / name).mkdir()
        (folder / name / runs.RUN).write_bytes((folder / "run" / runs.RUN).read_bytes())
        (folder / name / runs.CHECKPOINT).write_bytes(content)
    (folder / "damaged").mkdir()
    (folder / "damaged" / runs.RUN).write_text("{")
    return folder


def fit_of(file: str, *more: str) -> list[str]:
    return ["fit", "vae", "--data", f"@/{file}", "--out", "@/new", "--latents", "2", "--epochs", "1", *more]


GOOD = fit_of("good.csv", "--env", "cond")
LINEAR = ["fit", "linear_sem_lin", "--data", "@/good.csv", "--env", "cond", "--no-counts", "--out", "@/new"]
# the command ("@" is the folder above), and what its one line says
SHELL: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "no such command": (["fitt"], ["fitt"]),
    "no model": (["fit"], ["MODEL"]),
    "no data": (["fit", "vae", "--out", "@/new"], ["--data"]),
    "no out": (["fit", "vae", "--data", "moran2022"], ["--out"]),
    "no such option": ([*GOOD, "--latent", "3"], ["--latent"]),
    "a text for a number": ([*GOOD, "--chains", "many"], ["--chains", "'many'"]),
    "no such model": (["fit", "vea", *GOOD[2:]], ["MODEL: found 'vea' (did you mean 'vae'?); allowed: "]),
    "no such data": (
        ["fit", "vae", "--data", "papalexi", "--out", "@/new"],
        ["--data: found 'papalexi' (did you mean 'papalexi2021'?); allowed: "],
    ),
    "no such file": (
        fit_of("none.csv"),
        ["path: found no file", "none.csv'; allowed: an existing file ending in .csv"],
    ),
    "another kind of file": (fit_of("good.txt"), ["--data: found ", "good.txt'; allowed: a file ending in .csv"]),
    "an empty file": (fit_of("empty.csv"), ["empty.csv', which cannot be read", "; allowed: a whole .csv file"]),
    "a header alone": (
        fit_of("header.csv", "--env", "cond"),
        ["x: found 0 rows of 8 columns; allowed: at least 2 rows"],
    ),
    "one row": (fit_of("one.csv", "--env", "cond"), ["x: found 1 row; allowed: at least 2 rows to fit to"]),
    "ragged": (fit_of("ragged.csv"), ["ragged.csv', which cannot be read", "; allowed: a whole .csv file"]),
    "NaN": (
        fit_of("nan.csv", "--env", "cond"),
        ["x: found 1 missing value in 1 of 7 features, the first at row 0: 'c' (1); allowed: "],
    ),
    "texts": (fit_of("text.csv", "--env", "cond"), ["x: found columns that are not numbers: 'tissue'; allowed: "]),
    "environments not named": (fit_of("good.csv"), ["'cond'; allowed: numeric features (name the column of env"]),
    "constant": (
        fit_of("constant.csv", "--env", "cond"),
        ["constant feature 'b'; allowed: features that vary"],
    ),
    "negative counts": (
        fit_of("negative.csv", "--env", "cond", "--counts"),
        ["x: found -", "at row 0, column 0; allowed: counts: whole numbers from 0 on"],
    ),
    "fractional counts": (
        fit_of("fraction.csv", "--env", "cond", "--counts"),
        [".5 at row 0, column 0; allowed: counts"],
    ),
    "names twice": (fit_of("twice.csv"), ["feature_names: found 'a' more than once in twice.csv; allowed: unique"]),
    "no such column": (fit_of("good.csv", "--env", "drug"), ["env: found no column 'drug'; allowed: one of 'a', 'b'"]),
    "no such control": (
        [*GOOD, "--control", "DMSO"],
        ["control: found unknown environment 'DMSO'; allowed: one of 'KO_a'"],
    ),
    "a size factor that is a text": (
        [*GOOD, "--size-factor", "cond"],
        ["size_factor: found column 'cond' of ", "; allowed: a column of numbers"],
    ),
    "targets elsewhere": (
        [*GOOD, "--targets", "@/none.json"],
        ["targets: found ", "No such file", "; allowed: a readable"],
    ),
    "targets unknown": (
        [*GOOD, "--targets", "@/targets.json"],
        ["targets: found unknown environment 'KO_z'; allowed: "],
    ),
    "targets a list": ([*GOOD, "--targets", "@/list.json"], ["targets: found ", "a JSON list; allowed: JSON such as"]),
    "targets cut": ([*GOOD, "--targets", "@/half.json"], ["targets: found ", "; allowed: JSON such as"]),
    "targets wide": ([*GOOD, "--targets", "@/wide.csv"], ["row 1 has 3 columns; allowed: two columns: env, latent"]),
    "broken npz": (fit_of("broken.npz"), ["broken.npz', which cannot be read", "; allowed: a whole .npz file"]),
    "cut npz": (fit_of("short.npz"), ["short.npz', which cannot be read", "; allowed: a whole .npz file"]),
    "npz without x": (fit_of("nameless.npz"), ["path: found array 'y' in nameless.npz; allowed: arrays "]),
    "broken h5ad": (fit_of("broken.h5ad"), ["broken.h5ad', which cannot be read", "; allowed: a whole .h5ad file"]),
    "broken parquet": (
        fit_of("broken.parquet"),
        ["broken.parquet', which cannot be read", "; allowed: a whole .parquet"],
    ),
    "environments for a setting": (
        ["fit", "vae", "--data", "moran2022", "--out", "@/new", "--env", "cond"],
        ["--env: found 'cond'; allowed: nothing: moran2022 brings its own"],
    ),
    "too many latents": (
        [*GOOD[:6], "--latents", "8", *GOOD[8:]],
        ["latents: found 8; allowed: at most the 7 features"],
    ),
    "no chains": ([*GOOD, "--chains", "0"], ["chains: found 0; allowed: a whole number from 1 on"]),
    "no draws": ([*GOOD, "--draws", "0"], ["--draws: found 0; allowed: a whole number from 1 on"]),
    "a seed below 0": ([*GOOD, "--seed", "-1"], ["--seed: found -1; allowed: a whole number from 0 on"]),
    "no such device": ([*GOOD, "--device", "cuda:99"], ["device: found 'cuda:99' with ", "; allowed: auto or cpu"]),
    "targets of a model without": (
        [*GOOD, "--targets", "known"],
        ["targets: not an option of vae; allowed: features, latents, likelihood, hidden"],
    ),
    "no such mode": (
        [*GOOD, "--targets", "guess"],
        ["--targets: found 'guess'; allowed: known, relabelled, unknown, or a file ending in .json, .csv"],
    ),
    "targets told twice": (
        [*GOOD, "--targets", "known", "--targets", "unknown"],
        ["--targets: found known and unknown; allowed: one word, one file, or one of each"],
    ),
    "an option of another kind": (
        [*GOOD, "--option", "hidden=1.5"],
        ["hidden: found 1.5; allowed: a whole number from 1 on"],
    ),
    "an option that a model has by another name": (
        [*GOOD, "--option", "hiden=3"],
        ["hiden: not an option of vae (did you mean 'hidden'?); allowed: "],
    ),
    "an option beyond memory": (
        [*GOOD, "--option", "hidden=1000000000"],
        ["hidden: found 1000000000, which takes ", " GB or more; allowed: what fits into "],
    ),
    "chains beyond memory": (
        [*GOOD, "--chains", "10000000"],
        ["chains: found 10000000, which takes ", " GB or more; allowed: what fits into "],
    ),
    "an option without a value": ([*GOOD, "--option", "hidden"], ["--option: found 'hidden'; allowed: K=V"]),
    "an option twice": (
        [*GOOD, "--option", "a=1", "--option", "a=2"],
        ["--option: found 'a' twice; allowed: each option once"],
    ),
    "no such option of the model": (
        [*GOOD, "--option", "depth=1"],
        ["depth: not an option of vae; allowed: features, "],
    ),
    "no targets": (
        [*LINEAR, "--latents", "3"],
        ["targets: found None in the data; allowed: a mapping environment -> latents, or targets='unknown'"],
    ),
    "no intervention on a latent": (
        [*LINEAR, "--latents", "2", "--targets", "@/one.json"],
        ["targets: found no environment that intervenes on latent 1; allowed: one or more for each latent"],
    ),
    "two environments of one label": (
        [*LINEAR, "--latents", "2", "--targets", "@/double.json"],
        ["targets: found two environments with the label 'KO_a'; allowed: each environment once"],
    ),
    "a target that is absent": (
        [*LINEAR, "--latents", "2", "--targets", "@/absent.json"],
        ["targets: found latent 5 for environment 'KO_a'; allowed: latents 0 to 1"],
    ),
    "a single environment": (
        ["fit", "linear_sem_lin", "--data", "moran2022", "--out", "@/new"],
        ["targets: found None in the data; allowed: a mapping environment -> latents, or targets='unknown'"],
    ),
    "choose what no data list": (
        ["choose", "--data", "@/good.csv", "--env", "cond", "--targets", "known"],
        ["targets: found 'known' for data that list none; allowed: 'unknown', or data with targets"],
    ),
    "choose by no such mode": (
        ["choose", "--data", "@/good.csv", "--env", "cond", "--targets", "guess"],
        ["--targets: found 'guess'; allowed: known, relabelled, unknown, or a file ending in .json, .csv"],
    ),
    "choose by no such intervention": (
        ["choose", "--data", "@/good.csv", "--env", "cond", "--intervention", "hard"],
        ["intervention: found 'hard'; allowed: perfect, shift, soft, variance"],
    ),
    "choose for an absent target": (
        ["choose", "--data", "@/good.csv", "--env", "cond", "--targets", "@/absent.json", "--latents", "2"],
        ["targets: found latent 5 for environment 'KO_a'; allowed: latents 0 to 1"],
    ),
    "out is full": ([*GOOD, "--out", "@/full"], ["--out: found ", "which holds files; allowed: a new folder, --force"]),
    "out is a file": ([*GOOD, "--out", "@/good.csv"], ["--out: found ", "which is a file; allowed: a folder"]),
    "out is in a file": (
        [*GOOD, "--out", "@/good.csv/run"],
        ["--out: found ", "cannot be written; allowed: a folder that"],
    ),
    "nothing to resume": (
        [*GOOD, "--resume"],
        ["--resume: found no checkpoint in ", "; allowed: the folder of an interrupted"],
    ),
    "force and resume": (
        [*GOOD, "--force", "--resume"],
        ["--resume: found together with --force; allowed: one of them"],
    ),
    "no such run": (
        ["evaluate", "@/full"],
        ["RUN: found no run.json in ", "; allowed: a folder that `pyrocrl fit` wrote"],
    ),
    "a damaged run": (["report", "@/damaged"], ["RUN: found a damaged run.json in ", "; allowed: a folder that"]),
    "a cut checkpoint": (["evaluate", "@/cut"], ["path: ", "damaged or foreign", "; allowed: a whole checkpoint"]),
    "an edited checkpoint": (["evaluate", "@/edited"], ["path: ", "edited", "; allowed: an unchanged checkpoint"]),
    "a foreign checkpoint": (
        ["report", "@/foreign"],
        ["path: ", "damaged or foreign", "; allowed: a whole checkpoint"],
    ),
    "scores without truth": (["evaluate", "@/run"], ["data: found no truth; allowed: simulated data with truth"]),
    "another data's scores": (
        ["evaluate", "@/run", "--data", "perturb_seq"],
        ["feature_names: found 'gene_00', 'gene_01', 'gene_02', ... (60); allowed: 7 columns without names, as in"],
    ),
    "no such setting": (
        ["simulate", "moran", "--out", "@/new.npz"],
        ["setting: found 'moran' (did you mean 'moran2022'?)"],
    ),
    "another kind of out": (
        ["simulate", "moran2022", "--out", "@/new.csv"],
        ["--out: found ", "; allowed: a file ending in .npz"],
    ),
    "out is there": (
        ["simulate", "moran2022", "--out", "@/whole.npz"],
        ["--out: found ", "which exists; allowed: a new file"],
    ),
    "an option that is wrong": (
        ["simulate", "moran2022", "--out", "@/new.npz", "--option", "rho=1.5"],
        ["rho: found 1.5; allowed: a correlation between -1 and 1"],
    ),
    "nothing of that name": (["show", "vea"], ["NAME: found 'vea' (did you mean 'vae'?); allowed: "]),
    "list of what": (["list", "cards"], ["WHAT: found 'cards'; allowed: assumptions, datasets, models, settings"]),
    "seeds that are none": (["reproduce", "vae", "--seeds", "8:0"], ["seeds: found '8:0'; allowed: such as 0:8"]),
    "reproduce what": (["reproduce", "vae", "--setting", "x"], ["setting: found 'x'; allowed: moran2022"]),
    "no jobs": (["reproduce", "vae", "--jobs", "0"], ["jobs: found 0; allowed: a whole number from 1 on"]),
    "results into something else": (
        ["reproduce", "vae", "--json", "@/list.json"],
        ["json: found ", "which holds something else"],
    ),
    "results into a file's folder": (
        ["reproduce", "vae", "--json", "@/good.csv/r.json"],
        ["path: found ", "; allowed: a place"],
    ),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def assert_one_line(name: str, code: int, err: str) -> None:
    assert code == 2, err
    assert err.count("\n") == 1 and err.startswith("pyrocrl: ") and "Traceback" not in err
    assert "allowed" in err, "says what is allowed, or which --help does"
    for part in SHELL[name][1]:
        assert part in err


@pytest.mark.parametrize("name", SHELL)
def test_shell(name: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(files)
    code = cli.main([argument.replace("@", str(files)) for argument in SHELL[name][0]])
    assert_one_line(name, code, capsys.readouterr().err)
    assert snapshot(files) == before, "nothing is half-written"


@pytest.mark.parametrize("name", ["no such option", "out is a file"])
def test_shell_as_a_process(name: str, files: Path) -> None:
    argv = [argument.replace("@", str(files)) for argument in SHELL[name][0]]
    done = subprocess.run([sys.executable, "-m", "pyrocrl.cli", *argv], capture_output=True, text=True, timeout=120)
    assert_one_line(name, done.returncode, done.stderr)
