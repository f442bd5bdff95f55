"""Conditions on steps of series in which latents are targets."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.linked_rows import ROTATED
from pyrocrl.judge.checks.shared import EVIDENT, FitCheck, situation
from pyrocrl.turns import drawing

FEWEST = 10  # steps of which two latents are both, one or neither target, that tell their patterns apart


def _targets_in_steps(fit: Fit, data: Data) -> Lack | None:
    """Whether each latent is a target in some steps and not in others, and no two always together or always in turn: in
    `FEWEST` steps at least."""
    hit = situation(fit, data).hit
    assert hit is not None
    own, names = hit[data.env[data.step > 0] if data.step is not None else data.env] > 0, fit.names["latent"]
    often = own.sum(0)
    reasons, which = [], []
    for k, name in enumerate(names):
        if often[k] < FEWEST:
            reasons.append(f"{name} is a target in {often[k]} steps: latents that never are, are a block alone")
            which.append(name)
        elif len(own) - often[k] < FEWEST:
            reasons.append(f"{name} is no target in {len(own) - often[k]} steps alone")
            which.append(name)
    for k, name in enumerate(names):
        for j in range(k):
            if name in which or names[j] in which:
                continue
            apart = int((own[:, j] != own[:, k]).sum())
            if apart < FEWEST:
                reasons.append(f"{names[j]} and {name} are targets together, but in {apart} steps")
                which += [names[j], name]
            elif len(own) - apart < FEWEST:
                reasons.append(f"{names[j]} and {name} are targets in turn, but in {len(own) - apart} steps")
                which += [names[j], name]
    if not reasons:
        return None
    asked = ", ".join(dict.fromkeys(which))
    return Lack("; ".join(reasons), f"steps that target {asked} one at a time", which=tuple(dict.fromkeys(which)))


def _targets_act(fit: Fit, data: Data) -> Lack | None:
    """Whether each latent's law is another in steps of which it is a target: by the evidence, all weights and parents
    summed out, and half log(rows) for each number by which the latent was turned until it is."""
    program, names = fit.chains.chain(fit.reference), fit.names["latent"]
    with drawing(), torch.no_grad():
        gain = program.targets_act(fit.batch_of(data)).double().cpu().numpy()
    needed = EVIDENT + 0.5 * len(gain) * np.log(data.rows)
    few = np.flatnonzero(gain < needed)
    if not few.size:
        return None
    told = ", ".join(f"{names[k]} ({gain[k]:.0f} nats)" for k in few)
    least = float(gain[few].min())
    rows = data.rows * float(needed / least) if least > 2 * len(gain) else 0.0
    said = f"being a target may change nothing of {told}; {needed:.0f} would show it"
    remedy = f"interventions that change {', '.join(names[k] for k in few)}"
    return Lack(said, remedy, rows=rows, which=tuple(names[k] for k in few))


def _no_turn_fits(fit: Fit, data: Data) -> Lack | None:
    """Whether latents that are turned among each other, other numbers at their best, are less probable: by half
    log(rows) and more; and the posterior leaves at most `ROTATED` of each variance open."""
    program, names = fit.chains.chain(fit.reference), fit.names["latent"]
    with drawing(), torch.no_grad():
        nats = program.turned_by(fit.batch_of(data)).double().cpu().numpy()
    needed = EVIDENT + 0.5 * np.log(data.rows)
    j, k = divmod(int(nats.argmin()), len(nats))
    if (least := float(nats.min())) < needed:
        said = f"{names[j]} and {names[k]} may be turned into each other ({least:.0f} nats; {needed:.0f} would tell)"
        rows = data.rows * needed / least if least > 2 else 0.0
        return Lack(said, f"steps that target {names[j]} or {names[k]} alone", rows=rows, which=(names[j], names[k]))
    open_ = program.rotated().double().cpu().numpy()
    if (open_ <= ROTATED).all():
        return None
    which = tuple(names[i] for i in np.flatnonzero(open_ > ROTATED))
    said = f"targets leave {open_.max():.0%} of {', '.join(which)} open"
    return Lack(said, "more rows", rows=data.rows * float(open_.max()) / ROTATED, which=which)


CHECKS: dict[str, FitCheck] = {
    "targets_in_steps": _targets_in_steps,
    "targets_act": _targets_act,
    "no_turn_fits": _no_turn_fits,
}
