"""Conditions on steps of series in which latents are targets, or actions act on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.linked_rows import ROTATED
from pyrocrl.judge.checks.shared import EVIDENT, TELLING, FitCheck, situation
from pyrocrl.turns import drawing

FEWEST = 10  # steps of which two latents are both, one or neither target, that tell their patterns apart


def _targets_in_steps(fit: Fit, data: Data) -> Lack | None:
    """Whether each latent is a target in some steps and not in others, and no two always together or always in turn: in
    `FEWEST` steps at least."""
    hit = situation(fit, data).hit
    assert hit is not None
    own, names = hit[data.env] > 0, fit.names["latent"]
    if data.step is not None:
        own = own[data.step > 0]
    rows, often = len(own), own.sum(0)
    few: dict[str, int] = {}  # what there is too little of, and how often it is
    which: list[str] = []
    for k, name in enumerate(names):
        alone = {f"{name} is a target": int(often[k]), f"{name} is no target": int(rows - often[k])}
        if min(alone.values()) < FEWEST:
            few |= {said: count for said, count in alone.items() if count < FEWEST}
            which.append(name)
    for k, name in enumerate(names):
        for j, other in enumerate(names[:k]):
            apart = int((own[:, j] != own[:, k]).sum())
            both = {f"one of {other} and {name} alone is a target": apart}
            both[f"both of {other} and {name} are targets, or neither is"] = rows - apart
            if not {name, other} & set(which) and min(both.values()) < FEWEST:
                few |= {said: count for said, count in both.items() if count < FEWEST}
                which += [other, name]
    if not few:
        return None
    said = "; ".join(f"in {count} steps {what}" for what, count in few.items())
    block = ": latents that never are, are known as a block alone" if not all(often) else ""
    least = min(few.values())
    remedy = f"steps that target {', '.join(dict.fromkeys(which))} one at a time"
    needed = data.rows * FEWEST / least if least else 0.0
    return Lack(said + block, remedy, rows=needed, which=tuple(dict.fromkeys(which)))


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
    return _open_axes(program.rotated().double().cpu().numpy(), names, data.rows, "targets")


def _open_axes(share: np.ndarray, names: Sequence[str], rows: int, by: str) -> Lack | None:
    """Whether what tells latents leaves more than `ROTATED` of one's variance to other directions: share (latent,)."""
    which = tuple(name for name, one in zip(names, share, strict=True) if one > ROTATED)
    if not which:
        return None
    said = f"{by} leave {share.max():.0%} of {', '.join(which)} open"
    return Lack(said, "more rows", rows=rows * float(share.max()) / ROTATED, which=which)


def _actions_act(fit: Fit, data: Data) -> Lack | None:
    """Whether actions are seen to differ in whether they act on each latent: by the evidence, and half log(rows) for
    each number by which the latent was turned until it is so. Of a latent whose law stays as it is, or of which
    all actions act with one probability, there is none."""
    program, names = fit.chains.chain(fit.reference), _names(fit)
    with drawing(), torch.no_grad():
        gain = program.action_patterns(fit.batch_of(data)).varies.double().cpu().numpy()
    needed = EVIDENT + 0.5 * len(gain) * np.log(data.rows)
    few = np.flatnonzero(gain < needed)
    if not few.size:
        return None
    told = ", ".join(f"{names[k]} ({gain[k]:.0f} nats)" for k in few)
    least, telling = float(gain[few].min()), float(TELLING * len(gain))
    rows = data.rows * float(needed / least) if least > 2 * len(gain) else 0.0
    rows = telling if not rows and data.rows < telling else rows  # fewer may hide what actions do
    said = f"no action is seen to act on {told} more than others; {needed:.0f} would show it"
    return Lack(said, "actions that act on each latent in some steps", rows=rows, which=tuple(names[k] for k in few))


def _patterns_apart(fit: Fit, data: Data) -> Lack | None:
    """Whether any two latents are acted on by other actions, and not one by those that leave the other alone: by the
    evidence, of latents that are seen to be acted on, and half log(rows) for the angle between the two; and the
    posterior leaves at most `ROTATED` of each variance open."""
    program, names = fit.chains.chain(fit.reference), _names(fit)
    with drawing(), torch.no_grad():
        found = program.action_patterns(fit.batch_of(data))
    nats, varies = (part.double().cpu().numpy() for part in (found.apart, found.varies))
    needed = EVIDENT + 0.5 * np.log(data.rows)
    seen = varies >= EVIDENT
    alike = [(nats[j, k], j, k) for j in range(len(nats)) for k in range(j) if seen[j] and seen[k]]
    alike = [one for one in alike if one[0] < needed]
    if not alike:
        return _open_axes(program.rotated().double().cpu().numpy(), names, data.rows, "actions")
    least, j, k = min(alike)
    which = tuple(sorted({names[i] for _, *pair in alike for i in pair}))
    one, other = sorted((names[j], names[k]))
    said = f"the same actions may act on {one} and {other}, or on either alone ({least:.0f} nats; {needed:.0f} would "
    said += f"tell them apart){f', and so of {len(alike) - 1} more pairs' if len(alike) > 1 else ''}"
    rows = data.rows * float(needed / least) if least > EVIDENT else 0.0
    return Lack(said, f"actions that act on {one} or {other} alone", rows=rows, which=which)


def _names(fit: Fit) -> list[str]:
    """Of the reference chain's latents."""
    return [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]


CHECKS: dict[str, FitCheck] = {
    "actions_act": _actions_act,
    "patterns_apart": _patterns_apart,
    "targets_in_steps": _targets_in_steps,
    "targets_act": _targets_act,
    "no_turn_fits": _no_turn_fits,
}
