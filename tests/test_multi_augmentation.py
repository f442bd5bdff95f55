"""`multi_augmentation`: kinds of pairs, the closed form, blocks read by contrasts, what breaks it, what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.claims.nested import Kept
from pyrocrl.constructions import kept_blocks
from pyrocrl.constructions.kept_blocks import Blocks
from pyrocrl.judge import metrics
from pyrocrl.lab.studies import content
from pyrocrl.lab.studies.content import StyleBlocks
from pyrocrl.lab.suite.content import style_blocks
from pyrocrl.models.multi_augmentation import block_sizes, named_blocks

MODEL = "multi_augmentation"
PAPER, ACROSS = [[True, False], [True, True]], [[True, False], [True, True], [False, True]]


@cache
def fitted(how: str = "", told: tuple[tuple[str, Any], ...] = (), **world: Any) -> tuple[Fit, Data]:
    """Of a linear mixing, unless told otherwise: what breaks it is seen there as well, and sooner."""
    data = style_blocks(100, how, **{"layers": 0, "pairs": 900} | world)
    options = {"latents": 6, "style": 2, "width": 16, "steps": 60} | dict(told)
    return pyrocrl.fit(pyrocrl.build(MODEL, data, **options), data, chains=1, seed=0, progress=False), data


def test_kinds_of_pairs_name_what_both_rows_share() -> None:
    names, keeps = named_blocks(["content", "content+crop", "hue + crop"])
    assert names == ["content", "crop", "hue"]
    assert keeps == [[True, False, False], [True, True, False], [False, True, True]]
    assert block_sizes(names, 2, 7) == [3, 2, 2] and block_sizes(names, {"hue": 1, "crop": 2}, 7) == [4, 2, 1]


def test_blocks_come_after_those_that_all_of_their_pairs_keep() -> None:
    assert Blocks([2, 1], PAPER).order() == [(0, []), (1, [0, 1])]
    assert Blocks([2, 1], ACROSS).order() == [(0, []), (1, [])]
    assert Blocks([2, 1], [[True, True]]).order() == [(0, []), (1, [0, 1])]  # never one without the other
    assert Blocks([2, 1], ACROSS).columns(2) == [2]


def test_a_style_may_take_of_content_where_no_pair_keeps_it_alone() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((200, 3))
    mixed = z + 5.0
    mixed[:, 2] += z[:, 0]  # style, the last, takes of content
    sees = [np.repeat(np.array(keeps), [2, 1], axis=1) for keeps in (PAPER, ACROSS)]
    along, alone = (Kept.seen(one) for one in sees)
    assert along.distance(mixed, z) < 1e-9 < 0.3 < alone.distance(mixed, z)
    np.testing.assert_allclose(along.align(mixed, z).apply(mixed), z, atol=1e-9)
    other = z.copy()
    other[:, 0] += z[:, 2]  # and content nothing of style
    assert along.distance(other, z) > 0.1


@pytest.mark.parametrize("across", [False, True])
def test_linear_mixing_is_closed(across: bool) -> None:
    data = simulate.draw("eastwood2023", 100, pairs=800, layers=0, draws=100, depends=True, across=across)
    x, z = torch.as_tensor(data.x), data.truth["z"]
    value, vector = torch.linalg.eigh(torch.cov(x.mT))
    white = ((x - x.mean(0)) @ (vector / value.sqrt())).float()
    after = data.after
    names, keeps = named_blocks(data.env_names)
    blocks = Blocks([4, 2, 2, 2], keeps)
    kind = torch.as_tensor(data.env[after])
    turn = kept_blocks.linear(white[data.partner[after]], white[after], kind, blocks)
    found = (white.double() @ turn).numpy()
    for b, along in blocks.order():
        own = blocks.places[b]
        assert metrics.r2(z[:, own], found[:, own + along]) > 0.9999
        assert along == [] or not across
    assert names == ["content", "style_0", "style_1", "style_2"]


def test_blocks_are_read_behind_a_nonlinear_mixing(monkeypatch: pytest.MonkeyPatch) -> None:
    fit, data = fitted("", (("width", 32), ("steps", 150)), layers=1, pairs=1500)
    monkeypatch.setattr(content, "ROWS", 1500)
    monkeypatch.setattr(content, "CENTRES", 150)
    scores = StyleBlocks("eastwood2023").score(fit, data)
    assert scores["content_r2"] > 0.98 > 0.93 > scores["cca_content_r2"]
    assert scores["styles_least"] > 0.9 > scores["cca_styles_r2"] and scores["given_r2"] > 0.95
    assert scores["leak_r2"] < 0.1
    claim = pyrocrl.diagnose(fit, data)["latents"]
    assert claim.verdict in ("identified if", "not converged")  # of one chain


def test_draws_from_few_pairs_have_the_error_of_what_is_read() -> None:
    """Of rows not fitted, block by block; the width that goes with the decoder is a part of it."""
    covered, narrow = [], []
    for seed in (100, 101):
        rows = style_blocks(seed, layers=1, pairs=900, content=1, styles=2, size=1)
        few = rows.pair % 5 == 0
        data, new = (rows.rows_at(np.flatnonzero(one)) for one in (few, ~few))
        program = pyrocrl.build(MODEL, data, latents=3, width=16, steps=150)
        fit = pyrocrl.fit(program, data, chains=1, seed=0, progress=False)
        mean = fit.latents(new)
        z = fit.posterior(60, new, density=False, predictive=False)["posterior"]["z"].to_numpy()[0]
        truth, own = fit.group.bent(new.truth["z"], mean), np.stack([fit.group.bent(one, mean) for one in z])
        low, high = np.quantile(own, [0.05, 0.95], axis=0)
        covered.append(((low < truth) & (truth < high)).mean())
        narrow.append((np.abs(truth - mean) < 1.645 * fit.programs()[0].raw_width.exp().detach().numpy()).mean())
    assert 0.85 < np.mean(covered) < 0.97 and np.mean(narrow) < 0.75, (covered, narrow)


@pytest.mark.parametrize(
    ("how", "told", "words"),
    [
        ("mislabelled", (), "differs in pairs said to share"),
        ("", (("latents", 5),), "of something else"),
    ],
)
def test_what_breaks_it_is_seen(how: str, told: tuple[tuple[str, Any], ...], words: str) -> None:
    claim = pyrocrl.diagnose(*fitted(how, told))["latents"]
    assert claim.verdict == "not identified" and words in claim.reason


def test_bad_input_is_one_clear_line() -> None:
    data = style_blocks(100, pairs=90)
    pair, env = data.pair_labels(), data.env_labels()

    def build(env: Any, **options: Any) -> Any:
        return pyrocrl.build(MODEL, Data(data.x, env=env, pair=pair), **{"latents": 6, "style": 2} | options)

    with pytest.raises(InputError, match="style: found 6 latents of 2 styles; allowed: fewer than the 6 latents"):
        build(env, style=3)
    with pytest.raises(InputError, match="style: found crop; allowed: a number for each of style_0, style_1"):
        build(env, style={"crop": 2})
    with pytest.raises(InputError, match=r"env: found 'crop', 'hue'; allowed: what both rows of a pair share: content"):
        build(np.repeat(["crop", "hue", "hue"], 60))
    with pytest.raises(InputError, match=r"env: found 'content\+'; allowed: names of blocks"):
        build(np.repeat(["content", "content+", "hue"], 60))
    with pytest.raises(InputError, match=r"env: found 'content' and 'content\+hue' in pair '0'; allowed: the same"):
        pyrocrl.fit(build(np.tile(["content", "content+hue"], 90)), data, chains=1, progress=False)
    few = style_blocks(100, pairs=30)
    with pytest.raises(InputError, match=r"pair: found .* pairs that share 'content' to fit; allowed: 20 or more"):
        pyrocrl.fit(pyrocrl.build(MODEL, few, latents=6, style=2), few, chains=1, progress=False)


def test_the_setting_is_as_it_says() -> None:
    data = simulate.draw("eastwood2023", 0, pairs=7000, draws=10, across=True, change=0.5, layers=0)
    z, after = data.truth["z"], data.after
    one, other, kind = z[data.partner[after]], z[after], data.env_labels()[after]
    same = one == other
    assert same[kind == "content"][:, :4].all() and not same[kind == "content"][:, 4:].any()
    assert same[kind == "content+style_1"][:, [0, 1, 2, 3, 6, 7]].all()
    assert same[kind == "style_2"][:, 8:].all() and not same[kind == "style_2"][:, :8].any()
    r = [np.corrcoef(one[kind == name][:, 5], other[kind == name][:, 5])[0, 1] for name in ("content", "style_2")]
    np.testing.assert_allclose(r, [np.sqrt(0.5), 0.0], atol=0.1)  # half of a style's variance is the thing's own
    moved = simulate.draw("eastwood2023", 0, pairs=4000, draws=10, moved=0.2, turns=1.0, noise=0.1, features=12)
    z, after = moved.truth["z"], moved.after
    assert moved.features == 12 and abs((z[after] != z[moved.partner[after]])[:, :4].any(1).mean() - 0.2) < 0.03
