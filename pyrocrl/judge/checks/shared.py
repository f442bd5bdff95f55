"""What every check needs: a fit's situation, its latents of some rows, and how many rows would decide."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack, Situation
from pyrocrl.data import Data
from pyrocrl.errors import InputError
from pyrocrl.infer.fitted import Fit
from pyrocrl.turns import drawing

LEVEL = 0.001  # of all tests of a fit together
SEEN = 0.05  # p from which an environment counts as unchanged
TELLING = 400  # rows of an environment from which an intervention worth the name should be seen
SURE = 0.9  # probability from which something is decided
MIN_PAIRS = 20  # pairs, or rows that follow others, that a test of them needs
UNTOLD_STATES = 0.3  # share of a guess's errors about a latent's state that may be left
MOST_ROWS = 20_000  # rows that a test of rows looks at: more find what does not matter
EVIDENT = 3.0  # nats of evidence, or half a difference of BIC, from which one of two models is preferred
FAR = 100  # times the rows: what more of them would have to decide is open
AGREE = 0.95  # mean agreement of aligned latents from which chains are said to agree
AGREE_EACH = 0.9  # ... and of each latent: a mean hides a weak one
ALIKE = 0.98  # correlation of two latents from which they are one
FIRING_ROWS = 5_000  # that are asked which latents fire

FitCheck = Callable[[Fit, Data], Lack | None]


def situation(fit: Fit, data: Data) -> Situation:
    """What a fit knows of its data: their targets where given, else those that the reference chain has inferred."""
    program, names = fit.program, fit.names["latent"]
    hit: np.ndarray | None = None
    if data.targets is not None and program.target_mode != "unknown":
        hit = data.target_matrix(len(names))
    else:
        with torch.no_grad():
            found = fit.chains.chain(fit.reference).targets_matrix()
        if found is not None:
            hit = (found.cpu().numpy() > 0.5)[:, fit.alignments[fit.reference].permutation]
    return Situation(data, names, hit, program.intervention_kind, program.mechanism_kind)


def unfitted(fit: Fit, data: Data) -> Data:
    """The rows that the fit held out, or all of them where it held out none or these are other rows."""
    try:
        fitted = fit.fitted_rows(data)
    except InputError:
        return data
    return data.rows_at(np.setdiff1d(np.arange(data.rows), fitted)) if len(fitted) < data.rows else data


def fitted_and_unfitted(fit: Fit, data: Data) -> tuple[Data, Data] | None:
    """The rows that the fit was made of and those that it held out, or None where it held out none."""
    rest = unfitted(fit, data)
    return (data.rows_at(fit.fitted_rows(data)), rest) if rest.rows < data.rows else None


def rows_to_decide(rows: int, wrong: float) -> float:
    """Rows after which something of this probability of being wrong is decided, its log odds growing with them."""
    odds = np.log((1 - wrong) / max(wrong, 1e-12))
    return float(rows * np.log(SURE / (1 - SURE)) / max(odds, 0.05))


def latents_of(fit: Fit, data: Data, aligned: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(row, latent) posterior means under the reference chain and (row,) environments, of `MOST_ROWS` rows at most."""
    rows = np.unique(np.linspace(0, data.rows - 1, min(data.rows, MOST_ROWS)).astype(int))
    few = data.rows_at(rows)
    program = fit.chains.chain(fit.reference)
    with drawing(), torch.no_grad():
        z = program.latents(fit.batch_of(few)).double().cpu().numpy()
    return fit.alignments[fit.reference].apply(z) if aligned else z, few.env
