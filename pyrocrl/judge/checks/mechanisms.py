"""Conditions on sparse mechanisms: whether their parents tell latents, and leave little of them."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.exact.sparse_mechanism import confounded
from pyrocrl.infer.fitted import Fit
from pyrocrl.judge.checks.shared import SURE, FitCheck
from pyrocrl.turns import drawing

LEFT_OPEN = 0.15  # share of a latent's variance that its parents may leave, where latents are read by regression


def _names(fit: Fit) -> list[str]:
    """Of the reference chain's latents, in its own order."""
    return [fit.names["latent"][int(k)] for k in fit.alignments[fit.reference].places]


def _parents_apart(fit: Fit, data: Data) -> Lack | None:
    """The graphical criterion in draws of the graph: of every two latents, how probable it is that one's parents and
    children are all the other's."""
    program, names = fit.chains.chain(fit.reference), _names(fit)
    with torch.no_grad():
        graphs = program.parent_graphs().cpu().numpy() > 0.5
    actions = program.config["aux"]
    mixed = np.mean([confounded(graph, actions) for graph in graphs], 0)  # (latent, latent)
    likely = mixed > 1 - SURE
    if not likely.any():
        return None
    own = [k for k in range(len(names)) if not graphs[:, :, k].any(1).mean() > 0.5]
    said = [
        f"{names[i]} may mix with {', '.join(names[k] for k in np.flatnonzero(likely[i]))}"
        for i in np.flatnonzero(likely.any(1))
    ]
    words = f"{'; '.join(said)}: these have all its parents and children"
    if own:
        words = f"nothing that is told moves {', '.join(names[k] for k in own)}; {words}"
    at = np.flatnonzero(likely.any(0) | likely.any(1))
    remedy = "actions that move one of these latents and not the other"
    undecided = (mixed[likely] < SURE).all()
    return Lack(words, remedy, rows=2.0 * data.rows if undecided else 0.0, which=tuple(names[k] for k in at))


def _closely_moved(fit: Fit, data: Data) -> Lack | None:
    """What parents leave of latents: readouts that regress on parents mix latents by what is left to chance."""
    program, names = fit.chains.chain(fit.reference), _names(fit)
    with drawing(), torch.no_grad():
        z, loc, _ = (part.double().cpu().numpy() for part in program.given_parents(fit.batch_of(data)))
    share = np.square(z - loc).mean(0) / np.maximum(z.var(0), 1e-12)
    far = share > LEFT_OPEN
    if not far.any():
        return None
    which = tuple(names[k] for k in np.flatnonzero(far))
    said = ", ".join(f"{share[k]:.0%} of {names[k]}" for k in np.flatnonzero(far))
    return Lack(f"parents leave {said}", "more of what moves latents; less noise; more ridges", which=which)


CHECKS: dict[str, FitCheck] = {
    "parents_apart": _parents_apart,
    "closely_moved": _closely_moved,
}
