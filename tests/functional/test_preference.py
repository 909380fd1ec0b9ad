"""Preference pairs and DPO's loss: hand-computed values, gradients by finite differences, pairs of ragged groups."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import best_worst_pairs, dpo_loss, dpo_margin


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_dpo_by_hand() -> None:
    # log-ratios 2 and -1 at beta 0.5: margin 1.5
    sides = column(-3.0), column(-7.0), column(-5.0), column(-6.0)
    assert dpo_margin(*sides, beta=0.5).tolist() == pytest.approx([1.5])
    assert dpo_loss(*sides, beta=0.5).tolist() == pytest.approx([math.log(1 + math.exp(-1.5))])
    swapped = dpo_loss(sides[1], sides[0], sides[3], sides[2], beta=0.5)
    assert swapped.tolist() == pytest.approx([math.log(1 + math.exp(1.5))])


def test_at_the_reference_it_is_log_two_with_half_beta_for_a_gradient() -> None:
    chosen, rejected = column(-3.0, -40.0).requires_grad_(), column(-7.0, -1.0).requires_grad_()
    loss = dpo_loss(chosen, rejected, chosen.detach(), rejected.detach(), beta=0.3)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2)
    up, down = torch.autograd.grad(loss.sum(), (chosen, rejected))
    assert up.tolist() == pytest.approx([-0.15] * 2)
    assert down.tolist() == pytest.approx([0.15] * 2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-30, 0), min_size=4, max_size=4), st.floats(0.01, 2))
def test_the_gradient_by_finite_differences(levels: list[float], beta: float) -> None:
    fixed = [column(level) for level in levels]
    given_ = [level.clone().requires_grad_() for level in fixed]
    loss = dpo_loss(*given_, beta=beta)
    found = torch.autograd.grad(loss.sum(), given_, allow_unused=True)
    assert found[2:] == (None, None)  # the reference is a constant
    step = 1e-5
    for side in (0, 1):
        up, down = ([level + sign * step * (i == side) for i, level in enumerate(fixed)] for sign in (1, -1))
        slope = float(dpo_loss(*up, beta=beta) - dpo_loss(*down, beta=beta)) / (2 * step)
        assert float(found[side]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    weight = beta * torch.sigmoid(-dpo_margin(*fixed, beta=beta))
    assert float(found[0]) == pytest.approx(-float(weight))


def test_hopeless_and_certain_pairs_stay_finite() -> None:
    sides = column(-2000.0, 0.0), column(0.0, -2000.0), column(0.0, 0.0), column(0.0, 0.0)
    assert dpo_loss(*sides, beta=1.0).tolist() == pytest.approx([2000.0, 0.0])
    with pytest.raises(UsageError, match="beta is 0"):
        dpo_loss(*sides, beta=0.0)


def test_pairs_are_the_first_best_and_the_first_worst_of_groups_that_differ() -> None:
    rewards = torch.tensor([0.5, 1.0, 0.0, 1.0, 0.0, 0.3, 0.3, 1.0, -2.0, -1.0])
    group = torch.tensor([7, 7, 7, 7, 7, 2, 2, 4, 9, 9])
    assert best_worst_pairs(rewards, group).tolist() == [[1, 2], [9, 8]]  # 2 ties, 4 is alone
    mixed = torch.tensor([7, 2, 9, 7, 2, 9])
    assert best_worst_pairs(torch.tensor([0.0, 1.0, 5.0, 1.0, 0.0, 5.0]), mixed).tolist() == [[1, 4], [3, 0]]
    assert best_worst_pairs(torch.zeros(4), torch.tensor([0, 0, 1, 1])).shape == (0, 2)
    counts = torch.tensor([1, 0, 2])  # rewards may be whole numbers
    assert best_worst_pairs(counts, torch.zeros(3, dtype=torch.long)).tolist() == [[2, 1]]
    with pytest.raises(UsageError, match=r"rewards of shape \(3,\) do not match 2 group ids"):
        best_worst_pairs(torch.zeros(3), torch.tensor([0, 0]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-2, 2)), min_size=1, max_size=20))
def test_pairs_against_a_loop(rows: list[tuple[int, int]]) -> None:
    group, rewards = [g for g, _ in rows], [float(r) for _, r in rows]
    expected = []
    for number in sorted(set(group)):
        mine = [i for i, g in enumerate(group) if g == number]
        best, worst = max(mine, key=lambda i: rewards[i]), min(mine, key=lambda i: rewards[i])
        if rewards[best] > rewards[worst]:
            expected.append([best, worst])
    assert best_worst_pairs(torch.tensor(rewards), torch.tensor(group)).tolist() == expected
