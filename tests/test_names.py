"""Names of features and rows: kept from where the data come, matched with the fit's, and given back."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

import pyrocrl
from pyrocrl import Data, Fit, InputError, Program, cli, export, io
from pyrocrl.cli import runs
from pyrocrl.judge.compare import compare
from pyrocrl.models.sparse_vae import SparseVAE
from pyrocrl.models.vae import VAE
from pyrocrl.program import Features, Latents

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)
CELLS = [f"cell_{i}" for i in range(60)]
X = pd.DataFrame(RNG.normal(size=(60, 5)) @ RNG.normal(size=(5, 5)), columns=list("abcde"), index=CELLS)
AUX = pd.DataFrame(RNG.normal(size=(60, 2)), columns=["dose", "time"], index=CELLS)
ENV = pd.Series(np.resize(["control", "KO"], 60), index=CELLS)
QUICK: dict[str, Any] = {"chains": 2, "epochs": 2, "progress": False, "device": "cpu", "seed": 0}


class AuxVAE(VAE):
    """Takes auxiliary columns, which it does not look at."""

    def __init__(self, features: Features, latents: Latents, aux: int = 0) -> None:
        """aux: how many."""
        super().__init__(features, latents)


class AuxSparseVAE(SparseVAE):
    def __init__(self, features: Features, latents: Latents, aux: int = 0) -> None:
        """aux: how many."""
        super().__init__(features, latents)


@cache
def fitted(model: type[Program] = AuxVAE) -> Fit:
    data = Data(X, ENV, aux=AUX, size_factor=np.ones(60), truth={"mask": np.arange(10).reshape(5, 2) % 3 == 0})
    return pyrocrl.fit(pyrocrl.build(model, data, latents=2), data, **QUICK)


# -- kept --------------------------------------------------------------------------------------------------------


def test_a_table_brings_names_of_features_and_rows() -> None:
    data = Data(X, ENV, aux=AUX)
    assert data.feature_names == list("abcde") and data.aux_names == ["dose", "time"]
    assert data.row_labels().tolist() == CELLS
    assert Data(X, aux=AUX["time"]).aux_names == ["time"]
    assert Data(X, feature_names=list("vwxyz"), row_names=range(100, 160)).feature_names == list("vwxyz")
    assert Data(X.to_numpy(), row_names=range(100, 160)).row_labels()[0] == "100"
    kept = X[X["a"] > 0]
    assert Data(kept).row_labels().tolist() == kept.index.tolist()


@pytest.mark.parametrize("x", [X.to_numpy(), torch.as_tensor(X.to_numpy()), pd.DataFrame(X.to_numpy())])
def test_what_has_no_names_gets_positions(x: Any) -> None:
    data = Data(x)
    assert data.feature_names == [f"feature_{j}" for j in range(5)] and data.aux_names == []
    assert data.row_names is None and data.row_labels().tolist() == list(range(60))


def test_rows_of_one_name_go_by_position_and_are_told() -> None:
    with pytest.warns(UserWarning, match="row_names: 'cell_0' more than once, so rows go by their positions"):
        assert Data(X, row_names=["cell_0", *CELLS[:59]]).row_names is None
    with pytest.raises(InputError, match="row_names: found 3 names; allowed: one per row of x, 60"):
        Data(X, row_names=CELLS[:3])


@pytest.mark.parametrize("argument", ["env", "batch", "size_factor", "aux"])
def test_labels_whose_index_has_another_order_are_refused(argument: str) -> None:
    values = pd.Series(np.resize([1.0, 2.0], 60), index=CELLS)
    Data(X, **{argument: values})
    Data(X, **{argument: values.set_axis(range(60))})  # an index that knows nothing of x: by position
    with pytest.raises(InputError, match=f"{argument}: found row 'cell_59' where x has 'cell_0'; allowed: rows in"):
        Data(X, **{argument: values[::-1]})


def test_row_names_survive_parts_and_files(tmp_path: Path) -> None:
    data = Data(X, ENV, aux=AUX)
    train, held = data.split(0.3, 0)
    for part in (train, held, data.rows_at(np.arange(60) % 2 == 0)):
        np.testing.assert_array_equal(part.x, X.loc[part.row_labels()])
    again = io.read(io.write(held, tmp_path / "held.npz"))
    assert again.row_labels().tolist() == held.row_labels().tolist() and again.aux_names == ["dose", "time"]
    io.to_frame(data).to_csv(tmp_path / "t.csv")
    io.to_frame(data).to_parquet(tmp_path / "t.parquet")
    io.to_anndata(data).write_h5ad(tmp_path / "t.h5ad")
    for name in ("t.csv", "t.parquet", "t.h5ad"):
        read = io.read(tmp_path / name, "env")
        assert read.row_labels().tolist() == CELLS and read.feature_names == list("abcde"), name
    assert io.to_anndata(data.rows_at([3, 1])).obs_names.tolist() == ["cell_3", "cell_1"]


def test_a_posterior_knows_rows_by_name() -> None:
    fit = fitted()
    tree = fit.posterior(2, thin=7)
    for group in ("posterior", "posterior_predictive", "observed_data", "constant_data"):
        assert tree[group]["data"].to_numpy().tolist() == CELLS[::7], group
    assert tree["constant_data"]["row"].to_numpy().tolist() == CELLS
    assert fit.prior(2)["prior"]["data"].to_numpy().tolist() == CELLS
    nameless = Data(X.to_numpy(), feature_names=X.columns, aux=AUX, size_factor=np.ones(60))
    assert fit.posterior(2, nameless, thin=7)["posterior"]["data"].to_numpy().tolist() == list(range(0, 60, 7))


# -- matched -----------------------------------------------------------------------------------------------------


def rows(x: Any = X, **more: Any) -> Data:
    return Data(x, **{"aux": AUX, "size_factor": np.ones(60), **more})


@pytest.mark.parametrize(
    "data",
    [
        rows(X[list("ecabd")]),
        rows(aux=AUX[["time", "dose"]]),
        rows(scipy.sparse.csr_matrix(X[list("edcba")]), feature_names="edcba", row_names=CELLS),
    ],
)
def test_columns_in_another_order_are_the_same_rows(data: Data) -> None:
    fit = fitted()
    coded = fit.coded(data)
    assert coded.feature_names == list("abcde") and coded.aux_names == ["dose", "time"]
    np.testing.assert_array_equal(coded.aux, AUX)
    np.testing.assert_array_equal(fit.latents(data), fit.latents())
    np.testing.assert_array_equal(fit.held_out_objective(data), fit.held_out_objective(rows()))
    np.testing.assert_array_equal(fit.posterior(1, data)["observed_data"]["x"], fit.posterior(1)["observed_data"]["x"])


REFUSED: dict[str, tuple[Callable[[], Data], str]] = {
    "renamed": (
        lambda: rows(X.rename(columns={"a": "z"})),
        "feature_names: found no 'a' and unknown 'z'; allowed: the 5 of the fit in any order, 'a', 'b', 'c', 'd', 'e'",
    ),
    "one more": (lambda: rows(X.assign(f=X["a"])), "feature_names: found unknown 'f'; allowed: the 5 of the fit in"),
    "one less": (lambda: rows(X[list("abcd")]), "feature_names: found no 'e'; allowed: the 5 of the fit in any order"),
    "nameless": (
        lambda: rows(X.to_numpy()),
        "feature_names: found 5 columns without names; allowed: the 5 of the fit by name, 'a', 'b', ",
    ),
    "without aux": (lambda: rows(aux=None), "aux: found no columns; allowed: 2, as in the fit"),
    "other aux": (
        lambda: rows(aux=AUX.set_axis(["dose", "hour"], axis=1)),
        "aux: found no 'time' and unknown 'hour'; allowed: the 2 of the fit in any order, 'dose', 'time'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_match_is_refused_by_every_reader(case: str, tmp_path: Path) -> None:
    fit, (made, line) = fitted(), REFUSED[case]
    data = made()
    path = fit.save(tmp_path)
    readers: list[Callable[[Data], Any]] = [
        fit.latents,
        fit.latents_sd,
        fit.held_out_objective,
        lambda d: fit.posterior(1, d),
        lambda d: fit.prior(1, d),
        lambda d: fit.do(d, {"latent_0": 1.0}, draws=2),
        lambda d: pyrocrl.diagnose(fit, d),
        lambda d: pyrocrl.load(path, d, program=AuxVAE),
        lambda d: compare({"one": fit, "two": fit}, d),
        lambda d: export.to_frame(fit, d),
        lambda d: pyrocrl.agreement(fit, fit.posterior(2), ["z"], d),
    ]
    for read in readers:
        with pytest.raises(InputError) as caught:
            read(data)
        assert line in str(caught.value)


def test_a_fit_without_names_takes_rows_by_position_alone() -> None:
    bare = Data(X.to_numpy())
    fit = pyrocrl.fit(pyrocrl.build("vae", bare, latents=2), bare, **QUICK)
    np.testing.assert_array_equal(fit.latents(Data(X.to_numpy()[:9])), fit.latents()[:9])
    for data, line in (
        (Data(X), "feature_names: found 'a', 'b', 'c', ... (5); allowed: 5 columns without names, as in the fit"),
        (Data(X.to_numpy()[:, :3]), "feature_names: found 3 columns; allowed: 5, as in the fit"),
        (Data(X.to_numpy(), aux=AUX), "aux: found 2 columns; allowed: none, as in the fit"),
    ):
        with pytest.raises(InputError, match=re.escape(line)):
            fit.latents(data)


def test_batches_are_needed_where_the_fit_had_them_and_only_there() -> None:
    data = Data(X, batch=np.resize(["r1", "r2"], 60))
    batched, plain = (pyrocrl.fit(pyrocrl.build("sparse_vae", d, latents=2), d, **QUICK) for d in (data, Data(X)))
    swapped = Data(X, batch=np.resize(["r2", "r1"], 60)).rows_at([1])
    np.testing.assert_array_equal(batched.coded(swapped).batch, [0])
    for fit, rows, line in (
        (batched, Data(X), "batch: found none; allowed: labels, as in the fit"),
        (plain, data, "batch: found labels; allowed: none, as in the fit"),
        (batched, Data(X, batch=np.resize(["r1", "r3"], 60)), "batch: found 'r3', which was not fitted; allowed: one"),
    ):
        with pytest.raises(InputError, match=re.escape(line)):
            fit.latents(rows)


def test_scores_of_a_mask_and_models_of_other_columns_are_by_name() -> None:
    fit = fitted(AuxSparseVAE)
    assert fit.data is not None
    turned = fit.data.coded_as(feature_names=list("edcba"))
    np.testing.assert_array_equal(turned.truth["mask"], fit.data.truth["mask"][::-1])
    scores = [pyrocrl.evaluate(fit, data) for data in (fit.data, turned)]
    assert scores[0] == scores[1] and "mask_f1" in scores[0]
    other = pyrocrl.fit(pyrocrl.build(AuxVAE, turned, latents=2), turned, **QUICK)
    assert other.names["feature"] == list("edcba")
    both = [compare({"one": fitted(), "two": other}, data).models for data in (fit.data, turned)]
    assert [m.held_out for m in both[0]] == [m.held_out for m in both[1]]


# -- given back: the page's own commands ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which `docs/your_own_anndata.md` was followed, on fewer cells and epochs."""
    folder, names = tmp_path_factory.mktemp("page"), {}
    text = (ROOT / "docs" / "your_own_anndata.md").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("pyrocrl.report.write", lambda *given: given[4].write_text("<html>"))
        for language, code in re.findall(r"```(python|sh)\n(.*?)```", text, re.DOTALL):
            if language == "python":
                exec(code.replace("rows=2_000, features=40", "rows=400, features=24"), names)
                continue
            for line in code.strip().splitlines():
                more = "--chains 2 --epochs 4 --draws 3 --quiet" if " fit " in line else ""
                assert cli.main(shlex.split(f"{line} {more}")[1:]) == 0, line
        (folder / "names").write_text(json.dumps(names["z"].index.tolist()))
        yield folder


def test_the_page_of_ones_own_anndata_runs(page: Path) -> None:
    before, after = (anndata.read_h5ad(page / f"{name}.h5ad") for name in ("screen", "screen_latents"))
    table = pd.read_csv(page / "latents.csv", index_col=0)
    names = [f"latent_{k}" for k in range(6)]
    assert list(table.columns) == names + [f"{name}_sd" for name in names]
    assert table.index.tolist() == before.obs_names.tolist() == after.obs_names.tolist()
    np.testing.assert_array_equal(after.X, before.X)
    np.testing.assert_allclose(after.obsm["X_pyrocrl"], table[names])
    np.testing.assert_allclose(after.obsm["X_pyrocrl_sd"], table.iloc[:, 6:])
    assert (table.iloc[:, 6:] > 0).all().all()
    tree = io.read_tree(page / "runs" / "screen" / runs.POSTERIOR)
    assert set(tree["posterior"]["data"].to_numpy()) <= set(before.obs_names)
    found = after.uns["pyrocrl"]
    assert found["latents"].tolist() == names and found["verdict"].startswith("sparse_vae: 2 chains")
    assert json.loads(found["run"])["model"] == "sparse_vae"
    fit = pyrocrl.load(page / "runs" / "screen")
    np.testing.assert_allclose(after.varm["pyrocrl_mask"], fit.mask())
    assert after.varm["pyrocrl_loadings"].shape == (24, 6)
    new = pd.read_csv(page / "new_latents.csv", index_col=0)
    np.testing.assert_allclose(new[names], table.loc[new.index, names], rtol=1e-4, atol=1e-5)
    assert new.index.tolist() == before.obs_names[::20].tolist() == json.loads((page / "names").read_text())
    assert not list(page.rglob("*.part"))


def test_what_was_not_fitted_is_nan_and_what_is_unknown_is_refused() -> None:
    fit = fitted()
    assert fit.data is not None
    more = anndata.AnnData(
        np.zeros((62, 6)),
        obs=pd.DataFrame(index=["new_1", *CELLS[::-1], "new_2"]),
        var=pd.DataFrame(index=list("zedcba")),
    )
    tree = fit.posterior(2)
    out = export.to_anndata(fit, None, more, tree=tree)
    np.testing.assert_array_equal(np.isnan(out.obsm["X_pyrocrl"]).any(1), [True, *[False] * 60, True])
    np.testing.assert_array_equal(out[CELLS].obsm["X_pyrocrl"], fit.latents())
    loadings = pyrocrl.plots.loadings(tree)
    np.testing.assert_array_equal(out[:, list("abcde")].varm["pyrocrl_loadings"], loadings)
    assert np.isnan(out.varm["pyrocrl_loadings"][0]).all() and out.uns["pyrocrl"]["loadings"] == "correlation"
    with pytest.raises(InputError, match="adata: found no 'cell_0' in obs_names; allowed: an AnnData with the rows"):
        export.to_anndata(fit, None, more[1:-2].copy())
    with pytest.raises(InputError, match="adata: found no 'e' in var_names"):
        export.to_anndata(fit, None, more[:, 2:].copy())
    nameless = rows(X.to_numpy(), feature_names=list("abcde"))
    with pytest.raises(InputError, match="adata: found 62 obs_names for 60 rows without names; allowed: the 60 rows"):
        export.to_anndata(fit, nameless, more)


def test_a_graph_and_targets_come_with_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, graph, targets = fitted(), np.array([[0.0, 0.9], [0.1, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.2]])
    monkeypatch.setattr(fit, "graph", lambda: graph)
    monkeypatch.setattr(fit, "targets", lambda: targets)
    path = export.write_h5ad(export.to_anndata(fit), tmp_path / "found.h5ad")
    found = anndata.read_h5ad(path).uns["pyrocrl"]
    np.testing.assert_array_equal(found["graph"], graph)
    np.testing.assert_array_equal(found["targets"], targets)
    assert found["environments"].tolist() == fit.names["env"] == ["control", "KO"]


def test_latents_that_are_innovations_have_no_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    fit = fitted()
    monkeypatch.setattr(type(fit.program), "reads_innovations", True)
    assert fit.latents_sd() is None and list(export.to_frame(fit).columns) == ["latent_0", "latent_1"]
    assert "X_pyrocrl_sd" not in export.to_anndata(fit).obsm


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ([], "--csv: found neither it nor --h5ad; allowed: one of them or more"),
        (["--csv", "z.tsv"], "--csv: found 'z.tsv'; allowed: a file ending in .csv"),
        (["--h5ad", "screen.h5ad"], "--h5ad: found 'screen.h5ad', which exists; allowed: a new file, or --force"),
        (["--csv", "z.csv", "--data", "new_cells.h5ad"], "batch: found none; allowed: labels, as in the fit"),
        (["--csv", "z.csv", "--data", "renamed.h5ad"], "feature_names: found no 'gene_03' and unknown 'other'"),
    ],
)
def test_export_says_what_is_allowed(
    page: Path, options: list[str], line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(page)
    adata = anndata.read_h5ad("new_cells.h5ad")
    adata.var_names = [name.replace("gene_03", "other") for name in adata.var_names]
    adata.write_h5ad("renamed.h5ad")
    capsys.readouterr()
    assert cli.main(["export", "runs/screen", *options]) == 2
    assert line in capsys.readouterr().err and not Path("z.csv").exists()


def test_export_into_the_file_that_was_fitted(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(page)
    assert cli.main(["export", "runs/screen", "--h5ad", "screen.h5ad", "--force"]) == 0
    own, other = (anndata.read_h5ad(name) for name in ("screen.h5ad", "screen_latents.h5ad"))
    np.testing.assert_array_equal(own.obsm["X_pyrocrl"], other.obsm["X_pyrocrl"])
