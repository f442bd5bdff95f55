"""Does one latent tell cells that got interferon from those that did not, in every cell type alike? kang2018.

    python -m pyrocrl.lab.interferon --seeds 0:3 --json pyrocrl/models/results/interferon.json

Of each type and condition three cells in ten are kept out of the fits. Genes are the 100 whose log-normalised values
vary most, standardised. `ivae` is told condition and type of the cells that are fitted, as environments, and reads
their 12 first principal components; its latents are read from x alone, by the encoder, so that no label of a scored
cell enters. `spike_slab_fa`, factor analysis and principal components are told nothing, the mean difference is told
all that `ivae` is. Of several latents the one counts that tells best among fitted cells, with its sign there. AUROCs
are of cells that were kept out: within a type, and of the stimulated cells of one type against the control cells of
another, where a latent that is shared has to hold as well.

`multiview` does not take such data: types are no views, for every cell is of one type alone.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from pyrocrl import datasets, zoo
from pyrocrl.constructions import anchors
from pyrocrl.data import Data
from pyrocrl.infer.fit import fit
from pyrocrl.infer.fitted import Fit
from pyrocrl.io import write_json
from pyrocrl.judge.diagnose import diagnose
from pyrocrl.lab.programmes import dense
from pyrocrl.lab.provenance import parse_seeds, provenance
from pyrocrl.turns import drawing

FILE = Path(__file__).resolve().parents[1] / "models" / "results" / "interferon.json"
SCREEN, STIMULATED = "kang2018", "stimulated"
GENES, COMPONENTS, LATENTS, FACTORS, CHAINS = 100, 12, 6, 10, 2
HELD_OUT = 0.3
TITLES = {
    "ivae": "`ivae`, told condition and type",
    "spike_slab_fa": "`spike_slab_fa`",
    "varimax": "factor analysis, varimax",
    "pca": "principal components",
    "difference": "mean difference, told condition and type",
}
Array = np.ndarray


def kept_out(groups: Array, seed: int) -> Array:
    """(row,) whether a row is among the `HELD_OUT` of its group that no method is fitted to."""
    rng, out = np.random.default_rng([seed, 71]), np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == group))
        out[rows[: int(HELD_OUT * len(rows))]] = True
    return out


def score(z: Array, hit: Array, types: Array, new: Array) -> dict[str, Any]:
    """AUROCs among the rows `new` of the column of z (row, latent) that tells `hit` best in the others: their mean over
    types, the type where it is least, and the pair of types (of the hit, of the others) where it is least."""
    names = np.unique(types).tolist()

    def area(rows: Array, k: int) -> float:
        return float(roc_auc_score(hit[rows], z[rows, k]))

    seen = np.array([[area(~new & (types == name), k) for name in names] for k in range(z.shape[1])]).mean(1) - 0.5
    best = int(np.abs(seen).argmax())
    z = z * np.sign(seen[best])
    within = {name: area(new & (types == name), best) for name in names}
    across = {
        f"{one} against {other}": area(new & np.where(hit, types == one, types == other), best)
        for one in names
        for other in names
    }
    type_, pair = min(within, key=within.__getitem__), min(across, key=across.__getitem__)
    out = {"latent": best, "mean": float(np.mean(list(within.values()))), "types": within}
    return out | {"worst_type": type_, "worst": within[type_], "worst_pair": pair, "worst_across": across[pair]}


def blind(result: Fit, data: Data) -> Array:
    """(row, latent) of an `ivae`, as x alone tells them: the encoder's means in the reference chain."""
    program: Any = result.programs()[result.reference]
    with drawing(), torch.no_grad():
        found: Array = program.encoder(program.observation.inputs(result.batch_of(data)))[0].double().numpy()
    return found


def run_seed(seed: int) -> dict[str, Any]:
    """All methods on one choice of cells that are kept out."""
    data = datasets.load(SCREEN)
    types, hit = np.asarray(data.batch_names)[data.batch], data.env_labels() == STIMULATED
    x = dense(data)
    x = x[:, np.sort(np.argsort(-x.var(0), kind="stable")[:GENES])]
    groups = np.array([f"{a}, {b}" for a, b in zip(types, data.env_labels(), strict=True)])
    new = kept_out(groups, seed)
    x = (x - x[~new].mean(0)) / x[~new].std(0)
    components = x @ np.linalg.svd(x[~new], full_matrices=False)[2][:COMPONENTS].T
    difference = np.mean(
        [
            x[~new & hit & (types == name)].mean(0) - x[~new & ~hit & (types == name)].mean(0)
            for name in np.unique(types)
        ],
        0,
    )
    each = {
        "pca": components,
        "varimax": x @ anchors.varimax(x[~new], FACTORS)[1].T,
        "difference": (x @ difference)[:, None],
    }
    row: dict[str, Any] = {"seed": seed, "methods": {}}
    told = {"ivae": Data(components, groups), "spike_slab_fa": Data(x)}
    options: dict[str, dict[str, Any]] = {
        "ivae": {"latents": LATENTS, "law": "normal"},
        "spike_slab_fa": {"latents": FACTORS},
    }
    more: dict[str, dict[str, Any]] = {}
    for model, rows in told.items():
        fitted, started = rows.rows_at(~new), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # chains that are left out
            program = zoo.build(model, fitted, **options[model])
            result = fit(program, fitted, chains=CHAINS, seed=seed, device="cpu", progress=False)
        more[model] = {"cpu_seconds": round(time.process_time() - started, 1)}
        each[model] = blind(result, rows) if model == "ivae" else result.latents(rows)
        more[model]["verdict"] = next(c.verdict for c in diagnose(result, fitted).claims if c.what == "latents")
    for name, z in each.items():
        row["methods"][name] = score(z, hit, types, new) | more.get(name, {})
    return row


def study(seeds: Sequence[int], path: str | Path | None = None) -> dict[str, Any]:
    """All seeds; written to `path` after each."""
    table: dict[str, Any] = {"about": "interferon", **provenance(), "seeds": []}
    for seed in seeds:
        table["seeds"].append(run_seed(seed))
        print(
            {k: (v["mean"], v["worst_type"], v["worst"]) for k, v in table["seeds"][-1]["methods"].items()}, flush=True
        )
        if path is not None:
            write_json(table, path)
    return table


def table() -> str:
    """`table_of` the committed results; empty where there are none."""
    return table_of(json.loads(FILE.read_text(encoding="utf-8"))) if FILE.exists() else ""


def table_of(results: Mapping[str, Any]) -> str:
    """The committed results as markdown, a line for each method; the worst of all seeds and types named."""
    rows = results["seeds"]
    heads = [
        "one latent of",
        f"AUROC, mean over types ({len(rows)} seeds)",
        "worst type",
        "worst pair of types",
        "verdict",
    ]
    lines = [heads, ["---"] * len(heads)]
    for name, title in TITLES.items():
        each = [row["methods"][name] for row in rows]
        least, across = min(each, key=lambda m: m["worst"]), min(each, key=lambda m: m["worst_across"])
        said = [f"*{one['verdict']}*" for one in each if "verdict" in one]
        cells = [title, "; ".join(f"{one['mean']:.3f}" for one in each)]
        cells += [
            f"{least['worst']:.3f} ({least['worst_type']})",
            f"{across['worst_across']:.3f} ({across['worst_pair']})",
        ]
        lines.append([*cells, "; ".join(dict.fromkeys(said))])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pyrocrl.lab.interferon", description=__doc__)
    parser.add_argument("--seeds", default="0:3", help="0:3 (0 to 2), 3 or 0,2")
    parser.add_argument("--json", default=None, help="where the results go")
    given = parser.parse_args()
    study(parse_seeds(given.seeds), given.json)
