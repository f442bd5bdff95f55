"""The site builds without warnings, holds a page of every model and every public name, and its links resolve."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import pyrocrl
from pyrocrl import zoo

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """Where a page leads, what it loads, its anchors and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.words: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.add(found.get("id", ""))
        if tag == "a":
            self.links.append(found.get("href", ""))
        self.loads += [found[key] for key in ("src", "href") if tag in ("img", "script", "link") and key in found]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Page]:
    """Pages of a fresh build by their place, such as "models/vae"."""
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-E", "-d", str(out / "trees")]
    build += ["-D", "toc_object_entries=0"]  # every page copies the contents of all
    done = subprocess.run([*build, str(ROOT / "docs"), str(out / "html")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    return {str(p.relative_to(out / "html"))[:-5]: Page(p) for p in sorted((out / "html").rglob("*.html"))}


def plain(text: str) -> str:
    """Letters and digits alone: pages have quotes and spaces of their own."""
    return re.sub(r"\W", "", text).lower()


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.built_in())
def test_a_model_has_a_page_with_story_claims_figures_and_limits(
    site: dict[str, Page], generate: ModuleType, name: str
) -> None:
    page, card = site[f"models/{name}"], zoo.get(name).card
    picture = [load for load in page.loads if load.endswith(f"{name}.svg")]
    assert picture and "<svg" in (page.path.parent / picture[0]).read_text(encoding="utf-8")
    text = plain(page.text)
    for sentence in (card.summary, *card.assumes, *card.when, *card.differs, *(c.head() for c in card.claims)):
        assert plain(sentence) in text, sentence
    for claim in card.claims:
        assert all(plain(f"{given} (on your word)") in text for given in claim.given)
    studies = json.loads((ROOT / "models" / "results" / f"{name}.json").read_text())["studies"]
    for study in studies:
        assert study["setting"] in page.text and f" {study['summary']['cpu_seconds']['mean']:.0f} " in page.text
    for limit in generate.limits(name):
        assert plain(limit) in text, limit


@pytest.mark.slow
def test_every_public_name_is_documented(site: dict[str, Page]) -> None:
    for name in pyrocrl.__all__:
        if name in pyrocrl._HOMES:
            assert f"pyrocrl.{name}" in site["api/index"].anchors
        else:
            assert f"pyrocrl.{name}" in site["api/index"].text
    assert "pyrocrl.judge.metrics.mcc" in site["api/judge"].anchors
    assert "pyrocrl.batch.Moments" in site["api/modules"].anchors
    assert "--control" in site["api/shell"].text


@pytest.mark.slow
def test_links_resolve_and_nothing_is_loaded_from_elsewhere(site: dict[str, Page]) -> None:
    by_path = {page.path.resolve(): page for page in site.values()}
    for place, page in site.items():
        for link in {*page.links, *page.loads}:
            where, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", where):
                assert link not in page.loads or where.startswith("data:"), f"{place} loads {link}"
                continue
            target = (page.path.parent / where.partition("?")[0]).resolve() if where else page.path.resolve()
            assert target.exists(), f"{place} leads to {link}"
            if anchor and target in by_path:
                assert anchor in by_path[target].anchors, f"{place} leads to {link}"


@pytest.mark.slow
def test_tutorials_are_shown_with_their_outputs(site: dict[str, Page]) -> None:
    for path in (ROOT / "tutorials").glob("*.ipynb"):
        assert "tutorials/" + path.stem in site
    assert "IDENTIFIED" in site["tutorials/00_quickstart"].text
    assert any(load.endswith(".png") for load in site["tutorials/00_quickstart"].loads)


def test_every_card_says_when() -> None:
    for name in zoo.built_in():
        assert len(zoo.get(name).card.when) == 2, name


def test_limits_name_the_worst_seed(generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def study(setting: str, identified: bool, worst: float, shd: float, verdicts: list[str]) -> dict[str, Any]:
        summary = {"mcc": {"mean": 0.9, "min": worst, "max": 1.0}, "shd": {"mean": 0.5, "min": 0.0, "max": shd}}
        seeds = [{"verdict": {"graph": verdict}} for verdict in verdicts]
        return {"setting": setting, "options": {}, "identified": identified, "summary": summary, "seeds": seeds}

    studies = [
        study("easy", True, 0.95, 0.0, ["identified", "identified"]),
        study("hard", True, 0.70, 2.0, ["identified", "not converged"]),
        study("open", False, 0.20, 9.0, ["not identified"]),
    ]
    monkeypatch.setattr(generate, "_results", lambda name: studies)
    assert generate.limits("any") == [
        "Not identified, and shown for comparison: `open`.",
        "The worst seed recovers the latents with an mcc of 0.700, in `hard`.",
        "The worst graph has 2 wrong pairs, in `hard`.",
        "The verdict on the graph is *identified* in 3 of 4 fits.",
    ]


def test_docstrings_become_text_that_cannot_be_misread(generate: ModuleType) -> None:
    doc = """Says what, with *stress* and `code_`.

        z_k = a * b_   (data, latent)

    x: (data, feature) floats,
        or counts.
    env: (data,) labels.

    A prose_ line |with| a * b and ``literal``.
    """
    lines = doc.split("\n")
    lines[2:] = [line[4:] for line in lines[2:]]
    generate.process_docstring(None, "class", "x", None, None, lines)
    assert "    z_k = a * b_   (data, latent)" in lines and "::" in lines
    assert r"* x: (data, feature) floats, or counts." in lines and "* env: (data,) labels." in lines
    text = " ".join(lines)
    assert r"\ *stress*\ " in text and r"\ ``code_``\ " in text and r"\ ``literal``\ " in text
    assert r"A prose\_ line \|with\| a \* b" in text
    assert "z_k = a * b_" in generate.markdown("Text.\n\n    z_k = a * b_").split("```text\n")[1]
