"""Chains that begin where a fitted one ended, with its latents turned among each other: are they driven back?

Chains that start alike, from a theorem's construction say, may agree on latents of which the objective knows nothing.
So elements of the group of linear maps that a claim does not leave free are drawn at random and applied to the latents
of a fitted chain; what else the chain has is set as those latents leave it, and the chain is fitted for a share of the
steps. An objective that identifies the latents drives it back, or holds it where it fits worse.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.stats import ortho_group

from pyrocrl.data import Data
from pyrocrl.infer.chains import SINGULAR, mix
from pyrocrl.infer.fit import refit
from pyrocrl.infer.fitted import ANCHOR_ROWS, Fit
from pyrocrl.infer.loop import FitError
from pyrocrl.options import Seed, Size, checked
from pyrocrl.program import Program
from pyrocrl.turns import drawing, reseed

SHARE = 0.25  # of the fit's epochs, for which perturbed chains are fitted
STAYED = 0.999  # correlation with the latents that a chain began with, of one that was not trained away from them
LEAST_ANGLE = np.pi / 8  # of a turn in one plane, and from its end: beyond it two latents are exchanged


@checked
def perturbed_chains(fit: Fit, data: Data | None = None, *, chains: Size = 2, seed: Seed = 0) -> Fit | None:
    """A fit of 1 + `chains` chains to the same rows: the fit's reference chain as it is, which is fitted on for as long
    as the others, and chains begun at its turned latents. None where the model has no `begin_turned`, its claim leaves
    such turns free, fewer than two latents are in use, or no chain that was turned could be fitted.

    Every other chain begins with two latents turned in their plane, the others with all of them turned at random, each
    in units of its deviation. data: those of the fit, for one that was read from a file; raises InputError for others.

    `meta["stayed"]`: for each chain whether all of its latents are still those that it began with, as where an encoder
    is not trained and they cannot come back.
    """
    used = np.flatnonzero(fit.in_use(fit.reference))
    if type(fit.program).begin_turned is Program.begin_turned or fit.group.mixes or len(used) < 2:
        return None
    train = fit._data(data).rows_at(fit.fitted_rows(data))
    spread = fit.anchor[fit.reference].std(0)
    begun = [fit.chains.chain(fit.reference).train()]
    for chain in range(chains):
        one = fit.chains.chain(fit.reference).train()
        generator = torch.Generator().manual_seed(mix(seed, chain, 61))
        turn = np.eye(len(spread))
        turn[np.ix_(used, used)] = _turn(len(used), chain % 2 == 0, mix(seed, chain, 67) % 2**32)
        turn[np.ix_(used, used)] *= spread[used] / spread[used][:, None]
        with drawing(), torch.no_grad():
            reseed(mix(seed, chain, 71))
            try:
                if one.begin_turned(train, torch.as_tensor(turn), generator):
                    begun.append(one)
            except SINGULAR:
                continue
    data = data or fit.data
    if len(begun) < 2 or data is None:
        return None
    rows = fit.batch_of(train.rows_at(train.spread(ANCHOR_ROWS)))
    first = [one.latents(rows) for one in begun]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a chain that is retired is no loss
            found = refit(fit, begun, SHARE, data)
    except FitError:
        return None
    if found.kept[0] or found.chains.count < 2:
        return None
    last = [one.latents(rows) for one in found.programs()]
    found.meta["stayed"] = [_stayed(first[k][:, used], z[:, used]) for k, z in zip(found.kept, last, strict=True)]
    return found


def _stayed(first: torch.Tensor, last: torch.Tensor) -> bool:
    pairs = zip(first.double().mT, last.double().mT, strict=True)
    return all(float(torch.corrcoef(torch.stack(pair))[0, 1]) >= STAYED for pair in pairs)


def _turn(size: int, plane: bool, seed: int) -> np.ndarray:
    """(size, size), orthogonal: of two coordinates in their plane, or of all."""
    rng = np.random.default_rng(seed)
    if not plane and size > 2:
        return ortho_group.rvs(size, random_state=rng)
    i, j = rng.choice(size, 2, replace=False)
    angle = rng.uniform(LEAST_ANGLE, np.pi / 2 - LEAST_ANGLE)
    out = np.eye(size)
    out[[i, j], [i, j]] = np.cos(angle)
    out[i, j], out[j, i] = np.sin(angle), -np.sin(angle)
    return out
