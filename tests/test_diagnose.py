"""The verdict: rotation is not identified, sparse anchored loadings are; conditions, ties, k-hat."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

import pyrocrl
from pyrocrl import Batch, Claim, Data, Fit, ModelCard, Program, Recipe, Reference
from pyrocrl.claims.card import CONDITIONS
from pyrocrl.dists import MultivariateNormal, Normal
from pyrocrl.judge.checks import CHECKS
from pyrocrl.judge.diagnose import (
    _agreement,
    _overlap,
    pairwise_agreement,
    pareto_khat,
    psis_khat,
    rhat_after_alignment,
    rotation_freedom,
    tied_chains,
)

PAPER = Reference("Anderson & Rubin", 1956, "Statistical inference in factor analysis", "Berkeley", "https://doi.org/x")


class FactorAnalysis(Program):
    """x = W z + noise, z ~ N(0, I), every loading free: W is known up to a rotation only, whatever the card says."""

    card = ModelCard(
        name="factor_analysis",
        title="Factor analysis",
        family="test",
        summary="Claims too much.",
        claims=(Claim("latents", ("permutation", "sign", "scale")),),
        references=(PAPER,),
    )
    recipe = Recipe(epochs=150, batch_size=90, lr=0.03, patience=None, chains=4, kl_warmup=0.0, temperature_span=0.0)

    def __init__(self, features: int, latents: int, diagonal: bool = False) -> None:
        super().__init__()
        self.loadings = nn.Parameter(torch.randn(features, latents))
        self.log_noise = nn.Parameter(torch.zeros(features))
        self.encoder = nn.Parameter(0.1 * torch.randn(features, latents))
        self.tril = nn.Parameter(torch.zeros(latents, latents))

    def story(self, batch: Batch) -> None:
        zero = torch.zeros_like(self.loadings[0])
        with self.rows(batch):
            z = pyro.sample("z", Normal(zero, zero + 1).to_event(1))
            pyro.sample("x", Normal(z @ self.loadings.mT, self.log_noise.exp()).to_event(1), obs=batch.x)

    def guide(self, batch: Batch) -> None:
        with self.rows(batch):
            loc, diagonal = batch.x @ self.encoder, self.tril.diagonal(dim1=-2, dim2=-1).exp()
            if self.config["diagonal"]:
                pyro.sample("z", Normal(loc, diagonal).to_event(1))
            else:
                tril = self.tril.tril(-1) + torch.diag_embed(diagonal)
                pyro.sample("z", MultivariateNormal(loc, scale_tril=tril.expand(len(loc), *tril.shape)))

    @torch.no_grad()
    def latents(self, batch: Batch) -> Tensor:
        return batch.x @ self.encoder


@cache
def anchored() -> Data:
    """Eight features with two or three anchors for each of three latents and one that mixes two."""
    rng = np.random.default_rng(5)
    mask = np.array([[1, 0, 0]] * 3 + [[0, 1, 0]] * 3 + [[0, 0, 1]] * 3 + [[1, 1, 0]])
    loadings = mask * rng.uniform(0.8, 1.6, mask.shape) * rng.choice([-1, 1], mask.shape)
    z = rng.normal(size=(600, 3))
    return Data(z @ loadings.T + 0.4 * rng.normal(size=(600, 10)), truth={"z": z, "mask": mask})


@cache
def rotated(diagonal: bool) -> Fit:
    return pyrocrl.fit(FactorAnalysis(10, 3, diagonal), anchored(), seed=0, progress=False)


def test_dense_gaussian_factors_are_not_identified_and_the_chains_show_it() -> None:
    fit = rotated(False)
    verdict = pyrocrl.diagnose(fit, anchored())
    assert verdict["latents"].verdict == "not identified"
    agreement = pairwise_agreement(fit)
    assert agreement[~np.eye(4, dtype=bool)].min() < 0.95  # chains of equal objective, turned against each other
    assert verdict.chains["ties"] >= 2


def test_a_diagonal_guide_does_not_hide_the_rotation() -> None:
    """The ELBO of a diagonal guide prefers PCA's axes: chains agree, and the verdict is still not identified."""
    fit = rotated(True)
    verdict = pyrocrl.diagnose(fit, anchored())
    assert verdict["latents"].verdict == "not identified"
    assert "rotation" in verdict["latents"].reason


@cache
def sparse() -> Fit:
    program = pyrocrl.build("sparse_vae", anchored(), latents=3, decoder="linear")
    return pyrocrl.fit(program, anchored(), seed=0, progress=False)


def test_the_same_data_with_sparse_anchored_loadings_are_identified() -> None:
    fit = sparse()
    verdict = pyrocrl.diagnose(fit, anchored())
    assert verdict["latents"].verdict == "identified", str(verdict)
    assert verdict["mask"].verdict == "identified", str(verdict)
    assert pyrocrl.evaluate(fit, anchored())["mcc"] > 0.95


def test_a_mean_over_latents_hides_no_weak_one() -> None:
    """Of twenty latents nineteen agree and one does not: the claim falls, and names it."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(300, 20))
    other = z[:, rng.permutation(20)] * rng.choice([-2.0, 2.0], 20)  # up to permutation, sign and scale
    weak = other.copy()
    weak[:, 7] = rng.normal(size=300)
    plain = rotated(False)
    program = SimpleNamespace(group=plain.program.group, latents_count=20)
    names = {"latent": [f"latent_{k}" for k in range(20)]}

    def fit(second: np.ndarray) -> Any:
        one = SimpleNamespace(mask=lambda: None, log_evidence=lambda: None, group=program.group)
        chains = SimpleNamespace(count=2, chain=lambda c: one)
        held_out = torch.zeros(2, 5, dtype=torch.float64)
        return Fit(program, chains, [0, 1], held_out, np.zeros((1, 3)), names, {}, None, np.stack([z, second]))

    claim, chains = plain.program.claims()[0], np.arange(2)
    good, bad = fit(other), fit(weak)
    assert good.agreement.shape == (2, 2, 20) and np.allclose(good.agreement, 1)
    assert _agreement(SimpleNamespace(fit=good), claim, chains, {})[0]  # type: ignore[arg-type]
    assert np.allclose(bad.agreement[0, 0], 1) and np.allclose(bad.agreement[0, 1], bad.agreement[1, 0])
    lost = int(np.argmin(bad.agreement[0, 1]))
    holds, words = _agreement(SimpleNamespace(fit=bad), claim, chains, {})  # type: ignore[arg-type]
    assert not holds and pairwise_agreement(bad)[0, 1] > 0.95  # on average
    assert f"latent_{lost} only 0." in words and words.count("only") == 1


def test_latents_that_neither_chain_uses_are_left_out_and_lost_ones_count() -> None:
    rng = np.random.default_rng(0)
    z = np.column_stack([rng.normal(size=(300, 2)), np.zeros(300)])
    lost = z * [1, 0, 1]
    program = SimpleNamespace(group=rotated(False).program.group, latents_count=3)
    one = SimpleNamespace(mask=lambda: None, log_evidence=lambda: None, group=program.group)
    chains = SimpleNamespace(count=3, chain=lambda c: one)
    anchor = np.stack([z, z[:, [2, 0, 1]], lost])
    fit = Fit(program, chains, [0, 1, 2], torch.tensor([[1.0], [0], [0]]), np.zeros((1, 4)), {}, {}, None, anchor)
    assert np.allclose(fit.agreement[0, 1], [1, 1, np.nan], equal_nan=True)
    assert np.allclose(np.sort(fit.agreement[0, 2]), [0, 1, np.nan], equal_nan=True)
    assert np.allclose(pairwise_agreement(fit), [[1, 1, 0.5], [1, 1, 0.5], [0.5, 0.5, 1]])


def test_rhat_is_large_where_chains_lie_further_apart_than_their_draws() -> None:
    rng = np.random.default_rng(0)
    one = np.array([True, True])

    def rhat(apart: float) -> float:
        z = (
            rng.normal(size=(40, 2))
            + 0.1 * rng.normal(size=(2, 20, 40, 2))
            + apart * np.array([0, 1]).reshape(2, 1, 1, 1)
        )
        tree = {"posterior": {"z": SimpleNamespace(to_numpy=lambda: z)}}
        program = SimpleNamespace(group=rotated(False).program.group, reads_innovations=False)
        fit = SimpleNamespace(
            program=program,
            posterior=lambda *_, **__: tree,
            in_use=lambda chain: one,
            reference=0,
            alignments=[SimpleNamespace(permutation=np.arange(2))],
        )
        return rhat_after_alignment(fit, anchored(), np.arange(2))

    assert rhat(0.0) < 1.05 < 1.5 < rhat(0.3)
    assert rhat(0.03) < 1.1


def test_sparse_vae_without_its_mask_is_the_rotation_again() -> None:
    program = pyrocrl.build("sparse_vae", anchored(), latents=3, decoder="linear", sparse=False)
    fit = pyrocrl.fit(program, anchored(), seed=0, chains=4, epochs=60, progress=False)
    assert rotation_freedom(fit, anchored()) is not None
    for claim in pyrocrl.diagnose(fit, anchored()).claims:
        assert claim.verdict == "not identified"


def test_one_chain_says_nothing() -> None:
    program = pyrocrl.build("sparse_vae", anchored(), latents=3, decoder="linear")
    fit = pyrocrl.fit(program, anchored(), seed=0, chains=1, progress=False)
    assert pyrocrl.diagnose(fit, anchored())["latents"].verdict == "not converged"


def test_ties_are_judged_by_the_rows_differences() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(-10, 3, size=500)
    rows = np.stack([base, base + rng.normal(0, 0.02, 500), base - 1.0, base - rng.exponential(0.5, 500)])
    assert tied_chains(rows).tolist() == [True, True, False, False]


def test_ties_are_judged_by_evidence_where_it_is_known() -> None:
    """Rows kept out are few: they may leave a chain ahead that all rows show to be worse."""
    ahead = np.array([[-1.0, -1.1], [-2.0, -2.1], [-2.0, -2.1]])
    assert tied_chains(ahead).tolist() == [True, False, False]
    assert tied_chains(ahead, np.array([-20.0, 0.0, -2.9])).tolist() == [False, True, True]
    assert tied_chains(ahead, np.array([-20.0, 0.0, -12.0]), np.array([9.0, 0.0, 7.0])).tolist() == [False, True, True]


def test_khat_is_small_for_an_exact_guide_and_large_for_a_poor_one() -> None:
    """Linear-Gaussian rows have Gaussian posteriors of one covariance, which the full guide can match."""
    fit = rotated(False)
    good = psis_khat(fit, anchored())
    assert good["median"] < 0.7
    with torch.no_grad():
        fit.chains.params["tril"] += -2.0 * torch.eye(3)  # a tenth of the width
    poor = psis_khat(fit, anchored())
    with torch.no_grad():
        fit.chains.params["tril"] -= -2.0 * torch.eye(3)
    assert poor["median"] > max(0.7, good["median"])


@pytest.mark.parametrize("draws", [40, 200])
def test_khat_is_that_of_arviz(draws: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz
    log_weights = np.random.default_rng(1).standard_t(3, (20, draws))
    if hasattr(arviz, "psislw"):
        theirs = arviz.psislw(log_weights)[1]
    else:  # 1.x, which takes minus the weights
        from arviz_stats.base import array_stats

        theirs = array_stats.psislw(-log_weights)[1]
    mine = [pareto_khat(one) for one in log_weights]
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert pareto_khat(log_weights[0, :20]) == np.inf, "a tail of four weights tells nothing"
    assert pareto_khat(np.full(draws, np.nan)) == pareto_khat(np.zeros(draws)) == np.inf


class Targeted(FactorAnalysis):
    """Factor analysis with something to say of targets, which is all that these tests read."""

    card = dataclasses.replace(FactorAnalysis.card, name="targeted")

    def __init__(
        self,
        features: int,
        latents: int,
        inferred: list[list[float]] | None = None,
        targets: str = "unknown",
        intervention: str = "perfect",
        mechanism: str = "linear",
        diagonal: bool = True,
    ) -> None:
        super().__init__(features, latents)

    def targets_matrix(self) -> Tensor | None:
        found = self.config["inferred"]
        return None if found is None else torch.tensor(found)


def reasons(
    need: str, inferred: list[list[float]] | None = None, known: dict[str, tuple[int, ...]] | None = None, **more: str
) -> str | None:
    """What a check says of three environments, the first one observational, and three latents."""
    rows = anchored()
    data = Data(rows.x, np.repeat(["ctrl", "a", "b"], 200), known, control="ctrl")
    fit = pyrocrl.fit(Targeted(10, 3, inferred, **more), data, chains=2, epochs=1, progress=False)
    lack = CHECKS[need](fit, data)
    return lack.reason if lack else None


def test_inferred_targets_count_as_the_reference_chain_sees_them() -> None:
    every, inferred = "one_intervention_per_latent", [[0.1, 0.2, 0.0], [0.9, 0.4, 0.1], [0.1, 0.3, 0.8]]
    assert reasons(every) == "2 environments beside the observational one, 3 are needed"
    assert reasons(every, inferred) == "no environment intervenes on latent_1"
    inferred[1][1] = inferred[2][1] = 0.6
    assert reasons(every, inferred) is None
    assert (
        reasons("two_interventions_per_latent", inferred) == "fewer than 2 environments intervene on latent_0, latent_2"
    )
    assert reasons("single_targets", inferred) == "a has more than one target"
    assert reasons("observational_environment", inferred) is None
    inferred[0][0] = 0.7
    assert reasons("observational_environment", inferred) == "every environment is intervened on"


def test_given_targets_count_unless_the_program_infers_them() -> None:
    every, inferred = "one_intervention_per_latent", [[0.0, 0.0, 0.0], [0.9, 0.9, 0.1], [0.1, 0.1, 0.8]]
    known = {"a": (0,), "b": (1,)}
    assert reasons(every, inferred, known, targets="known") == "no environment intervenes on latent_2"
    assert reasons(every, inferred, known, targets="unknown") is None


@pytest.mark.parametrize(
    ("kind", "mechanism", "perfect", "absorbed"),
    [
        ("perfect", "linear", False, False),
        ("soft", "linear", True, False),
        ("variance", "linear", True, True),
        ("shift", "linear", True, True),
        ("shift", "relu", True, False),
    ],
)
def test_the_kind_of_intervention_is_a_condition(kind: str, mechanism: str, perfect: bool, absorbed: bool) -> None:
    said = reasons("perfect_interventions", intervention=kind, mechanism=mechanism)
    assert (said is not None) == perfect
    said = reasons("nonlinear_or_replaced", intervention=kind, mechanism=mechanism)
    assert (said is not None) == absorbed
    if said:
        assert "the mixing can absorb the graph" in said and kind in said


@pytest.mark.parametrize(("last", "agree"), [(0.9, True), (0.1, False)])
def test_chains_agree_on_targets_if_they_name_the_same(last: float, agree: bool) -> None:
    first = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    second = np.array([[0.0, 0.0], [1.0, 0.0], [1.0 - last, last]])
    asked = []
    fit = SimpleNamespace(chain_values=lambda name: asked.append(name) or np.stack([first, second]))
    numbers: dict[str, float] = {}
    known: Any = SimpleNamespace(fit=fit)
    found = _agreement(known, Claim("targets", ("permutation",)), np.arange(2), numbers)
    assert asked == ["targets_matrix"] and found[0] == agree and "of their probable targets" in found[1]


def test_every_condition_of_a_card_is_checked() -> None:
    assert CHECKS.keys() == CONDITIONS.keys()


def test_an_unknown_claim_is_refused() -> None:
    with pytest.raises(pyrocrl.InputError, match="'graph'"):
        pyrocrl.diagnose(rotated(False), anchored())["graph"]


def test_chains_behind_the_best_count_if_they_agree_on_what_is_claimed() -> None:
    fit = copy.copy(sparse())
    fit.anchor = fit.anchor.copy()
    assert pyrocrl.diagnose(fit, anchored()).chains["ties"] >= 2
    behind = torch.ones(fit.chains.count)
    behind[int(np.argmax(fit.scores))] = 0.0
    fit.held_out = fit.held_out - behind[:, None]
    verdict = pyrocrl.diagnose(fit, anchored())
    assert verdict.chains["ties"] == 1
    assert verdict["latents"].verdict == "identified" and "below it" in verdict["latents"].reason
    fit.anchor[behind > 0] = fit.anchor[behind > 0] @ np.linalg.qr(np.ones((3, 3)) + np.eye(3))[0]
    del fit.agreement
    assert pyrocrl.diagnose(fit, anchored())["latents"].verdict == "not converged"


def test_too_few_latents_of_a_triangle_and_heavy_tails_are_contradicted() -> None:
    data = pyrocrl.simulate.draw("plt2010", seed=100, rows=600, latents=3, features=10)
    heavy = pyrocrl.Data(np.sinh(0.8 * data.x / data.x.std(0)))
    for rows, latents, said in ((data, 3, "identified if"), (data, 2, "contradicted"), (heavy, 3, "contradicted")):
        fit = pyrocrl.fit(pyrocrl.build("plt_fa", rows, latents=latents), rows, chains=2, seed=0, progress=False)
        verdict = pyrocrl.diagnose(fit, rows)["latents"]
        assert verdict.verdict == said, verdict.reason


def test_chains_agree_on_what_neither_has() -> None:
    few, none = np.array([0.08, 0.02, 0.0]), np.array([0.03, 0.06, 0.01])
    assert _overlap(few, none) == 1.0, "how improbable an edge is, is noise"
    assert _overlap(np.array([0.9, 0.08]), np.array([0.6, 0.0])) == pytest.approx(2 / 3)
    assert _overlap(np.array([0.9, 0.0]), np.array([0.0, 0.9])) == 0.0
