"""The linear causal model beyond one perfect intervention per latent: kinds, joint, unequal and unknown targets."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import pytest
import torch

import pyrocrl
from pyrocrl import Data, Fit
from pyrocrl.claims.indeterminacy import is_acyclic
from pyrocrl.constructions import directions
from pyrocrl.errors import InputError
from pyrocrl.exact import linear_sem
from pyrocrl.infer import stories
from pyrocrl.judge.metrics import mcc, shd


def simulate(
    targets: Sequence[tuple[int, ...]],
    kind: linear_sem.Intervention = "perfect",
    sizes: Sequence[int] | int = 4000,
    seed: int = 0,
    latents: int = 4,
    shift: float = 1.0,
    named: bool = True,
) -> Data:
    """x = G z with `latents` + 3 features; environment "e<i>" intervenes on targets[i], "control" on none."""
    rng = np.random.default_rng(seed)
    rank = rng.permutation(latents)
    graph = (rank[:, None] < rank) & (rng.random((latents, latents)) < 0.7)
    weight = graph * rng.uniform(0.5, 1.2, graph.shape) * rng.choice([-1, 1], graph.shape)
    mixing = rng.standard_normal((latents + 3, latents))
    counts = [sizes] * (len(targets) + 1) if isinstance(sizes, int) else sizes
    z, env = [], []
    for e, (hit, n) in enumerate(zip([(), *targets], counts, strict=True)):
        w, mean, scale = weight.copy(), np.zeros(latents), np.ones(latents)
        for k in hit:
            if kind == "perfect":
                w[:, k] = 0.0
            if kind == "soft":
                w[:, k] *= rng.uniform(0.2, 0.6)
            if kind != "shift":
                scale[k] = rng.uniform(0.4, 0.6) if e % 2 else rng.uniform(1.6, 2.0)
            mean[k] = shift * rng.choice([-1, 1]) * rng.uniform(1, 2)
        noise = mean + scale * rng.standard_normal((n, latents))
        z.append(np.linalg.solve(np.eye(latents) - w.T, noise.T).T)
        env += ["control" if e == 0 else f"e{e - 1:02d}"] * n
    truth = {f"e{i:02d}": hit for i, hit in enumerate(targets)}
    latent = np.concatenate(z)
    return Data(
        latent @ mixing.T + 1.0,
        env,
        targets=truth if named else None,
        control="control",
        truth={"z": latent, "graph": graph.astype(int), "weight": weight, "targets": truth},
    )


def fitted(data: Data, chains: int = 2, seed: int = 0, **options: object) -> Fit:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        program = pyrocrl.build("linear_sem_lin", data, **options)
        return pyrocrl.fit(program, data, chains=chains, seed=seed, device="cpu", progress=False)


SINGLE = [(0,), (1,), (2,), (3,)]


# -- several targets, several environments, unequal sizes ------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "sizes"),
    [
        ([(0, 1), (2, 3), (0,), (2,)], 4000),  # latents 1 and 3 are never the one target
        ([(0, 1), (1, 2), (2, 3), (0, 3), (0, 2)], 4000),  # no latent is
        ([*SINGLE, *SINGLE, (0, 1)], 1000),
        (SINGLE, [20_000, 200, 20_000, 200, 20_000]),
    ],
    ids=["joint", "joint_only", "several", "unequal"],
)
def test_recovery_from_joint_repeated_and_unequal_environments(targets: list, sizes: list[int] | int) -> None:
    data = simulate(targets, sizes=sizes, seed=100)
    fit = fitted(data, chains=1)
    z = fit.latents(data)
    correlation = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(data.truth["z"].T, z.T, strict=True)]
    assert min(correlation) >= 0.99  # each under its own name
    assert data.truth["graph"].any()
    in_doubt = 1 if isinstance(sizes, list) else 0  # 200 rows of an environment leave an edge in doubt
    assert shd(data.truth["graph"], fit.graph() > 0.5) <= in_doubt


# -- kinds of interventions ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_soft_interventions_give_the_closure() -> None:
    data = simulate(SINGLE, "soft", seed=100)
    fit = fitted(data, intervention="soft")
    scores = pyrocrl.evaluate(fit, data)
    assert scores["closure_errors"] == 0 < scores["closure_errors_empty"]
    assert scores["order_right"] == 1
    (claim,) = pyrocrl.diagnose(fit, data).claims
    assert (claim.what, claim.verdict) == ("graph", "identified if")
    assert "transitive closure" in claim.claim


@pytest.mark.parametrize("kind", ["variance", "shift"])
def test_interventions_on_noise_identify_innovations_and_no_graph(kind: linear_sem.Intervention) -> None:
    data = simulate(SINGLE, kind, seed=100)
    fit = fitted(data, intervention=kind)
    z, weight = data.truth["z"], data.truth["weight"]
    innovations, found = z - z @ weight, fit.latents(data)
    for k in range(4):
        assert abs(np.corrcoef(innovations[:, k], found[:, k])[0, 1]) > 0.99
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(fit.graph()[off], 0.25)  # the prior's: an edge either way has probability 1/2
    verdict = pyrocrl.diagnose(fit, data)
    assert {c.what: c.verdict for c in verdict.claims} == {"latents": "not identified", "graph": "not identified"}
    posterior = fit.posterior(draws=300, thin=400)["posterior"]
    graph = posterior["graph"].values.reshape(-1, 4, 4)
    assert all(is_acyclic(g) for g in graph)
    np.testing.assert_allclose(graph.mean(0)[off], 0.25, atol=0.08)
    # every draw of z and weights has the same innovations
    z_drawn, w_drawn = posterior["z"].values[0, :5], posterior["weight"].values[0, :5]
    back = z_drawn - z_drawn @ w_drawn
    one = [abs(np.corrcoef(back[i, :, k], back[0, :, k])[0, 1]) for i in range(5) for k in range(4)]
    assert min(one) > 0.99


@pytest.mark.parametrize("kind", ["variance", "shift"])
def test_likelihood_of_innovations_against_numerical_integration(kind: linear_sem.Intervention) -> None:
    """One innovation with natural and own values, its intercepts and noise integrated on a grid."""
    rng = np.random.default_rng(1)
    natural, own = rng.standard_normal(7), 0.5 + rng.standard_normal(5)
    moments = [torch.as_tensor([f(v) for v in (natural, own)]) for f in (len, np.mean, np.var)]
    environments = linear_sem.Environments(
        moments[0].double(), moments[1][:, None], moments[2][:, None, None], torch.tensor([[0.0], [1.0]])
    )
    data = linear_sem.slices(environments, [(1, 0)])
    found = linear_sem.innovation_scores(torch.ones(1, 1, dtype=torch.float64), data, kind)

    a, log_s = np.linspace(-8, 8, 801)[:, None], np.linspace(-3, 3, 801)[None, :]
    cell = float((a[1, 0] - a[0, 0]) * (log_s[0, 1] - log_s[0, 0]))

    def likelihood(values: np.ndarray) -> np.ndarray:
        squares = ((values[:, None, None] - a) ** 2).sum(0)
        return np.exp(-len(values) / 2 * np.log(2 * np.pi) - len(values) * log_s - squares / (2 * np.exp(2 * log_s)))

    prior = 2 * np.exp(-log_s)  # s^-3 d(s^2) = 2 s^-1 d(log s)
    if kind == "variance":
        value = sum(np.log((likelihood(v) * prior).sum() * cell) for v in (natural, own))
    else:
        other = likelihood(own).sum(0, keepdims=True) * (a[1, 0] - a[0, 0]) / np.sqrt(2 * np.pi) / np.exp(log_s)
        value = np.log((likelihood(natural) * other * prior).sum() * cell)
    np.testing.assert_allclose(float(found[0]), value, atol=1e-3)


def test_drawn_innovations_have_the_conjugate_posterior() -> None:
    torch.manual_seed(0)
    environments = linear_sem.Environments(
        torch.tensor([400.0, 100.0]).double(),
        torch.tensor([[0.0], [3.0]]).double(),
        torch.tensor([[[1.0]], [[4.0]]]).double(),
        torch.tensor([[0.0], [1.0]]),
    )
    data = linear_sem.slices(environments, [(1, 0)])
    one = torch.ones(1, 1, dtype=torch.float64)
    for kind, scale in (("variance", [1.0, 2.0]), ("shift", [1.6**0.5] * 2)):
        known = linear_sem.innovations(one, torch.zeros(1, 1), data, kind)
        draws = []
        for _ in range(2000):
            variance = known.variance().sample()
            slope = known.slopes(variance).sample()
            draws.append(known.mechanisms(variance, slope, known.level(slope, variance).sample()))
        found = torch.stack([d.scale for d in draws])
        torch.testing.assert_close(found.mean(0), torch.tensor(scale).double(), rtol=0.02, atol=0)
        intercept = torch.stack([d.intercept for d in draws])
        torch.testing.assert_close(intercept.mean(0), torch.tensor([0.0, 3.0]).double(), rtol=0, atol=0.02)
        expected = torch.tensor([scale[0] / 20, scale[1] / 10]).double()
        torch.testing.assert_close(intercept.std(0), expected, rtol=0.1, atol=0)


# -- posterior sites and queries -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["perfect", "shift"])
def test_sites_targets_and_shift(kind: linear_sem.Intervention) -> None:
    data = simulate([(0,), (1,), (0, 1)], kind, latents=2, seed=101, shift=2.0)
    fit = fitted(data, intervention=kind)
    posterior = fit.posterior(draws=50, thin=1000)["posterior"]
    target = data.target_matrix(2)
    assert sorted(target.sum(1)) == [0, 1, 1, 2]
    assert posterior["targets"].dims == posterior["shift"].dims == ("chain", "draw", "env", "latent")
    assert (posterior["targets"].values == target).all()
    shift = posterior["shift"].values
    assert (shift[..., target == 0] == 0).all()
    # the root's own intercept is its mean there: the shift is the difference of means over environments
    root = int(np.flatnonzero(data.truth["graph"].sum(0) == 0)[0])
    if kind == "perfect":
        z = fit.latents(data)[:, root]
        means = np.array([z[data.env == e].mean() for e in range(4)])
        natural = z[np.isin(data.env, np.flatnonzero(target[:, root] == 0))].mean()
        hit = target[:, root] == 1
        np.testing.assert_allclose(shift.mean((0, 1))[hit, root], (means - natural)[hit], atol=0.05)
    np.testing.assert_array_equal(fit.graph() > 0.5, data.truth["graph"] if kind == "perfect" else np.zeros((2, 2)))


def test_do_combines_environments_never_seen_together() -> None:
    """Means and covariances under two perfect interventions at once are those of the true equations."""
    data = simulate([(0,), (1,), (2,)], latents=3, seed=102, sizes=20_000, shift=2.0)
    fit = fitted(data)
    assert data.truth["graph"].any()
    program = fit.chains.chain(0)
    batch = fit.batch_of(data.rows_at(np.arange(20_000)))
    torch.manual_seed(0)
    with torch.no_grad():
        batch = dataclasses.replace(batch, together=(1, 2))
        trace = stories.told(program, batch.blank(), stories.drawn(program, batch, local=False))
    x = fit.in_data_units("x", trace.nodes["x"]["fn"].mean.numpy())
    own = [data.truth["z"][data.env == e] for e in range(4)]
    weight = data.truth["weight"].copy()
    weight[:, [0, 1]] = 0.0
    intercept = np.array([own[1][:, 0].mean(), own[2][:, 1].mean(), 0.0])
    scale = np.array([own[1][:, 0].std(), own[2][:, 1].std(), 1.0])
    mean, cov = linear_sem.sem_moments(linear_sem.LinearSEM(*(torch.as_tensor(v) for v in (weight, intercept, scale))))
    mixing = np.linalg.lstsq(data.truth["z"], data.x - 1.0, rcond=None)[0].T
    expected = mixing @ mean.numpy() + 1.0
    spread = np.sqrt(np.diag(mixing @ cov.numpy() @ mixing.T))
    assert (np.abs(x.mean(0) - expected) < 0.1 * spread).all()
    np.testing.assert_allclose(x.std(0), spread, rtol=0.06)


# -- unknown targets -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["perfect", "variance", "shift"])
def test_unknown_targets_are_found(kind: linear_sem.Intervention) -> None:
    """Two environments a latent and one without effect; the targets are not in the data."""
    targets = [(0,), (1,), (2,)] * 2 + [()]
    data = simulate(targets, kind, sizes=1000, seed=100, latents=3, named=False)
    fit = fitted(data, latents=3, targets="unknown", intervention=kind)
    probability = fit.targets()
    assert not {"variance", "slope", "level"} & set(fit.posterior(2, predictive=False)["posterior"])
    z = data.truth["z"] if kind == "perfect" else data.truth["z"] - data.truth["z"] @ data.truth["weight"]
    score, nodes = mcc(z, fit.latents(data), return_assignment=True)
    assert score > 0.99
    expected = np.array([[k in hit for k in range(3)] for hit in [(), *targets]])
    np.testing.assert_array_equal(probability[:, nodes] > 0.5, expected)
    assert probability[-1].sum() < 0.5
    drawn = fit.posterior(draws=20, thin=2000)["posterior"]["targets"].values
    assert (drawn.sum(-1) <= 1).all()
    np.testing.assert_allclose(drawn[0].mean(0), probability, atol=0.35)
    verdict = {c.what: c.verdict for c in pyrocrl.diagnose(fit, data).claims}
    assert set(verdict.values()) == ({"identified if"} if kind == "perfect" else {"not identified"})


def test_reassignment_draws_from_the_conditional() -> None:
    """A made-up log evidence: frequencies of single-environment draws are its softmax."""
    table = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [0.0, 2.0, 0.0]], dtype=torch.float64)  # (env, options)

    def evidence(target: torch.Tensor) -> torch.Tensor:
        return (table[:, :2] * target).sum() + (table[:, 2] * (1 - target.sum(-1))).sum()

    start = torch.zeros(3, 2, dtype=torch.float64)
    uniform = torch.rand(4000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn, probs = torch.func.vmap(lambda u: directions.reassigned(evidence, start, u))(uniform)
    expected = table.softmax(-1)[:, :2]
    expected[0] = 0.0
    torch.testing.assert_close(probs[0], expected)
    torch.testing.assert_close(drawn.mean(0), expected, atol=0.03, rtol=0)
    best, gain = directions.best_reassignment(evidence, start)
    assert best.tolist() == [[0, 0], [0, 0], [0, 1]] or best.tolist() == [[0, 0], [1, 0], [0, 0]]
    assert gain == 2.0


def test_clusters_are_the_targets_on_exact_moments() -> None:
    data = simulate([*SINGLE, *SINGLE, ()], sizes=20_000, seed=103, named=False)
    moments = data.moments
    basis = torch.linalg.eigh(moments.cov[0]).eigenvectors[:, -4:]
    blank = linear_sem.Environments(moments.count, moments.mean, moments.cov, torch.zeros(10, 7).double())
    found = directions.cluster_targets(blank.transform(basis.mT))
    assert found[0].sum() == found[-1].sum() == 0
    np.testing.assert_array_equal(found[1:5].argmax(1), found[5:9].argmax(1))
    assert (found[1:5].sum(0) == 1).all()


def test_bad_input_of_unknown_targets() -> None:
    data = simulate(SINGLE, sizes=50, named=False)
    with pytest.raises(InputError, match="environments"):
        pyrocrl.build("linear_sem_lin", data, latents=5, targets="unknown")
    with pytest.raises(InputError, match="targets"):
        pyrocrl.build("linear_sem_lin", data, latents=4)
    nameless = Data(data.x, data.env)
    with pytest.raises(InputError, match="control"):
        pyrocrl.build("linear_sem_lin", nameless, latents=4, targets="unknown")
    program = pyrocrl.build("linear_sem_lin", data, latents=4, targets="unknown")
    with pytest.raises(InputError, match="environments"):
        program.check(simulate(SINGLE[:3], sizes=50, named=False))
    misnamed = simulate([*SINGLE[:3], (9,)], sizes=50, latents=10)
    assert pyrocrl.build("linear_sem_lin", misnamed, latents=3, targets="unknown").unknown  # labels are ignored


# -- the setting -----------------------------------------------------------------------------------------------------


def test_varici_setting_is_as_published() -> None:
    data = pyrocrl.simulate.draw("varici2024_linear", seed=4, samples=4000)
    z, weight, graph = data.truth["z"], data.truth["weight"], data.truth["graph"]
    assert data.x.shape == (24_000, 15)
    assert np.linalg.matrix_rank(data.x[:200]) == 5
    assert is_acyclic(graph)
    assert graph.any()
    size = np.abs(weight[graph == 1])
    assert ((size >= 0.5) & (size <= 1.5)).all()
    labels = data.env_labels()
    for k in range(5):
        parents = np.flatnonzero(graph[:, k])
        natural, changed = z[labels == "observational"], z[labels == f"target_{k}"]
        noise = (natural[:, k] - natural[:, parents] @ weight[parents, k]).var()
        assert 0.45 < noise < 1.6
        assert 4.5 < changed[:, k].var() / noise < 5.5
        if parents.size:
            assert np.abs(np.corrcoef(changed[:, [k, *parents]].T)[0, 1:]).max() < 0.06


def test_search_gains_on_the_construction_alone() -> None:
    data = simulate(SINGLE, sizes=2000, seed=104)
    program = pyrocrl.build("linear_sem_lin", data).to(torch.float64)
    batch = data.tensors("cpu", torch.float64, moments=True)
    value, score = [], []
    for start in (program.construct, program.initialise):
        with torch.no_grad():
            start(data, torch.Generator().manual_seed(0))
            value.append(float(program._objective(program.chart[:, 0])))
            score.append(mcc(data.truth["z"], program.latents(batch).numpy()))
    assert 0.6 < score[0] < score[1]
    assert score[1] > 0.99
    assert value[1] > value[0] + 1.0
