"""Draws of numbers of a normal likelihood of which groups may be zero, beside a sum over all choices."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from pyrocrl.exact import zero_groups


def test_draws_agree_with_the_sum_over_all_choices() -> None:
    torch.manual_seed(100)
    draws, size = 4000, 7
    root = torch.randn(size, 12, dtype=torch.float64)
    information, prior = root @ root.mT, 0.3 * torch.eye(size, dtype=torch.float64)
    prior[2, 3] = prior[3, 2] = 0.1
    group, log_odds = torch.tensor([-1, 0, 1, 1, -1, 2, 3]), -0.4
    linear = information @ torch.tensor([1.0, 0.5, 0.0, 0.3, -1.0, 0.0, 0.1]).double()
    chance, mean = {}, torch.zeros(size, dtype=torch.float64)
    for choice in itertools.product((False, True), repeat=4):
        there = (group < 0) | torch.tensor(choice)[group.clamp_min(0)]
        inside = there[:, None] & there
        count = int(there.sum())
        total = (information + prior)[inside].view(count, count)
        own = prior[inside].view(count, count)
        at = torch.linalg.solve(total, linear[there])
        log = 0.5 * (torch.logdet(own) - torch.logdet(total) + linear[there] @ at) + log_odds * sum(choice)
        chance[choice] = float(log)
        mean[there] += math.exp(log) * at
    most = max(chance.values())
    whole = sum(math.exp(v - most) for v in chance.values())
    mean = mean / (whole * math.exp(most))
    value = zero_groups.draw(information, linear, prior, group, log_odds, draws, torch.Generator().manual_seed(0))
    on = value[:, [1, 2, 5, 6]] != 0
    for g in range(4):
        exact = sum(math.exp(v - most) for choice, v in chance.items() if choice[g]) / whole
        assert float(on[:, g].double().mean()) == pytest.approx(exact, abs=0.04)
        assert 0.02 < exact < 0.98 or g < 1, "a test of undecided groups"
    error = value.std(0) / draws**0.5
    assert (value.mean(0) - mean).abs().le(4 * error).all()


def test_what_the_other_numbers_leave_open_is_not_told() -> None:
    """A number that another one can stand for keeps its prior probability, however many rows there are."""
    shared = torch.tensor([[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    prior = torch.diag(torch.tensor([0.25, 1.0], dtype=torch.float64))
    group, generator = torch.tensor([-1, 0]), torch.Generator().manual_seed(0)
    value = zero_groups.draw(1e6 * shared, 3e6 * shared[0], prior, group, 0.0, 2000, generator)
    assert 0.3 < float((value[:, 1] != 0).double().mean()) < 0.9
    alone = zero_groups.draw(1e6 * shared, 0 * shared[0], 1e6 * torch.eye(2).double(), group, 0.0, 2000, generator)
    assert 0.3 < float((alone[:, 1] != 0).double().mean()) < 0.6


def test_no_groups_are_a_normal_law() -> None:
    information = torch.diag(torch.tensor([3.0, 8.0], dtype=torch.float64))
    group, prior = torch.tensor([-1, -1]), torch.eye(2, dtype=torch.float64)
    value = zero_groups.draw(information, information[0], prior, group, 0.0, 4000, torch.Generator().manual_seed(1))
    assert value.mean(0).tolist() == pytest.approx([0.75, 0.0], abs=0.03)
    assert value.std(0).tolist() == pytest.approx([0.5, 1 / 3], abs=0.02)
