"""LatentSEM: its density against its draws, its exact posterior against the truth, and the affine unmixing for it."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor

from pyrocrl import InputError, simulate
from pyrocrl.claims.indeterminacy import is_acyclic
from pyrocrl.constructions.affine import bend, grouped_ridge, unmix
from pyrocrl.exact import orders
from pyrocrl.exact.linear_sem import LinearSEM
from pyrocrl.exact.orders import is_order_of
from pyrocrl.judge.metrics import mcc
from pyrocrl.parts.latent_sem import Equations, LatentSEM
from pyrocrl.parts.nets import Residual

KINDS = ("perfect", "soft", "variance", "shift")
MECHANISMS = ("linear", "relu")
D = 3
TARGETS = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]  # (env, latent)
CHAIN = torch.tensor([[0.0, 0.9, 0.0], [0.0, 0.0, 0.8], [0.0, 0.0, 0.0]], dtype=torch.float64)


pytestmark = pytest.mark.usefixtures("double")


def truth(
    kind: str, mechanism: str = "relu", target: list[list[int]] | None = TARGETS, escapees: bool = False
) -> LatentSEM:
    """z_0 -> z_1 -> z_2 with interventions that change scale 1.7 times and add 1.5; no parents where perfect."""
    envs = len(target or TARGETS)
    out = LatentSEM(D, envs, target, kind, mechanism, escapees)  # type: ignore[arg-type]
    with torch.no_grad():
        out.before.copy_(torch.ones(D, D).triu(1))
        out.weight.copy_(CHAIN)
        out.own_weight.copy_(-0.5 * CHAIN.expand(envs, D, D))
        out.intercept.copy_(torch.tensor([0.3, -0.2, 0.1]))
        out.log_scale.copy_(torch.tensor([0.0, -0.3, 0.2]))
        out.own_intercept.fill_(1.5)
        out.own_log_scale.fill_(0.0 if kind == "shift" else math.log(1.7))
    return out


def equations(model: LatentSEM) -> Equations:
    """The model's own equations, through its story."""
    with torch.no_grad():
        told: Equations = pyro.poutine.condition(model.story, data=model.own())()
    return told


def draw(model: LatentSEM) -> tuple[Equations, dict[str, Tensor]]:
    """Equations given the moments, and the read-outs that the story has of them."""
    with torch.no_grad(), pyro.poutine.trace() as record:
        model.recover()
    sites = {n: s["value"] for n, s in record.trace.nodes.items() if type(s["fn"]).__name__ != "_Subsample"}
    with torch.no_grad(), pyro.poutine.trace() as record:
        out = pyro.poutine.condition(model.story, data=sites)()
    return out, {n: s["value"] for n, s in record.trace.nodes.items() if s["type"] == "sample"}


def simulated(model: LatentSEM, drawn: Equations, env: Tensor, together: tuple[int, ...] | None = None) -> Tensor:
    """(rows, latent) new latents, all of them at once and as often as the longest path needs."""
    with torch.no_grad():
        own = model.of_rows(drawn, env, together)
        eps = own.scale * torch.randn_like(own.scale)
        z = torch.zeros_like(eps)
        for _ in range(D):
            z = own.intercept + eps + torch.einsum("rj,rjk->rk", model.link(z), own.weight)
    return z


def drawn(model: LatentSEM, rows: int) -> tuple[Tensor, Tensor]:
    env = torch.arange(model.environments).repeat_interleave(rows)
    return simulated(model, equations(model), env), env


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", KINDS)
def test_density_is_that_of_the_draws(kind: str, mechanism: str) -> None:
    """E_p[q / p] = 1 for any normalised q, and -E log p is the entropy, which is that of the noise."""
    model = truth(kind, mechanism)
    z, env = drawn(model, 40_000)
    log_p = model.log_prob(z, env)
    ratio = (truth_shifted(kind, mechanism).log_prob(z, env) - log_p).exp().detach()
    for e in range(model.environments):
        assert float(ratio[env == e].mean()) == pytest.approx(1.0, abs=0.05)
        scale = model.log_scale + 0.0
        if e and kind != "shift":
            own = math.log(1.7)
            scale = scale + model.target[e] * (own if kind == "variance" else own - model.log_scale)
        entropy = float((scale.detach() + 0.5 * math.log(2 * math.pi * math.e)).sum())
        assert -float(log_p[env == e].detach().mean()) == pytest.approx(entropy, abs=0.03)


def truth_shifted(kind: str, mechanism: str) -> LatentSEM:
    other = truth(kind, mechanism)
    with torch.no_grad():
        other.intercept += 0.1
        other.own_intercept -= 0.1
        other.weight[0, 1] -= 0.05
    return other


@pytest.mark.parametrize("kind,mechanism", [("perfect", "linear"), ("soft", "linear"), *((k, "relu") for k in KINDS)])
def test_graph_posterior_recovers_the_truth(kind: str, mechanism: str) -> None:
    z, env = drawn(truth(kind, mechanism), 2_000)
    model = LatentSEM(D, 4, TARGETS, kind, mechanism)  # type: ignore[arg-type]
    model.start(z, env)
    true = (CHAIN != 0).double()
    assert ((model.graph() > 0.5).double() == true).all()
    assert float((model.graph() * true).sum()) > 1.9
    assert is_order_of(model.before.sum(0).argsort().numpy(), true.numpy())
    draws = [draw(model)[1] for _ in range(40)]
    assert all(is_acyclic(one["graph"].numpy()) for one in draws)
    for name, value in (("weight", CHAIN), ("intercept", torch.tensor([0.3, -0.2, 0.1]))):
        mean = torch.stack([one[name] if name == "weight" else one[name][0] for one in draws]).mean(0)
        torch.testing.assert_close(mean, value, atol=0.08, rtol=0)
    scale = torch.stack([one["noise"] for one in draws]).mean(0)
    torch.testing.assert_close(scale[0].log(), torch.tensor([0.0, -0.3, 0.2]), atol=0.05, rtol=0)
    ratio = {"perfect": 1.7, "soft": 1.7, "variance": 1.7 * math.exp(0.2), "shift": math.exp(0.2)}[kind]
    assert float(scale[3, 2]) == pytest.approx(ratio, rel=0.06)
    if kind in ("shift", "variance"):
        shift = torch.stack([one["shift"] for one in draws]).mean(0)
        torch.testing.assert_close(shift, 1.5 * torch.tensor(TARGETS).double(), atol=0.15, rtol=0)
    if kind == "soft":
        own = torch.stack([one["env_weight"] for one in draws]).mean(0)
        assert float(own[2, 0, 1]) == pytest.approx(-0.45, abs=0.1)


@pytest.mark.parametrize("kind", ["shift", "variance"])
def test_absorbed_weights_leave_the_prior_of_graphs(kind: str) -> None:
    z, env = drawn(truth(kind, "linear"), 500)
    model = LatentSEM(D, 4, TARGETS, kind, "linear")  # type: ignore[arg-type]
    model.start(z, env)
    assert model.absorbed
    prior = model.graph()
    assert torch.allclose(prior, prior.mT)
    assert float(prior[0, 1]) == pytest.approx(0.25, abs=0.03)  # edge probability .5, either direction
    draws = torch.stack([draw(model)[1]["graph"] for _ in range(600)])
    torch.testing.assert_close(draws.mean(0), prior, atol=0.07, rtol=0)
    assert all(is_acyclic(one.numpy()) for one in draws)


@pytest.mark.parametrize("kind", ["shift", "variance"])
def test_a_free_decoder_absorbs_relu_links(kind: str) -> None:
    """Graph and weights from their prior, their innovations those of the latents that the decoder takes."""
    z, env = drawn(truth(kind), 500)
    model = LatentSEM(D, 4, TARGETS, kind, "relu", free=True)  # type: ignore[arg-type]
    model.load_state_dict(truth(kind).state_dict())
    model.gather(z, env)
    assert float(model.graph()[0, 1]) == pytest.approx(0.25, abs=0.03)
    one = draw(model)[1]
    latents = model.solve(model.innovations(z), one["weight"])
    torch.testing.assert_close(latents - latents.relu() @ one["weight"], z - z.relu() @ model.weight)
    torch.testing.assert_close(model.seen(latents, one["weight"]), z)
    assert not torch.allclose(latents, z, atol=0.1)
    perfect = LatentSEM(D, 4, TARGETS, "perfect", "relu", free=True)
    assert not perfect.absorbed
    perfect.start(*drawn(truth("perfect"), 500))
    assert float(perfect.graph()[0, 1]) > 0.9


def test_coefficients_of_groups_are_those_of_one_large_design() -> None:
    group, value, shared = torch.randint(0, 7, (300,)), torch.randn(300), torch.randn(300, 3)
    own = torch.randn(300, 2) * (torch.rand(300, 1) > 0.3)
    hot = torch.nn.functional.one_hot(group, 8).to(own)  # one group without rows
    design = torch.cat([shared, (hot[:, :, None] * own[:, None]).flatten(1)], 1)
    expected = torch.linalg.solve(design.mT @ design + 0.5 * torch.eye(design.shape[1]), design.mT @ value)
    found, left = grouped_ridge(shared, own, group, 8, value, 0.5)
    torch.testing.assert_close(found, expected[:3])
    torch.testing.assert_close(left, value - design @ expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_evidence_by_what_is_added_is_that_of_all_moments(kind: str) -> None:
    """Differences between the targets of an environment, whatever those of the others."""
    model = LatentSEM(D, 5, None, kind, "relu")  # type: ignore[arg-type]
    z, env = drawn(truth(kind, target=[*TARGETS, [0, 0, 0]]), 200)
    model.start(z, env)
    model.own_log_scale.normal_(0.0, 0.3)
    options = torch.eye(D + 1, D)

    def whole(target: Tensor) -> float:
        scores = model._scores(model._slices(target), model.maps[0])
        value = scores[:, 0].sum() if model.absorbed else orders.log_partition(scores)
        for e, k in model._pairs(target) if kind in ("shift", "variance") else []:
            value = value - 0.5 * model.count[e].log()
            if kind == "variance":
                value = value - model.count[e] * model.own_log_scale[e, k]
        return float(value)

    natural, own = model._added()
    current = torch.tensor([D, 0, 1, 1, D])
    for e in range(1, 5):
        rest = type(natural)(*(torch.zeros_like(part[0]) for part in own))
        for other in set(range(5)) - {e}:
            rest = rest.moved(natural, own, other, int(current[other]), 1.0)
        found = model._evidence(type(rest)(*(part[None] for part in rest)), natural, own, torch.tensor([e]))[0]
        expected = [whole(options[torch.cat([current[:e], torch.tensor([k]), current[e + 1 :]])]) for k in range(D + 1)]
        torch.testing.assert_close(found - found[D], torch.tensor(expected) - expected[D], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_targets_are_found(kind: str) -> None:
    """Two environments share a target, one changes nothing: five environments for three latents."""
    target = [*TARGETS, [0, 1, 0], [0, 0, 0]]
    z, env = drawn(truth(kind, target=target), 800)
    model = LatentSEM(D, 6, None, kind, "relu")  # type: ignore[arg-type]
    model.start(z, env)
    assert model.hard_targets().tolist() == target
    assert (model.target_log_prob.exp().amax(-1) > 0.9).all()
    assert model.target_probabilities()[0].sum() == 0
    found = draw(model)[1]
    assert set(found) >= {"graph", "weight", "targets", "shift", "intercept", "noise"}
    assert found["targets"].shape == (6, D)


def test_unknown_targets_have_the_expected_density() -> None:
    z, env = drawn(truth("shift"), 5)
    model = truth("shift", target=None)
    with torch.no_grad():
        model.target_logits.copy_(torch.randn(4, D + 1))
    expected = torch.zeros(len(z))
    for e in range(4):
        prob = model.target_logits[e].softmax(-1) if e else torch.tensor([0.0, 0.0, 0.0, 1.0])
        for k in range(D + 1):
            hot = [[0] * D for _ in range(4)]
            if k < D:
                hot[e][k] = 1
            one = truth("shift", target=hot)
            expected[env == e] += prob[k] * one.log_prob(z, env)[env == e]
    torch.testing.assert_close(model.log_prob(z, env), expected)


def test_escapees() -> None:
    """The mixture's density integrates the Bernoulli; escaped rows are told by the posterior and left out of shifts."""
    model = truth("shift", escapees=True)
    with torch.no_grad():
        model.own_intercept.fill_(4.0)
        model.escape_logit.fill_(math.log(0.3 / 0.7))
    env = torch.arange(4).repeat_interleave(1_500)
    flag = (torch.rand(len(env)) < 0.3).double()
    z = simulated(model, equations(model), torch.where(flag > 0.5, 0, env))
    natural, change = model.log_densities(z, env)
    shifted = natural.sum(-1) + (model.target[env] * change).sum(-1)
    mixture = torch.stack([natural.sum(-1) + math.log(0.3), shifted + math.log(0.7)]).logsumexp(0)
    torch.testing.assert_close(model.log_prob(z, env)[env > 0], mixture[env > 0])
    torch.testing.assert_close(model.log_prob(z, env)[env == 0], natural.sum(-1)[env == 0])
    found = model.escaped(z, env).detach()
    assert (found[env == 0] == 0).all()
    hit = env > 0
    assert float(((found > 0.5) == (flag > 0.5))[hit].double().mean()) > 0.95
    assert float(found[hit].mean()) == pytest.approx(0.3, abs=0.03)  # calibrated on average
    model.gather(z, env)
    shift = torch.stack([draw(model)[1]["shift"] for _ in range(20)]).mean(0)
    torch.testing.assert_close(shift, 4.0 * model.target, atol=0.2, rtol=0)
    with torch.no_grad(), pyro.poutine.trace() as record, pyro.plate("data", len(env), dim=-1):
        acting = model.acting(env)
    assert float((acting[env == 1] == 0).double().mean()) == pytest.approx(0.3, abs=0.06)
    assert (acting == torch.where(record.trace.nodes["escaped"]["value"] > 0.5, 0, env)).all()


def test_however_little_latents_tell_equations_of_rows_have_their_lines() -> None:
    """Chains of one fit differ in how sure they are of latents, not in which equations they draw."""
    model = truth("perfect", "linear")
    env = torch.arange(4).repeat_interleave(30)
    z = simulated(model, equations(model), env)
    model.gather(z, env)
    (_, sure) = draw(model)
    model.temper(z, 3.0 * z.var(0).expand_as(z), 1.0, 0.06)  # q is wider than latents are
    assert float(model.count.sum()) < len(z) / 10
    (_, unsure) = draw(model)
    assert sure["variance"].shape == unsure["variance"].shape == (D + 3,)
    assert all(torch.isfinite(value).all() for value in unsure.values())


def test_pairs_use_the_singles_effects() -> None:
    """An environment with two targets shares the parameters of the single ones, so that shifts add."""
    target = [*TARGETS, [1, 1, 0]]
    model = LatentSEM(D, 5, target, "shift", "relu")
    assert model.slot[4].tolist() == [1, 2, 4]
    with torch.no_grad():
        model.own_intercept.copy_(torch.arange(15.0).reshape(5, 3))
    z = torch.randn(4, D)
    one = model.log_densities(z, torch.full((4,), 4))[1]
    torch.testing.assert_close(one[:, 0], model.log_densities(z, torch.full((4,), 1))[1][:, 0])
    torch.testing.assert_close(one[:, 1], model.log_densities(z, torch.full((4,), 2))[1][:, 1])


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("kind", KINDS)
def test_interventions_together_are_those_of_one_environment_with_both_targets(kind: str, mechanism: str) -> None:
    z, env = drawn(truth(kind, mechanism), 2_000)
    model = LatentSEM(D, 4, TARGETS, kind, mechanism)  # type: ignore[arg-type]
    model.start(z, env)
    found, _ = draw(model)
    rows = 40_000
    natural = torch.zeros(rows, dtype=torch.long)
    for envs in ((), (1,), (3,)):  # one alone is the environment itself
        a, b = model.of_rows(found, natural, envs), model.of_rows(found, natural + sum(envs), None)
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y)
    weight, intercept, scale = (v.clone() for v in found.everywhere)
    first, second = found.targets[1], found.targets[2]
    intercept[3] = torch.where(first > 0, intercept[1], intercept[2])
    scale[3] = torch.where(first > 0, scale[1], scale[2])
    weight[3] = torch.where(first > 0, weight[1], weight[2])
    by_hand = found._replace(everywhere=LinearSEM(weight, intercept, scale))
    assert (first * second).sum() == 0 and (first + second).sum() == 2
    a, b = simulated(model, found, natural, (1, 2)), simulated(model, by_hand, natural + 3)
    torch.testing.assert_close(a.mean(0), b.mean(0), atol=0.06, rtol=0.02)
    torch.testing.assert_close(torch.cov(a.mT), torch.cov(b.mT), atol=0.15, rtol=0.05)


def test_shifts_on_one_latent_add() -> None:
    model = truth("shift", target=[*TARGETS, [0, 0, 1]])
    found = equations(model)
    one, two, both = (
        simulated(model, found, torch.zeros(20_000, dtype=torch.long), e)[:, 2].mean() for e in ((3,), (4,), (3, 4))
    )
    none = simulated(model, found, torch.zeros(20_000, dtype=torch.long), ())[:, 2].mean()
    assert float(both - none) == pytest.approx(float(one - none) + float(two - none), abs=0.1)
    assert float(one - none) == pytest.approx(1.5, abs=0.06)


@pytest.mark.parametrize("kind", ["perfect", "variance", "shift"])
def test_affine_unmixing_finds_the_latents(kind: str) -> None:
    """x = A z + b + noise in 6 columns, targets unknown: every latent, its order and its target."""
    source = truth(kind)
    with torch.no_grad():
        source.own_intercept.fill_(4.0)
    z, env = drawn(source, 700)
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(6, D, generator=generator)
    x = z @ mixing.mT + torch.randn(6, generator=generator) + 0.02 * torch.randn(len(z), 6, generator=generator)
    model = LatentSEM(D, 4, None, kind, "relu")  # type: ignore[arg-type]
    with torch.no_grad():
        unmixing, offset, loadings = unmix(x, env, model, generator)
    torch.testing.assert_close(unmixing @ loadings, torch.eye(D), atol=1e-6, rtol=0)
    found = (x @ unmixing.mT + offset).numpy()
    r = np.abs(np.corrcoef(z.numpy().T, found.T)[:D, D:])
    match = r.argmax(1)
    assert sorted(match) == [0, 1, 2]
    assert r.max(1).min() > 0.97
    hit = model.hard_targets()[1:].argmax(1).numpy()
    np.testing.assert_array_equal(hit, match)
    np.testing.assert_array_equal(model.before.sum(0).argsort().numpy(), match)


@pytest.mark.parametrize("known", [True, False])
def test_affine_unmixing_of_linear_equations_that_interventions_replace(known: bool) -> None:
    """No shifts: environments differ in their covariances alone, along no direction that is a latent's own."""
    data = simulate.draw("varici2024_linear", 100, samples=4_000)
    batch = data.tensors()
    target = data.target_matrix(5).tolist() if known else None
    model = LatentSEM(5, 6, target, "perfect", "linear").float()
    with torch.no_grad():
        unmixing, offset, _ = unmix(batch.x, batch.env, model, torch.Generator().manual_seed(0))
    assert mcc(data.truth["z"], (batch.x @ unmixing.mT + offset).numpy()) > 0.95


def test_bending_undoes_a_network() -> None:
    """From the best affine map, h comes closer to latents that a leaky ReLU has bent."""
    torch.set_default_dtype(torch.float32)
    source = truth("perfect").float()
    with torch.no_grad():
        source.own_intercept.fill_(2.5)
    z, env = drawn(source, 700)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.linalg.qr(torch.randn(8, k, generator=generator))[0] for k in (D, 8))
    hidden = (z - z.mean(0)) / z.std(0) @ first.mT
    x = torch.where(hidden > 0, hidden, 0.5 * hidden) @ second
    x = (x - x.mean(0)) / x.std(0)
    axes = torch.linalg.eigh(torch.cov(x.mT)).eigenvectors[:, -D:]
    model = LatentSEM(D, 4, TARGETS, "perfect", "relu")
    encoder, decoder = Residual(8, D, 32, 1).requires_grad_(False), Residual(D, 8, 32, 1)
    with torch.no_grad():
        unmixing, offset, _ = unmix(x @ axes, env, model, generator)
        encoder.linear.weight.copy_(unmixing @ axes.mT)
        encoder.linear.bias.copy_(offset)
        encoder.net[-1].weight.mul_(0.1)
        encoder.net[-1].bias.zero_()
        before = encoder(x)
        bend(x, env, encoder, decoder, model, generator)
        after = encoder(x)
    error = [1 - np.abs(np.corrcoef(z.T, found.T)[:D, D:].diagonal()) for found in (before, after)]
    assert error[1].mean() < 0.6 * error[0].mean()
    assert error[1].max() < 0.03
    assert not any(p.requires_grad for p in encoder.parameters())
    torch.testing.assert_close(model.residuals(after, env).mean(0), torch.zeros(D), atol=0.1, rtol=0)
    assert (model.graph()[CHAIN != 0] > 0.9).all()
    assert model.graph()[CHAIN == 0].sum() < 1  # 700 rows an environment leave the third edge in doubt: .05 to .75


def test_refusals() -> None:
    for arguments, word in (
        ((129, 2), "latents"),
        ((2, 2, None, "hard"), "intervention"),
        ((2, 2), "edge_probability"),
    ):
        with pytest.raises(InputError, match=word):
            LatentSEM(*arguments, **({"edge_probability": 1.0} if word == "edge_probability" else {}))  # type: ignore
