"""Tests of a fit against its data (`TESTS`), which put a model's assumptions to the test: a file for each family.

A test returns what it `Found`: a p-value of known law if the model is right. Programs name the tests that apply to
them, and the assumptions that each puts to the test (`Program.checks`); `tests` runs them and corrects for their
number.
"""

from __future__ import annotations

from pyrocrl.data import Data
from pyrocrl.exact import goodness
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.fit_tests import factors, laws, left, pairs, steps
from pyrocrl.judge.fit_tests.shared import Found, Test

TESTS: dict[str, Test] = {**laws.TESTS, **factors.TESTS, **left.TESTS, **pairs.TESTS, **steps.TESTS}


def tests(fit: Fit, data: Data) -> tuple[Found, ...]:
    """What the program's own tests find, p-values corrected for their number (Holm)."""
    found = []
    for name, tested in fit.program.checks.items():
        one = TESTS[name](fit, data)
        if one is not None:
            found.append((one, tested))
    corrected = goodness.holm([one.p for one, _ in found])
    return tuple(Found(o.name, p, o.detail, o.remedy, said) for (o, said), p in zip(found, corrected, strict=True))
