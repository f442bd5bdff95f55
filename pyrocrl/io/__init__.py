"""Files and tables to and from `Data`, and posteriors to and from netCDF.

`read` takes .csv, .tsv, .npz, .parquet, .h5ad, .zarr and .h5mu; `write` makes a .npz that `read` gives back whole,
truth included. Whatever is written goes to a temporary file beside its place first and is then renamed.
"""

from __future__ import annotations

from pyrocrl.io.cells import from_anndata, from_blocks, read_h5ad, to_anndata
from pyrocrl.io.posteriors import read_tree, write_dataset, write_frame, write_json, write_tree
from pyrocrl.io.stored import SUFFIXES, read, write
from pyrocrl.io.tables import from_frame, from_views, read_columns, to_frame
from pyrocrl.io.targets import read_targets

__all__ = [
    "SUFFIXES",
    "from_anndata",
    "from_blocks",
    "from_frame",
    "from_views",
    "read",
    "read_columns",
    "read_h5ad",
    "read_targets",
    "read_tree",
    "to_anndata",
    "to_frame",
    "write",
    "write_dataset",
    "write_frame",
    "write_json",
    "write_tree",
]
