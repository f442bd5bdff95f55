"""`content_style`: the law of pairs, bends of features, content read by contrasts, what breaks it, what is refused."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import pyrocrl
from pyrocrl import Data, Fit, InputError, simulate
from pyrocrl.constructions import content_pairs
from pyrocrl.lab.studies.content import ContentBlock
from pyrocrl.lab.suite.content import contents
from pyrocrl.parts.content_pairs import Repeated, reading_error

MODEL = "content_style"


@cache
def fitted(latents: int = 2, how: str = "", **world: Any) -> tuple[Fit, Data]:
    data = contents(100, how, **world)
    program = pyrocrl.build(MODEL, data, latents=latents, width=32, steps=200)
    return pyrocrl.fit(program, data, chains=1, seed=0, progress=False), data


def test_a_row_after_repeats_the_row_before_and_all_are_standard_normal() -> None:
    place, follows = torch.tensor([1, 1, 2]), torch.tensor([True, False, False])
    law = Repeated(torch.tensor([0.02, 0.6]).double(), place, follows)
    value = torch.tensor([[1.0, 0.3], [0.9, 0.7], [0.2, -1.0]], dtype=torch.double)
    r = np.array([0.98, 0.4])
    near = stats.norm(r * [0.9, 0.7], np.sqrt(1 - r**2)).logpdf(value[0].numpy()).sum()
    np.testing.assert_allclose(law.log_prob(value), [near, *stats.norm.logpdf(value[1:].numpy()).sum(1)])
    torch.manual_seed(0)
    many = Repeated(
        law.spread * 0 + torch.tensor([0.02, 0.6]), torch.arange(20_000) // 2 * 2, torch.arange(20_000) % 2 > 0
    )
    pairs = many.sample().reshape(-1, 2, 2).numpy()
    np.testing.assert_allclose(pairs.reshape(-1, 2).std(0), 1.0, atol=0.02)
    np.testing.assert_allclose([np.corrcoef(pairs[:, 0, k], pairs[:, 1, k])[0, 1] for k in (0, 1)], r, atol=0.02)


def test_bends_of_features_are_found_where_there_are_any() -> None:
    for layers in (0, 1):
        data = simulate.draw("kuegelgen2021", 100, pairs=1500, content=2, style=2, layers=layers, draws=100)
        x = torch.as_tensor((data.x - data.x.mean(0)) / data.x.std(0)).float()
        _, bend = content_pairs.bends(x[~data.after], x[data.after], 150, torch.Generator().manual_seed(0))
        assert (bend > 0.3).all() if layers else (bend.abs() < 0.15).all()  # leaky ReLUs, undone by steeper slopes


def test_the_contrast_is_less_for_outputs_that_partners_share_and_that_spread() -> None:
    rng = torch.Generator().manual_seed(0)
    content, style = (4 * torch.randn(200, 2, generator=rng) for _ in range(2))
    other = 4 * torch.randn(200, 2, generator=rng)
    found = [content_pairs.contrast(content, content), content_pairs.contrast(style, other)]
    found += [content_pairs.contrast(*[content * torch.tensor([1.0, 0.0])] * 2)]  # one direction alone
    assert found[0] < found[2] - 0.5 and found[2] < found[1]


def test_content_is_read_and_style_is_not() -> None:
    fit, data = fitted()
    scores = ContentBlock("kuegelgen2021").score(fit, data)
    assert scores["block_r2"] > 0.99 > 0.93 > scores["cca_block_r2"]
    assert scores["style_r2"] < 0.03 < scores["cca_style_r2"]
    claim = pyrocrl.diagnose(fit, data)["latents"]
    assert claim.verdict in ("identified if", "not converged")  # of one chain


def test_the_error_of_what_is_read_is_that_of_pairs_not_seen() -> None:
    """h = content + .5 style, of which partners share .4: style that is read in part is no difference between them."""
    rng = torch.Generator().manual_seed(0)
    content, style, other = (torch.randn(20_000, 1, generator=rng) for _ in range(3))
    one, two = (content + 0.5 * s for s in (style, 0.4 * style + (1 - 0.4**2) ** 0.5 * other))
    kept = torch.ones_like(one)
    kept[::2] = 0.0
    variance, pairs = reading_error(one, two, kept, torch.full((20_000,), 0.6))
    assert variance.item() == pytest.approx(0.25, rel=0.05) and pairs.item() == 10_000
    nothing, _ = reading_error(10 * style, 10 * other, kept, torch.ones(20_000))
    assert nothing.item() == 1.0  # the variance of what is read


def test_draws_from_few_pairs_have_the_error_of_what_is_read() -> None:
    """Of rows not fitted, and of their deviations; predictions and objectives go without, as the decoder does."""
    covered, narrow, told = [], [], []
    for seed in (100, 101, 102):
        rows = contents(seed, pairs=550)
        data, new = rows.rows_at(np.arange(300)), rows.rows_at(np.arange(300, 1100))
        program = pyrocrl.build(MODEL, data, latents=2, width=16, steps=200)
        fit = pyrocrl.fit(program, data, chains=1, seed=0, progress=False)
        tree = fit.posterior(60, new, density=False)
        z, x = (tree[g][n].to_numpy()[0] for g, n in (("posterior", "z"), ("posterior_predictive", "x")))
        mean = fit.latents(new)
        truth, own = fit.group.bent(new.truth["z"], mean), np.stack([fit.group.bent(one, mean) for one in z])
        low, high = np.quantile(own, [0.05, 0.95], axis=0)
        covered.append(((low < truth) & (truth < high)).mean())
        width = fit.programs()[0].raw_width.exp().detach().numpy()[:2]
        narrow.append((np.abs(truth - mean) < 1.645 * width).mean())
        sd = fit.latents_sd(new)
        assert sd is not None
        assert (sd.mean(0) > 1.5 * width).all()
        noise = fit.programs()[0].observation.raw_noise.exp().detach().numpy() * data.x.std(0)
        told.append((x.std(0).mean(0) / noise).max())
    assert 0.85 < np.mean(covered) < 0.97 and np.mean(narrow) < 0.6, (covered, narrow)
    assert max(told) < 2.0, told


@pytest.mark.parametrize(
    ("latents", "world", "words"),
    [
        (3, {}, "of the latents' variance differs between rows of a pair"),
        (1, {}, "of something that the latents leave"),
        (2, {"how": "exchanged"}, "of the latents' variance differs between rows of a pair"),
    ],
)
def test_what_breaks_it_is_seen(latents: int, world: dict[str, Any], words: str) -> None:
    claim = pyrocrl.diagnose(*fitted(latents, **world))["latents"]
    assert claim.verdict == "not identified" and words in claim.reason


def test_bad_input_is_one_clear_line() -> None:
    data = contents(100, pairs=30)
    with pytest.raises(InputError, match="latents: found 4; allowed: fewer than the 4 features: style has the others"):
        pyrocrl.build(MODEL, data, latents=4)
    with pytest.raises(InputError, match="style: found 3; allowed: at most 2: 4 features less 2 latents"):
        pyrocrl.build(MODEL, data, latents=2, style=3)
    with pytest.raises(InputError, match="pair: found None; allowed: labels of pairs of rows"):
        pyrocrl.build(MODEL, Data(data.x), latents=2)
    with pytest.raises(InputError, match=r"pair: found .* pairs to fit; allowed: 40 or more"):
        pyrocrl.fit(pyrocrl.build(MODEL, data), data, chains=1, progress=False)


def test_the_setting_is_as_it_says() -> None:
    data = simulate.draw(
        "kuegelgen2021", 0, pairs=4000, content=3, style=2, draws=10, never=1, depends=True, features=6
    )
    z, style, after = data.truth["z"], data.truth["private"], data.after
    assert data.features == 6 and np.array_equal(z[after], z[data.partner[after]])
    same = style[after] == style[data.partner[after]]
    assert same[:, 0].all() and abs(same[:, 1].mean() - 0.25) < 0.03
    assert np.abs(np.corrcoef(np.hstack([z, style]).T)[:3, 3:]).max() > 0.1
    moved = simulate.draw("kuegelgen2021", 0, pairs=4000, draws=10, moved=0.2)
    z, after = moved.truth["z"], moved.after
    assert abs((z[after] != z[moved.partner[after]]).any(1).mean() - 0.2) < 0.03
