"""`diagnose`: did these data identify what the model's card claims?

The chains are aligned by the claim's group and weighted by their held-out objective. Chains that reach the same
objective with different answers are evidence of non-identification. Chains that never reach the best objective are
evidence of poor optimisation, unless they agree on what is claimed: then they differ in what is not, a decoder's last
steps, say. The claim's own conditions are checked on the data and the posterior as well: a
variational family can break a symmetry of the likelihood, so agreement alone proves nothing.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import maximum_bipartite_matching

from pyrocrl.claims import conditions
from pyrocrl.claims.card import CONDITIONS, Claim
from pyrocrl.claims.conditions import Check, Situation
from pyrocrl.claims.indeterminacy import graph_distance
from pyrocrl.data import Data
from pyrocrl.errors import reject
from pyrocrl.infer import stories
from pyrocrl.infer.chains import mix
from pyrocrl.infer.elbo import guide_trace, is_local, sample_sites, traces
from pyrocrl.infer.fitted import INCLUDED, Fit
from pyrocrl.options import Seed, checked
from pyrocrl.turns import drawing

Outcome = Literal["identified", "not identified", "not converged"]
AGREE = 0.95  # mean agreement of aligned latents from which chains are said to agree
AGREE_EACH = 0.9  # ... and of each latent, over pairs of chains: a mean hides a weak one
OVERLAP = 0.8  # least overlap of two chains' masks or graphs, sum of minima over sum of maxima of probabilities
TIE = 2.0  # chains whose held-out objective is within this many standard errors of the best are ties
TIE_NATS = 0.01  # ... or within this share of the objective's spread over rows
DIFFERS = 2.0  # deviations from which a loading is taken to differ from 0
KHAT_ROWS = 100
KHAT_DRAWS = 200


@dataclass(frozen=True)
class ClaimVerdict:
    """One claim's verdict, the reason in words and the numbers behind it.

    latents: for a claim on latents each one's agreement, the mean over pairs of the chains that were compared.
    """

    claim: str
    what: str
    verdict: Outcome
    reason: str
    numbers: dict[str, float] = field(default_factory=dict)
    latents: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Verdicts of all claims, and how the chains compare. `str()` is a short text, `to_dict()` JSON."""

    model: str
    claims: tuple[ClaimVerdict, ...]
    chains: dict[str, Any]
    fit: str | None = None  # its digest

    def __str__(self) -> str:
        lines = [f"{self.model}: {len(self.chains['held_out'])} chains, {self.chains['ties']} at the best objective"]
        if not self.claims:
            lines.append("  claims nothing: there is nothing to identify")
        for c in self.claims:
            lines.append(f"  {c.what}: {c.verdict.upper()} - {c.reason}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        claims = [asdict(c) for c in self.claims]
        return {"model": self.model, "fit": self.fit, "claims": claims, "chains": self.chains}

    def __getitem__(self, what: str) -> ClaimVerdict:
        """The verdict of the claim on latents, mask, graph, ..."""
        for c in self.claims:
            if c.what == what:
                return c
        reject("what", repr(what), ", ".join(c.what for c in self.claims) or "nothing: the model makes no claim")


@checked
def diagnose(fit: Fit, data: Data | None = None, *, seed: Seed = 0) -> Verdict:
    """A verdict for every claim of the fitted model's card.

    identified: the claim's conditions hold and the chains that reach the best held-out objective agree after
    alignment. not identified: a condition fails, or chains equally good disagree. not converged: one chain alone
    reaches the best objective and no other agrees with it on what is claimed, so nothing can be said. Beside it: r-hat
    after alignment, pairwise agreement, stacking weights, and PSIS k-hat of the guide (below .7 its draws can be
    trusted; Yao 2018).
    """
    data = fit._data(data)
    ties = tied_chains(fit.held_out.numpy())
    khat = psis_khat(fit, data, seed)
    chains = {
        "held_out": fit.scores.tolist(),
        "weights": fit.weights.tolist(),
        "reference": fit.reference,
        "ties": int(ties.sum()),
        "tied": ties.tolist(),
        "agreement": pairwise_agreement(fit).tolist(),
        "khat_median": khat["median"],
        "khat_above_0.7": khat["bad"],
        "retired": len(fit.meta["retired"]),
    }
    judged = tuple(_judge(fit, data, claim, ties, seed) for claim in fit.program.claims())
    return Verdict(fit.program.card.name, judged, chains, fit.digest)


def _judge(fit: Fit, data: Data, claim: Claim, ties: np.ndarray, seed: int) -> ClaimVerdict:
    numbers: dict[str, float] = {"chains": float(fit.chains.count), "chains_at_best": float(ties.sum())}
    failed = []
    for need in claim.needs:
        reason = CHECKS[need](fit, data)
        if reason:
            failed.append(reason)
    if claim.what in ("latents", "loadings") and not fit.program.group.mixes:
        reason = rotation_freedom(fit, data)
        failed += [reason] if reason else []
    if fit.program.completion is not None and fit.program.completion.probabilities(claim.what) is not None:
        failed.append(
            f"the {claim.what} of this variant has independent gates, settled from where the chains start: that chains "
            f"agree is no evidence of it; a `model` that sums the {claim.what} out would give some"
        )
    compared = np.flatnonzero(ties)
    alone = len(compared) < 2
    if alone:  # chains may fall behind in what is not claimed
        best, every = int(np.argmax(fit.scores)), range(fit.chains.count)
        compared = np.array([c for c in every if c == best or _agreement(fit, claim, np.array([best, c]), {})[0]])
    agreement, words = _agreement(fit, claim, compared, numbers)
    each: dict[str, float] = {}
    if claim.what == "latents":
        numbers["rhat_max"] = rhat_after_alignment(fit, compared)
        each = latents_agreement(fit, compared)
    said = partial(ClaimVerdict, claim.sentence(), claim.what, numbers=numbers, latents=each)
    if failed:
        return said("not identified", "; ".join(dict.fromkeys(failed)))
    if len(compared) < 2:
        gap = float(np.sort(fit.scores)[-1] - np.sort(fit.scores)[-2]) if fit.chains.count > 1 else float("nan")
        reason = (
            f"only {int(ties.sum())} of {fit.chains.count} chains reached the best held-out objective"
            + (f", the next is {gap:.3g} nats a row below and no other agrees" if fit.chains.count > 1 else "")
            + "; fit more chains or longer"
        )
        return said("not converged", reason)
    reach = f"{int(ties.sum())} of {fit.chains.count} chains reach the best objective and, aligned, "
    if alone:
        reach = f"1 of {fit.chains.count} chains reaches the best objective and, with {len(compared) - 1} below it, "
    known = agreement or alone  # all agree with the best one
    return said("identified" if known else "not identified", reach + words)


def _agreement(fit: Fit, claim: Claim, compared: np.ndarray, numbers: dict[str, float]) -> tuple[bool, str]:
    """Whether these chains agree on what is claimed, in words; the measure goes into `numbers`."""
    if claim.what in ("mask", "graph", "targets"):
        values = fit.chain_values("targets_matrix" if claim.what == "targets" else claim.what)
        if values is None:
            return False, f"have no {claim.what} to compare"
        pairs = [(a, b) for i, a in enumerate(compared) for b in compared[i + 1 :]]
        if claim.what == "graph" and "exact" not in claim.up_to:
            kinds = [name for name in claim.up_to if name in ("transitive closure", "markov equivalence")]
            if kinds:
                apart = [graph_distance(values[a] > 0.5, values[b] > 0.5, kinds[0]) for a, b in pairs]
                worst = float(np.max(apart, initial=0.0))
                numbers["largest_difference"] = worst
                return worst == 0, f"their graphs differ in {worst:.0%} of the pairs at most, up to {kinds[0]}"
        shared = [_overlap(values[a], values[b]) for a, b in pairs]
        least = min(shared, default=1.0)
        numbers["overlap_least"] = least
        entries = {"graph": "edges", "mask": "entries", "targets": "targets"}[claim.what]
        return least >= OVERLAP, f"share {least:.0%} of their probable {entries} at least ({OVERLAP:.0%} is asked)"
    matrix = pairwise_agreement(fit)[np.ix_(compared, compared)]
    off = matrix[~np.eye(len(compared), dtype=bool)]
    mean, least = (float(off.mean()), float(off.min())) if off.size else (1.0, 1.0)
    numbers["agreement_mean"], numbers["agreement_least"] = mean, least
    words = f"their latents correlate {mean:.3f} on average ({least:.3f} for the least alike chains; {AGREE} is asked)"
    weak = {name: value for name, value in latents_agreement(fit, compared).items() if value < AGREE_EACH}
    if weak:
        words += f"; {', '.join(f'{name} only {value:.3f}' for name, value in weak.items())} ({AGREE_EACH} is asked)"
    return mean >= AGREE and not weak, words


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Probability that two chains have in common, over what either has; 1 where both are empty."""
    either = np.maximum(a, b).sum()
    return float(np.minimum(a, b).sum() / either) if either > 0.01 else 1.0


def tied_chains(held_out: np.ndarray) -> np.ndarray:
    """(chain,) whether a chain's held-out objective equals the best one's within the noise of the rows compared.

    The difference of two chains on the same rows has a standard error; `TIE` of them, or `TIE_NATS` of the rows'
    spread where rows are many, count as equal.
    """
    best = int(np.argmax(held_out.mean(1)))
    gap = held_out[best][None] - held_out
    error = gap.std(1) / np.sqrt(held_out.shape[1])
    return gap.mean(1) <= np.maximum(TIE * error, TIE_NATS * held_out[best].std())


def pairwise_agreement(fit: Fit) -> np.ndarray:
    """(chain, chain) mean agreement of latents after alignment, over latents in use in either chain."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # two chains that use no latent agree
        return np.nan_to_num(np.nanmean(fit.agreement, -1), nan=1.0)


def latents_agreement(fit: Fit, chains: np.ndarray) -> dict[str, float]:
    """Mean agreement over pairs of these chains of every latent in use; none where latents mix or chains are few."""
    if len(chains) < 2 or fit.program.group.mixes:
        return {}
    first, second = (chains[side] for side in np.triu_indices(len(chains), 1))
    pairs = fit.agreement[first, second]  # (pair, latent)
    return {
        name: float(np.nanmean(values))
        for name, values in zip(fit.names["latent"], pairs.T, strict=True)
        if not np.isnan(values).all()
    }


def rhat_after_alignment(fit: Fit, chains: np.ndarray | None = None) -> float:
    """Largest r-hat over latents of the aligned chains' posterior means against what lies within a chain.

    Chains are compared on the same rows: between-chain variance of a row's aligned mean against the variance of
    the latent over rows scaled as one draw, so that 1 means that the chains tell one story. `nan` for one chain.
    """
    chains = np.arange(fit.chains.count) if chains is None else chains
    if len(chains) < 2 or fit.program.group.mixes:
        return float("nan")
    aligned = np.stack([fit.alignments[c].apply(fit.anchor[c]) for c in chains])
    used = fit.in_use(fit.reference)[fit.alignments[fit.reference].permutation]
    between = aligned.var(0, ddof=1).mean(0)
    within = aligned.var(1).mean(0)
    rhat = np.sqrt(1.0 + between / np.maximum(within, 1e-12))
    return float(rhat[used].max()) if used.any() else float("nan")


def psis_khat(fit: Fit, data: Data, seed: int = 0) -> dict[str, float]:
    """PSIS k-hat of the reference chain's guide (Yao 2018), for up to 100 rows' local latents or, for a model
    whose latents are integrated out, for its global sites: the median and the share above .7."""
    program = fit.chains.chain(fit.reference)
    rows = np.unique(np.linspace(0, data.rows - 1, min(data.rows, KHAT_ROWS)).astype(int))
    few = data.rows_at(rows) if program.uses_rows else data
    batch = fit.batch_of(few).annealed()
    out = []
    with drawing(mix(seed, 37)), torch.no_grad():
        fixed = guide_trace(program, batch)
        for name in [n for n, s in fixed.nodes.items() if s["type"] == "sample" and is_local(s)]:
            fixed.remove_node(name)
        for _ in range(KHAT_DRAWS):
            # of rows' latents: with the global sites held at one draw
            guide, model = traces(program, batch, fixed if program.uses_rows else None)
            out.append(_log_ratio(guide, model, program.uses_rows, len(batch)))
    ratios = np.stack(out, -1)
    khat = np.array([pareto_khat(one) for one in np.atleast_2d(ratios)])
    khat = khat[np.isfinite(khat)]
    if not khat.size:
        return {"median": float("nan"), "bad": float("nan")}
    return {"median": float(np.median(khat)), "bad": float((khat > 0.7).mean())}


def pareto_khat(log_weights: np.ndarray) -> float:
    """Shape of the generalised Pareto law of the largest importance weights: log_weights (draw,), k-hat of them.

    The tail of Vehtari et al. (2024), fitted as Zhang & Stephens (2009) do, with their weak prior towards .5. inf for
    a tail of fewer than 5 weights and where one is not a number.
    """
    draws = len(log_weights)
    with np.errstate(all="ignore"):
        log_weights = log_weights - log_weights.max()
        start = np.sort(log_weights)[-math.ceil(min(draws / 5, 3 * math.sqrt(draws))) - 1]
        start = max(start, math.log(np.finfo(float).tiny))
        tail = np.sort(np.exp(log_weights[log_weights > start]) - math.exp(start))
        count = len(tail)
        if count < 5:
            return math.inf
        grid = 30 + int(math.sqrt(count))
        rate = 1 / tail[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * tail[int(count / 4 + 0.5) - 1])
        shape = np.log1p(-rate[:, None] * tail).mean(1)
        profile = count * (np.log(-rate / shape) - shape - 1)
        weight = np.exp(profile - profile.max())
        weight = np.where(weight / weight.sum() < 10 * np.finfo(float).eps, 0.0, weight)
        shape = np.log1p(-(weight @ rate / weight.sum()) * tail).mean()
    return float((count * shape + 5) / (count + 10))


def _log_ratio(guide: Any, model: Any, local: bool, rows: int) -> np.ndarray:
    """log p - log q of one draw: per row for local latents, one number otherwise."""
    if not local:
        total = sum(float(s["log_prob_sum"]) for _, s in sample_sites(model))
        total -= sum(float(s["log_prob_sum"]) for _, s in sample_sites(guide))
        return np.asarray(total)
    out = np.zeros(rows)
    for trace, sign in ((model, 1.0), (guide, -1.0)):
        for _, site in sample_sites(trace):
            if is_local(site):
                out += sign * site["unscaled_log_prob"].expand(rows).double().cpu().numpy()
    return out


def rotation_freedom(fit: Fit, data: Data) -> str | None:
    """Why the latents of the reference chain may be rotated at no cost, or None where nothing shows that they may.

    They may if the prior of z is Gaussian, the same for every row, the mean of x (or its logarithm) is linear in z,
    and no mask keeps any latent from any feature: then W z = (W Q^-1)(Q z). A diagonal guide hides this freedom,
    for the ELBO prefers the axes of PCA (Lucas 2019), so that chains agree on latents the data do not know.
    """
    program = fit.chains.chain(fit.reference)
    few = data.rows_at(np.arange(min(data.rows, 200)))
    batch = fit.batch_of(few).annealed()
    with drawing(41), torch.no_grad():
        mask = program.mask()
        if mask is not None and not (mask > INCLUDED).all():
            return None
        loadings = program.loading_matrix()
        if loadings is not None and (loadings[1] == 0).any():  # some are 0 by the story
            return None
        model = traces(program, batch)[1]
        site = model.nodes.get("z")
        if site is None or site["value"].dim() != 2 or site["value"].shape[1] < 2:
            return None
        prior, z = site["fn"], site["value"]
        inner = getattr(prior, "base_dist", prior)
        if not isinstance(inner, torch.distributions.Normal | torch.distributions.MultivariateNormal):
            return None
        loc, spread = prior.mean.expand_as(z), getattr(inner, "covariance_matrix", None)
        if spread is None:
            spread = torch.diag_embed(inner.variance)
        spread = spread.expand(len(z), *spread.shape[-2:])
        if not (torch.allclose(loc, loc[:1]) and torch.allclose(spread, spread[:1])):
            return None
        values = stories.drawn(program, batch, local=False)
        a, b = torch.randn_like(z), torch.randn_like(z)
        parts = [stories.expected(program, batch, {**values, "z": v}) for v in (a, b, a + b, torch.zeros_like(a))]
        if data.counts:
            parts = [part.log() for part in parts]
        bent = (parts[0] + parts[1] - parts[2] - parts[3]).abs().max()
        if bent > 1e-3 * (parts[2] - parts[3]).abs().max():
            return None
    return "the prior is Gaussian, the mixing linear and dense: any rotation of the latents fits the data as well"


# -- the claims' conditions, checked ---------------------------------------------------------------------------


def _two_anchors(fit: Fit, data: Data) -> str | None:
    mask = fit.mask()
    if mask is None:
        return f"no mask, so it cannot hold that {CONDITIONS['two_anchors']}"
    present = mask > INCLUDED
    used = present.any(0)
    if not used.any():
        return "no latent is in use"
    alone = present & (present.sum(1) == 1)[:, None]
    short = [fit.names["latent"][k] for k in np.flatnonzero(used) if alone[:, k].sum() < 2]
    if not short:
        return None
    more = f" and {len(short) - 3} more" if len(short) > 3 else ""
    them, lack = ("it", "lacks") if len(short) == 1 else ("them", "lack")
    return f"{', '.join(short[:3])}{more} {lack} two features that load on {them} alone"


def _noise_told_apart(fit: Fit, data: Data) -> str | None:
    """Anderson & Rubin (1956), theorem 5.1, for loadings that differ from 0 by `DIFFERS` deviations: whichever feature
    is left out, each latent can be matched with two features of its own."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).loading_matrix()
    if found is None:
        raise TypeError(f"{fit.program.card.name} claims loadings but has no `loading_matrix()`: means, deviations")
    mean, sd = (value.cpu().numpy() for value in found)
    there = np.abs(mean) > DIFFERS * sd
    names = fit.names["latent"]
    if short := [names[k] for k in np.flatnonzero(~there.diagonal())]:
        return f"the feature that is to name {', '.join(short)} may not load on it"
    for left_out in range(len(there)):
        twice = np.repeat(np.delete(there, left_out, 0), 2, axis=1)
        match = maximum_bipartite_matching(scipy.sparse.csr_matrix(twice), perm_type="row")
        if (match < 0).any():
            lacking = names[int(np.argmax(match < 0)) // 2]
            return f"without {fit.names['feature'][left_out]} too few features load on {lacking} to tell it from noise"
    return None


def _components(fit: Fit, data: Data) -> str | None:
    weights, _ = _mixture(fit)
    used = int((weights > 0.01).sum())
    return None if used >= 2 else f"{used} mixture component in use"


def _variance_ratios(fit: Fit, data: Data) -> str | None:
    """Two components whose variance ratio differs between any two latents by a tenth or more (Kivva 2022)."""
    weights, scale = _mixture(fit)
    scale = scale[weights > 0.01]
    log_ratio = 2 * (np.log(scale)[:, None] - np.log(scale)[None])  # (component, component, latent)
    apart = np.abs(log_ratio[..., :, None] - log_ratio[..., None, :]).max((0, 1))
    latents = scale.shape[1]
    same = [(a, b) for a in range(latents) for b in range(a) if apart[a, b] < np.log(1.1)]
    if not same:
        return None
    a, b = (fit.names["latent"][k] for k in same[0])
    return f"the components' variances have the same ratios for {b} and {a}"


def _mixture(fit: Fit) -> tuple[np.ndarray, np.ndarray]:
    """(component,) weights and (component, latent) standard deviations of the reference chain's mixture."""
    with torch.no_grad():
        found = fit.chains.chain(fit.reference).mixture()
    if found is None:
        raise TypeError(f"{fit.program.card.name} claims a mixture but has no `mixture()`: weights, means, scales")
    weights, _, scale = found
    return weights.cpu().numpy(), scale.cpu().numpy()


def _non_gaussian(fit: Fit, data: Data) -> str | None:
    """Excess kurtosis or skewness beyond four standard errors in all latents but one."""
    z = fit.anchor[fit.reference]
    z = (z - z.mean(0)) / np.maximum(z.std(0), 1e-12)
    rows = len(z)
    flat = np.abs((z**4).mean(0) - 3) < 4 * np.sqrt(24 / rows)
    even = np.abs((z**3).mean(0)) < 4 * np.sqrt(6 / rows)
    gaussian = [fit.names["latent"][k] for k in np.flatnonzero(flat & even)]
    return f"{', '.join(gaussian)} look Gaussian" if len(gaussian) > 1 else None


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


def _of_data(check: Check) -> Callable[[Fit, Data], str | None]:
    def reason(fit: Fit, data: Data) -> str | None:
        lack = check(situation(fit, data))
        return lack.reason if lack else None

    return reason


CHECKS: dict[str, Callable[[Fit, Data], str | None]] = {
    **{need: _of_data(check) for need, check in conditions.CHECKS.items()},
    "two_anchors": _two_anchors,
    "noise_told_apart": _noise_told_apart,
    "two_components": _components,
    "distinct_variance_ratios": _variance_ratios,
    "non_gaussian": _non_gaussian,
}
