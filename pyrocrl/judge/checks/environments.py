"""Conditions on what environments do to latents, and on the directions of edges."""

from __future__ import annotations

import numpy as np
import torch

from pyrocrl.claims.conditions import Lack
from pyrocrl.data import Data
from pyrocrl.exact import goodness
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.judge.checks.shared import (
    AGREE,
    EVIDENT,
    FAR,
    LEVEL,
    SEEN,
    SURE,
    TELLING,
    FitCheck,
    latents_of,
    rows_to_decide,
    situation,
    unfitted,
)
from pyrocrl.judge.equivalence import class_draws

TOGETHER = 0.2  # part in a combination, of the largest one, from which a latent is named
CLASS_DRAWS = 50  # of each chain, of which it is asked what directs the edges at the response
MAPPED = 0.02  # share of a latent's variance that its map may leave open
RIVAL = 10.0  # nats by which latents should be likelier than others that a network finds
HELD = 0.2  # deviation of a latent in an environment that holds it, in that over all rows


def _interventions_show(fit: Fit, data: Data) -> Lack | None:
    """Environments with targets against those without, by their latents."""
    known = situation(fit, data)
    if known.hit is None or not (free := known.present & (known.hit.sum(1) == 0)).any():
        return None
    z, env = latents_of(fit, data)
    if not (natural := free[env]).any():
        return None
    shown, said = np.zeros_like(known.hit), []
    for e in np.flatnonzero(known.present & ~free):
        p = goodness.samples_differ(z[env == e], z[natural])
        shown[e] = known.hit[e] if p < SEEN else 0
        if p >= SEEN:
            said.append(f"{data.env_names[e]} (p = {p:.2g})")
    least = np.minimum(known.hit.sum(0), 1)
    short = [name for name, few in zip(fit.names["latent"], shown.sum(0) < least, strict=True) if few]
    if not short:
        return None
    reason = f"{', '.join(said)} cannot be told from the observational rows, so nothing is seen to act on"
    few = max(TELLING / np.bincount(env, minlength=len(known.hit))[known.present].min(), 0.0)
    rows = float(data.rows * few) if few > 1 else 0.0  # fewer may hide an intervention
    return Lack(f"{reason} {', '.join(short)}", "stronger interventions, or more rows of them", rows=rows)


def _modulated_apart(fit: Fit, data: Data) -> Lack | None:
    """Natural parameters of the latents' laws against any that are linearly dependent over environments, by rows that
    were not fitted: a network finds differences between environments in those that it is trained on."""
    program = fit.chains.chain(fit.reference)
    law = program.modulated_law()
    if law is None:
        raise TypeError(f"{program.card.name} claims modulated latents but has no `modulated_law()`")
    z, env = latents_of(fit, unfitted(fit, data))
    found = goodness.modulation(z, env, law)
    remedy = "environments in which each latent's law differs in a way of its own"
    if found is not None and found.p < LEVEL:
        return None
    least = np.bincount(data.env)[np.unique(data.env)].min()
    rows = float(data.rows * TELLING / least) if least < TELLING else 0.0  # fewer may hide what environments do
    if found is None:
        said = (
            f"fewer environments of {goodness.FEWEST} rows that were not fitted than natural parameters, and one more"
        )
        return Lack(said, remedy, rows=rows)
    names = [name for name, part in zip(fit.names["latent"], found.share, strict=True) if part > TOGETHER]
    moves = "may differ between environments in no way of its own" if len(names) == 1 else "may move together"
    return Lack(f"the law of {', '.join(names)} {moves} (p = {found.p:.2g})", remedy, rows=rows)


def _held(fit: Fit, data: Data) -> Lack | None:
    known = situation(fit, data)
    if known.hit is None:
        return None
    z, env = latents_of(fit, data)
    moving = []
    for e, k in np.argwhere(known.hit & known.present[:, None]):
        share = float(z[env == e, k].std() / max(z[:, k].std(), 1e-12))
        if share > HELD:
            moving.append(f"{fit.names['latent'][k]} varies in {data.env_names[e]} ({share:.0%} of its deviation)")
    return Lack("; ".join(moving), "interventions that hold their target") if moving else None


def _nonlinear(fit: Fit, data: Data) -> Lack | None:
    """Edges surely there whose direction is open, though neither direction's equation is seen to bend."""
    graph = fit.graph()
    with torch.no_grad():
        gain = fit.chains.chain(fit.reference).nonlinearity()
    if graph is None or gain is None:
        return None
    gain = gain.cpu().numpy()  # (parent, child)
    turning = [(i, j) for i, j in open_directions(graph) if max(gain[i, j], gain[j, i]) < EVIDENT]
    if not turning:
        return None
    names = fit.names["latent"]
    pairs = ", ".join(f"{names[i]} - {names[j]}" for i, j in turning)
    said = f"{pairs} may be turned: no equation between them is seen to bend, and no shift tells the direction"
    return Lack(said, "shifts of one of the two, or mechanism='linear', which claims what is left")


def _directions_shown(fit: Fit, data: Data) -> Lack | None:
    """Edges surely there whose direction is open, of latents whose innovations may both be normal."""
    graph = fit.graph()
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).non_gaussian()
    if graph is None or found is None:
        raise TypeError(f"{fit.program.card.name} needs innovations that tell directions but has no `non_gaussian()`")
    mixed = np.zeros(len(graph))
    places = fit.alignments[fit.reference].places
    mixed[places[places >= 0]] = found.double().cpu().numpy()[places >= 0]
    names = fit.names["latent"]
    turning = [f"{names[i]} - {names[j]}" for i, j in open_directions(graph) if max(mixed[i], mixed[j]) < SURE]
    if not turning:
        return None
    said = f"{', '.join(turning)} may be turned: innovations of both may be Gaussian, and no v-structure tells"
    return Lack(said, "innovations='gaussian', which claims what is left, or more rows")


def open_directions(graph: np.ndarray) -> list[tuple[int, int]]:
    """Pairs that are joined with the probability `SURE` while each direction has more than 1 - `SURE`."""
    nodes = range(len(graph))
    return [
        (i, j)
        for i in nodes
        for j in nodes
        if i < j and graph[i, j] + graph[j, i] > SURE and min(graph[i, j], graph[j, i]) > 1 - SURE
    ]


def _readings_apart(fit: Fit, data: Data) -> Lack | None:
    """Other latents that a network was bent to from the same start, less likely by few nats: `RIVAL`."""
    margin = fit.chains.chain(fit.reference).readings_margin()
    if margin is None or margin >= RIVAL:
        return None
    reason = f"other latents explain the environments nearly as well ({margin:.1f} nats less)"
    return Lack(reason, "more rows, or stronger interventions", rows=data.rows * min(RIVAL / max(margin, 0.1), FAR))


def _map_told(fit: Fit, data: Data) -> Lack | None:
    """Share of each latent's variance that the affine map to it leaves open, and how probably so much that chains would
    not be said to agree: where direct and indirect ways nearly cancel, environments hardly tell it."""
    maps = fit.chains.chain(fit.reference).latent_maps()
    if maps is None:
        return None
    draws = maps.double().cpu().numpy()
    cov = np.cov(latents_of(fit, data, aligned=False)[0].T)
    mean = draws.mean(0)
    apart = draws - mean
    total = np.einsum("ki,ij,kj->k", mean, cov, mean)
    open_ = np.einsum("mki,ij,mkj->k", apart, cov, apart) / len(draws) / np.maximum(total, 1e-12)
    along, own = np.einsum("ki,ij,mkj->mk", mean, cov, draws), np.einsum("mki,ij,mkj->mk", draws, cov, draws)
    other = (np.abs(along) < AGREE * np.sqrt(own * total)).mean(0)  # (latent,)
    far = np.flatnonzero((open_ > MAPPED) | (other > 1 - SURE))
    if not far.size:
        return None
    names = tuple(fit.names["latent"][int(fit.alignments[fit.reference].places[k])] for k in far)
    said = f"environments leave {open_.max():.0%} of the variance of {', '.join(names)} to other latents"
    if not (open_ > MAPPED).any():
        said = (
            f"with probability {other.max():.2f} {', '.join(names)} may correlate less than {AGREE} with what is read"
        )
    rows = data.rows * max(float(open_.max()) / MAPPED, 2.0)
    return Lack(said, "more rows, or stronger interventions", rows=rows, which=names)


def _environments_differ(fit: Fit, data: Data) -> Lack | None:
    """Whether some environment changes the equation of some column, as the posterior has it. Which of two environments
    has an equation of its own is a matter of names."""
    present = np.bincount(data.env, minlength=len(data.env_names)) > 0
    if present.sum() < 2:
        return Lack("there is one environment, so nothing is seen to be invariant", "rows of another environment")
    hit = np.stack([targets for _, _, targets in class_draws(fit, data, CLASS_DRAWS)])  # (chain, draw, env, latent)
    most = float((fit.weights @ hit[:, :, present].any(2).mean(1)).max())
    if most > SURE:
        return None
    said = f"no environment is seen to change the equation of a column (probability {most:.2g} at most)"
    rows = rows_to_decide(data.rows, 1 - most) if most > INCLUDED else 0.0
    return Lack(said, "environments that act on columns other than the response", rows=rows)


def _parents_directed(fit: Fit, data: Data) -> Lack | None:
    """Whether the class of the graph under interventions (`equivalence_class`) directs the edges at the response."""
    response, open_ = int(fit.program.config["response"]), {}
    found = class_draws(fit, data, CLASS_DRAWS)
    for j, name in enumerate(fit.names["feature"]):
        both = [(arcs[:, j, response] & arcs[:, response, j]).mean() for arcs, _, _ in found]
        if j != response and (share := float(fit.weights @ both)) > 1 - SURE:
            open_[name] = share
    if not open_:
        return None
    most, which = max(open_.values()), tuple(open_)
    said = f"nothing tells whether {', '.join(which[:3])} {'is' if len(which) == 1 else 'are'} among the response's "
    said += f"parents or its children (probability {most:.2g})"
    rows = rows_to_decide(data.rows, most) if most < INCLUDED else 0.0
    return Lack(said, f"an environment that acts on {' and '.join(which[:3])}", rows=rows, which=which)


CHECKS: dict[str, FitCheck] = {
    "interventions_show": _interventions_show,
    "modulated_apart": _modulated_apart,
    "held_at_constants": _held,
    "nonlinear_equations": _nonlinear,
    "directions_shown": _directions_shown,
    "environments_differ": _environments_differ,
    "readings_apart": _readings_apart,
    "map_told": _map_told,
    "parents_directed": _parents_directed,
}
