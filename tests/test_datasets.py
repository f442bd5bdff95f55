"""Named data sets: found, read and labelled as published; one clear line where they are not there."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse

from pyrocrl import datasets
from pyrocrl.errors import InputError

NAMES = ["kang2018", "l1000", "norman2019", "papalexi2021", "sachs2005", "scicar_a549", "zeisel2015"]
SHAPES = {
    "kang2018": (1975, 6547, 2),
    "l1000": (326, 978, 21),
    "norman2019": (5961, 452, 34),
    "papalexi2021": (16093, 299, 26),
    "sachs2005": (11672, 11, 8),
    "scicar_a549": (1874, 2613, 3),
    "zeisel2015": (500, 3529, 1),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PYROCRL_DATA and an empty cache."""
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("PYROCRL_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def write_sachs(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["cd3cd28", "cd3cd28icam2", "cd3cd28+u0126", "cd3cd28icam2+psit", "pma", "b2camp"]
    table = pd.DataFrame({"condition_no": range(6), "condition": rows})
    table["Raf"], table["Mek"] = np.exp(np.arange(6.0)), np.exp(-np.arange(6.0))
    table.to_csv(folder / "sachs2005_14conditions.csv", index=False)


def test_names() -> None:
    assert datasets.names() == NAMES


def test_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"name: found 'papalexi' \(did you mean 'papalexi2021'\?\)"):
        datasets.load("papalexi")


@pytest.mark.parametrize("name", NAMES)
def test_absent_files_say_where_they_come_from(name: str, folder: Path) -> None:
    with pytest.raises(InputError) as told:
        datasets.load(name)
    line = str(told.value)
    assert "\n" not in line and "PYROCRL_DATA" in line and str(folder) in line


def test_variable_must_name_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYROCRL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"PYROCRL_DATA: found .*no folder"):
        datasets.load("sachs2005")


@pytest.mark.parametrize("place", ["data", "data/sachs", "cache/pyrocrl", "cache/pyrocrl/sachs"])
def test_looks_in_the_folder_then_in_the_cache(folder: Path, place: str) -> None:
    write_sachs(folder.parent / place)
    assert datasets.load("sachs2005").rows == 6


def test_cache_without_the_variable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYROCRL_DATA")
    write_sachs(folder.parent / "cache" / "pyrocrl")
    assert datasets.load("sachs2005").rows == 6


def test_sachs2005_labels(folder: Path) -> None:
    write_sachs(folder)
    data = datasets.load("sachs2005")
    assert data.env_labels().tolist() == ["control", "control", "U0126", "psitectorigenin", "pma", "b2camp"]
    batches = [data.batch_names[b] for b in data.batch]
    assert batches == ["cd3cd28", "cd3cd28icam2", "cd3cd28", "cd3cd28icam2", "none", "none"]
    np.testing.assert_allclose(data.x[:, 0], np.arange(6.0))


def test_papalexi2021_keeps_cells_with_a_sure_guide(folder: Path) -> None:
    anndata = pytest.importorskip("anndata")
    counts = np.array([[0, 1, 7], [2, 5, 7], [3, 0, 7], [9, 9, 9]], dtype=np.float32)
    obs = pd.DataFrame(
        {
            "target": ["IRF1", "non-targeting", "JAK2", "JAK2"],
            "grna_purity": [0.9, 0.95, 1.0, 0.8],
            "n_umis_total": [10.0, 20.0, 30.0, 40.0],
            "bio_rep": ["rep_2", "rep_1", "rep_2", "rep_3"],
        },
        index=list("abcd"),
    )
    var = pd.DataFrame(index=["STAT1", "CYBA", "FLAT"])
    anndata.AnnData(scipy.sparse.csr_matrix(counts), obs=obs, var=var).write_h5ad(folder / "papalexi2021.h5ad")
    data = datasets.load("papalexi2021")
    assert data.counts and data.feature_names == ["STAT1", "CYBA"]  # FLAT does not vary among the cells kept
    assert data.env_names[0] == "non-targeting" and data.env_labels().tolist() == list(obs.target[:3])
    assert data.row_labels().tolist() == list("abc")
    assert data.size_factor.tolist() == [10.0, 20.0, 30.0] and data.batch_names == ["rep_1", "rep_2"]
    np.testing.assert_array_equal(data.x.toarray(), counts[:3, :2])


def test_scicar_a549_rows_are_the_shared_cells(folder: Path) -> None:
    rna, atac = np.array([[1, 0, 4], [0, 2, 4]]), np.array([[1, 0, 1], [0, 3, 0], [1, 1, 0]])
    scipy.sparse.save_npz(folder / "diff_expr_shared_cells.npz", scipy.sparse.csr_matrix(rna))
    scipy.sparse.save_npz(folder / "diff_atac_shared_cells.npz", scipy.sparse.csr_matrix(atac))
    (folder / "shared_cells.txt").write_text("b\nc\na\n")
    times = "sample,cell_name,experiment,treatment_time\na,A549,co,0\nb,A549,co,3\nc,A549,co,1\nd,293T,co,NA\n"
    (folder / "GSM3271040_RNA_sciCAR_A549_cell.txt").write_text(times)
    data = datasets.load("scicar_a549")
    assert data.env_labels().tolist() == ["3", "1", "0"] and data.row_labels().tolist() == ["b", "c", "a"]
    np.testing.assert_array_equal(data.x.toarray(), rna.T)
    np.testing.assert_array_equal(data.aux, atac.T)


def test_l1000_aligns_columns_by_name(folder: Path) -> None:
    pd.DataFrame({"unit": ["A", "B"], "intervention": "DMSO", "780": [2.0, 4.0], "7849": [8.0, 16.0]}).to_csv(
        folder / "df0.csv", sep="\t"
    )
    pd.DataFrame({"unit": ["B"], "intervention": "BRD-1", "7849": [32.0], "780": [64.0]}).to_csv(
        folder / "df1_all.csv", sep="\t"
    )
    data = datasets.load("l1000")
    assert data.feature_names == ["780", "7849"] and data.env_labels().tolist() == [
        "control",
        "control",
        "BRD-1",
    ]
    np.testing.assert_allclose(data.x, [[1, 3], [2, 4], [6, 5]])


@pytest.mark.parametrize(
    "name, file", [("papalexi2021", "papalexi2021.h5ad"), ("sachs2005", "sachs2005_14conditions.csv")]
)
def test_damaged_file_is_one_line(folder: Path, name: str, file: str) -> None:
    (folder / file).write_bytes(b"\x89HDF\r\n\x1a\n cut off")
    with pytest.raises(InputError, match=f"name: found '{name}' with damaged files") as told:
        datasets.load(name)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", NAMES)
def test_published_files_if_present(name: str) -> None:
    try:
        data = datasets.load(name)
    except InputError as absent:
        pytest.skip(str(absent))
    assert (data.rows, data.features, len(data.env_names)) == SHAPES[name]
