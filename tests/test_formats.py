"""Arrays, labels and files as they come from labs: each is read as it is meant, or refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from anndata.io import write_elem

import pyrocrl
from pyrocrl import Data, InputError, cli, io
from pyrocrl.cli import arguments, runs
from pyrocrl.labels import combinations

ROOT = Path(__file__).parent.parent
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 3)).astype(np.float32)
COUNTS = RNG.poisson(3.0, (12, 3))
COUNTS[3, 0] = 0  # whole numbers without one may be ratings
ENV = np.resize(["ctrl", "B"], 12)
EARLY = np.arange(12) < 2


class Brain16:
    """What jax hands over: numpy sees an array whose dtype it does not know by itself."""

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return torch.tensor(X).bfloat16().float().numpy()


def masked(values: np.ndarray) -> Any:
    return np.ma.array(values, mask=np.zeros(values.shape, bool) | EARLY.reshape(-1, *[1] * (values.ndim - 1)))


def broken(kind: type = sp.csr_matrix, place: int = 10**8) -> Any:
    x = kind(np.eye(4))
    x.indices[1] = place
    return x


def big_endian_csr() -> Any:
    x = sp.csr_matrix(X)
    return sp.csr_matrix((x.data.astype(">f4"), x.indices, x.indptr), shape=x.shape)


# an array, and the dtype in which x is kept; its numbers are X or COUNTS, to bfloat16's precision
READ: dict[str, tuple[Callable[[], Any], type]] = {
    "big-endian floats": (lambda: X.astype(">f8"), np.float64),
    "big-endian integers": (lambda: COUNTS.astype(">i4"), np.int32),
    "big-endian csr": (big_endian_csr, np.float32),
    "long double": (lambda: X.astype(np.longdouble), np.float64),
    "long double csc": (lambda: sp.csc_matrix(X.astype(np.longdouble)), np.float64),
    "half": (lambda: X.astype(np.float16), np.float32),
    "unsigned": (lambda: COUNTS.astype(np.uint16), np.int64),
    "objects": (lambda: COUNTS.astype(object), np.int64),
    "lists": (lambda: X.tolist(), np.float64),
    "nothing masked": (lambda: np.ma.array(X, mask=False), np.float32),
    "bfloat16": (lambda: torch.tensor(X).bfloat16(), np.float32),
    "float8": (lambda: torch.tensor(COUNTS % 3 + 1.0).to(torch.float8_e5m2), np.float32),
    "with gradient": (lambda: torch.tensor(X, requires_grad=True), np.float32),
    "integer tensor": (lambda: torch.tensor(COUNTS), np.int64),
    "coo tensor": (lambda: torch.tensor(X).to_sparse(), np.float32),
    "csr tensor": (lambda: torch.tensor(X).to_sparse_csr(), np.float32),
    "csc bfloat16 tensor": (lambda: torch.tensor(X).bfloat16().to_sparse_csc(), np.float32),
    "nullable integers": (lambda: pd.DataFrame(COUNTS).convert_dtypes(), np.int64),
    "arrow": (lambda: pd.DataFrame(COUNTS).astype("int64[pyarrow]"), np.int64),
    "nullable floats": (lambda: pd.DataFrame(X).astype("Float32"), np.float64),
    "array protocol": (Brain16, np.float32),
    "lil": (lambda: sp.lil_matrix(X), np.float32),
    "bsr": (lambda: sp.bsr_matrix(X), np.float32),
    "dia": (lambda: sp.dia_matrix(X), np.float32),
    "sparse array": (lambda: sp.coo_array(X), np.float32),
}


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_arrays_that_are_read(name: str) -> None:
    make, dtype = READ[name]
    data = Data(make())
    x = data.x.toarray() if sp.issparse(data.x) else data.x
    assert type(x) is np.ndarray and x.dtype == dtype and x.dtype.isnative
    truth = COUNTS % 3 + 1.0 if name == "float8" else COUNTS if data.counts else X
    np.testing.assert_allclose(x, truth, rtol=2**-8)
    assert data.tensors().x.shape == (12, 3)
    assert data.counts == (np.dtype(dtype).kind == "i"), "whole numbers are known as counts, whatever holds them"


def adata(x: Any) -> anndata.AnnData:
    obs = pd.DataFrame({"target": ENV, "day": np.arange(12) % 3}, index=[f"cell_{i}" for i in range(12)])
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=list("abc")))


@pytest.mark.parametrize("kind", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_backed_anndata(kind: Callable[..., Any], tmp_path: Path) -> None:
    adata(kind(COUNTS.astype(np.float32))).write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    for found, rows in ((backed, COUNTS), (backed[:6], COUNTS[:6])):
        data = io.from_anndata(found, control="ctrl", size_factor=None)
        np.testing.assert_array_equal(data.x.toarray() if sp.issparse(data.x) else data.x, rows)
        assert data.counts and data.env_names == ["ctrl", "B"]
    np.testing.assert_array_equal(Data(backed.X).tensors().x, COUNTS)
    backed.file.close()


# what is called, and a part of its one line
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "masked x": (lambda: Data(masked(X)), "x: found 6 missing values in 3 of 3 features, the first at row 0: "),
    "masked counts": (lambda: Data(masked(COUNTS)), "x: found 6 missing values in 3 of 3 features"),
    "a list of masked rows": (lambda: Data([*masked(X)]), "x: found 6 missing values"),
    "masked env": (lambda: Data(X, masked(ENV)), "env: found 2 missing labels of 12 (the first at row 0)"),
    "masked batch": (lambda: Data(X, batch=masked(np.arange(12))), "batch: found 2 missing labels of 12"),
    "masked aux": (lambda: Data(X, aux=masked(X)), "aux: found NaN or infinite"),
    "masked sizes": (lambda: Data(COUNTS, size_factor=masked(X[:, 0] + 9)), "size_factor: found nan"),
    "complex x": (lambda: Data(X + 1j), "x: found complex numbers (complex64); allowed: real numbers"),
    "complex aux": (lambda: Data(X, aux=X + 1j), "aux: found complex numbers"),
    "complex sizes": (lambda: Data(COUNTS, size_factor=X[:, 0] + 9j), "size_factor: found complex numbers"),
    "complex truth": (lambda: Data(X, truth={"z": X + 1j}), "truth['z']: found complex numbers"),
    "complex tensor": (lambda: Data(torch.tensor(X + 1j)), "x: found complex numbers"),
    "complex sparse": (lambda: Data(sp.csr_matrix(X + 1j)), "x: found complex numbers"),
    "a complex column": (
        lambda: io.from_frame(pd.DataFrame({"a": X[:, 0] + 1j, "b": X[:, 1]})),
        "x: found columns that are not numbers: 'a'",
    ),
    "complex size column": (
        lambda: io.from_frame(pd.DataFrame(X).assign(s=X[:, 0] + 1j), size_factor="s"),
        "size_factor: found column 's' of complex",
    ),
    "masked latents to score": (lambda: pyrocrl.metrics.mcc(masked(X), X), "z_true: found NaN or infinity"),
    "complex latents to score": (lambda: pyrocrl.metrics.mcc(X + 1j, X), "z_true: found complex numbers"),
    "a masked graph": (
        lambda: pyrocrl.metrics.shd(masked(np.zeros((12, 12))), np.zeros((12, 12))),
        "true: found values other than 0",
    ),
    "NaT": (
        lambda: Data(X, np.array(["2020-01-01", "NaT"] * 6, dtype="M8[D]")),
        "env: found 6 missing labels of 12 (the first at row 1); allowed: a label for every row",
    ),
    "NaT among objects": (lambda: Data(X, [pd.NaT, *"A" * 11]), "env: found 1 missing label of 12"),
    "pd.NA": (lambda: Data(X, pd.array(["A", pd.NA] * 6, dtype="string")), "env: found 6 missing labels"),
    "a category that is missing": (lambda: Data(X, pd.Categorical(["A", None] * 6)), "env: found 6 missing labels"),
    "NaN among texts": (lambda: Data(X, ["A", np.nan] * 6), "env: found 6 missing labels"),
    "NaN as a text": (lambda: Data(X, np.array(["A", "nan"] * 6)), "env: found 6 missing labels"),
    "an empty label": (lambda: Data(X, batch=["A", " "] * 6), "batch: found 6 missing labels"),
    "labels that are lists": (lambda: Data(X, [["a"], ["b", "c"]] * 6), "env: found labels that are no labels"),
    "bytes in Latin 1": (lambda: Data(X, [b"\xb5", b"A"] * 6), "env: found the label b'\\xb5'; allowed: texts, or"),
    "NA in a table": (
        lambda: io.from_frame(pd.DataFrame(COUNTS, columns=list("abc")).astype("Int64").where(COUNTS > 1)),
        f"x: found {(COUNTS < 2).sum()} missing value",
    ),
    "None in a list": (lambda: Data([[1, None, 2.0], [3, 4, 5]]), "x: found 1 missing value in 1 of 3 features"),
    "ragged": (lambda: Data([[1, 2], [3]]), "x: found rows of different lengths; allowed: a rectangular array"),
    "dates": (lambda: Data(np.zeros((3, 2), "M8[D]")), "x: found dtype datetime64[D]; allowed: floats or"),
    "a record": (lambda: Data(np.zeros(3, [("a", float)])), "x: found dtype [('a', '<f8')]"),
    "beyond int64": (lambda: Data(np.full((3, 2), 2**63, np.uint64)), "x: found 9223372036854775808; allowed: integ"),
    "a broken csr": (lambda: Data(broken()), "x: found a broken sparse matrix ("),
    "a broken csc": (lambda: Data(broken(sp.csc_matrix, -7)), "x: found a broken sparse matrix ("),
    "a broken bsr": (lambda: Data(broken(sp.bsr_matrix)), "x: found a broken sparse matrix ("),
    "broken aux": (lambda: Data(X[:4], aux=broken()), "aux: found a broken sparse matrix ("),
    "an AnnData": (lambda: Data(adata(X)), "x: found an AnnData; allowed: an array; io.from_anndata(adata, env=...)"),
    "a path": (lambda: Data("x.csv"), "x: found the text 'x.csv'; allowed: an array; io.read(path, env=...)"),
    "rows one by one": (lambda: Data(row for row in X), "x: found a block of shape (3,); allowed: blocks of rows"),
    "constant features": (
        lambda: pyrocrl.choose(Data(X * [1, 0, 0], feature_names=list("abc"))),
        "x: found constant features 'b', 'c'; allowed: features that vary",
    ),
    "NUL in a label": (lambda: Data(X, ["a\0b", "c"] * 6), "env: found 'a\\x00b', which holds a NUL character"),
    "half a character": (lambda: Data(X, batch=["\udc80", "c"] * 6), "batch: found '\\udc80', which holds half a"),
    "NUL in a feature's name": (lambda: Data(X, feature_names=["a", "b", "c\0"]), "feature_names: found 'c\\x00'"),
    "half a character in the name": (lambda: Data(X, name="\udc80"), "name: found '\\udc80', which holds half a"),
    "NUL in a path to read": (lambda: io.read("a\0.csv"), "path: found no file 'a\\x00.csv'"),
    "NUL in a path to write": (lambda: io.write(Data(X), "a\0.npz"), "path: found 'a\\x00.npz'; allowed: a path in"),
    "NUL in a targets file": (lambda: io.read_targets("a\0.csv"), "targets: found 'a\\x00.csv' (embedded null byte)"),
    "NUL in out": (lambda: fit(out="a\0b"), "out: found 'a\\x00b'; allowed: a path"),
    "a path that is no text": (lambda: fit(out=os.fsdecode(b"a\xff")), "out: found 'a\\udcff'; allowed: a path in"),
    "a model's name": (
        lambda: pyrocrl.fit("vae", Data(X), chains=2, latents=2),  # type: ignore[arg-type]
        "program: found 'vae'; allowed: a pyrocrl.Program, made by pyrocrl.build(NAME, data, ...)",
    ),
    "a model's class": (
        lambda: pyrocrl.fit(pyrocrl.zoo.get("vae"), Data(X)),  # type: ignore[arg-type]
        "program: found the class VAE; allowed: a pyrocrl.Program, made by pyrocrl.build(NAME, data, ...)",
    ),
    "an array to fit": (
        lambda: pyrocrl.fit(pyrocrl.build("vae", Data(X), latents=1), X),  # type: ignore[arg-type]
        "data: found a ndarray; allowed: a pyrocrl.Data",
    ),
}


def fit(**options: Any) -> pyrocrl.Fit:
    data = Data(X)
    return pyrocrl.fit(pyrocrl.build("vae", data, latents=1, hidden=4), data, chains=1, epochs=1, **options)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_in_one_line(name: str) -> None:
    call, message = REFUSED[name]
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert said.startswith(message) and "; allowed: " in said and "\n" not in said and len(said) < 400


def test_spaces_around_labels_make_no_environments() -> None:
    spaced = ["ctrl", "A", "A "] * 4
    with pytest.warns(UserWarning) as said:
        data = Data(X, spaced, {" A": (0,)}, control="ctrl ", batch=[" 1", "1", "1"] * 4)
    assert data.env_names == ["ctrl", "A"] and data.targets == {"A": (0,)} and data.control == "ctrl"
    assert data.batch_names == ["1"]
    lines = [str(warning.message) for warning in said]
    assert [line.split(":")[0] for line in lines] == ["env", "targets", "control", "batch"]
    assert lines[0] == "env: spaces around the label 'A ' are left out"
    with pytest.raises(InputError, match="two environments with the label 'A'"), pytest.warns(UserWarning):
        Data(X, spaced, {"A": (0,), "A ": (1,)})
    assert Data(X, [b"A", "B"] * 6).env_names == ["A", "B"], "bytes are texts in UTF-8"


# -- files -------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[bytes, str]] = {  # a file's bytes, and its one line; "" = it is read
    "semicolon.csv": (b"a;b\n1.5;2\n2.5;3\n", ""),
    "tab.csv": (b"a\tb\n1.5\t2\n2.5\t3\n", ""),
    "comma.tsv": (b"a,b\n1.5,2\n2.5,3\n", ""),
    "mark.csv": (b"\xef\xbb\xbfa,b\n1.5,2\n2.5,3\n", ""),
    "SHOUTED.CSV": (b"a,b\n1.5,2\n2.5,3\n", ""),
    "decimal.csv": (b"a;b\n1,5;2\n2,5;3\n", "path: found decimal commas, such as '1,5' in column 'a' of decimal.csv"),
    "latin1.csv": (b"a,\xb5\n1,2\n3,4\n", "latin1.csv' with the byte 0xb5, which is not UTF-8; allowed: a text in"),
    "utf16.csv": ("a,b\n1,2\n3,4\n".encode("utf-16"), "utf16.csv' with a NUL at byte 3 (no text, or UTF-16)"),
    "nul.csv": (b"a,b\n1,2\n3\0,4\n", "nul.csv' with a NUL at byte 9"),
    "cut.csv": (b"a,b\n1,2\n3,\xc2", "cut.csv' with the byte 0xc2, which is not UTF-8"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str, tmp_path: Path) -> None:
    content, message = TEXTS[name]
    (tmp_path / name).write_bytes(content)
    if not message:
        data = io.read(tmp_path / name)
        assert data.feature_names == ["a", "b"] and data.x.tolist() == [[1.5, 2], [2.5, 3]]
        return
    with pytest.raises(InputError) as caught:
        io.read(tmp_path / name)
    assert message in str(caught.value)


def test_targets_may_be_separated_by_semicolons(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("env;latent\nA;0\n")
    assert io.read_targets(tmp_path / "t.csv") == {"A": (0,)}


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csc_matrix, sp.bsr_matrix])
@pytest.mark.parametrize("where", [(), "env == 'a'"])
def test_a_sparse_file_with_indices_outside_is_refused(kind: type, where: object, tmp_path: Path) -> None:
    """Read as it is, it ends the process with a segmentation fault."""
    sp.save_npz(tmp_path / "b.npz", broken(kind))
    with pytest.raises(InputError, match="broken sparse matrix"):
        io.read(tmp_path / "b.npz", where=where)  # type: ignore[arg-type]


def test_names_of_files_that_are_no_texts(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.csv"))
    odd.write_text("a,b\n1,2\n3,4\n")
    assert io.read(odd).name == "\ufffd"


# -- reading options -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same twelve cells as a table, a .npz, an AnnData and a MuData."""
    folder = tmp_path_factory.mktemp("files")
    guides = np.resize(["ctrl", "A+ctrl", "B", "B+A"], 12)
    obs = pd.DataFrame(
        {
            "guide": guides,
            "day": np.arange(12) % 3,
            "dose": np.float32([0.1, np.nan] * 6),
            "keep": [True, True, False] * 4,
            "code": [f"c{i}" for i in range(12)],
        },
        index=[f"cell_{i}" for i in range(12)],
    )
    table = pd.DataFrame(COUNTS + 0.5, obs.index, ["a", "b", "c"]).join(obs).assign(note="fine")
    table.rename_axis("barcode").to_csv(folder / "t.csv", sep=":")
    cells = anndata.AnnData(
        sp.csr_matrix(COUNTS / 2.0), obs=obs, var=pd.DataFrame(index=["a", "b", "c"]), layers={"more": COUNTS + 0.5}
    )
    wide = np.hstack([COUNTS, COUNTS[:, :1]]).astype(np.float32)
    cells.raw = anndata.AnnData(wide, obs=obs, var=pd.DataFrame(index=list("abcd")))
    cells.write_h5ad(folder / "t.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's own
        cells.write_zarr(folder / "t.zarr")
    with h5py.File(folder / "t.h5mu", "w") as file:  # as mudata writes it: obs that all share, and a group for each
        write_elem(file, "obs", obs)
        for name, width in (("rna", 3), ("protein", 2)):
            part = cells[:, :width].copy()
            part.obs = part.obs[["day"]]
            write_elem(file, f"mod/{name}", part)
    io.write(
        Data(
            COUNTS,
            guides,
            {"B": (1,)},
            control="ctrl",
            batch=obs["day"],
            size_factor=np.arange(12) + 10.0,
            truth={"z": COUNTS},
        ),
        folder / "t.npz",
    )
    return folder


WHERE: dict[str, list[int]] = {  # conditions on these cells, and the rows that meet them
    "day == 1": [1, 4, 7, 10],
    "day != 1.0": [0, 2, 3, 5, 6, 8, 9, 11],
    "day in [0, 2]": [0, 2, 3, 5, 6, 8, 9, 11],
    "day not in (0, 2)": [1, 4, 7, 10],
    "day == 1.5": [],
    "day == ''": [],
    "guide == A+ctrl": [1, 5, 9],
    "guide == 'B+A'": [3, 7, 11],
    '"guide" in ["B", "B+A"]': [2, 3, 6, 7, 10, 11],
    "`guide` in B, ctrl": [0, 2, 4, 6, 8, 10],
    "dose == 0.1": [0, 2, 4, 6, 8, 10],
    "dose != ''": [0, 2, 4, 6, 8, 10],
    "dose == ''": [1, 3, 5, 7, 9, 11],
    "keep == True": [0, 1, 3, 4, 6, 7, 9, 10],
}


@pytest.mark.parametrize("condition", WHERE)
@pytest.mark.parametrize("name", ["t.csv", "t.h5ad"])
def test_where(condition: str, name: str, files: Path) -> None:
    rows = WHERE[condition]
    options: dict[str, Any] = {"where": condition, "counts": False}
    options |= {"drop": ["note", "keep"], "index": "barcode", "sep": ":"} if name == "t.csv" else {"layer": "more"}
    if name == "t.csv":
        options["drop"] += ["guide", "dose", "day", "code"]  # dropped after rows are picked
    if not rows:
        with pytest.raises(InputError, match=r"where: found .*; allowed: conditions that a row meets"):
            io.read(files / name, None, **options)
        return
    data = io.read(files / name, None, **options)
    np.testing.assert_array_equal(data.x, COUNTS[rows] + 0.5)
    assert data.feature_names == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["t.h5ad", "t.zarr", "t.h5mu"])
def test_layers(name: str, files: Path) -> None:
    def read(layer: str | None, **options: Any) -> Data:
        if name == "t.h5mu":
            layer = "/".join(filter(None, ["rna", layer]))
        return io.read(files / name, "guide", "ctrl", layer=layer, **{"combine": "+"} | options)

    halves = read(None)
    assert not halves.counts and sp.issparse(halves.x)
    np.testing.assert_array_equal(halves.x.toarray(), COUNTS / 2.0)
    np.testing.assert_array_equal(read("more").x, COUNTS + 0.5)
    np.testing.assert_array_equal(read("more", drop="b", index="code").x, COUNTS[:, [0, 2]] + 0.5)
    assert read(None).env_names == ["ctrl", "A", "A+B", "B"]
    with pytest.warns(
        UserWarning, match=r"env: labels such as 'A\+ctrl' name the control; combine='\+' \(--combine \+\)"
    ):
        assert read(None, combine=None).env_names == ["ctrl", "A+ctrl", "B", "B+A"], "they are as they stand"
    raw = read("raw", counts=True)
    assert raw.feature_names == list("abcd") and raw.counts
    np.testing.assert_array_equal(raw.x[:, :3], COUNTS)
    with pytest.raises(InputError, match="layer: found 'log'; allowed: None or one of 'more', 'raw'"):
        read("log")


@pytest.mark.parametrize("name", ["t.csv", "t.h5ad", "t.npz"])
def test_features_that_do_not_vary_are_dropped_by_one_word(name: str, files: Path) -> None:
    assert len(set(COUNTS[1:3, 2])) == 1, "in these cells"
    options: dict[str, Any] = {"where": "code in [c1, c2]", "drop": "constant", "counts": False}
    if name == "t.csv":
        options |= {"sep": ":", "drop": ["constant", "guide", "dose", "day", "code", "keep"], "index": "barcode"}
    if name == "t.npz":
        options["where"] = ["batch in [1, 2]", "size_factor in [11, 12]"]
    data = io.read(files / name, None, **options)
    np.testing.assert_array_equal(data.x.toarray() if sp.issparse(data.x) else data.x, read_as(name, COUNTS[1:3, :2]))


def read_as(name: str, counts: np.ndarray) -> np.ndarray:
    """What the files hold of these counts."""
    return {"t.csv": counts + 0.5, "t.h5ad": counts / 2.0, "t.npz": counts}[name]


def test_a_npz_is_picked_from(files: Path) -> None:
    data = io.read(files / "t.npz", control="ctrl", where=["batch == 1", "env != B"], drop="feature_1", combine="+")
    rows = [1, 4, 7]
    np.testing.assert_array_equal(data.x, COUNTS[rows][:, [0, 2]])
    assert data.env_labels().tolist() == ["A", "ctrl", "A+B"]
    np.testing.assert_array_equal(data.truth["z"], COUNTS[rows])
    assert data.targets == {"A+B": (1,)}, "of its parts; the rows of B itself are gone"


def test_targets_of_combinations_are_those_of_their_parts(files: Path) -> None:
    def read(targets: dict[str, Any], **options: Any) -> Data:
        return io.read(files / "t.h5ad", "guide", "ctrl", targets, combine="+", **options)

    assert read({"A+ctrl": 0, "B": [1]}).targets == {"A": (0,), "B": (1,), "A+B": (0, 1)}
    assert read({"A": 0, "B": [1], "B+A": 2}).targets == {"A": (0,), "B": (1,), "A+B": (2,)}
    data = read({"A": 0, "B": [1]}, where="guide in ['ctrl', 'B+A']")
    assert data.targets == {"A+B": (0, 1)} and data.env_names == ["ctrl", "A+B"]
    assert combinations(data.env_names) == {"A+B": ("A", "B")}, "the parts of predict.pair_errors"
    assert combinations(["A+ctrl", "B:A"], control="ctrl") == {}
    with pytest.raises(InputError, match="targets: found unknown environment 'C'"):
        read({"C": 0})
    with pytest.raises(InputError, match="targets: found two forms of one combination"):
        read({"A": 0, "A+ctrl": 1})


NOT_READ: dict[str, tuple[dict[str, Any], str]] = {
    "no condition": ({"where": "day"}, "where: found 'day'; allowed: such as "),
    "code": ({"where": "__import__('os').getcwd() == 1"}, "where: found no column "),
    "a call as a value": ({"where": "guide == f('B')"}, "where: found "),
    "two values": ({"where": "guide == A, B"}, "where: found 'A, B' in "),
    "an open quote": ({"where": "guide == 'A"}, 'where: found "\'A" in '),
    "no value": ({"where": "day in []"}, "where: found '[]' in "),
    "no such column": ({"where": "dya == 1"}, "where: found no column 'dya'; allowed: one of 'guide', 'day'"),
    "no such label": ({"where": "guide != C"}, "where: found 'C', which no row has, in "),
    "a text for a number": ({"where": "day == one"}, "where: found 'one' in 'day == one'; allowed: numbers, as in"),
    "a column that is not there": (
        {"drop": "e"},
        "drop: found no column 'e'; allowed: 'constant' or one of 'a', 'b', 'c'",
    ),
    "an index that is not there": ({"index": "e"}, "index: found no column 'e'; allowed: one of 'guide'"),
    "a separator": ({"sep": ";"}, "sep: found ';' for t.h5ad; allowed: nothing, except for .csv, .tsv"),
    "an empty part": ({"combine": "l", "control": "ctrl"}, "combine: found the label 'A+ctrl' with an empty part"),
    "no control": ({"combine": "+"}, "control: found None with combine='+'; allowed: the label of the control"),
    "no environments": ({"combine": "+", "env": None, "control": "ctrl"}, "env: found None with combine='+'"),
}


@pytest.mark.parametrize("name", NOT_READ)
def test_reading_options_that_are_wrong(name: str, files: Path) -> None:
    options, message = NOT_READ[name]
    with pytest.raises(InputError) as caught:
        io.read(files / "t.h5ad", **{"env": "guide", "counts": False, **options})
    assert str(caught.value).startswith(message) and "; allowed: " in str(caught.value)


def test_other_kinds_have_no_layers(files: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"layer: found 'raw' for t\.csv; allowed: nothing, except for \.h5ad, \.zarr"):
        io.read(files / "t.csv", layer="raw")
    with pytest.raises(InputError, match=r"index: found 'a' for t\.npz"):
        io.read(files / "t.npz", index="a")
    with pytest.raises(InputError, match="sep: found '::'; allowed: one character, or tab"):
        io.read(files / "t.csv", sep="::")
    with pytest.raises(InputError, match=r"layer: found None; allowed: MODALITY or MODALITY/LAYER, .*'protein', 'rna'"):
        io.read(files / "t.h5mu", "guide")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InputError, match=r"empty\.zarr', which cannot be read"):
        io.read(tmp_path / "empty.zarr")


@pytest.mark.parametrize(("name", "package"), [("t.zarr", "zarr"), ("t.h5ad", "anndata"), ("t.h5mu", "anndata.io")])
def test_a_package_that_is_not_there_is_named(
    name: str, package: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        io.read(files / name, "guide", "ctrl", layer="rna" if name == "t.h5mu" else None)
    assert f"path: found {name}, which needs {package}; allowed: that after `pip install pyrocrl[bio]`" == str(
        caught.value
    )


# -- the shell -------------------------------------------------------------------------------------------------------


def test_every_command_with_data_takes_the_reading_options(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("fit", "compare", "choose", "evaluate", "report"):
        assert cli.main([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert all(f"--{option}" in said for option in arguments.READING), command
    told = ["--env", "guide", "--control", "ctrl", "--combine", "+", "--where", "day != 0", "--where", "guide != B"]
    assert cli.main(["choose", "--data", str(files / "t.h5ad"), *told, "--layer", "more", "--drop", "b"]) == 0
    said = capsys.readouterr().out
    assert "6 rows x 2 features" in said and "A+B" in said and "A+ctrl" not in said
    assert cli.main(["choose", "--data", "moran2022", "--layer", "raw"]) == 2
    assert "--layer: found 'raw'; allowed: nothing: moran2022 brings its own" in capsys.readouterr().err


def test_a_bar_without_a_place_to_be_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert fit(progress=True).chains.count == 1


@pytest.mark.skipif(os.name == "nt", reason="closes streams as POSIX shells do")
def test_a_fit_in_a_plain_locale_with_its_streams_closed(tmp_path: Path) -> None:
    table = pd.DataFrame(X, columns=["β", "µ", "c"]).assign(cond=np.resize(["Kontrolle", "ÄÖ"], 12))
    table.to_csv(tmp_path / "β.csv", index=False, sep=";")
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    given = "--env cond --latents 1 --option hidden=4 --chains 1 --epochs 1 --draws 2 --where 'c != 0' --out ö"
    command = f"{sys.executable} -m pyrocrl.cli fit vae --data β.csv {given}"
    done = subprocess.run(f"{command} 2>&- <&-", shell=True, cwd=tmp_path, env=plain, capture_output=True, timeout=300)
    assert done.returncode == 0 and b"\\u03b2: 12 rows" in done.stdout, done.stdout
    posterior = io.read_tree(tmp_path / "ö" / runs.POSTERIOR)
    named = [node["feature"].to_numpy().tolist() for node in posterior.subtree if "feature" in node.coords]
    assert named and all(names == ["β", "µ", "c"] for names in named)
    again = runs.read_record(tmp_path / "ö")["source"]
    assert again["where"] == ["c != 0"], "report and evaluate read the rows that were fitted"
