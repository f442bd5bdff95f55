"""Tables, files and posteriors, there and back."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import xarray as xr

import pyrocrl
from pyrocrl import Data, InputError, files, io, simulate

RNG = np.random.default_rng(0)
X = RNG.poisson(4.0, (30, 4))
ENV = np.array(["ctrl", "KO_b", "KO_a"])[np.arange(30) % 3]


def frame() -> pd.DataFrame:
    return pd.DataFrame(X, columns=list("abcd")).assign(cond=ENV, lib=X.sum(1) + 1.0, rep=np.arange(30) % 2)


def assert_same(a: Data, b: Data) -> None:
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.env_labels(), b.env_labels())
    np.testing.assert_array_equal(a.env, b.env)
    for name in ("feature_names", "env_names", "batch_names", "targets", "counts", "control"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.batch, b.batch)
    for name in ("size_factor", "aux"):
        assert (getattr(a, name) is None) == (getattr(b, name) is None)
        if getattr(a, name) is not None:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.truth.keys() == b.truth.keys()
    for key, value in a.truth.items():
        np.testing.assert_array_equal(value, b.truth[key])


def test_a_table_becomes_data_with_names() -> None:
    data = io.from_frame(
        frame(), "cond", "ctrl", {"KO_a": 0, "KO_b": [1]}, size_factor="lib", batch="rep", name="screen"
    )
    assert data.feature_names == list("abcd") and data.name == "screen"
    assert data.env_names == ["ctrl", "KO_a", "KO_b"] and data.control == "ctrl"
    assert data.targets == {"KO_a": (0,), "KO_b": (1,)}
    assert data.counts, "a table of whole numbers holds counts"
    assert data.batch_names == ["0", "1"]
    np.testing.assert_array_equal(data.size_factor, X.sum(1) + 1.0)
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.env_labels(), ENV)


def test_control_comes_first_with_and_without_targets() -> None:
    for targets in (None, {"KO_a": (0,)}):
        assert Data(X, ENV, targets, control="ctrl").env_names[0] == "ctrl"
        assert Data(X, ENV, targets, control="KO_b").env_names[0] == "KO_b"


def test_columns_that_are_not_numbers_are_named() -> None:
    with pytest.raises(InputError, match=r"x: found columns that are not numbers: 'cond', 'tissue'; .*env"):
        io.from_frame(frame().assign(tissue="liver"))
    with pytest.raises(InputError, match="'tissue'"):
        io.from_frame(frame().assign(tissue="liver"), "cond")


@pytest.mark.parametrize("sparse", [False, True])
def test_anndata(sparse: bool, tmp_path: Path) -> None:
    obs = frame()[["cond", "rep"]].rename(columns={"cond": "target"}).astype({"target": "category"})
    obs = obs.assign(n_umis_total=X.sum(1) + 1.0).set_axis([f"cell_{i}" for i in range(30)])
    x = scipy.sparse.csr_matrix(X.astype(np.float32)) if sparse else X.astype(np.float32)
    adata = anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=list("abcd")), layers={"half": x / 2.0})
    data = io.from_anndata(adata, control="ctrl", batch="rep")
    assert data.counts and data.env_names[0] == data.control == "ctrl" and data.feature_names == list("abcd")
    assert data.size_factor is not None
    np.testing.assert_array_equal(data.x.toarray() if sparse else data.x, X)
    halves = io.from_anndata(adata, env=None, size_factor=None, layer="half")
    assert not halves.counts and halves.env_names == ["observational"] and halves.size_factor is None

    adata.write_h5ad(tmp_path / "screen.h5ad")
    again = io.read(tmp_path / "screen.h5ad", "target", "ctrl", batch="rep")
    assert again.name == "screen"
    assert_same(
        Data(
            X,
            ENV,
            control="ctrl",
            counts=True,
            size_factor=X.sum(1) + 1.0,
            batch=np.arange(30) % 2,
            feature_names=list("abcd"),
        ),
        again.rows_at(np.arange(30)) if not sparse else _dense(again),
    )
    with pytest.raises(InputError, match=r"env: found no column 'gene' in obs; allowed: None or one of 'target'"):
        io.from_anndata(adata, env="gene")
    with pytest.raises(InputError, match=r"layer: found 'log'"):
        io.from_anndata(adata, layer="log")
    with pytest.raises(InputError, match=r"control: found unknown environment 'non-targeting'"):
        io.from_anndata(adata, control="non-targeting")
    with pytest.raises(InputError, match="adata: found a DataFrame"):
        io.from_anndata(frame())


def _dense(data: Data) -> Data:
    part = data.rows_at(np.arange(data.rows))
    part.x = part.x.toarray()
    return part


def test_to_frame_and_to_anndata() -> None:
    data = simulate.draw("perturb_seq", seed=100, rows=100, features=20)
    back = io.from_frame(io.to_frame(data), "env", data.control, data.targets)
    np.testing.assert_array_equal(back.x, data.x)
    assert back.env_names == data.env_names
    adata = io.to_anndata(data)
    again = io.from_anndata(adata, "env", batch="batch", targets=data.targets)
    np.testing.assert_array_equal(again.size_factor, data.size_factor)
    np.testing.assert_array_equal(again.batch, data.batch)
    np.testing.assert_array_equal(adata.obsm["truth_z"], data.truth["z"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_on_disk(suffix: str, tmp_path: Path) -> None:
    path, table = tmp_path / f"t{suffix}", frame()[["a", "b", "c", "d", "cond"]]
    if suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="\t" if suffix == ".tsv" else ",")  # row names without a header, as pandas writes them
    data = io.read(path, "cond", "ctrl")
    assert_same(data, Data(X, ENV, control="ctrl", feature_names=list("abcd")))
    assert not io.read(path, "cond", counts=False).counts


@pytest.mark.parametrize("setting", ["moran2022", "perturb_seq", "squires2023_hard"])
def test_npz_gives_back_the_data_whole(setting: str, tmp_path: Path) -> None:
    data = simulate.draw(setting, seed=100)
    path = io.write(data, tmp_path / "data.npz")
    assert_same(data, io.read(path))
    assert [p.name for p in tmp_path.iterdir()] == ["data.npz"]


def test_npz_of_others(tmp_path: Path) -> None:
    scipy.sparse.save_npz(tmp_path / "s.npz", scipy.sparse.csr_matrix(X))
    np.testing.assert_array_equal(io.read(tmp_path / "s.npz").x.toarray(), X)
    np.savez(tmp_path / "p.npz", x=X, drug=ENV)
    assert io.read(tmp_path / "p.npz", "drug", "ctrl").env_names == ["ctrl", "KO_a", "KO_b"]
    with pytest.raises(InputError, match=r"array .drug. in p\.npz; allowed: arrays aux, "):
        io.read(tmp_path / "p.npz")
    np.savez(tmp_path / "o.npz", x=np.array([[1, "a"], [2, "b"]], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        io.read(tmp_path / "o.npz")


def test_targets_files(tmp_path: Path) -> None:
    wanted = {"KO_a": (0, 2), "KO_b": (1,)}
    (tmp_path / "t.json").write_text(json.dumps({"KO_a": [0, 2], "KO_b": 1}))
    (tmp_path / "t.csv").write_text("env,latent\nKO_a,0\nKO_b,1\nKO_a,2\n")
    (tmp_path / "t.tsv").write_text("KO_a\t0\nKO_a\t2\nKO_b\t1\n")
    for name in ("t.json", "t.csv", "t.tsv"):
        assert io.read_targets(tmp_path / name) == wanted


def test_a_posterior_survives_netcdf(tmp_path: Path) -> None:
    data = simulate.draw("perturb_seq", seed=100, rows=60, features=8, latents=2, anchors=2, batches=1)
    fit = pyrocrl.fit(pyrocrl.build("vae", data, latents=2, hidden=8), data, chains=2, epochs=2, progress=False)
    tree = fit.posterior(3)
    more = xr.Dataset(
        {"mask": (("chain", "gene"), RNG.integers(0, 2, (2, 3)).astype(np.int8)), "f": ("gene", np.float32([1, 2, 3]))},
        coords={"chain": [0, 1], "gene": ["a", "bb", "β"]},
        attrs={"note": "text"},
    )
    tree["other"] = xr.DataTree(more)
    path = io.write_tree(tree, tmp_path / "sub" / "posterior.nc")
    again = io.read_tree(path)
    assert again.identical(tree)
    for node in tree.subtree:
        found = again[node.path].to_dataset(inherit=False)
        for name, value in node.to_dataset(inherit=False).variables.items():
            assert found[name].dtype == value.dtype, (node.path, name)
    assert [p.name for p in path.parent.iterdir()] == ["posterior.nc"]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"path: found .*posterior.nc', which cannot be read"):
        io.read_tree(path)


def test_what_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    io.write_json({"a": np.float64("nan"), "b": np.arange(2)}, path)
    assert json.loads(path.read_text()) == {"a": None, "b": [0, 1]}
    with pytest.raises(TypeError, match="JSON"):
        io.write_json({"a": object()}, path)
    for failure in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(failure), files.replacing(path) as file:
            file.write(b"half")
            raise failure
    assert json.loads(path.read_text())["b"] == [0, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(InputError, match=r"path: found .*; allowed: a place that can be written"):
        io.write_json({}, path / "b.json")
