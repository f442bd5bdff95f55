"""Linear structural equation models: closed forms against integration and simulation, queries, and the start."""

import math

import numpy as np
import pyro
import pytest
import torch
from chirho.interventional.handlers import do
from torch import Tensor

import pyrocrl
from pyrocrl import Program
from pyrocrl.claims.indeterminacy import is_acyclic
from pyrocrl.constructions import directions
from pyrocrl.dists import Normal
from pyrocrl.errors import InputError
from pyrocrl.exact import linear_sem, orders
from pyrocrl.simulate import draw

WEIGHT = torch.tensor([[0.0, 0.8, -0.5], [0.0, 0.0, 0.6], [0.0, 0.0, 0.0]], dtype=torch.float64)
SEM = linear_sem.LinearSEM(
    WEIGHT,
    torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64),
    torch.tensor([0.5, 1.0, 0.7], dtype=torch.float64),
)


def random_cov(d: int, seed: int = 0) -> torch.Tensor:
    root = torch.randn(d, 2 * d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return root @ root.mT / (2 * d)


def population(seed: int = 0, d: int = 4) -> tuple[linear_sem.Environments, torch.Tensor, np.ndarray]:
    """Exact moments of y with z = M y under one perfect intervention per latent, the true M and graph."""
    rng = np.random.default_rng(seed)
    graph = np.triu(rng.random((d, d)) < 0.75, 1)
    weight = graph * rng.uniform(0.4, 1.0, (d, d)) * rng.choice([-1, 1], (d, d))
    scale = rng.uniform(0.25, 0.5, d)
    unmixing = torch.as_tensor(rng.standard_normal((d, d)))
    mixing = torch.linalg.inv(unmixing)
    covs = []
    for target in range(-1, d):
        w, s = weight.copy(), scale.copy()
        if target >= 0:
            w[:, target], s[target] = 0.0, rng.uniform(0.1, 0.9)
        one = linear_sem.LinearSEM(*(torch.as_tensor(v) for v in (w, np.zeros(d), s)))
        covs.append(mixing @ linear_sem.sem_moments(one)[1] @ mixing.mT)
    target = torch.cat([torch.zeros(1, d), torch.eye(d)]).double()
    count = torch.full((d + 1,), 5000.0, dtype=torch.float64)
    return linear_sem.Environments(count, torch.zeros(d + 1, d).double(), torch.stack(covs), target), unmixing, graph


def objective_of(environments: linear_sem.Environments) -> directions.Objective:
    data = linear_sem.slices(environments, linear_sem.target_pairs(environments.target))
    return lambda rows: linear_sem.log_marginal(rows, data, environments.count.sum(), 0.5)


# -- algebra -----------------------------------------------------------------------------------------------


def test_log_minors_are_determinants() -> None:
    cov = random_cov(4)
    found = linear_sem.log_minors(cov)
    for index in range(16):
        nodes = [i for i in range(4) if index >> i & 1]
        expected = torch.linalg.slogdet(cov[nodes][:, nodes]).logabsdet if nodes else torch.zeros(())
        torch.testing.assert_close(found[index], expected.double())


def test_log_abs_det_has_right_second_derivatives_under_vmap() -> None:
    matrices = torch.randn(3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(linear_sem.log_abs_det(matrices), torch.linalg.slogdet(matrices).logabsdet)
    hessian = torch.func.jacrev(torch.func.jacrev(linear_sem.log_abs_det))
    inverse = torch.linalg.inv(matrices)
    together = torch.func.vmap(hessian)(matrices)
    torch.testing.assert_close(together, torch.stack([hessian(m) for m in matrices]))
    exact = -torch.einsum("nbc,nda->nabcd", inverse, inverse)
    torch.testing.assert_close(together, exact)


def test_pooled_moments_are_those_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((n, 3)) + shift for n, shift in ((20, 0.0), (35, 1.0), (15, -2.0))]
    environments = linear_sem.Environments(
        torch.tensor([float(len(p)) for p in parts]).double(),
        torch.stack([torch.as_tensor(p.mean(0)) for p in parts]),
        torch.stack([torch.as_tensor(np.cov(p.T, ddof=0)) for p in parts]),
        torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 1]]).double(),
    )
    data = linear_sem.slices(environments, linear_sem.target_pairs(environments.target))
    assert data.node.tolist() == [0, 1, 2, 0, 1, 2]
    natural = np.concatenate([parts[0], parts[2]])  # the rows in which node 0 has its own mechanism
    assert float(data.count[0]) == len(natural)
    np.testing.assert_allclose(data.mean[0], natural.mean(0))
    np.testing.assert_allclose(data.cov[0], np.cov(natural.T, ddof=0))
    np.testing.assert_allclose(data.cov[4], np.cov(parts[2].T, ddof=0))


# -- marginal likelihood -----------------------------------------------------------------------------------


def test_regression_score_against_numerical_integration() -> None:
    rng = np.random.default_rng(3)
    n = 8
    parent = rng.standard_normal(n)
    child = 0.7 * parent + 0.4 + 0.5 * rng.standard_normal(n)
    rows = np.stack([parent, child], 1)
    cov = torch.as_tensor(np.cov(rows.T, ddof=0))[None]
    scores = linear_sem.regression_scores(cov, torch.tensor([float(n)]).double(), torch.tensor([1]))[0]

    a = np.linspace(-4, 4, 161)  # intercept at the parent's mean
    log_s = np.linspace(-2.5, 2.5, 161)
    b = np.linspace(-4, 5, 181)
    A, L, B = np.meshgrid(a, log_s, b, indexing="ij")
    s2 = np.exp(2 * L)
    centred = parent - parent.mean()
    slab_var = n * s2 / (centred @ centred)
    cell = (a[1] - a[0]) * (log_s[1] - log_s[0])
    for index, slope in ((0, 0.0), (1, B)):
        square = sum((y - A - slope * x) ** 2 for x, y in zip(centred, child, strict=True))
        log_p = -n / 2 * np.log(2 * np.pi * s2) - square / (2 * s2)
        log_p = log_p - 1.5 * np.log(s2) + np.log(2 * s2)  # the prior s^-3 on (a, s^2); d s^2 = 2 s^2 d log s
        if index == 0:
            value = np.log(np.exp(log_p[..., 0]).sum() * cell)
        else:
            log_p = log_p - 0.5 * np.log(2 * np.pi * slab_var) - B**2 / (2 * slab_var)
            value = np.log(np.exp(log_p).sum() * cell * (b[1] - b[0]))
        np.testing.assert_allclose(float(scores[index]), value, atol=2e-3)


@pytest.mark.parametrize("intervention", ["perfect", "soft"])
def test_marginal_is_blind_to_scale_and_sums_over_all_graphs(intervention: linear_sem.Intervention) -> None:
    environments, unmixing, _ = population(d=3)
    data = linear_sem.slices(environments, linear_sem.target_pairs(environments.target))
    total = environments.count.sum()
    value = linear_sem.log_marginal(unmixing, data, total, 0.3, intervention)
    scale = torch.tensor([[2.0], [-0.3], [5.0]], dtype=torch.float64)
    torch.testing.assert_close(linear_sem.log_marginal(scale * unmixing, data, total, 0.3, intervention), value)

    table = linear_sem.mechanism_scores(unmixing, data, 0.3, intervention)
    terms = []
    for graph in orders.all_dags(3):
        fitting = sum(
            orders.is_order_of(o, graph) for o in ([0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0])
        )
        sets = graph.T.astype(int) @ np.array([1, 2, 4])
        terms.append(sum(float(table[k, sets[k]]) for k in range(3)) + math.log(fitting))
    brute = np.logaddexp.reduce(terms) + 3 * math.log(0.7) - math.log(6)
    brute += float(total * torch.linalg.slogdet(unmixing).logabsdet)
    np.testing.assert_allclose(float(value), brute, rtol=1e-12)


def test_drawn_mechanisms_have_the_conjugate_posterior() -> None:
    torch.manual_seed(0)
    environments, unmixing, graph = population(d=3)
    data = linear_sem.slices(environments, linear_sem.target_pairs(environments.target))
    edges = torch.as_tensor(graph)
    many = torch.func.vmap(
        lambda _: linear_sem.draw_mechanisms(unmixing, edges, data), randomness="different", in_dims=0
    )(torch.zeros(4000))
    mean = linear_sem.draw_mechanisms(unmixing, edges, data, noisy=False)
    cov = unmixing @ data.cov @ unmixing.mT
    for k in range(3):
        parents = np.flatnonzero(graph[:, k])
        inner = cov[k][parents][:, parents]
        slope = torch.linalg.solve(inner, cov[k][parents, k])
        n = float(data.count[k])
        torch.testing.assert_close(mean.weight[k, parents], n / (n + 1) * slope)
        absent = np.flatnonzero(~graph[:, k])
        assert (many.weight[:, k, absent] == 0).all()
        if not parents.size:
            continue
        spread = mean.scale[k] * (torch.linalg.inv(inner).diagonal() / n).sqrt()
        torch.testing.assert_close(many.weight[:, k, parents].std(0), spread, rtol=0.06, atol=0)
        torch.testing.assert_close(many.weight[:, k, parents].mean(0), slope, rtol=0.01, atol=1e-3)
    torch.testing.assert_close(many.scale.mean(0), mean.scale, rtol=0.01, atol=0)
    torch.testing.assert_close(many.intercept.std(0)[3:], mean.scale[3:] / 5000**0.5, rtol=0.06, atol=0)


# -- two forms of one distribution, and queries ------------------------------------------------------------


def story(rows: int, told: Tensor | None = None) -> Tensor:
    """SEM latent by latent, as a story has it."""
    with pyro.plate("data", rows, dim=-1):
        return Program.along(
            range(3),
            lambda k, z: Normal(SEM.intercept[k] + (z * SEM.weight[:, k]).sum(-1), SEM.scale[k].expand(rows)),
            torch.zeros(rows, 3, dtype=torch.float64),
            told,
        )


def test_forms_agree() -> None:
    torch.manual_seed(0)
    with pyro.poutine.trace() as record:
        z = story(50)
    record.trace.compute_log_prob()
    sites = sum(record.trace.nodes[f"z_{k}"]["log_prob"] for k in range(3))
    rows = linear_sem.sem_log_prob(z, SEM)
    torch.testing.assert_close(sites, rows)
    mean, cov = linear_sem.sem_moments(SEM)
    normal = torch.distributions.MultivariateNormal(mean, cov)
    torch.testing.assert_close(rows, normal.log_prob(z))
    for k in range(3):
        torch.testing.assert_close(record.trace.nodes[f"z_{k}"]["value"], z[:, k])
    torch.testing.assert_close(story(50, told=z), z)


def test_do_moves_descendants_only() -> None:
    torch.manual_seed(1)
    before = story(1000)
    torch.manual_seed(1)
    with do(actions={"z_1": torch.tensor(2.0, dtype=torch.float64)}):
        after = story(1000)
    torch.testing.assert_close(after[:, 0], before[:, 0])
    assert (after[:, 1] == 2.0).all()
    torch.testing.assert_close(after[:, 2] - before[:, 2], WEIGHT[1, 2] * (2.0 - before[:, 1]))


# -- the start and the finish ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_construction_is_exact_on_exact_moments(seed: int) -> None:
    """One of the two candidates is the true row, and acyclicity picks it for every row."""
    environments, unmixing, graph = population(seed)
    true = unmixing / unmixing.norm(dim=-1, keepdim=True)
    candidates = directions.candidate_rows(environments, torch.Generator().manual_seed(0))
    agreement = torch.einsum("kcd,kd->kc", candidates, true).abs().amax(1)
    torch.testing.assert_close(agreement, torch.ones(4, dtype=torch.float64))
    objective = objective_of(environments)
    chosen = directions.choose_rows(candidates, objective, 2, torch.Generator().manual_seed(1))
    best = directions.climb(objective, chosen)[0]
    rows = best.chart[:, 0]
    torch.testing.assert_close((rows * true).sum(-1).abs(), torch.ones(4, dtype=torch.float64), atol=1e-5, rtol=0)
    data = linear_sem.slices(environments, linear_sem.target_pairs(environments.target))
    found = orders.edge_probabilities(linear_sem.mechanism_scores(rows, data, 0.5)) > 0.5
    np.testing.assert_array_equal(found.numpy(), graph)


def test_joint_interventions_and_several_environments_per_target() -> None:
    environments, unmixing, _ = population(2)
    again = [0, 1, 2, 3, 4, 4]  # the last target twice
    double = linear_sem.Environments(*(value[again] for value in environments))
    candidates = directions.candidate_rows(double, torch.Generator().manual_seed(0))
    true = unmixing / unmixing.norm(dim=-1, keepdim=True)
    agreement = torch.einsum("kcd,kd->kc", candidates, true).abs().amax(1)
    torch.testing.assert_close(agreement, torch.ones(4, dtype=torch.float64))
    joint = environments._replace(target=environments.target.clone())
    joint.target[1, 1] = 1
    rows = directions.candidate_rows(joint, torch.Generator().manual_seed(0))
    assert torch.isfinite(rows).all()
    assert torch.isfinite(objective_of(joint)(rows[:, 0]))


def test_resampled_covariances_are_wishart() -> None:
    environments, _, _ = population(d=3)
    generator = torch.Generator().manual_seed(0)
    few = environments._replace(count=torch.full_like(environments.count, 51.0))
    covs = torch.stack([directions.resample(few, generator).cov[0] for _ in range(600)])
    torch.testing.assert_close(covs.mean(0), few.cov[0], rtol=0.05, atol=0.05 * float(few.cov[0].abs().max()))
    spread = few.cov[0].diagonal() * (2 / 50) ** 0.5
    torch.testing.assert_close(covs.std(0).diagonal(), spread, rtol=0.12, atol=0)


def test_directions_are_uniform_in_any_chart() -> None:
    torch.manual_seed(0)
    prior = directions.Directions(torch.zeros((), dtype=torch.float64), 2)
    angle = torch.linspace(-math.pi / 2, math.pi / 2, 20_003, dtype=torch.float64)[1:-1]
    density = torch.stack([prior.log_prob(torch.stack([u, u])).exp().sqrt() for u in angle.tan()[::400]])
    torch.testing.assert_close(density * (1 + angle.tan()[::400] ** 2), torch.full_like(density, 1 / math.pi))
    chart = directions.chart_at(torch.randn(3, 3, dtype=torch.float64))
    eye = torch.eye(3, dtype=torch.float64).expand(3, 3, 3)
    torch.testing.assert_close(chart @ chart.mT, eye)
    u = directions.Directions(torch.zeros((), dtype=torch.float64), 3).sample(torch.Size((4000,)))
    rows = torch.func.vmap(directions.unit_rows, in_dims=(0, None))(u, chart)
    second = torch.einsum("nki,nkj->kij", rows, rows) / len(rows)
    torch.testing.assert_close(second, eye / 3, atol=0.03, rtol=0)


# -- the setting and the model -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squires2023_hard", "squires2023_soft"])
def test_setting_is_as_published(name: str) -> None:
    data = draw(name, seed=4, samples=4000)
    z, weight, graph = data.truth["z"], data.truth["weight"], data.truth["graph"]
    assert data.x.shape == (24_000, 10)
    assert np.linalg.matrix_rank(data.x[:200]) == 5
    assert is_acyclic(graph)
    assert graph.sum() >= 5
    assert (np.abs(weight[graph == 1]) >= 0.25).all()
    assert (np.abs(weight) <= 1).all()
    labels = data.env_labels()
    for k in range(5):
        parents = np.flatnonzero(graph[:, k])
        natural, changed = z[labels == "observational"], z[labels == f"target_{k}"]
        noise = natural[:, k] - natural[:, parents] @ weight[parents, k]
        assert 0.24 < noise.std() < 0.52
        if name.endswith("hard"):
            assert 1 / 8.5 < changed[:, k].std() < 1 / 5.7
            if parents.size:
                assert np.abs(np.corrcoef(changed[:, [k, *parents]].T)[0, 1:]).max() < 0.06


@pytest.mark.slow
def test_linear_sem_lin_recovers_and_its_cost_does_not_depend_on_the_rows() -> None:
    data = draw("squires2023_hard", seed=200, samples=2500)
    fit = pyrocrl.fit(pyrocrl.build("linear_sem_lin", data, latents=5), data, chains=2, progress=False)
    scores = pyrocrl.evaluate(fit, data)
    assert scores["mcc"] >= 0.995
    assert scores["shd"] <= 1
    assert scores["shd"] < scores["shd_empty"]
    tree = fit.posterior(draws=20, thin=500)
    drawn = tree["posterior"]["graph"].to_numpy().reshape(-1, 5, 5)
    assert all(is_acyclic(g) for g in drawn)
    names = [p for p, _ in fit.program.named_parameters()] + [b for b, _ in fit.program.named_buffers()]
    sizes = {n: v.numel() for n, v in fit.program.state_dict().items()}
    assert set(sizes) == set(names)
    assert max(v for k, v in sizes.items() if k != "drawn") < 2000  # no tensor grows with the rows


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"latents": 101}, "latents"),
        ({"latents": 13, "intervention": "soft"}, "latents"),
        ({"latents": 13, "targets": "unknown", "environments": 20}, "latents"),
        ({"latents": 4}, "targets"),
        ({"targets": "guessed"}, "targets"),
        ({"targets": "unknown", "environments": 5}, "environments"),
        ({"intervention": "hard"}, "intervention"),
        ({"edge_probability": 1.0}, "edge_probability"),
        ({"target_matrix": [[0] * 5] * 6}, "targets"),
        ({"target_matrix": [[1] * 5] * 6}, "targets"),
        ({"target_matrix": [[2] * 5] * 6}, "target_matrix"),
    ],
)
def test_bad_options(options: dict, word: str) -> None:
    data = draw("squires2023_hard", samples=20, features=20)
    with pytest.raises(InputError, match=word) as error:
        pyrocrl.build("linear_sem_lin", data, **({"latents": 5} | options))
    assert "\n" not in str(error.value)
