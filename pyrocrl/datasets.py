"""Named real data sets, read from a folder on this machine: `load("papalexi2021")`.

The files are looked for in the folder that the environment variable PYROCRL_DATA names, then in the user's
cache (`$XDG_CACHE_HOME/pyrocrl`, by default `~/.cache/pyrocrl`), in either place at the top or one
folder down. Nothing is downloaded: each set has its own licence, and an error says where its files come from.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse

from pyrocrl.arrays import plain
from pyrocrl.data import Data
from pyrocrl.errors import InputError, one_of, reject

VARIABLE = "PYROCRL_DATA"
PURITY = 0.8  # papalexi2021: share of the largest guide among a cell's guide UMIs, above which its call is kept
SACHS_DRUGS = {
    "aktinhib": "Akt inhibitor",
    "g0076": "G06976",
    "psit": "psitectorigenin",
    "psitect": "psitectorigenin",
    "u0126": "U0126",
    "ly": "LY294002",
}


@dataclass(frozen=True)
class _Set:
    """Files of one data set, where they come from, and how they become a `Data`."""

    files: tuple[str, ...]
    source: str
    read: Callable[..., Data]


def names() -> list[str]:
    """Names that `load` knows, whether or not their files are on this machine."""
    return sorted(_SETS)


def load(name: str) -> Data:
    """The data set `name`, with the published names of features, environments and technical batches.

    | name | x: data x feature | env | batch |
    |---|---|---|---|
    | kang2018 | log-normalised, 1975 x 6547 | IFN-beta or control | cell type |
    | l1000 | log2 profiles, 326 x 978 | compound or control | cell type |
    | norman2019 | log-normalised, 5961 x 452 | perturbed gene(s) or control | cell line |
    | papalexi2021 | counts, 16093 x 299 | knocked-out gene or non-targeting | replicate |
    | sachs2005 | log intensities, 11672 x 11 | drug or control | co-stimulus |
    | scicar_a549 | counts, 1874 x 2613; aux: 815 ATAC features | hours of dexamethasone | none |
    | zeisel2015 | counts, 500 x 3529 | none | none |

    Cells of papalexi2021 are those whose largest guide has more than 80 % of their guide UMIs, so that the
    label is sure; its size factor is the UMI total of the whole transcriptome. Features that do not vary are
    left out. Raises InputError for an unknown name, and for files that are absent (saying where they come
    from) or damaged.
    """
    one_of("name", name, _SETS)
    entry = _SETS[name]
    paths = _find(name, entry)
    try:
        return entry.read(*paths)
    except InputError:
        raise
    except Exception as fault:  # h5py, anndata, pandas and scipy each have their own for a damaged file
        cause = f"{type(fault).__name__}: {fault}"
        reject("name", f"{name!r} with damaged files in {paths[0].parent} ({cause})", entry.source)


def folders() -> list[Path]:
    """Folders in which `load` looks, in this order. Raises InputError if PYROCRL_DATA names no folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyrocrl"
    named = os.environ.get(VARIABLE)
    if not named:
        return [cache]
    if not Path(named).expanduser().is_dir():
        reject(VARIABLE, f"{named!r}, which is no folder", "a folder with data sets")
    return [Path(named).expanduser(), cache]


def _find(name: str, entry: _Set) -> list[Path]:
    roots = folders()
    for root in roots:
        below = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        for place in (root, *below):
            paths = [place / f for f in entry.files]
            if all(p.is_file() for p in paths):
                return paths
    looked = " and ".join(str(r) for r in roots)
    reject(
        "name",
        f"{name!r} without its files in {looked}",
        f"{', '.join(entry.files)} in {VARIABLE}; {entry.source}",
    )


# -- one reader per set --------------------------------------------------------------------------------------


def _h5ad(path: Path) -> Any:
    try:
        import anndata
    except ImportError:
        reject("name", f"{path.name} without the package anndata", 'pip install "pyrocrl[bio]"')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the published files are in older layouts, still read
        cells = anndata.read_h5ad(path)
    cells.X = plain(cells.X, "x")
    return cells


def _data(name: str, x: Any, features: Any, **known: Any) -> Data:
    """`Data` without the features that do not vary."""
    if scipy.sparse.issparse(x):
        x = x.tocsc()
        varies = np.ravel((x.max(0) != x.min(0)).toarray())
        x = x[:, varies].tocsr()
    else:
        varies = x.max(0) != x.min(0)
        x = x[:, varies]
    kept = None if features is None else [f for f, v in zip(features, varies, strict=True) if v]
    return Data(x, feature_names=kept, name=name, **known)


def _papalexi2021(path: Path) -> Data:
    cells = _h5ad(path)
    cells = cells[np.asarray(cells.obs["grna_purity"]) > PURITY]
    return _data(
        "papalexi2021",
        cells.X,
        cells.var_names,
        env=cells.obs["target"],
        control="non-targeting",
        counts=True,
        size_factor=cells.obs["n_umis_total"],
        batch=cells.obs["bio_rep"],
        row_names=cells.obs_names,
    )


def _norman2019(path: Path) -> Data:
    cells = _h5ad(path)
    known = {"env": cells.obs["condition"], "control": "control", "batch": cells.obs["cell_type"]}
    return _data("norman2019", cells.X, cells.var_names, row_names=cells.obs_names, **known)


def _kang2018(path: Path) -> Data:
    cells = _h5ad(path)
    known = {"env": cells.obs["condition"], "control": "control", "batch": cells.obs["cell_type"]}
    return _data("kang2018", cells.X, cells.var_names, row_names=cells.obs_names, **known)


def _totals(counts: Any) -> np.ndarray:
    """Library size where only the genes at hand are known."""
    return np.maximum(np.ravel(counts.sum(1)), 1)


def _zeisel2015(path: Path) -> Data:
    cells = _h5ad(path)
    size = _totals(cells.X)
    return _data("zeisel2015", cells.X, cells.var_names, counts=True, size_factor=size, row_names=cells.obs_names)


def _sachs2005(path: Path) -> Data:
    table = pd.read_csv(path)
    # "cd3cd28icam2+aktinhib": what every cell was given, then the drug; pma and b2camp were given alone
    parts = [c.split("+") if "+" in c or c.startswith("cd3") else ["none", c] for c in table["condition"]]
    drugs = ["control" if len(p) == 1 else SACHS_DRUGS.get(p[1], p[1]) for p in parts]
    features = [c for c in table.columns if c not in ("condition_no", "condition")]
    x = np.log(table[features].to_numpy(dtype=np.float64))
    return _data("sachs2005", x, features, env=drugs, control="control", batch=[p[0] for p in parts])


def _scicar_a549(rna: Path, atac: Path, shared: Path, cells: Path) -> Data:
    x = plain(scipy.sparse.load_npz(rna), "x").T.tocsr().astype(np.int32)
    aux = plain(scipy.sparse.load_npz(atac), "aux").T.toarray()
    hours = pd.read_csv(cells, dtype=str, keep_default_na=False).set_index("sample")["treatment_time"]
    names = shared.read_text().split()
    known = {"env": hours.loc[names].to_numpy(), "control": "0", "row_names": names}
    return _data("scicar_a549", x, None, counts=True, size_factor=_totals(x), aux=aux, **known)


def _l1000(reference: Path, treated: Path) -> Data:
    parts = [pd.read_csv(path, sep="\t", index_col=0) for path in (reference, treated)]
    table = pd.concat(parts, join="inner", ignore_index=True)
    features = [c for c in table.columns if c not in ("unit", "intervention")]
    x = np.log2(table[features].to_numpy(dtype=np.float64))
    env = table["intervention"].replace({"DMSO": "control"})
    return _data("l1000", x, features, env=env, control="control", batch=table["unit"])


_SETS: Mapping[str, _Set] = {
    "papalexi2021": _Set(
        ("papalexi2021.h5ad",),
        "lowmoi_example_data.rda of the R package sceptre as .h5ad (Papalexi 2021, GEO GSE153056)",
        _papalexi2021,
    ),
    "norman2019": _Set(
        ("devel.h5ad",),
        "github.com/altoslabs/perturbench, src/perturbench/data/resources (Norman 2019, GEO GSE133344)",
        _norman2019,
    ),
    "kang2018": _Set(
        ("kang_valid.h5ad",),
        "github.com/theislab/scgen, data/valid.h5ad (Kang 2018, GEO GSE96583)",
        _kang2018,
    ),
    "zeisel2015": _Set(
        ("zeisel_3529x500.h5ad",),
        "linnarsson.rda of the R package SAVER 0.1.0 as .h5ad (Zeisel 2015, GEO GSE60361)",
        _zeisel2015,
    ),
    "sachs2005": _Set(
        ("sachs2005_14conditions.csv",),
        "the 14 tables of Sachs 2005 (doi 10.1126/science.1105809), one below the other",
        _sachs2005,
    ),
    "scicar_a549": _Set(
        (
            "diff_expr_shared_cells.npz",
            "diff_atac_shared_cells.npz",
            "shared_cells.txt",
            "GSM3271040_RNA_sciCAR_A549_cell.txt",
        ),
        "github.com/uhlerlab/cross-modal-autoencoders (Cao 2018, GEO GSE117089)",
        _scicar_a549,
    ),
    "l1000": _Set(
        ("df0.csv", "df1_all.csv"),
        "github.com/uhlerlab/causal-imputation-synthetic-interventions (CMap, GEO GSE92742)",
        _l1000,
    ),
}
