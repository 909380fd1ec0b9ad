"""AEPO's and DCPO's controllers and DAPO's length penalty."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import batches, members, quick

from policydist.errors import UsageError
from policydist.functional import (
    aepo_count,
    aepo_select,
    aggregate,
    clipped_surrogate,
    dcpo_advantage,
    dcpo_alpha,
    entropy_switch,
    grpo_advantage,
    overlong_penalty,
)

positive = st.floats(0, 5)


def test_switch_counts_equality_as_below():
    assert [entropy_switch(h, 0.5) for h in (0.0, 0.5, 0.5001)] == [1.2, 1.2, 0.8]
    assert entropy_switch(0.5, 0.5, high=2.0, low=0.5) == 2.0


@quick
@given(positive, positive, st.floats(0.01, 1), st.sampled_from([0.1, 0.5]))
def test_alpha_carries_the_capped_error_whatever_the_accuracy(entropy, target, q, cap):
    """DCPO identity 4: alpha q / (1 - alpha) = min(|target - entropy|, cap)."""
    alpha = dcpo_alpha(entropy, target, q, cap)
    assert 0 <= alpha < 1
    assert alpha * q / (1 - alpha) == pytest.approx(min(abs(target - entropy), cap))


def test_alpha_at_its_ends():
    assert dcpo_alpha(0.5, 0.5, 0.3) == 0
    assert dcpo_alpha(0.0, 0.5, 1e-9) == pytest.approx(1, abs=1e-6)
    assert dcpo_alpha(0.0, 0.5, 0.0) == 0.0
    assert dcpo_alpha(0.5, 0.5, 0.0) == 0.0
    with pytest.raises(UsageError, match="fraction_correct"):
        dcpo_alpha(0.0, 0.5, 1.5)


@quick
@given(batches(), st.sampled_from([0.0, 0.2, 0.7]), st.integers(0, 10**6))
def test_mixed_advantage_matches_loops(batch, alpha, seed):
    rewards, group = batch
    generator = torch.Generator().manual_seed(seed)
    log_rho = torch.randn(len(rewards), 3, dtype=torch.float64, generator=generator)
    mask = torch.rand(len(rewards), 3, generator=generator) < 0.7
    base = grpo_advantage(rewards, group)
    got = dcpo_advantage(base, rewards > 0.05, log_rho, alpha, mask)
    for i in range(len(rewards)):
        for t in range(3):
            bonus = alpha * math.exp(log_rho[i, t]) if rewards[i] > 0.05 else 0.0
            wanted = (1 - alpha) * base[i].item() + bonus if mask[i, t] else 0.0
            assert got[i, t].item() == pytest.approx(wanted)
    torch.testing.assert_close(got, dcpo_advantage(base[:, None].expand(-1, 3), rewards > 0.05, log_rho, alpha, mask))
    if alpha == 0:  # DCPO identity 1: exactly GRPO
        assert torch.equal(got, base[:, None] * mask)


def test_pure_groups():
    """DCPO identity 6: an all-correct group gets alpha rho > 0, an all-wrong one exactly 0."""
    rewards, group = torch.tensor([1.0, 1, 0, 0]), torch.tensor([0, 0, 1, 1])
    log_rho = torch.tensor([[0.5], [5.0], [3.0], [torch.inf]])
    got = dcpo_advantage(
        grpo_advantage(rewards, group), rewards > 0.05, log_rho, 0.25, torch.ones(4, 1, dtype=torch.bool)
    )
    # rho is not clipped: exp(5) stays exp(5).
    assert got[:2, 0].tolist() == pytest.approx([0.25 * math.exp(0.5), 0.25 * math.exp(5)])
    assert (got[2:] == 0).all()


def test_the_target_term_is_one_sided_and_constant():
    log_rho = torch.zeros(2, 1, requires_grad=True)
    mask = torch.ones(2, 1, dtype=torch.bool)
    plain = torch.tensor([1.0, -1.0])
    got = dcpo_advantage(plain, torch.tensor([True, False]), log_rho, 0.4, mask)
    assert not got.requires_grad
    assert got[:, 0].tolist() == pytest.approx([0.6 + 0.4, -0.6])
    with pytest.raises(UsageError, match="alpha"):
        dcpo_advantage(plain, torch.tensor([True, False]), log_rho, 1.5, mask)


def test_loss_gradient_with_shaped_advantage_at_ratio_one():
    """DCPO identity 7, against finite differences of the surrogate."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(4, 3, dtype=torch.float64, generator=generator)
    log_rho = torch.randn(4, 3, dtype=torch.float64, generator=generator)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]], dtype=torch.bool)
    base = torch.tensor([1.0, -1.0, 0.0, 0.0], dtype=torch.float64)
    advantage = dcpo_advantage(base, torch.tensor([True, False, True, False]), log_rho, 0.3, mask)
    new = old.clone().requires_grad_()
    loss = aggregate(clipped_surrogate(new, old, advantage, dual_clip=3.0), mask)
    (got,) = torch.autograd.grad(loss, new)
    step = 1e-6
    for i in range(4):
        for t in range(3):
            shift = torch.zeros_like(old)
            shift[i, t] = step
            up, down = (
                aggregate(clipped_surrogate(old + s, old, advantage, dual_clip=3.0), mask) for s in (shift, -shift)
            )
            assert got[i, t].item() == pytest.approx((up - down).item() / (2 * step), abs=1e-6)


@quick
@given(batches(smallest=2))
def test_selection_keeps_the_correct_answers_of_mixed_groups(batch):
    """AEPO identity 7 among others: pure groups contribute nothing; order is kept."""
    rewards, group = batch
    kept = aepo_select(grpo_advantage(rewards, group)).tolist()
    wanted = [
        i
        for part in members(group).values()
        for i in part
        if rewards[i] == 1 and len({rewards[j].item() for j in part}) == 2
    ]
    assert kept == sorted(wanted)


def test_selection_is_signed_and_strict():
    assert aepo_select(torch.tensor([0.05, -1.0, 0.06, 0.0])).tolist() == [2]
    assert aepo_select(torch.zeros(3)).tolist() == []


def test_count_halves_above_the_target_only():
    """AEPO identities 1 and 6."""
    assert aepo_count(100, 60, 0.5, 0.5) == 60
    assert aepo_count(100, 60, 0.51, 0.5) == 30
    assert aepo_count(7, 60, 0.2, 0.5) == 7
    assert aepo_count(7, 60, 0.9, 0.5) == 3
    assert aepo_count(0, 60, 0.2, 0.5) == aepo_count(9, 0, 0.2, 0.5) == 0


def test_overlong_penalty():
    lengths = torch.tensor([0, 80, 90, 100, 120])
    assert overlong_penalty(lengths, 100, 20).tolist() == pytest.approx([0, 0, -0.5, -1, -2])
    assert overlong_penalty(lengths, 100, 20, factor=0.5)[3].item() == pytest.approx(-0.5)
    with pytest.raises(UsageError, match="buffer"):
        overlong_penalty(lengths, 100, 0)
