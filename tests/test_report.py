"""The report as a browser sees it: whole, quiet, with all its pictures, and with users' names as plain text.

The program whose story it shows:

    c    ~ N(0, 1)                            (feature,)    integrated out
    z_i  ~ N(0, I)                            (data, latent)
    x_i  ~ N(A z_i + c, 1)                    (data, feature), A <known>

A further indented block, which is no equation of the model:

    not this one
"""

import base64
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

from pyrocrl import Data, Program
from pyrocrl.claims.card import Claim, ModelCard, Reference
from pyrocrl.errors import InputError
from pyrocrl.infer.number import Number
from pyrocrl.judge.diagnose import HOLDS
from pyrocrl.show import report
from pyrocrl.show.effects import effects

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = "<script>alert('x')</script>"
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

CLAIM = Claim("latents", ("permutation", "sign", "scale"), needs=("two_anchors",))
CARD = ModelCard(
    name="sparse_vae",
    title="Sparse VAE",
    family="sparse",
    summary="Latents that each act on few features.",
    assumes=("every latent acts on few features",),
    claims=(CLAIM,),
    references=(
        Reference("Moran & others", 2022, "Identifiable deep <generative> models", "TMLR", "https://x.org/a?b=1&c"),
    ),
    differs=("gates are relaxed",),
)
DIGEST = "0123456789abcdef" * 4
SCORES = {
    "held_out": -3.2,
    "mcc": 0.98,
    "pca_mcc": 0.7,
    "ica_mcc": 0.8,
    "shd": 1,
    "shd_empty": 4,
    "odd_score": float("nan"),
}


class Tiny(Program):
    card = CARD

    def __init__(self, features=8, latents=3):
        super().__init__()

    def story(self, batch):
        with pyro.plate("feature", 8, dim=-1):
            c = pyro.sample("c", dist.Normal(0.0, 1.0))
        self.told(batch, c, 1.0)

    def model(self, batch):
        self.told(batch, 0.0, 2.0**0.5)

    def told(self, batch, c, scale):
        with self.rows(batch):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            x = z.sum(-1, keepdim=True) + c
            pyro.sample("x", dist.Normal(x.expand(len(batch), 8), scale).to_event(1), obs=batch.x)

    def guide(self, batch):
        with self.rows(batch):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))


def make_tree(features=8, latents=3, envs=3, rows=90, chains=2, draws=4, *, mask=True, graph=True, names=None):
    rng = np.random.default_rng(0)
    env = np.arange(rows) % envs
    labels = ["non-targeting", f"{EVIL}&", *(f"env {e}" for e in range(2, envs))][:envs]
    z = rng.normal(size=(rows, latents)) + 2 * np.eye(envs, latents, 1)[env]
    which = np.arange(features) % (latents - 1)  # the last latent is not in use
    x = z[:, which] * rng.choice([-1, 1], features) + 0.3 * rng.normal(size=(rows, features))
    ids = [f"latent_{k}" for k in range(latents)]
    coords = {"latent": ids, "parent": ids, "child": ids, "data": np.arange(rows)}
    coords["feature"] = names or [EVIL, 'quo"te', "a & b", "$x_1$", *(f"gene_{j}" for j in range(4, features))]
    full = (chains, draws)
    posterior = {"z": (("chain", "draw", "data", "latent"), z + 0.05 * rng.normal(size=(*full, rows, latents)))}
    if mask:
        m = np.zeros((*full, features, latents), dtype=np.int8)
        m[..., np.arange(features), which] = 1
        posterior["mask"] = (("chain", "draw", "feature", "latent"), m)
    if graph:
        a = np.zeros((*full, latents, latents), dtype=np.int8)
        a[..., 0, 1] = 1
        posterior["graph"] = (("chain", "draw", "parent", "child"), a)

    def dataset(variables):
        used = {d for dims, _ in variables.values() for d in dims}
        return xr.Dataset(variables, coords={k: v for k, v in coords.items() if k in used})

    groups = {
        "posterior": dataset(posterior),
        "posterior_predictive": dataset(
            {"x": (("chain", "draw", "data", "feature"), np.broadcast_to(x, (*full, *x.shape)))}
        ),
        "sample_stats": dataset(
            {
                "held_out": (("chain",), np.arange(chains) * 1.0),
                "chain_weight": (("chain",), np.ones(chains)),
                "agreement": (("chain", "other_chain", "latent"), np.ones((chains, chains, latents))),
            }
        ),
        "observed_data": dataset({"x": (("data", "feature"), x)}),
        "constant_data": dataset({"env": (("data",), np.asarray(labels)[env])}),
    }
    tree = xr.DataTree.from_dict(groups)
    tree.attrs["control"] = labels[0]
    return tree, labels, z


def make_fit(labels, z, *, chains=2, claims=(CLAIM,), data=True):
    program = SimpleNamespace(
        card=CARD,
        claims=lambda: claims,
        config={"features": 8, "latents": 3},
        group=SimpleNamespace(mixes=False),
        latents_up_to=("permutation", "sign", "scale"),
        reads_innovations=False,
    )
    env = np.asarray(labels)[np.arange(len(z)) % len(labels)]
    x = np.column_stack([z, np.random.default_rng(1).normal(size=(len(z), 5))])
    known = Data(x, env=env, control=labels[0], truth={"z": z[:, :2]}, name=f"screen {EVIL}")

    def do(data, values, *, draws, seed):
        """latent_0 raises latent_1 by .5 and the first feature by 2 for each of its units; nothing else responds."""
        [(name, value)] = values.items()
        unsure = np.random.default_rng(seed).normal(0, 0.01, (chains, draws))
        z_set, x_set = np.random.default_rng(seed).normal(size=(chains, draws, 3)), np.ones((chains, draws, 8))
        z_set[..., int(name[-1])] = value
        if name == "latent_0":
            z_set[..., 1] += (0.5 + unsure) * value
            x_set[..., 0] += (2.0 + unsure) * value
        return xr.Dataset({"z": (("chain", "draw", "latent"), z_set), "x": (("chain", "draw", "feature"), x_set)})

    history = np.column_stack([[5, 10, 15], np.random.default_rng(0).normal(size=(3, chains + 1))])
    history[1:, 1] = np.nan
    return SimpleNamespace(
        program=program,
        chains=SimpleNamespace(count=chains),
        programs=lambda: [Tiny() for _ in range(chains)],
        latents=lambda data: np.asarray(data.x)[:, :3].astype(float),
        graph=lambda: np.eye(3, k=1),
        number=lambda: Number(3, "evidence", {3: 0.9, 2: 0.1}, 1, 5, "evidence of 1 to 5 factors"),
        do=do,
        data=known if data else None,
        digest=DIGEST,
        check_own=lambda argument, named: None,
        kept=list(range(1, chains + 1)),
        names={"env": labels, "latent": [f"latent_{k}" for k in range(3)], "feature": known.feature_names},
        scores=np.arange(chains) * 1.0,
        weights=np.full(chains, 1 / chains),
        reference=chains - 1,
        history=history,
        meta={
            "seed": 3,
            "epochs": 15,
            "seconds": 131.0,
            "cpu_seconds": 200.0,
            "rows": len(z),
            "device": "cpu",
            "recipe": {"lr": 0.003, "betas": [0.9, 0.999]},
            "retired": [0],
        },
    )


def verdict(outcome="identified", reason=f"2 of 2 chains agree {EVIL}"):
    claim = {
        "claim": CLAIM.sentence(),
        "what": "latents",
        "verdict": outcome,
        "reason": reason,
        "numbers": {"rhat_max": 1.01},
        "latents": {"latent_0": 0.99, "latent_1": 0.72},
    }
    chains = {"tied": [True, True], "khat_median": 0.4, "khat_above_0.7": 0.05, "retired": 1}
    return SimpleNamespace(fit=None, to_dict=lambda: {"model": "sparse_vae", "claims": [claim], "chains": chains})


@pytest.fixture(scope="module")
def page():
    tree, labels, z = make_tree()
    return report.render(make_fit(labels, z), tree, verdict(), SCORES)


def test_the_number_of_latents_is_told_where_it_was_left_to_the_data(page):
    assert "Latents: 3 (probability of 2: 0.10, 3: 0.90; evidence of 1 to 5 factors)." in page


def test_each_programme_says_how_far_chains_agree_on_it_and_how_much_it_explains(page):
    cells = re.findall(r"<td>(latent_\d)<br><small>(\d+) % of variance<br>(.*?)</small></td>", page.replace("%", " %"))
    assert [(name, "chains agree 0.99" in rest or "chains agree 0.72" in rest) for name, _, rest in cells] == [
        ("latent_0", True),
        ("latent_1", True),
    ]
    assert 'class="open"' not in cells[0][2] and 'class="open"' in cells[1][2]  # the weak one stands out
    assert 0 < int(cells[0][1]) < 100


class Elements(HTMLParser):
    """Tags with their attributes, and text outside style."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self._within = [], [], None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._within = tag

    def handle_endtag(self, tag):
        self._within = None

    def handle_data(self, data):
        if self._within not in ("style", "script"):
            self.text.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def test_page_says_what_was_fitted_and_found(page):
    words = Elements(page).words
    for said in (
        "Sparse VAE fitted to screen",
        "✓ identified",
        "latent_0",
        "Not in use, as no feature has a PIP above one half: latent_2",
        "PCA",
        "0.980",
        "2 min 11 s",
        "Left out, as the objective became non-finite: chain 0.",
        "seed 3",
        "k-hat of 0.40",
        "AUROC",
    ):
        assert said in words, said


def test_names_of_users_are_text(page):
    elements = Elements(page)
    assert EVIL in "".join(elements.text)
    assert not elements.of("script") and "<script" not in page
    assert [a["href"] for a in elements.of("a")] == ["https://x.org/a?b=1&c"]
    assert "Identifiable deep <generative> models" in elements.words


def test_nothing_is_loaded(page):
    elements = Elements(page)
    for tag in ("img", "link", "iframe", "object", "embed", "video", "source"):
        for attributes in elements.of(tag):
            assert (attributes.get("src") or attributes.get("href")).startswith("data:")
    assert "url(" not in page and "@import" not in page


def test_pictures_are_svg_with_a_text_beside(page):
    pictures = Elements(page).of("img")
    assert len(pictures) == 9
    for picture in pictures:
        assert len(picture["alt"]) > 20
        svg = base64.b64decode(picture["src"].removeprefix("data:image/svg+xml;base64,"))
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg") and b"<script" not in svg


def test_the_model_is_told_by_its_story_and_equations(page):
    elements = Elements(page)
    assert any(picture["alt"].startswith("Plate diagram") for picture in elements.of("img"))
    assert "x_i ~ N(A z_i + c, 1) (data, feature), A <known>" in elements.words
    assert "not this one" not in elements.words
    assert "drawn afterwards given the rest: c." in elements.words


def test_a_story_that_cannot_be_drawn_is_said_to_be_so():
    tree, labels, z = make_tree()
    fit = make_fit(labels, z)
    broken = Tiny()
    broken.story = lambda batch: 1 / 0
    fit.programs = lambda: [broken] * 2
    elements = Elements(report.render(fit, tree))
    assert "The story could not be drawn: ZeroDivisionError: division by zero" in elements.words
    assert "x_i ~ N(A z_i + c, 1)" in elements.words and "summed out" not in elements.words


def test_equations_are_the_first_indented_block():
    assert report.equations(Tiny()).splitlines()[0].startswith("c    ~ N(0, 1)")
    assert len(report.equations(Tiny()).splitlines()) == 3
    assert report.equations(1) == ""  # a class whose module has no indented block


def test_effects_are_those_of_do(page):
    """latent_0 raises latent_1 by .5 of its units: in sd of latent_1, .5 times the ratio of the sds."""
    _, labels, z = make_tree()
    here = z[np.arange(len(z)) % len(labels) == 0]
    spread = here.std(0)
    words = Elements(page).words
    row = words[words.index("latents that follow, in sd") :]
    row = row[row.index("latent_0") : row.index("none for sure")]
    said = [float(v.replace("−", "-")) for v in re.findall(r"[+−]\d+\.\d+", row)]
    assert said[:2] == pytest.approx([here[:, 0].mean(), here[:, 0].mean() + spread[0]], abs=0.006)
    assert "latent_1" in row and "latent_2" not in row and "feature_0" in row and "feature_1" not in row
    assert said[2] == pytest.approx(0.5 * spread[0] / spread[1], abs=0.02)
    assert said[5] == pytest.approx(2.0 * spread[0], abs=0.04)
    found = effects(make_fit(labels, z), make_fit(labels, z).data)
    assert found["of_latents"].shape == (3, 3, 3) and found.attrs["unit"] == "difference of means"
    np.testing.assert_allclose(found["of_latents"].sel(do="latent_2").values[:, 1], [0, 0, 1], atol=1e-9)


def test_effects_refused_are_said_to_be_so():
    tree, labels, z = make_tree()
    fit = make_fit(labels, z)

    def refuse(*_, **__):
        raise InputError("values: found mixed latents; allowed: others")

    fit.do = refuse
    assert "No effects are shown: values: found mixed latents" in Elements(report.render(fit, tree)).words
    fit.do = lambda data, values, draws, seed: xr.Dataset({"z": (("chain", "draw", "latent"), np.ones((2, draws, 3)))})
    with pytest.raises(InputError, match="states, 0 or 1"):
        effects(fit, fit.data)
    fit.graph = lambda: None
    with pytest.raises(InputError, match="without a graph"):
        effects(fit, fit.data)


def test_a_doubtful_graph_casts_doubt_on_effects():
    tree, labels, z = make_tree()
    judged = verdict("not identified").to_dict()
    judged["claims"][0]["what"] = "graph"
    words = Elements(report.render(make_fit(labels, z), tree, SimpleNamespace(fit=None, to_dict=lambda: judged))).words
    assert "other effects may fit these data as well" in words


def test_edges_with_weights_stand_in_a_table_and_a_picture():
    tree, labels, z = make_tree()
    weight = np.full(tree["posterior"]["graph"].shape, 0.7)
    dims = ("chain", "draw", "parent", "child")
    tree["posterior"] = tree["posterior"].to_dataset().assign(weight=(dims, weight))
    elements = Elements(report.render(make_fit(labels, z), tree))
    assert any(picture["alt"].startswith("Weight of every probable edge") for picture in elements.of("img"))
    assert "latent_0 → latent_1 1.00 +0.70 [+0.70, +0.70]" in elements.words


def test_pages_that_belong_together_are_tabs():
    tree, labels, z = make_tree()
    elements = Elements(report.render(make_fit(labels, z), tree, pages={"Graph": None, EVIL: "b/report.html"}))
    assert elements.of("a")[0]["href"] == "b/report.html" and len(elements.of("nav")) == 1
    assert EVIL in "".join(elements.text) and not elements.of("script")


def test_same_input_same_page(page):
    tree, labels, z = make_tree()
    assert report.render(make_fit(labels, z), tree, verdict(), SCORES) == page


@pytest.mark.parametrize("outcome", list(report.OUTCOMES))
def test_every_verdict_has_a_sign_and_words(outcome):
    tree, labels, z = make_tree()
    words = Elements(report.render(make_fit(labels, z), tree, verdict(outcome), None)).words
    assert f"{report.OUTCOMES[outcome][0]} {outcome} Latents up to" in words
    assert ("other programmes may fit these data as well" in words) == (outcome not in HOLDS)
    assert "Against the known truth" not in words


def test_a_bare_fit():
    """No mask, no graph, one environment, one chain, no predictive draws, no verdict, no data, no claims."""
    tree, labels, z = make_tree(envs=1, chains=1, mask=False, graph=False)
    del tree["posterior_predictive"]
    html = report.render(make_fit(labels, z, chains=1, claims=(), data=False), tree)
    elements = Elements(html)
    assert "claims nothing about identifiability" in elements.words
    assert len(elements.of("img")) == 3
    assert "moved most by" not in elements.words


def test_baselines_stand_beside_their_score(page):
    words = Elements(page).words
    assert "score this fit PCA ICA empty" in words
    assert "Correlation with the true latents (MCC) ↑ 0.980 0.700 0.800" in words
    assert "Edges wrong (SHD) ↓ 1 4" in words
    assert "odd score –" in words


def test_an_environment_may_move_a_latent_by_its_spread_alone():
    """A perfect intervention on a latent of mean 0 leaves the mean where it is."""
    tree, *_ = make_tree()
    narrow = (tree["constant_data"]["env"] == "env 2").to_numpy()[None, None, :]
    z = tree["posterior"]["z"].values
    z[..., 0] = np.where(narrow, 0.2, 1.0) * (z[..., 0] - z[..., 0].mean(2, keepdims=True))
    tree["posterior"]["z"].values = z
    first = report._programmes(tree, "non-targeting", [])["rows"][0]
    assert [m["name"] for m in first["movers"]] == ["env 2"] and first["movers"][0]["spread"] < 0.4


def test_reference_is_the_environment_without_targets():
    tree, labels, z = make_tree()
    fit = make_fit(labels, z)
    fit.data = Data(fit.data.x, fit.data.env_labels(), {"non-targeting": (0,), "env 2": (1,)})
    assert report._reference(fit, tree) == labels[1]


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    tree, labels, z = make_tree()
    fit = make_fit(labels, z)
    path = report.write(fit, tree, None, None, tmp_path / "new" / "page.html")
    assert path.read_text(encoding="utf-8").endswith("</html>") or path.read_text(encoding="utf-8").endswith(
        "</html>\n"
    )
    assert report.write(fit, tree, None, None, tmp_path).name == "report.html"
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="No space left"):
        report.write(fit, tree, verdict(), None, path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["page.html"]


def browse(path, folder, *flags):
    """(standard output, console messages) of headless Chromium on a file."""
    done = subprocess.run(
        [
            CHROMIUM,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={folder}", "--enable-logging=stderr", "--v=0", *flags),
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@needs_browser
def test_in_a_browser(page, tmp_path):
    # the page itself has no script: a copy gets one, ahead of the policy that would forbid it, to measure pictures
    probe = """<script>addEventListener("load", () => { for (const i of document.images)
        i.setAttribute("data-size", i.complete + ":" + i.naturalWidth + ":" + i.clientWidth);
        document.body.setAttribute("data-width", document.documentElement.scrollWidth) })</script>"""
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    (tmp_path / "copy.html").write_text(page.replace("<head>", f"<head>{probe}", 1), encoding="utf-8")
    dumped, console = browse(tmp_path / "page.html", tmp_path / "one", "--dump-dom")
    assert console == []
    assert EVIL in "".join(Elements(dumped).text) and not Elements(dumped).of("script")
    dumped, console = browse(tmp_path / "copy.html", tmp_path / "two", "--dump-dom", "--window-size=1200,900")
    assert console == []
    sizes = [picture["data-size"] for picture in Elements(dumped).of("img")]
    assert len(sizes) == 9
    for size in sizes:
        complete, natural, shown = size.split(":")
        assert complete == "true" and int(natural) > 100 and 100 < int(shown) <= 1080
    assert int(re.search(r'data-width="(\d+)"', dumped)[1]) <= 1200, "scrolls sideways"


@needs_browser
def test_the_browser_test_would_notice(tmp_path):
    """A page that breaks its own policy does leave a message on the console."""
    bad = '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'"><script>1</script>'
    (tmp_path / "bad.html").write_text(bad, encoding="utf-8")
    assert browse(tmp_path / "bad.html", tmp_path / "three", "--dump-dom")[1]
