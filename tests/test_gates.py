"""Parts of sparse decoders: gates with their rates summed out, gates that settle, the encoder's start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pyrocrl.constructions.gates import gains
from pyrocrl.exact.beta_bernoulli import BetaBernoulliColumns, log_odds_given_others
from pyrocrl.parts.guides import SURE, SettlingGates
from pyrocrl.parts.nets import TrilEncoder


def test_log_odds_given_others_are_those_of_the_law() -> None:
    """Opening one gate of a column changes its log-density by the gate's log odds."""
    torch.manual_seed(0)
    gate = (torch.rand(5, 3) < 0.4).double()
    law, odds = BetaBernoulliColumns(torch.tensor(2.5).double(), 5, 3), log_odds_given_others(gate, 2.5)
    for j in range(5):
        for k in range(3):
            opened, shut = gate.clone(), gate.clone()
            opened[j, k], shut[j, k] = 1.0, 0.0
            torch.testing.assert_close(law.log_prob(opened) - law.log_prob(shut), odds[j, k])


def test_gains_are_differences_of_each_gate_alone() -> None:
    """Of a density that is linear in the mask, each gate's gain is its weight, whatever the others are."""
    torch.manual_seed(0)
    weight, mask = torch.randn(4, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])

    def density(z: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        used = gate * (gate.sum(0) > 1.5)  # as `sparse_vae` has it: a latent with one feature is switched off
        return (used * weight).sum(1) * z.sum()

    draws = [torch.ones(1, 2), torch.ones(1, 2)]
    torch.testing.assert_close(gains(density, draws, mask, [0, 1]), 4 * weight)
    torch.testing.assert_close(gains(density, draws, mask, [1]), 4 * weight * torch.tensor([0.0, 1.0]))
    almost = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])  # turned over, one feature would be left
    torch.testing.assert_close(gains(density, draws, almost, [0, 1]), 4 * weight)


@torch.no_grad()
def test_gates_settle() -> None:
    gate = SettlingGates(2, 2, bounded=True)
    gate.logits.copy_(torch.tensor([[50.0, -50.0], [1.0, -1.0]]))
    assert float(gate.log_odds.max()) == pytest.approx(4.0)
    assert float(gate.log_odds.min()) == pytest.approx(-6.0)
    gate.settle(torch.tensor([[99.0, -99.0], [5.0, -7.0]]))
    assert gate.log_odds.tolist() == [[SURE, -SURE], [5.0, -7.0]]  # no longer bounded
    free = SettlingGates(1, 2)
    free.logits.copy_(torch.tensor([[0.3, -0.3]]))
    assert free(torch.tensor(0.1)).logits.tolist() == [[SURE, -SURE]]  # cold: the more probable value
    assert free(torch.tensor(0.5)).logits.tolist() == free.logits.tolist()


@pytest.mark.parametrize("full", [True, False])
def test_an_encoder_starts_at_a_linear_gaussian(full: bool) -> None:
    torch.manual_seed(0)
    encoder = TrilEncoder(4, 2, 8, "silu", nn.Linear(4, 2), full=full, scale=0.4)
    x, weight, bias = torch.randn(5, 4), torch.randn(2, 4), torch.randn(2)
    tril = torch.tensor([[0.5, 0.0], [-0.3 * full, 0.2]])
    encoder.start(weight, bias, tril, keep=0.0)
    loc, found = encoder(x)
    torch.testing.assert_close(loc, x @ weight.mT + bias)
    torch.testing.assert_close(found, tril.expand(5, 2, 2), atol=2e-4, rtol=0)
