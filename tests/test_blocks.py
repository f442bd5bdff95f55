"""x on disk and in blocks: the same rows whatever holds them, and never all of them in memory in a larger form."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from pyrocrl import Data, InputError, arrays, io

RNG = np.random.default_rng(4)
COUNTS = RNG.poisson(0.1, (40, 16)).astype(np.float32)
COUNTS[:, 0] += 1
FULL = RNG.normal(size=(40, 6)).astype(np.float32)
OBS = pd.DataFrame({"target": np.resize(["ctrl", "A"], 40)}, index=[f"cell_{i}" for i in range(40)])


def dense(x: Any) -> np.ndarray:
    return x.toarray() if sp.issparse(x) else np.asarray(x)


def cut(x: Any, size: int = 9) -> list[Any]:
    return [x[at : at + size] for at in range(0, len(x), size)]


def annbatch(x: np.ndarray) -> list[dict[str, Any]]:
    return [{"X": sp.csr_matrix(a), "obs": o, "index": None} for a, o in zip(cut(x), cut(OBS), strict=True)]


WAYS: dict[str, Callable[[np.ndarray], Any]] = {
    "anndata": lambda x: (anndata.AnnData(a, obs=o) for a, o in zip(cut(x), cut(OBS), strict=True)),
    "annbatch": annbatch,
    "annbatch, once": lambda x: iter(annbatch(x)),
}


@pytest.mark.parametrize("x", [COUNTS, FULL], ids=["sparse", "full"])
@pytest.mark.parametrize("way", WAYS)
def test_blocks_are_the_rows_that_they_are_cut_from(way: str, x: np.ndarray) -> None:
    found = io.from_blocks(WAYS[way](x), control="ctrl", counts=False)
    whole = io.from_anndata(anndata.AnnData(x, obs=OBS), control="ctrl", counts=False)
    np.testing.assert_array_equal(dense(found.x), x)
    np.testing.assert_array_equal(found.env_labels(), whole.env_labels())
    assert list(found.row_labels()) == list(OBS.index)
    assert sp.issparse(found.x) == (x is COUNTS)  # the smaller of both forms


def test_any_iterator_of_blocks_is_x() -> None:
    mixed = [sp.csr_matrix(COUNTS[:15]), COUNTS[15:16], COUNTS[16:].tolist()]
    data = Data(iter(mixed), counts=False)
    np.testing.assert_array_equal(dense(data.x), COUNTS)
    whole = COUNTS.astype(int)
    assert Data(iter(cut(whole))).counts and Data(iter(cut(whole))).size_rule == "sums"
    gaps = np.where(FULL > 2, np.nan, FULL)
    assert np.isnan(dense(arrays.plain(iter(cut(gaps)), "x"))).sum() == np.isnan(gaps).sum()


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (lambda: Data(iter([])), "x: found no blocks"),
        (lambda: Data(iter([FULL, FULL[:, :4]])), r"x: found a block of shape \(40, 4\); .* 6 columns"),
        (lambda: io.from_blocks([{"x": FULL}]), "blocks: found a mapping of 'x'"),
        (
            lambda: io.from_blocks(
                pd.DataFrame(FULL, columns=list(names)).add_suffix("_") for names in ("abcdef", "abcdeg")
            ),
            "blocks: found features that differ from the first block's",
        ),
        (lambda: io.from_blocks([{"X": FULL, "obs": OBS[:3]}]), "blocks: found 3 rows of obs beside 40 of X"),
        (lambda: io.from_blocks([FULL]), "env: found no column 'target' in obs"),
    ],
)
def test_blocks_that_do_not_fit_are_refused_in_one_line(blocks: Callable[[], object], said: str) -> None:
    with pytest.raises(InputError, match=f"^{said}") as raised:
        blocks()
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of 5,000 x 2,000 counts of which one in fifty is not 0: as floats 80 MB, sparse 2.4 MB."""
    folder = tmp_path_factory.mktemp("large")
    x = np.zeros((5_000, 2_000))
    x[RNG.integers(0, 5_000, 200_000), RNG.integers(0, 2_000, 200_000)] = 1.0
    x[0], x[1] = 1.0, 2.0
    obs = pd.DataFrame({"target": np.resize(["ctrl", "A"], 5_000)}, index=[f"cell_{i}" for i in range(5_000)])
    cells = anndata.AnnData(x, obs=obs)
    cells.write_h5ad(folder / "a.h5ad")
    cells.write_zarr(folder / "a.zarr")
    return folder


def opened(folder: Path, way: str) -> Data:
    told: dict[str, Any] = {"env": "target", "control": "ctrl", "size_factor": "none", "counts": True}
    if way == "backed":
        cells = anndata.read_h5ad(folder / "a.h5ad", backed="r")
        found = io.from_anndata(cells, **told)
        cells.file.close()
        return found
    if way == "h5py":
        with h5py.File(folder / "a.h5ad") as file:
            return Data(file["X"], counts=True, size_factor=1)
    if way == "backed blocks":
        cells = anndata.read_h5ad(folder / "a.h5ad", backed="r")
        return io.from_blocks((cells[at : at + 1_000] for at in range(0, 5_000, 1_000)), **told)
    return io.read(folder / way, **told)


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:FutureWarning")
@pytest.mark.parametrize("way", ["backed", "h5py", "backed blocks", "a.h5ad", "a.zarr"])
def test_dense_files_are_never_in_memory_as_a_whole(way: str, large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "BLOCK", 1_000_000)  # 8 MB
    monkeypatch.setattr("pyrocrl.arrays.blocks.__defaults__", (1_000_000,))
    tracemalloc.start()
    data = opened(large, way)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.rows == 5_000 and sp.issparse(data.x)
    own = data.x.data.nbytes + data.x.indices.nbytes + data.x.indptr.nbytes
    assert own < 4e6 and peak < 2 * own + 40e6  # whole it were 80 MB
    assert data.x[:2].toarray().sum() == 3 * 2_000
