"""Pages made from the code: one a model, one a room of the package, and the shell's help. `conf.py` calls `write`."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sphinx.util.inspect import stringify_signature
from typer.main import get_command
from typer.testing import CliRunner

import pyrocrl
from pyrocrl import zoo
from pyrocrl.claims.card import CONDITIONS, TARGETS, Claim
from pyrocrl.lab import assumptions, calibrations, reproduce, run
from pyrocrl.program import Program
from pyrocrl.show import story

ROOT = Path(pyrocrl.__file__).resolve().parent
MODULES = sorted(pyrocrl._MODULES.items())
INTRODUCTION = "Shapes stand in brackets, (rows, columns); what is refused raises `pyrocrl.InputError`, in one line."


def write(folder: Path) -> None:
    """Write `models/`, `api/`, `assumptions.md` and a copy of `tutorials/` under `folder`, anew."""
    for made in ("models", "api", "tutorials"):
        shutil.rmtree(folder / made, ignore_errors=True)
    shutil.copytree(folder.parent / "tutorials", folder / "tutorials", ignore=shutil.ignore_patterns(".*"))
    pages = {f"models/{name}": model_page(zoo.get(name)) for name in zoo.built_in()} | {"models/index": models_index()}
    pages |= {f"api/{room}": page for room, page in api_pages().items()} | {"assumptions": assumptions.markdown()}
    for place, page in pages.items():
        path = folder / f"{place}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(page, encoding="utf-8")
    for name in zoo.built_in():
        picture = story.figure(*zoo.get(name).example())
        picture.savefig(folder / "models" / f"{name}.svg", bbox_inches="tight")


# -- models ----------------------------------------------------------------------------------------------------


def models_index() -> str:
    """All models by family, with what they are and what they identify."""
    cards = [zoo.get(name).card for name in zoo.built_in()]
    parts = [
        "# Models",
        "What each identifies, and what it needs for that, as its card says.",
        run.table("{}.md", whole=True),
    ]
    for family in sorted({card.family for card in cards}, key=lambda f: (f == "baseline", f)):
        rows = [f"[{c.title}]({c.name}.md)\n: {c.summary}" for c in cards if c.family == family]
        parts += [f"## {family[0].upper()}{family[1:]}", *rows]
    parts.append("```{toctree}\n:hidden:\n\n" + "\n".join(card.name for card in cards) + "\n```")
    return "\n\n".join(parts) + "\n"


def _options(program: type[Program]) -> str:
    """The options of a model as a table."""
    lines = ["| option | default | allowed | what it is |", "|---|---|---|---|"]
    for option in program.options().values():
        told = option.to_dict()
        default = f"`{told['default']!r}`" if "default" in told else "–"
        cells = [f"`{option.name}`", default, told["allowed"], option.meaning]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def model_page(program: type[Program]) -> str:
    """A model's page: card, when to use it, the story in equations and code, claims, figures, limits, options."""
    card = program.card
    source = inspect.getmodule(program)
    facts = [f"`{card.name}`", card.family, card.status, f"likelihoods: {', '.join(card.likelihoods)}"]
    facts.append(f"{card.values} latents")
    facts.append("needs environments" if card.needs_env else "needs no environments")
    facts += ["needs pairs of rows"] * card.needs_pairs
    facts += ["needs series"] * card.needs_series
    facts += ["needs views"] * card.needs_views + ["rows may lack views"] * card.reads_gaps
    if card.reads_missing:
        facts.append(f"values may be missing: {', '.join(card.reads_missing)}")
    parts = [f"# {card.title}", " · ".join(facts), f"**{card.summary}**"]
    if card.when:
        use, avoid = card.when
        parts += ["## When to use it, and when not"]
        parts += [f":::{{admonition}} Use it when\n:class: tip\n{use}.\n:::"]
        parts += [f":::{{admonition}} Do not use it when\n:class: warning\n{avoid}.\n:::"]
    parts += ["## The story", f"![Sites, arrows and plates of the story of {card.name}]({card.name}.svg)"]
    parts += ["*What is grey is observed; a box is repeated as often as it says (sizes are those of the example).*"]
    parts += [markdown(inspect.getdoc(source) or "")]
    for method in ("story", "model", "recover"):
        told = getattr(program, method, None)
        if told is not None and told is not getattr(Program, method, None):
            code = inspect.cleandoc("\n" + inspect.getsource(told))
            summary = f"The program: <code>{method}</code>"
            parts.append(f"<details><summary>{summary}</summary>\n\n```python\n{code}\n```\n\n</details>")
    parts.append(f"All of it is in `models/{card.name}.py`; [how to write a variant](../how_to_write_a_variant.md).")
    parts += ["## What it assumes", _list(card.assumes)]
    if card.targets:
        parts += ["Targets of environments may be:", _list(f"*{mode}*: {TARGETS[mode]}" for mode in card.targets)]
    parts += ["## What it claims", _claims(card.claims)]
    if card.claims:
        parts += ["[How to read a verdict](../how_to_read_a_verdict.md) says how what is *checked* is checked."]
    parts += ["## Figures", reproduce.figures_of(card.name) or "None are committed."]
    parts += ["Means over all seeds, the worst seed in brackets; [what the columns mean](../figures.md)."]
    if found := calibrations.findings(card.name):
        told = "What [`calibrate`](../calibrated.md) found, of data sets drawn from its story."
        parts += ["## Calibrated?", told, found]
    parts += ["## Limits", _list(limits(card.name))]
    if card.differs:
        parts += ["It differs from its paper in this:", _list(card.differs)]
    signature = f"```{{eval-rst}}\n.. autoclass:: {program.__module__}.{program.__name__}\n```"
    parts += ["## Options", _options(program), signature, "`pyrocrl.build` reads off the data what is not given."]
    parts += ["## Settings with known truth", _list(f"`{setting}`" for setting in card.settings)]
    parts += [f"`pyrocrl reproduce {card.name}` runs its studies of them; [what they draw](../api/simulate.md)."]
    parts += ["## References", _list(reference.markdown() for reference in card.references)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _claims(claims: Iterable[Claim]) -> str:
    """Claims, with what `diagnose` checks apart from what stays on the user's word; those of equal needs together."""
    heads: dict[tuple[tuple[str, ...], tuple[str, ...], str], list[str]] = {}
    for claim in claims:
        heads.setdefault((claim.needs, claim.given, claim.where()), []).append(claim.head())
    parts = []
    for (needs, given, where), said in heads.items():
        lines = [f"- {CONDITIONS[need]} *(checked)*" for need in needs] + [
            f"- {text} *(on your word)*" for text in given
        ]
        text = "; ".join(said)
        options = f", where {where}" if where else ""
        parts.append(f"**{text[0].upper()}{text[1:]}**{options}" + (", if\n\n" + "\n".join(lines) if lines else "."))
    return "\n\n".join(parts) or "Nothing."


def _results(name: str) -> Sequence[Mapping[str, Any]]:
    path = ROOT / "models" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))["studies"] if path.exists() else []


def limits(name: str) -> list[str]:
    """Where a model's committed results fall short, in sentences: worst seeds, coverage, failed fits, verdicts."""
    entries = [entry for entry in _results(name) if entry["summary"]]
    out = []
    open_ = [_setting(entry) for entry in entries if entry.get("identified") is False]
    if open_:
        out.append(f"Not identified, and shown for comparison: {'; '.join(open_)}.")
    claimed = [entry for entry in entries if entry.get("identified") is not False]

    def worst(metric: str, which: str) -> tuple[float, str] | None:
        found = [(e["summary"][metric][which], _setting(e)) for e in claimed if metric in e["summary"]]
        return None if not found else min(found) if which != "max" else max(found)

    if low := worst("mcc", "min"):
        out.append(f"The worst seed recovers the latents with an mcc of {low[0]:.3f}, in {low[1]}.")
    if (high := worst("shd", "max")) and high[0] > 0:
        out.append(f"The worst graph has {high[0]:.0f} wrong pair{'s' * (high[0] != 1)}, in {high[1]}.")
    if (low := worst("mask_f1", "min")) and low[0] < 1:
        out.append(f"The worst mask has an F1 of {low[0]:.3f}, in {low[1]}.")
    if low := worst("weight_coverage", "mean"):
        out.append(f"90 % intervals of edge weights cover {low[0]:.0%} at the least, in {low[1]}.")
    if low := worst("action_coverage", "mean"):
        out.append(f"90 % intervals of means under new actions cover {low[0]:.0%} at the least, in {low[1]}.")
    if low := worst("effect_r", "min"):
        out.append(f"The worst seed's predictions of effects never measured have r {low[0]:.3f}, in {low[1]}.")
    if low := worst("effect_coverage_90", "mean"):
        out.append(f"90 % intervals of new effects cover {low[0]:.0%} at the least, in {low[1]}.")
    if failed := sum(entry["summary"].get("failed", 0) for entry in entries):
        out.append(f"{failed} fits failed.")
    rows = [row for entry in claimed for row in entry["seeds"] if row.get("verdict")]
    for what in dict.fromkeys(what for row in rows for what in row["verdict"]):
        said = [row["verdict"][what] for row in rows if what in row["verdict"]]
        if (sure := sum(one in ("identified", "identified if") for one in said)) < len(said):
            out.append(f"The verdict on the {what} is *identified* in {sure} of {len(said)} fits.")
    return out or ["No figures are committed."]


def _setting(entry: Mapping[str, Any]) -> str:
    options = ", ".join(f"{key}={value}" for key, value in entry["options"].items())
    return f"`{entry['setting']}`" + (f" ({options})" if options else "")


# -- API -------------------------------------------------------------------------------------------------------


def api_pages() -> dict[str, str]:
    """The pages of `api/`: public names, the rooms of one module together, each other room, the shell."""
    found = [m for m in pkgutil.iter_modules([str(ROOT)]) if m.name not in ("models", "cli")]
    pages = {"modules": _room("Data, files, programs", [m.name for m in found if not m.ispkg])}
    for package in (m.name for m in found if m.ispkg):
        below = pkgutil.walk_packages([str(ROOT / package)], f"pyrocrl.{package}.")
        inside = [m.name.removeprefix("pyrocrl.") for m in below]
        title = importlib.import_module(f"pyrocrl.{package}").__doc__.split("\n")[0].rstrip(".")  # type: ignore[union-attr]
        pages[package] = _room(f"`{package}`: {title}", inside if package != "simulate" else [package, *inside])
    pages["shell"] = _shell()
    rooms = "\n".join(f"- [{page.splitlines()[0][2:]}]({room}.md)" for room, page in pages.items())
    names = [_directive(name, f"pyrocrl.{name}") for name in sorted(pyrocrl._HOMES)]
    where = {name: home.split(".")[0] if (ROOT / home.split(".")[0]).is_dir() else "modules" for name, home in MODULES}
    modules = "\n".join(f"- `pyrocrl.{name}` is [`pyrocrl.{home}`]({where[name]}.md)" for name, home in MODULES)
    toc = "```{toctree}\n:hidden:\n\n" + "\n".join(pages) + "\n```"
    index = ["# API", INTRODUCTION, rooms, "## Modules", modules, "## Names", *names, toc]
    return {"index": "\n\n".join(index) + "\n"} | pages


def _room(title: str, modules: Sequence[str]) -> str:
    """Everything public and documented in these modules, but for names that the index has."""
    parts = [f"# {title}"]
    for module in modules:
        shown = [name for name, home in pyrocrl._HOMES.items() if home == module]
        parts += [f"## `pyrocrl.{module}`"]
        hide = f"\n   :exclude-members: {', '.join(shown)}" if shown else ""
        parts += [f"```{{eval-rst}}\n.. automodule:: pyrocrl.{module}\n   :members:{hide}\n```"]
        if shown:
            parts += ["Here and at the top level: " + ", ".join(f"[`pyrocrl.{n}`](#pyrocrl.{n})" for n in shown) + "."]
    return "\n\n".join(parts) + "\n"


def _directive(name: str, path: str) -> str:
    kind = "class" if isinstance(getattr(pyrocrl, name), type) else "function"
    members = "\n   :members:" if kind == "class" else ""
    return f"```{{eval-rst}}\n.. auto{kind}:: {path}{members}\n```"


def _shell() -> str:
    """What every command says of itself."""
    from pyrocrl.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    parts = ["# The shell", f"```text\n{_help(app, [])}\n```"]
    for name in commands:
        parts += [f"## `pyrocrl {name}`", f"```text\n{_help(app, [name])}\n```"]
    return "\n\n".join(parts) + "\n"


def _help(app: Any, command: Sequence[str]) -> str:
    return CliRunner().invoke(app, [*command, "--help"], prog_name="pyrocrl", terminal_width=100).output.strip()


# -- docstrings ------------------------------------------------------------------------------------------------
# Ours are plain text: paragraphs, indented equations, "name: what it is" line by line, `code` and *emphasis*.

NAMED = re.compile(r"[`\w][\w, /*`]*: ")


def blocks(doc: str) -> Iterable[tuple[str, list[str]]]:
    """("literal" | "items" | "bullets" | "text", lines) of a docstring without its common indentation."""
    for block in re.split(r"\n\s*\n", doc.strip("\n")):
        lines = block.split("\n")
        flush = [line for line in lines if not line.startswith(" ")]
        if not flush:
            yield "literal", inspect.cleandoc("\n" + block).split("\n")
        elif lines[0].startswith("- "):
            yield "bullets", [item[2:] for item in _joined(lines, lambda line: line.startswith("- "))]
        elif len(lines) > 1 and not lines[0].startswith(" ") and all(NAMED.match(line) for line in flush):
            yield "items", _joined(lines, lambda line: not line.startswith(" "))
        else:
            yield "text", [" ".join(line.strip() for line in lines)]


def _joined(lines: Sequence[str], starts: Any) -> list[str]:
    out: list[str] = []
    for line in lines:
        if starts(line):
            out.append(line.strip())
        else:
            out[-1] += " " + line.strip()
    return out


def markdown(doc: str) -> str:
    """A docstring as MyST."""
    out = []
    for kind, lines in blocks(doc):
        if kind == "literal":
            out.append("```text\n" + "\n".join(lines) + "\n```")
        else:
            out.append("\n".join(("" if kind == "text" else "- ") + re.sub(r"([<|$])", r"\\\1", s) for s in lines))
    return "\n\n".join(out)


def process_source(app: Any, name: str, source: list[str]) -> None:
    """Sphinx's hook: pages lead to `../tutorials`, as in the repository; the site has its copy beside them."""
    source[0] = source[0].replace("](../tutorials/", "](tutorials/") if "/" not in name else source[0]


def process_signature(app: Any, what: str, name: str, obj: Any, *_: Any) -> tuple[str, str] | None:
    """autodoc's hook: a program's options are those of its `__init__`; `Program.__new__` takes any."""
    if what != "class" or not issubclass(obj, Program):
        return None
    signature = inspect.signature(obj.__init__)
    shown = signature.replace(parameters=list(signature.parameters.values())[1:], return_annotation=signature.empty)
    return stringify_signature(shown, unqualified_typehints=True), ""


def process_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """autodoc's hook: a docstring as reStructuredText that cannot be misread."""
    out: list[str] = []
    for kind, found in blocks("\n".join(lines)):
        if kind == "literal":
            out += ["::", "", *("    " + line for line in found), ""]
        else:
            out += [("" if kind == "text" else "* ") + _rst(line) for line in found] + [""]
    lines[:] = out


def _rst(text: str) -> str:
    """Inline markup of ours, everything else escaped."""
    parts = re.split(r"(``[^`]+``|`[^`]+`|(?<![\w*])\*[^*\s](?:[^*]*[^*\s])?\*(?![\w*]))", text)
    out = ""
    for i, part in enumerate(parts):
        if i % 2 and part[0] == "`":
            out += rf"\ ``{part.strip('`')}``\ "
        elif i % 2:
            out += rf"\ *{_escaped(part[1:-1])}*\ "
        else:
            out += _escaped(part)
    return out


def _escaped(text: str) -> str:
    return re.sub(r"([\\*_|`])", r"\\\1", text)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
