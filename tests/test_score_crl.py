"""`score_crl`: recovery on small data, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import pyrocrl
from pyrocrl import InputError, simulate
from pyrocrl.models.score_crl import ScoreCRL


def test_quadratic_latents_behind_a_linear_mixing() -> None:
    data = simulate.draw("varici2024_quadratic", 100, samples=2000, latents=3, features=6)
    program = pyrocrl.build("score_crl", data)
    fit = pyrocrl.fit(program, data, chains=2, epochs=120, seed=0, progress=False)
    found = pyrocrl.evaluate(fit, data)
    assert found["mcc"] >= 0.97 > found["pca_mcc"]
    assert found["shd"] <= 1 < found["shd_empty"]


def test_claims_follow_the_transform() -> None:
    twice = [[0, 0], *[[1, 0]] * 2, *[[0, 1]] * 2]
    linear, general = ScoreCRL(4, 2, twice), ScoreCRL(4, 2, twice, targets="relabelled", transform="general")
    assert linear.claims()[0].up_to == ("scale", "shift")
    assert general.claims()[0].up_to == ("permutation", "elementwise")
    assert "two_interventions_per_latent" in general.claims()[0].needs


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"target_matrix": [[0, 0], [1, 0]]}, "targets"),
        ({"target_matrix": [[1, 0], [0, 1]]}, "targets"),
        ({"target_matrix": [[0, 0], [1, 0], [0, 1]], "transform": "general"}, "targets"),
        ({"target_matrix": [[0, 0], [1, 0], [0, 1]], "score": "flow"}, "score"),
        ({"target_matrix": [[0, 0], [1, 0], [0, 1]], "edge_probability": 1.0}, "edge_probability"),
        ({"target_matrix": [[0, 0], [1, 0], [0, 1]], "steps": 0}, "steps"),
        ({"target_matrix": [[0], [1]]}, "target_matrix"),
    ],
)
def test_bad_options_are_refused(options: dict, argument: str) -> None:
    with pytest.raises(InputError, match=argument):
        ScoreCRL(4, 2, **options)


def test_unknown_targets_and_few_rows_are_refused() -> None:
    data = simulate.draw("varici2024_quadratic", 0, samples=50, latents=2, features=4)
    with pytest.raises(InputError, match="targets"):
        pyrocrl.build("score_crl", data, targets="unknown")
    few = data.rows_at(np.r_[0:50, 50:53, 100:150])
    with pytest.raises(InputError, match="target_0"):
        pyrocrl.fit(pyrocrl.build("score_crl", data), few, chains=1, epochs=1, progress=False)
