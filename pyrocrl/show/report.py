"""`write`, one self-contained HTML page about a fit, for a reader who knows the data and not the model.

The page loads nothing: pictures are SVG inside it, there is no script, and its content policy forbids requests.
Whatever comes from users, such as names of features, is escaped.
"""

from __future__ import annotations

import base64
import inspect
import io
import math
import platform
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import matplotlib as mpl
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from pyrocrl.claims.card import maps_in_words
from pyrocrl.errors import InputError
from pyrocrl.files import write_bytes
from pyrocrl.judge.checks.shared import AGREE_EACH
from pyrocrl.judge.diagnose import HOLDS
from pyrocrl.judge.metric_table import HEADLINE, METRICS, score_rows
from pyrocrl.show import plots, story
from pyrocrl.show.effects import effects
from pyrocrl.turns import turn

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit
    from pyrocrl.judge.compare import Comparison

TOP_FEATURES = 8
TOP_ENVIRONMENTS = 4
CLEAR = 0.65  # AUROC, in either direction, from which an environment is said to move a latent
FEW = 10  # rows below which a ratio of spreads says little
WIDER = 1.5  # ratio of spreads, in either direction, from which it is said to widen or narrow one
VERSIONS = ("pyrocrl", "torch", "pyro-ppl", "numpy", "xarray", "arviz")

# verdict -> sign beside the words (colour alone says nothing to some readers), style and what it means
OUTCOMES = {
    "identified": ("✓", "good", "the data pin this down: independent fits found the same answer"),
    "identified if": (
        "✓",
        "good",
        "as identified, given assumptions that no data of this kind can show: see the table",
    ),
    "identified, undecided at this n": ("…", "open", "there is one answer, and these rows do not settle it yet"),
    "not converged": (
        "?",
        "open",
        "nothing can be said yet: one fit beats all others, and none of them agrees with it",
    ),
    "contradicted": ("✕", "bad", "the data contradict an assumption: what was found need not be so"),
    "not identified": ("✕", "bad", "the data do not pin this down: other answers would fit as well"),
}
# result of a check -> sign and style
RESULTS = {"holds": ("✓", "good"), "open": ("…", "open"), "on your word": ("!", "open"), "fails": ("✕", "bad")}
NUMBERS = {
    "chains_at_best": "chains at the best objective",
    "agreement_mean": "mean agreement",
    "agreement_least": "least agreement",
    "rhat_max": "largest r-hat",
}


@dataclass(frozen=True)
class Picture:
    """A figure as a data address, with what it shows in words for readers who cannot see it."""

    key: str
    source: str
    alt: str
    width: int


def write(
    fit: Fit,
    tree: xr.DataTree,
    verdict: Any | None,
    scores: Mapping[str, float] | None,
    path: str | Path,
    pages: Mapping[str, str | None] | None = None,
) -> Path:
    """Write the report of `fit` to `path` (a folder gets report.html) and return where it lies.

    tree: of `fit.posterior()`; without posterior predictive draws that check is left out. verdict: of `diagnose`,
    or None. scores: of `evaluate`, or None where no truth is known. pages: title -> address, relative to this page, of
    pages that belong together, None for this one; they become tabs. The file appears whole or not at all. Raises
    InputError for a tree or a verdict of another fit, a tree without latents or a folder that cannot be written.
    """
    return _write(render(fit, tree, verdict, scores, pages), Path(path), "report.html")


def write_comparison(found: Comparison, path: str | Path) -> Path:
    """Write a page that sets models side by side (see `pyrocrl.compare`) to `path`, a folder gets compare.html."""
    table = {(pair.first, pair.second): pair for pair in found.pairs}
    names = [model.name for model in found.models]
    return _write(
        _template("compare.html").render(
            found=found,
            outcomes=OUTCOMES,
            scores=[(METRICS[key], key) for key in HEADLINE if any(key in m.scores for m in found.models)],
            pair=lambda a, b: table.get((a, b)) or table.get((b, a)),
            names=names,
            pictures=[
                (name, _picture(name, figure, f"Graph of {name} with edge probabilities"))
                for name, graph in found.graphs.items()
                for figure in [plots.graph(_tree_of(graph, found.latents))]
            ],
        ),
        Path(path),
        "compare.html",
    )


def _tree_of(graph: np.ndarray, latents: Sequence[str]) -> xr.DataTree:
    """Edge probabilities as the tree that `plots.graph` takes."""
    coords = {"parent": list(latents), "child": list(latents)}
    values = xr.Dataset({"graph": (("chain", "draw", "parent", "child"), graph[None, None])}, coords=coords)
    return xr.DataTree.from_dict({"posterior": values})


def _template(name: str) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pyrocrl.show"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"signed": _signed, "share": _share, "duration": _duration}
    return environment.get_template(name)


def _write(html: str, path: Path, name: str) -> Path:
    """The page at `path`, in a folder under `name`; whole or not at all."""
    if path.is_dir() or not path.suffix:
        path = path / name
    return write_bytes(html.encode("utf-8", errors="replace"), path)


def render(
    fit: Fit,
    tree: xr.DataTree,
    verdict: Any | None = None,
    scores: Mapping[str, float] | None = None,
    pages: Mapping[str, str | None] | None = None,
) -> str:
    """The page as a string."""
    fit.check_own("tree", tree.attrs.get("fit"))
    if verdict is not None:
        fit.check_own("verdict", verdict.fit)
    judged = verdict.to_dict() if verdict is not None else {"claims": [], "chains": {}}
    reference = _reference(fit, tree)
    model, drawn = _model(fit)
    changed, acted = _effects(fit, tree, judged["claims"])
    return _template("report.html").render(
        card=fit.program.card,
        claims=[c.sentence() for c in fit.program.claims()],
        facts=_facts(fit, tree),
        verdicts=_verdicts(judged["claims"]),
        evidence=_evidence(judged["claims"]),
        judged=verdict is not None,
        outcomes=OUTCOMES,
        doubts=_doubts(fit, judged["claims"]),
        programmes=_programmes(tree, reference, judged["claims"]),
        scores=dict(zip(("columns", "rows"), score_rows(scores or {}), strict=True)),
        chains=_chains(fit, judged["chains"]),
        pages=pages or {},
        model=model,
        changed=changed,
        pictures={p.key: p for p in [*_pictures(fit, tree, reference), *drawn, *acted]},
        footer=_footer(fit),
    )


# -- what the page says ----------------------------------------------------------------------------------------


def _facts(fit: Fit, tree: xr.DataTree) -> dict[str, Any]:
    shape = tree["observed_data"]["x"].sizes
    latents = tree["posterior"]["z"].sizes["latent"]
    pip = plots.inclusion(tree)
    used = latents if pip is None else int((pip.to_numpy() > plots.style.PRESENT).any(0).sum())
    counts = fit.data.counts if fit.data is not None else None
    number = fit.number() if fit.data is not None else None
    return {
        "name": fit.data.name if fit.data is not None else "data",
        "rows": int(fit.meta.get("rows", shape["data"])),
        "shown_rows": int(shape["data"]),
        "features": int(shape["feature"]),
        "kind": "" if counts is None else "counts" if counts else "continuous values",
        "environments": len(fit.names.get("env", [])) or 1,
        "latents": latents,
        "used": used if pip is not None else None,
        "number": number,
        "chains": fit.chains.count,
        "duration": _duration(float(fit.meta.get("seconds", math.nan))),
        "epochs": fit.meta.get("epochs"),
    }


def _reference(fit: Fit, tree: xr.DataTree) -> str | None:
    """The control of the fit's data, where the tree has rows of it; None = what the tree says."""
    labels = set(np.asarray(tree["constant_data"]["env"].to_numpy()).astype(str)) if "constant_data" in tree else set()
    control = fit.data.control if fit.data is not None else None
    return control if control in labels else None


def _verdicts(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for claim in claims:
        sign, style, meaning = OUTCOMES[claim["verdict"]]
        numbers = {NUMBERS.get(k, k.replace("_", " ")): _number(v) for k, v in claim.get("numbers", {}).items()}
        out.append({**claim, "sign": sign, "style": style, "meaning": meaning, "numbers": numbers})
    return out


def _evidence(claims: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each assumption and condition once, how it was looked at and the result, what fails first."""
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for claim in claims:
        for one in claim.get("evidence", ()):
            sign, style = RESULTS[one["result"]]
            row = out.setdefault((one["assumption"], one["check"]), {**one, "sign": sign, "style": style, "of": []})
            row["of"] = list(dict.fromkeys([*row["of"], claim["what"]]))
            row["left"] = claim.get("given", {}).get(one["assumption"], "")
    order = ("fails", "open", "on your word", "holds")
    return sorted(out.values(), key=lambda row: order.index(row["result"]))


def _doubts(fit: Fit, claims: list[dict[str, Any]]) -> list[str]:
    """Why the programmes below should not be read one by one, if so."""
    out = []
    if not fit.program.claims():
        out.append(
            "This model makes no claim of identifiability: its latents may be any mixture of the real factors, and "
            "another fit may show others. Read the programmes as a description of this fit only."
        )
    elif fit.program.group.mixes:
        free = ", ".join(maps_in_words(fit.program.latents_up_to))
        out.append(f"This model identifies its latents only up to {free}: one latent taken alone means nothing.")
    for claim in claims:
        what = claim.get("what", "latents")
        if claim["verdict"] not in HOLDS and what in ("latents", "mask"):
            found = f"The {what} {'were' if what == 'latents' else 'was'} found {claim['verdict']} (see above)"
            out.append(f"{found}: other programmes may fit these data as well.")
    return out


def _programmes(tree: xr.DataTree, reference: str | None, claims: list[dict[str, Any]]) -> dict[str, Any]:
    """Per latent how far chains agree on it, its share of variance, its top features and the environments that move it
    most; latents not in use by name only."""
    agreement: dict[str, float] = next((c["latents"] for c in claims if c.get("latents")), {})
    share = plots.explained(tree)
    pip, loading, moved = plots.inclusion(tree), plots.loadings(tree), plots.shifts(tree, reference)
    features = [str(f) for f in loading["feature"].to_numpy()]
    values = loading.to_numpy()
    strength = np.ones_like(values) if pip is None else pip.to_numpy()
    rows, unused = [], []
    for k, latent in enumerate(loading["latent"].to_numpy()):
        order = plots.ranking(strength[:, k], values[:, k])
        order = order[strength[order, k] > plots.style.PRESENT]
        if not len(order):
            unused.append(str(latent))
            continue
        top = [
            {
                "name": features[j],
                "pip": None if pip is None else float(strength[j, k]),
                "loading": float(values[j, k]),
            }
            for j in order[:TOP_FEATURES]
        ]
        more = len(order) - len(top) if pip is not None else 0
        agreed = agreement.get(str(latent))
        known = {"agreement": agreed, "weak": agreed is not None and agreed < AGREE_EACH, "share": float(share[k])}
        rows.append({"latent": str(latent), **known, "features": top, "more": more, **_movers(moved, k)})
    return {
        "rows": rows,
        "unused": unused,
        "kind": loading.attrs["kind"],
        "masked": pip is not None,
        "reference": moved.attrs["reference"],
        "environments": moved.sizes["env"] > 1,
    }


def _movers(moved: xr.Dataset, k: int) -> dict[str, Any]:
    auroc, shift, spread = (moved[v].to_numpy()[:, k] for v in ("auroc", "shift", "spread"))
    apart = np.nan_to_num(np.maximum(auroc, 1 - auroc), nan=0.5)
    wider = np.nan_to_num(np.maximum(spread, 1 / np.maximum(spread, 1e-12)), nan=1.0)
    clear = (apart >= CLEAR) | ((wider >= WIDER) & (moved["rows"].to_numpy() >= FEW))
    order = [e for e in np.lexsort((-apart, ~clear)) if str(moved["env"].values[e]) != moved.attrs["reference"]]
    movers: list[dict[str, Any]] = [
        {
            "name": str(moved["env"].values[e]),
            "shift": float(shift[e]),
            "auroc": float(apart[e]),
            "spread": float(spread[e]) if wider[e] >= WIDER else None,
            "rows": int(moved["rows"].values[e]),
            "clear": bool(clear[e]),
        }
        for e in order[:TOP_ENVIRONMENTS]
    ]
    shown = [m for m in movers if m["clear"]]
    return {"movers": shown, "largest": movers[0] if movers and not shown else None}


def _model(fit: Fit) -> tuple[dict[str, Any], list[Picture]]:
    """Equations of the model's docstring, what is summed out (None = not known) and the picture of its story."""
    program = fit.programs()[fit.reference]
    out: dict[str, Any] = {"equations": equations(program), "summed_out": None, "undrawn": ""}
    if fit.data is None:
        return out, []
    try:
        figure = story.figure(program, fit.data)
        out["summed_out"] = story.summed_out(program, fit.data)
    except Exception as error:  # a user's story may do what tracking of dependence cannot follow: the rest still holds
        return out | {"undrawn": f"{type(error).__name__}: {error}"}, []
    return out, [_picture("story", figure, "Plate diagram: the model's quantities and what each depends on")]


def equations(program: Any) -> str:
    """The first indented block of the docstring of the module that `program` is written in; "" where there is none."""
    module = sys.modules.get(type(program).__module__)
    lines: list[str] = []
    for line in inspect.cleandoc(getattr(module, "__doc__", None) or "").splitlines():
        if line.startswith("    ") or (lines and not line.strip()):
            lines.append(line)
        elif lines:
            break
    return textwrap.dedent("\n".join(lines)).strip("\n")


def _effects(fit: Fit, tree: xr.DataTree, claims: list[dict[str, Any]]) -> tuple[dict[str, Any] | None, list[Picture]]:
    """What setting each latent changes, in words for the table, and its picture; None for a fit without a graph."""
    if "graph" not in tree["posterior"]:
        return None, []
    out: dict[str, Any] = {"rows": [], "edges": [], "refused": "", "doubt": ""}
    for claim in claims:
        if claim["verdict"] not in HOLDS and claim.get("what") == "graph":
            out["doubt"] = (
                f"The graph was found {claim['verdict']} (see above): other effects may fit these data as well."
            )
    edges = plots.edges(tree)
    assert edges is not None
    weights = edges["weight"].to_numpy() if "weight" in edges else None
    out["edges"] = [
        {"parent": i, "child": j, "probability": p, "weight": None if weights is None else weights[at]}
        for at, (i, j, p) in enumerate(zip(edges["parent"].values, edges["child"].values, edges["probability"].values))
    ]
    pictures = []
    if weights is not None and len(weights):
        words = "Weight of every probable edge with its 90 % interval"
        pictures.append(_picture("weights", plots.weights(tree), words))
    if fit.data is None:
        return out | {"refused": "the data were not at hand"}, pictures
    try:
        found = effects(fit, fit.data)
    except InputError as error:  # not every model with a graph lets one latent be set alone
        return out | {"refused": str(error)}, pictures
    moved, names = found["of_latents"].to_numpy(), [str(n) for n in found["latent"].to_numpy()]
    for k, name in enumerate(names):
        best = plots.strongest(found, k, TOP_FEATURES)
        out["rows"].append(
            {
                "latent": name,
                "base": float(found["base"][k]),
                "raised": float(found["raised"][k]),
                "latents": [
                    (other, moved[k, j])
                    for j, other in enumerate(names)
                    if j != k and moved[k, j, 0] * moved[k, j, 2] > 0
                ],
                "features": [(str(found["feature"].values[j]), found["of_features"].to_numpy()[k, j]) for j in best],
            }
        )
    out["unit"] = found.attrs["unit"]
    words = "Change of every latent and of the top features when one latent is raised by one standard deviation"
    return out, [*pictures, _picture("effects", plots.effects(found), words)]


def _chains(fit: Fit, compared: Mapping[str, Any]) -> dict[str, Any]:
    tied = compared.get("tied", [])
    started = int(np.asarray(fit.history).shape[1]) - 1
    rows = [
        {
            "id": int(original),
            "held_out": float(fit.scores[c]),
            "weight": float(fit.weights[c]),
            "tied": bool(tied[c]) if len(tied) > c else None,
            "best": c == fit.reference,
        }
        for c, original in enumerate(fit.kept)
    ]
    khat = compared.get("khat_median")
    stopped = [(int(one["chain"]), int(one["epoch"])) for one in fit.meta.get("stopped", [])]
    return {
        "rows": sorted(rows, key=lambda row: -row["held_out"]),
        "started": started,
        "left_out": sorted(set(range(started)) - {int(c) for c in fit.kept} - {c for c, _ in stopped}),
        "stopped": [{"chain": c, "epoch": epoch} for c, epoch in stopped],
        "retired": int(compared.get("retired", len(fit.meta.get("retired", [])))),
        "khat": khat if khat is not None and math.isfinite(khat) else None,
        "khat_bad": compared.get("khat_above_0.7", math.nan),
    }


def _footer(fit: Fit) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    meta = {k: v for k, v in fit.meta.items() if k in ("seed", "epochs", "device", "fingerprint")}
    return {
        "versions": versions,
        "meta": {"fit": fit.digest, **meta},
        "config": fit.program.config,
        "recipe": fit.meta.get("recipe", {}),
        "cpu": _duration(float(fit.meta.get("cpu_seconds", math.nan))),
    }


# -- pictures --------------------------------------------------------------------------------------------------


def _pictures(fit: Fit, tree: xr.DataTree, reference: str | None) -> list[Picture]:
    posterior = tree["posterior"]
    numbered = tree.copy()  # chains by the numbers they started with, as in the history
    numbered["posterior"] = posterior.to_dataset().assign_coords(chain=fit.kept)
    out = [
        _picture("agreement", plots.agreement(numbered), "Agreement of chains, by pair of chains and by latent"),
        _picture(
            "objective",
            plots.objective(
                fit.history, fit.kept[fit.reference], [one["chain"] for one in fit.meta.get("stopped", [])]
            ),
            "Held-out objective of every chain against epochs",
        ),
        _picture(
            "environments",
            plots.latents_by_env(tree, reference),
            "Heat map of how far each environment moves each latent, and distributions of the strongest",
        ),
    ]
    if "mask" in posterior:
        out.append(_picture("mask", plots.mask(tree), "Heat map of inclusion probabilities, features by latents"))
    if "targets" in posterior:
        seen = "Heat map of which latent each environment intervenes on, and how far it shifts it"
        out.append(_picture("targets", plots.targets(tree), seen))
    if "graph" in posterior:
        out.append(_picture("graph", plots.graph(tree), "Graph over latents with the probability of every edge"))
    if "posterior_predictive" in tree.children and "x" in tree["posterior_predictive"]:
        out.append(_picture("predictive", plots.predictive(tree), "Observed against replicated statistics of features"))
    if fit.data is not None and "z" in fit.data.truth and fit.data.rows == fit.meta.get("rows"):
        z = plots.latent_means(tree)
        rows = pd.Index(fit.data.row_labels().astype(str)).get_indexer(z["data"].to_numpy().astype(str))
        if (rows >= 0).all():
            names = [str(k) for k in z["latent"].to_numpy()]
            figure = plots.recovery(fit.data.truth["z"][rows], z.to_numpy(), names)
            out.append(_picture("recovery", figure, "Estimated against true latents"))
    return out


def _picture(key: str, figure: Figure, alt: str) -> Picture:
    """The figure as SVG; text becomes paths, so that it looks the same wherever it is opened."""
    stream = io.BytesIO()
    with turn(), mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "pyrocrl"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(stream, format="svg", dpi=150, metadata={"Date": None, "Creator": None})
    encoded = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(key, f"data:image/svg+xml;base64,{encoded}", alt, round(figure.get_figwidth() * 96))


# -- words for numbers -----------------------------------------------------------------------------------------


def _number(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "–"
    if number == int(number) and abs(number) < 1e6:
        return f"{int(number)}".replace("-", "−")
    return f"{number:.3g}".replace("-", "−")


def _signed(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:+.2f}".replace("-", "−")


def _share(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.2f}"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "unknown time"
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
