"""Views, named blocks of features of which a row may lack some: how `Data` takes them and how files hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pyrocrl import Adjustment, Data, InputError, build, fit, io
from pyrocrl.infer.checkpoint import fingerprint
from pyrocrl.infer.units import units_of
from pyrocrl.models.vae import VAE

NAMES = ["rna_a", "rna_b", "atac_a", "atac_b", "atac_c"]
VIEWS = ["rna", "rna", "atac", "atac", "atac"]


def make(rows: int = 30, lacking: int = 10, seed: int = 0, **options: object) -> Data:
    """The first rows lack ATAC, the last RNA, as many each."""
    x = 3.0 + np.random.default_rng(seed).normal(size=(rows, 5))
    x[:lacking, 2:] = np.nan
    x[rows - lacking :, :2] = np.nan
    told = {"view": VIEWS, "feature_names": NAMES} | options
    return Data(x, **told)  # type: ignore[arg-type]


def test_views_are_names_of_features_or_a_mapping() -> None:
    data = make()
    assert data.view_names == ["rna", "atac"] and data.view is not None and data.view.tolist() == [0, 0, 1, 1, 1]
    assert data.present.sum(0).tolist() == [20, 20] and data.gaps
    assert data.measured.tolist() == [20] * 5
    told = make(view={"atac": NAMES[2:], "rna": NAMES[:2]})
    assert told.view_names == ["rna", "atac"] and told.view_labels().tolist() == VIEWS
    assert "views 'rna' in 20 rows, 'atac' in 20 rows" in repr(data)
    whole = make(lacking=0)
    assert not whole.gaps and whole.present.all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": VIEWS[:4]}, r"view: found shape \(4,\); allowed: one name per column of x, shape \(5,\)"),
        ({"view": ["rna", "rna", None, "atac", "atac"]}, "view: found no view, or one without a name, for feature 'at"),
        ({"view": ["rna", "rna", " ", "atac", "atac"]}, "view: found no view, or one without a name, for feature 'at"),
        ({"view": {"rna": NAMES[:2], "": NAMES[2:]}}, "view: found no view, or one without a name, for feature 'at"),
        ({"view": {"rna": NAMES[:2], "atac": NAMES[2:4]}}, "view: found no view, or one without a name, for feature"),
        ({"view": {"rna": NAMES[:2], "atac": [*NAMES[2:], "x"]}}, "view: found unknown feature 'x' in view 'atac'"),
        ({"view": {"rna": NAMES[:3], "atac": NAMES[2:]}}, "view: found feature 'atac_a' in two views, 'rna' and 'atac"),
        ({"view": {"rna": NAMES, "atac": []}}, "view: found view 'atac' without features"),
        ({"view": ["rna"] * 5}, "view: found one view, 'rna'; allowed: two views or more, or None"),
        ({"view": None}, "x: found 50 missing values in 5 of 5 features"),
        ({"view": ["rna", "rna", "atac", "atac", "rna"]}, "x: found 30 missing values in 3 .* may lack a whole view"),
    ],
)
def test_bad_views_are_one_clear_line(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**options)


def test_rows_without_views_and_views_without_rows_are_refused() -> None:
    x = np.ones((3, 5)) + np.arange(3)[:, None]
    x[1] = np.nan
    with pytest.raises(InputError, match="x: found row 1 without any view"):
        Data(x, view=VIEWS)
    x[:, 2:], x[:, :2] = np.nan, 1.0
    with pytest.raises(InputError, match="view: found view 'atac' without rows"):
        Data(x, view=VIEWS)
    with pytest.raises(InputError, match="view: found view 'atac' without rows"):
        make().rows_at(np.arange(5)).check_fit()
    counts = np.array([[1.0, 2, 0, 3, 1], [np.nan, np.nan, 4, 0, 2], [2, 0, np.nan, np.nan, np.nan]])
    with pytest.raises(InputError, match="size_factor: found None, with rows that lack a view"):
        Data(counts, counts=True, view=VIEWS)
    assert Data(counts, counts=True, size_factor=1, view=VIEWS).counts
    with pytest.raises(InputError, match=r"x: found 0\.5 at row 0"):
        Data(counts * [0.5, 1, 1, 1, 1], counts=True, size_factor=1, view=VIEWS)


def test_models_that_do_not_say_so_are_refused_rows_that_lack_a_view() -> None:
    with pytest.raises(InputError, match="view: found 20 rows that lack a view, which vae does not read"):
        build("vae", make(), latents=1)
    with pytest.raises(InputError, match="view: found 20 rows that lack a view, which vae does not read"):
        fit(VAE(5, 1), make(), chains=1, epochs=1, progress=False)
    found = fit(VAE(5, 1), make(lacking=0), chains=1, epochs=1, progress=False)
    assert found.latents(make(lacking=0)).shape == (30, 1)
    with pytest.raises(InputError, match="view: found 20 rows that lack a view"):
        found.latents(make())
    with pytest.raises(InputError, match="view: found rows that lack a view"):
        Adjustment.of(make(batch=["a", "b"] * 15))


def test_rows_are_held_out_of_those_with_the_same_views() -> None:
    data = make(60, 20, env=["a", "b"] * 30)
    for by_env in (True, False):
        train, held = data.split(0.3, 0, by_env=by_env)
        for part in (train, held):
            assert (part.present == ~np.isnan(np.asarray(part.x)[:, [0, 2]])).all()
        assert 17 <= held.rows <= 19 and held.present.sum(0).tolist() == [12, 12]
    same = Data(np.random.default_rng(0).normal(size=(60, 5)), env=["a", "b"] * 30)
    split = Data(same.x, env=["a", "b"] * 30, view=VIEWS)
    assert (same.held_out(0.3, 0) == split.held_out(0.3, 0)).all()


def test_units_and_batches_pass_over_what_is_missing() -> None:
    data = make()
    units = units_of(VAE(5, 1), data)
    assert units is not None
    np.testing.assert_allclose(units.centre, np.nanmean(data.x, 0))
    np.testing.assert_allclose(units.scale, np.nanstd(data.x, 0))
    batch = data.in_units(units).tensors()
    assert batch.present is not None and (batch.present.numpy() == data.present).all()
    assert (batch.x[:10, 2:] == 0).all() and bool(batch.x.isfinite().all())
    assert (batch.take(batch.index[5:15]).present.numpy() == data.present[5:15]).all()  # type: ignore[union-attr]


def test_columns_in_another_order_keep_their_views() -> None:
    data = make()
    turned = data.coded_as(feature_names=NAMES[::-1])
    assert turned.view_names == ["atac", "rna"] and turned.view_labels().tolist() == VIEWS[::-1]
    assert (turned.present == data.present[:, ::-1]).all()
    assert fingerprint(data) != fingerprint(make(view=["r", "r", "a", "a", "a"]))


def test_files_hold_views(tmp_path: Path) -> None:
    data = make(row_names=[f"cell{i}" for i in range(30)])
    starts = ["rna_", "atac_"]
    io.to_frame(data).to_csv(tmp_path / "views.csv")
    for again in (
        io.read(io.write(data, tmp_path / "views.npz")),
        io.read(tmp_path / "views.csv", env="env", view=starts),
        io.from_anndata(io.to_anndata(data), env="env", view="view"),
        io.from_anndata(io.to_anndata(data), env="env", view=starts),
    ):
        assert again.view_labels().tolist() == VIEWS and (again.present == data.present).all()
        np.testing.assert_allclose(again.x, data.x)
    kept = io.read(tmp_path / "views.npz", drop=["atac_b"])
    assert kept.view_labels().tolist() == [v for n, v in zip(NAMES, VIEWS, strict=True) if n != "atac_b"]
    for bad, message in (
        (["rna_"], "view: found feature 'atac_a'; allowed: names that begin with one of 'rna_'"),
        ([*starts, "atac_z"], "view: found 'atac_z', with which no feature begins"),
    ):
        with pytest.raises(InputError, match=message):
            io.read(tmp_path / "views.csv", env="env", view=bad)
    with pytest.raises(InputError, match="view: found no column 'kind' in var"):
        io.from_anndata(io.to_anndata(data), env="env", view="kind")


def test_two_tables_are_joined_by_the_names_of_rows() -> None:
    rna = pd.DataFrame(np.arange(6.0).reshape(3, 2), ["c1", "c2", "c3"], ["g", "h"])
    atac = pd.DataFrame(np.arange(4.0).reshape(2, 2), ["c4", "c2"], ["g", "k"])
    env = pd.Series({"c1": "0", "c2": "1", "c3": "0", "c4": "3", "c5": "9"})
    data = io.from_views({"rna": rna, "atac": atac}, env)
    assert data.feature_names == ["rna:g", "h", "atac:g", "k"]
    assert data.row_labels().tolist() == ["c1", "c2", "c3", "c4"]
    assert data.present.tolist() == [[True, False], [True, True], [True, False], [False, True]]
    assert data.env_labels().tolist() == ["0", "1", "0", "3"]
    assert np.asarray(data.x)[1].tolist() == [2.0, 3.0, 2.0, 3.0]
    for views, env_, message in (
        ({"rna": rna}, None, "views: found 1 table"),
        ({"rna": rna, "atac": atac.iloc[:0]}, None, "views: found view 'atac' without rows"),
        ({"rna": rna, "atac": pd.concat([atac, atac])}, None, "views: found row 'c4' more than once in view 'atac'"),
        ({"rna": rna, "atac": atac.to_numpy()}, None, "views: found a ndarray for view 'atac'"),
        ({"rna": rna, "atac": atac}, env[:3], "env: found nothing for row 'c4'"),
        ({"rna": rna, "atac": atac}, ["0"] * 4, "env: found a list; allowed: a pandas series"),
    ):
        with pytest.raises(InputError, match=message):
            io.from_views(views, env_)  # type: ignore[arg-type]


def test_a_mudata_is_read_view_by_view(tmp_path: Path) -> None:
    anndata, h5py = pytest.importorskip("anndata"), pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    rows = {"rna": ["c1", "c2", "c3"], "atac": ["c2", "c3", "c4"]}
    with h5py.File(tmp_path / "two.h5mu", "w") as file:
        for view, own in rows.items():
            obs = pd.DataFrame({"hour": [str(int(c[1]) % 2) for c in own]}, index=own)
            adata = anndata.AnnData(rng.normal(size=(3, 2)), obs=obs, var=pd.DataFrame(index=["g", view]))
            anndata.io.write_elem(file, f"mod/{view}", adata)
        anndata.io.write_elem(file, "obs", pd.DataFrame(index=["c1", "c2", "c3", "c4"]))
    data = io.read(tmp_path / "two.h5mu", env="hour", view=["rna", "atac"])
    assert data.view_labels().tolist() == ["rna", "rna", "atac", "atac"] and data.feature_names[0] == "rna:g"
    assert data.present.sum(0).tolist() == [3, 3] and data.env_labels().tolist() == ["1", "0", "1", "0"]
    with pytest.raises(InputError, match="layer: found 'protein'; allowed: MODALITY or MODALITY/LAYER"):
        io.read(tmp_path / "two.h5mu", env="hour", view=["rna", "protein"])


def test_the_shell_reads_views(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pyrocrl.cli import main

    io.to_frame(make(lacking=0)).drop(columns="env").to_csv(tmp_path / "views.csv")
    told = ["choose", "--data", str(tmp_path / "views.csv"), "--latents", "1"]
    assert main([*told, "--view", "rna_", "--view", "atac_"]) == 0
    out = capsys.readouterr().out
    assert "views 'rna' in 30 rows" in out and "--view rna_ --view atac_" in out
    assert main([*told, "--view", "rna_"]) == 2
    assert "view: found feature 'atac_a'" in capsys.readouterr().err
