"""Whether noise of equations is normal: exactly where latents are read by a line, nearly where a network reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pyrocrl.judge.fit_tests import laws

ROWS, ENVS = 3000, 6


def p_of(monkeypatch: pytest.MonkeyPatch, noise: np.ndarray, bent: bool) -> float:
    env = np.arange(len(noise)) % ENVS
    monkeypatch.setattr(laws, "_noise_left", lambda *_: (noise / noise.std(0), env, 0, bent))
    fit: Any = None
    found = laws.TESTS["noise_of_equations"](fit, fit)
    assert found is not None
    return found.p


def test_a_network_may_bend_noise_a_little_and_a_line_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = np.random.default_rng(100).standard_normal((ROWS, 3))
    bent = normal + 0.03 * normal**2
    assert p_of(monkeypatch, normal, False) > 0.01 and p_of(monkeypatch, normal, True) > 0.5
    assert p_of(monkeypatch, bent, False) < 1e-4 and p_of(monkeypatch, bent, True) > 0.5


@pytest.mark.parametrize("kind", ["heavy tails", "bad rows", "skewed", "shared scale"])
def test_other_noise_shows_behind_a_network_too(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    rng = np.random.default_rng(100)
    normal = rng.standard_normal((ROWS, 3))
    noise = {
        "heavy tails": rng.standard_t(5, (ROWS, 3)),
        "bad rows": normal * np.where(rng.random((ROWS, 1)) < 0.05, 10.0, 1.0),
        "skewed": rng.gamma(4.0, size=(ROWS, 3)) - 4.0,
        "shared scale": normal * np.exp(0.5 * rng.standard_normal((ROWS, 1))),
    }[kind]
    assert p_of(monkeypatch, noise, True) < 1e-3
