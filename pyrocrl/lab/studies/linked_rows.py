"""Studies of rows that belong together: pairs, and steps of series."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pyrocrl.data import Data
from pyrocrl.lab.studies.study import Study

if TYPE_CHECKING:
    from pyrocrl.infer.fitted import Fit


class MeanDifferences(Study):
    """Latents of pairs, beside the closed form for a linear mixing whose offsets are of one latent each
    (difference_): mean differences of pairs are then columns of the mixing."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        from pyrocrl.judge import metrics

        fitted, z = result.data, data.truth["z"]
        assert fitted is not None
        after = np.flatnonzero(fitted.after & (fitted.partner >= 0))
        moved, env = fitted.x[after] - fitted.x[fitted.partner[after]], fitted.env[after]
        columns = np.stack([moved[env == e].mean(0) for e in np.unique(env[env > 0])], 1)
        told = (data.x - fitted.x.mean(0)) @ np.linalg.pinv(columns).T
        return super().score(result, data) | {"difference_mcc": float(metrics.mcc(z, told))}


class LinesOfPairs(Study):
    """Latents of pairs behind a nonlinear mixing, beside the closed form for a linear one (closed_): latents, graph and
    changes of `weakly_supervised_pairs`, fitted to the same rows; and the best linear readout, which knows z."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import pyrocrl
        from pyrocrl.judge import metrics
        from pyrocrl.judge.evaluate import evaluate

        fitted, z = result.data, data.truth["z"]
        assert fitted is not None
        linear = pyrocrl.build("weakly_supervised_pairs", fitted, latents=z.shape[1])
        closed = evaluate(pyrocrl.fit(linear, fitted, chains=1, seed=0, progress=False), data)
        out = super().score(result, data) | {"linear_r2": metrics.linear_r2(data.x, z)}
        return out | {f"closed_{name}": closed[name] for name in ("mcc", "shd", "changes_right")}


class KnownMechanisms(MeanDifferences):
    """Latents of pairs whose mechanisms are told, beside the closed form for a linear mixing (closed_). concordance: of
    latents with the true ones, after what the mechanisms leave free and nothing else."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.judge import metrics

        z, fitted = data.truth["z"], result.data
        assert fitted is not None
        linear = type(result.program)(**(result.program.arguments | {"decoder": "linear"}))
        with torch.no_grad():
            linear.initialise(fitted, torch.Generator().manual_seed(result.meta["seed"]))
            told = linear.latents(data.tensors(dtype=torch.float32)).double().numpy()
        group = result.program.group
        out = {"closed_mcc": float(metrics.mcc(z, told))}
        out["concordance"] = float(group.align(result.latents(data), z).agreement.mean())
        out["closed_concordance"] = float(group.align(told, z).agreement.mean())
        return super().score(result, data) | out


class SwitchingSources(Study):
    """Independent sources, beside AMUSE (amuse_, covariances one row apart) and SOBI (sobi_, of several lags), fitted
    to the same rows."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.constructions import sources
        from pyrocrl.judge import metrics

        z, fitted = data.truth["z"], result.data
        assert fitted is not None
        out = super().score(result, data)
        centre, count = fitted.x.mean(0), z.shape[1]
        value, vector = np.linalg.eigh(np.cov(fitted.x.T))
        project = vector[:, -count:] / np.sqrt(value[-count:])
        batch = fitted.tensors(dtype=torch.float64)
        order, since = batch.in_time()
        y = torch.as_tensor((fitted.x - centre) @ project)[order]
        for name, lags in (("amuse", (1,)), ("sobi", sources.LAGS)):
            turn = sources.by_lags(y, since, lags, segments=0).numpy()
            out[f"{name}_mcc"] = float(metrics.mcc(z, (data.x - centre) @ project @ turn.T))
        return out


class SparseMechanisms(Study):
    """Latents of few parents, and which parents: shd, how many entries of (parent, latent) are wrong of those
    with probability above .5 (shd_empty: of none), beside principal components and FastICA. linear_r2: of the
    best linear readout, which knows z."""

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.judge import metrics

        z, truth = data.truth["z"], np.asarray(data.truth["moved_by"])
        mcc, nodes = metrics.mcc(z, ours := result.latents(data), return_assignment=True)
        program = result.chains.chain(result.reference)
        with torch.no_grad():
            found = program.parent_graphs().mean(0).cpu().numpy() > 0.5
        order = result.alignments[result.reference].permutation[nodes]
        actions = program.config["aux"]
        found = np.concatenate([found[:actions], found[actions:][order] if len(found) > actions else found[actions:]])
        rows = metrics.baselines(data.x, z, z.shape[1])
        out = {
            "held_out": float(result.weights @ result.scores),
            "mcc": float(mcc),
            "mcc_spearman": metrics.mcc(z, ours, "spearman"),
            "linear_r2": metrics.linear_r2(data.x, z),
            "shd": float((found[:, order] != (truth > 0)).sum()),
            "shd_empty": float((truth > 0).sum()),
        }
        return out | {f"{name}_{k}": rows[name][k] for name in ("pca", "ica") for k in ("mcc", "mcc_spearman")}


@dataclass(frozen=True)
class TargetSteps(Study):
    """Latents of series of which some are targets in each step, beside the closed form by targets (closed_) and, of two
    covariances of rows, those in which a latent is a target and others, the axes that differ most (modulated_).

    own_r2: of a cubic of each latent's estimate, held out, of the worst one; other_r2: of other true latents from it,
    of the largest; true_other_r2: the same of the true latent itself. lagged_errors: wrong entries of the graph from
    step to step, beside those of an empty one.
    """

    held_out: float = 0.1

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.constructions import target_steps
        from pyrocrl.judge import metrics

        z, fitted = data.truth["z"], result.data
        assert fitted is not None
        count = z.shape[1]
        out = super().score(result, data) | _step_scores(result, data)[0]
        value, vector = np.linalg.eigh(np.cov(fitted.x.T))
        project, centre = vector[:, -count:] / np.sqrt(value[-count:]), fitted.x.mean(0)
        batch = fitted.tensors(dtype=torch.float64)
        order, since = batch.in_time()
        hit = fitted.target_matrix(count)
        y = (fitted.x - centre) @ project
        steps = target_steps.Steps(
            torch.as_tensor(y)[order], batch.env[order], since, torch.as_tensor(hit), soft=False, edge=0.5
        )
        closed = target_steps.by_targets(steps)[0].numpy()
        if np.isfinite(closed).all():
            out["closed_mcc"] = float(metrics.mcc(z, (data.x - centre) @ project @ closed.T))
        axes = []
        for own_hit in (hit[fitted.env] > 0).T:
            if min(own_hit.sum(), (~own_hit).sum()) > count:
                change = np.cov(y[~own_hit].T) - np.cov(y[own_hit].T)
                axes.append(np.linalg.eigh(change)[1][:, -1])
        if len(axes) == count:
            out["modulated_mcc"] = float(metrics.mcc(z, (data.x - centre) @ project @ np.stack(axes, 1)))
        return out


def _cubic_r2(estimate: np.ndarray, z: np.ndarray) -> np.ndarray:
    """(latent, latent) squared correlation, in every second row, of a latent with a cubic of another's estimate that is
    fitted to the other rows."""
    out = np.zeros((estimate.shape[1], z.shape[1]))
    for k, one in enumerate(estimate.T):
        unit = (one - one.mean()) / one.std()
        terms = np.stack([unit**0, unit, unit**2, unit**3], 1)
        told = terms[1::2] @ np.linalg.lstsq(terms[::2], z[::2], rcond=None)[0]
        out[k] = [np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(told.T, z[1::2].T, strict=True)]
    return out


@dataclass(frozen=True)
class ActedSteps(Study):
    """Latents of series on which actions act in some steps, unseen, beside both closed forms that chains start from, of
    covariances (covariances_) and of slopes (slopes_) by regions of actions; rest as `TargetSteps`.

    acted_on_errors: share of rows in which the more probable of being acted on or not is wrong, of the worst latent,
    beside that of saying of no latent that it is; acting_error: of its probability given the action, squared, beside
    that of a probability whatever the action is.
    """

    held_out: float = 0.1

    def score(self, result: Fit, data: Data) -> dict[str, float]:
        import torch

        from pyrocrl.constructions import interaction_starts
        from pyrocrl.judge import metrics

        z, truth, fitted = data.truth["z"], data.truth["state"], result.data
        assert fitted is not None
        scores, place = _step_scores(result, data)
        out = super().score(result, data) | scores
        program = result.chains.chain(result.reference)
        batch = result.batch_of(data)
        told = program.beside(batch)["acted_on"].cpu().numpy()[:, place] > 0.5
        out["acted_on_errors"] = float((told != truth).mean(0).max())
        out["acted_on_errors_none"] = float(truth.mean(0).max())
        chance = program.chance()[program.regions_of(batch)].cpu().numpy()[:, place]
        out["acting_error"] = float(np.square(chance - truth).mean())
        out["acting_error_constant"] = float(truth.var(0).mean())
        value, vector = np.linalg.eigh(np.cov(fitted.x.T))
        project, centre = vector[:, -z.shape[1] :] / np.sqrt(value[-z.shape[1] :]), fitted.x.mean(0)
        rows = result.batch_of(fitted)
        order, since = rows.in_time()
        y = torch.as_tensor((fitted.x - centre) @ project)[order]
        acted = interaction_starts.Acted(
            y, since, program.regions_of(rows)[order], len(program.chance()), soft=True, edge=0.5
        )
        starts = interaction_starts.starts(acted, torch.Generator().manual_seed(0))
        for name, start in zip(("covariances", "slopes"), starts[:-1], strict=False):
            out[f"{name}_mcc"] = float(metrics.mcc(z, (data.x - centre) @ project @ start.numpy().T))
        return out


def _step_scores(result: Fit, data: Data) -> tuple[dict[str, float], np.ndarray]:
    """What `TargetSteps` and `ActedSteps` have in common, and the places of true latents among the estimates."""
    from pyrocrl.judge import metrics

    z, program = data.truth["z"], result.chains.chain(result.reference)
    found = program.latents(result.batch_of(data)).cpu().numpy()
    _, place = metrics.mcc(z, found, return_assignment=True)
    own, true = _cubic_r2(found[:, place], z), _cubic_r2(z, z)
    off = ~np.eye(z.shape[1], dtype=bool)
    out = {"own_r2": float(own.diagonal().min()), "other_r2": float(own[off].max())}
    out["true_other_r2"] = float(true[off].max())
    lagged = program.lagged().cpu().numpy() > 0.5
    graph = data.truth["lagged"] > 0
    out["lagged_errors"] = float((lagged[np.ix_(place, place)] != graph).sum())
    out["lagged_errors_empty"] = float(graph.sum())
    return out, place
