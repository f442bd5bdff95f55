"""What data and fit show of a claim's conditions (`CHECKS`), with uncertainty: a file for each family of conditions.

A condition's check returns None where it holds, or a `Lack`. Tests of the fit against the data are in
`pyrocrl.judge.fit_tests`.
"""

from __future__ import annotations

from pyrocrl.claims import conditions
from pyrocrl.claims.conditions import Check
from pyrocrl.judge.checks import (
    actions,
    codes,
    columns,
    concepts,
    curves,
    environments,
    linked_rows,
    masks,
    mechanisms,
    rotations,
    states,
    supports,
    surfaces,
    target_steps,
    view_sights,
)
from pyrocrl.judge.checks.shared import FitCheck, situation


def _of_data(check: Check) -> FitCheck:
    return lambda fit, data: check(situation(fit, data))


CHECKS: dict[str, FitCheck] = {
    **{need: _of_data(check) for need, check in conditions.CHECKS.items()},
    **masks.CHECKS,
    **rotations.CHECKS,
    **states.CHECKS,
    **environments.CHECKS,
    **linked_rows.CHECKS,
    **actions.CHECKS,
    **concepts.CHECKS,
    **codes.CHECKS,
    **columns.CHECKS,
    **curves.CHECKS,
    **supports.CHECKS,
    **surfaces.CHECKS,
    **mechanisms.CHECKS,
    **target_steps.CHECKS,
    **view_sights.CHECKS,
}
