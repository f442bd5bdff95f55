"""The setting of causal component analysis."""

from __future__ import annotations

import numpy as np
import pytest

from pyrocrl.claims.indeterminacy import is_acyclic
from pyrocrl.errors import InputError
from pyrocrl.simulate import draw
from pyrocrl.simulate.cauca import LEAK


def test_setting_is_as_published() -> None:
    data = draw("cauca", seed=3, samples=4000, latents=3, interventions=2)
    z, weight, graph = data.truth["z"], data.truth["weight"], data.truth["graph"]
    assert data.x.shape == z.shape == (28_000, 3)
    assert graph.any()
    assert is_acyclic(graph)
    assert (np.abs(weight) <= 1).all()
    np.testing.assert_array_equal(weight != 0, graph)
    labels = data.env_labels()
    natural = z[labels == "observational"]
    np.testing.assert_allclose(np.cov((natural - natural @ weight).T), np.eye(3), atol=0.1)
    for k in range(3):
        for name, mean in ((f"target_{k}", 2.0), (f"target_{k}_2", -2.0)):
            assert data.targets is not None
            assert data.targets[name] == (k,)
            changed = z[labels == name]
            assert changed[:, k].mean() == pytest.approx(mean, abs=0.1)
            assert changed[:, k].std() == pytest.approx(1.0, abs=0.05)
            parents = np.flatnonzero(graph[:, k])
            assert all(abs(np.corrcoef(changed[:, k], changed[:, j])[0, 1]) < 0.07 for j in parents)


def test_one_layer_is_undone_by_its_inverse() -> None:
    data = draw("cauca", seed=1, samples=500, latents=3, layers=1)
    grid = np.linspace(-30, 30, 600_001)
    back = np.interp(data.x, np.tanh(grid) + LEAK * grid, grid)
    z = data.truth["z"]
    matrix, *_ = np.linalg.lstsq(z, back, rcond=None)
    np.testing.assert_allclose(z @ matrix, back, atol=1e-4)
    assert abs(np.linalg.det(matrix)) >= 0.1 - 1e-6


@pytest.mark.parametrize("option", [{"samples": 1}, {"layers": 0}, {"interventions": 1.5}, {"density": 0}])
def test_bad_input(option: dict) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        draw("cauca", **option)
