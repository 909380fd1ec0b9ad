"""Mixed on- and off-policy losses: gradients by finite differences, limits, and the selection rules of guided groups."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import (
    accept_off_policy,
    annealed_bonus,
    clipped_surrogate,
    expert_calibrated_loss,
    expert_gap,
    exploration_weight,
    grpo_advantage,
    hindsight_bonus,
    hybrid_group_advantage,
    mixed_policy_loss,
    mixture_logprobs,
    multiple_importance_ratio,
    off_policy_loss,
    off_policy_ratio,
    rl_plus_loss,
    select_candidates,
    select_replacements,
    shaping_weight,
    truncated_importance_weight,
)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def slope(function: Callable[[Tensor], Tensor], at: float, step: float = 1e-6) -> float:
    """The derivative of a scalar function, by central differences."""
    up, down = (function(torch.tensor(at + sign * step, dtype=torch.float64)) for sign in (1, -1))
    return float(up - down) / (2 * step)


# --- shaping ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.floats(-8, 8), st.floats(1e-3, 10), st.floats(-3, 3))
def test_the_shaped_loss_has_the_stated_bounded_gradient(log_ratio: float, gamma: float, advantage: float) -> None:
    logp = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[advantage]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(off_policy_loss(logp, a, gamma=gamma).sum(), logp)
    rho = math.exp(log_ratio)
    assert float(gradient) == pytest.approx(-advantage * rho * gamma / (rho + gamma) ** 2, abs=1e-12)
    assert abs(float(gradient)) <= abs(advantage) / 4 + 1e-12
    finite = slope(lambda x: off_policy_loss(x.view(1, 1), a, gamma=gamma).sum(), log_ratio)
    assert float(gradient) == pytest.approx(finite, abs=1e-6)


def test_a_vanishing_gamma_is_not_shaping_switched_off() -> None:
    for gamma, value, gradient in ((1e-9, -1.0, 0.0), (0.0, -1.0, -1.0), (None, -1.0, -1.0), (1.0, -0.5, -0.25)):
        logp = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        loss = off_policy_loss(logp, torch.ones(1, 1), denominator=torch.zeros(1, 1).double(), gamma=gamma)
        (found,) = torch.autograd.grad(loss.sum(), logp)
        assert float(loss.detach()) == pytest.approx(value, abs=1e-8)
        assert float(found) == pytest.approx(gradient, abs=1e-8)
    assert float(shaping_weight(torch.tensor(0.1), 0.1)) == pytest.approx(0.5)


def test_likely_tokens_get_little_gradient_without_a_denominator() -> None:
    lam, p = 0.1, torch.tensor([[0.01, 0.1, 0.999]], dtype=torch.float64)
    logp = p.log().requires_grad_()
    (gradient,) = torch.autograd.grad(-off_policy_loss(logp, torch.ones(1, 3), gamma=lam).sum(), logp)
    assert gradient.argmax() == 1
    assert float(gradient[0, 1]) == pytest.approx(0.25)
    assert float(gradient[0, 2]) == pytest.approx(lam / (1 + lam) ** 2, rel=0.01)


def test_extreme_log_ratios_stay_finite() -> None:
    assert bool(torch.isfinite(off_policy_ratio(torch.tensor([[500.0, -500.0]]), torch.zeros(1, 2))).all())


# --- one loss --------------------------------------------------------------------------------------------------------


def test_without_off_policy_tokens_it_is_the_dual_clipped_surrogate_bit_for_bit() -> None:
    logp, old, a = numbers(6, 4), numbers(6, 4, seed=1), numbers(6, 1, seed=2)
    off = torch.zeros(6, 4, dtype=torch.bool)
    assert torch.equal(mixed_policy_loss(logp, old, a, off), clipped_surrogate(logp, old, a, dual_clip=3.0))


def test_off_policy_tokens_are_never_clipped_and_denominators_differ() -> None:
    logp, old, a = torch.full((1, 2), 2.0).double(), torch.zeros(1, 2).double(), torch.ones(1, 1).double()
    off = torch.tensor([[False, True]])
    ratio = mixed_policy_loss(logp, old, a, off, off_denominator=old, gamma=None)
    assert ratio[0].tolist() == pytest.approx([-1.2, -math.exp(2)])
    drawn = torch.tensor([[0.0, 1.0]]).double()
    other = mixed_policy_loss(logp, old, a, off, off_denominator=drawn, gamma=None)
    assert float(other[0, 1]) == pytest.approx(-math.exp(1))
    half = mixed_policy_loss(logp, old, a, off, gamma=None, weights=torch.full((1, 2), 0.5))
    assert half[0].tolist() == pytest.approx([-0.6, -math.exp(2)])  # only on-policy losses are weighted


def test_importance_weights_are_one_on_agreement_capped_and_constant() -> None:
    old = torch.tensor([[0.0, 5.0, -1.0]], requires_grad=True)
    weight = truncated_importance_weight(old, torch.zeros(1, 3), cap=2.0)
    assert weight[0].tolist() == pytest.approx([1.0, 2.0, math.exp(-1)])
    assert not weight.requires_grad
    with pytest.raises(UsageError, match="cap is 0"):
        truncated_importance_weight(old, old, cap=0)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1), st.floats(0, 3), st.floats(0, 0.99))
def test_the_mixture_is_the_weighted_sum(p: float, mu: float, share: float) -> None:
    mixed = mixture_logprobs(double(p).log(), double(mu).log(), share)
    assert float(mixed.exp()) == pytest.approx((1 - share) * p + share * mu, rel=1e-9)


def test_mixture_limits() -> None:
    logp, never = torch.tensor([-0.3, -2.0]), torch.tensor([-math.inf, -math.inf])
    assert torch.equal(mixture_logprobs(logp, never, 0.0), logp)
    torch.testing.assert_close(mixture_logprobs(logp, never, 0.2), logp + math.log(0.8))
    with pytest.raises(UsageError, match="share is 1"):
        mixture_logprobs(logp, logp, 1.0)


# --- RL-PLUS ---------------------------------------------------------------------------------------------------------


def test_rl_plus_by_hand() -> None:
    # pi = 0.36, pi_old = 0.2: pi_omega = 0.6, ratio 0.72 / 0.8 = 0.9, weight sqrt(0.64) = 0.8
    logp, old = double(0.36).log().view(1, 1), double(0.2).log().view(1, 1)
    assert float(multiple_importance_ratio(logp, old)) == pytest.approx(0.9)
    assert float(exploration_weight(logp)) == pytest.approx(0.8)
    assert float(rl_plus_loss(logp, old, torch.full((1, 1), -2.0))) == pytest.approx(1.44)
    # over 10 tokens: pi_omega = 0.15, ratio 0.72 / 0.35
    assert float(rl_plus_loss(logp, old, torch.ones(1, 1), gamma=2, uniform=0.1)) == pytest.approx(
        -0.4096 * 0.72 / 0.35
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(-9, -1e-3), st.floats(-9, -1e-3), st.floats(0, 3), st.floats(-3, 3), st.sampled_from([1.0, 0.05]))
def test_the_gradient_of_rl_plus_leaves_weight_and_old_policy_alone(
    log_p: float, log_old: float, gamma: float, advantage: float, uniform: float
) -> None:
    logp = torch.tensor([[log_p]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[log_old]], dtype=torch.float64, requires_grad=True)
    loss = rl_plus_loss(logp, old, torch.full((1, 1), advantage), gamma=gamma, uniform=uniform)
    (found,) = torch.autograd.grad(loss.sum(), logp)
    weight = (1 - math.exp(log_p)) ** gamma  # held while the ratio is differentiated
    plain = slope(lambda x: multiple_importance_ratio(x.view(1, 1), old.detach(), uniform).sum(), log_p)
    assert float(found) == pytest.approx(-advantage * weight * plain, rel=1e-5, abs=1e-9)
    assert torch.autograd.grad(rl_plus_loss(logp, old, loss.detach()).sum(), old, allow_unused=True) == (None,)


@settings(max_examples=60, deadline=None)
@given(st.floats(-15, 0), st.floats(-2, 2), st.floats(1e-3, 1))
def test_the_ratio_is_bounded_where_the_plain_one_is(log_old: float, drift: float, uniform: float) -> None:
    logp, old = double(log_old + drift).view(1, 1), double(log_old).view(1, 1)
    found = float(multiple_importance_ratio(logp, old, uniform))
    assert found <= 4 / 3 * math.exp(drift) * (1 + 1e-9)
    assert found <= 4 * math.exp(log_old + drift) / uniform * (1 + 1e-9)
    assert float(multiple_importance_ratio(logp, old, 0.0)) == pytest.approx(4 / 3 * math.exp(drift))


def test_rl_plus_of_an_expert_like_the_old_policy_is_the_unclipped_surrogate() -> None:
    logp, old, a = numbers(5, 4), numbers(5, 4, seed=1), numbers(5, 1, seed=2)
    plain = clipped_surrogate(logp, old, a, clip_low=1.0, clip_high=math.inf)
    torch.testing.assert_close(rl_plus_loss(logp, old, a, gamma=0.0, uniform=old.exp()), plain)


def test_what_the_policy_is_sure_of_weighs_nothing_and_rounding_is_harmless() -> None:
    sure = torch.tensor([[0.0, 1e-7, -1e-4, -60.0]], requires_grad=True)
    assert exploration_weight(sure).tolist()[0] == pytest.approx([0.0, 0.0, 0.01, 1.0], abs=1e-5)
    assert not exploration_weight(sure).requires_grad
    assert exploration_weight(sure, 0.0).tolist() == [[1.0] * 4]
    loss = rl_plus_loss(sure, sure.detach(), torch.ones(1, 1))
    assert bool(torch.isfinite(torch.autograd.grad(loss.sum(), sure)[0]).all())
    with pytest.raises(UsageError, match="gamma is -1"):
        exploration_weight(sure, -1)
    with pytest.raises(UsageError, match="uniform is -1"):
        multiple_importance_ratio(sure, sure, -1)


# --- experts ---------------------------------------------------------------------------------------------------------


def test_expert_rows_enter_no_statistic() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    group = torch.tensor([0, 0, 0, 0, 1, 1])
    expert = torch.tensor([False, False, False, True, False, False])
    found = hybrid_group_advantage(rewards, group, expert)
    torch.testing.assert_close(found, torch.tensor([2 / 3, -1 / 3, -1 / 3, 0.0, 0.5, -0.5]))
    changed = hybrid_group_advantage(torch.where(expert, -7.0, rewards), group, expert)
    assert torch.equal(found, changed)
    scaled = hybrid_group_advantage(rewards, group, expert, scale="group")
    torch.testing.assert_close(scaled[:3], grpo_advantage(rewards[:3], group[:3]))


@pytest.mark.parametrize("passed", [True, False])
@pytest.mark.parametrize("level", [-1.0, 1.0])
def test_the_expert_gate_by_finite_differences(passed: bool, level: float) -> None:
    alpha, advantage = 0.3, torch.tensor([-0.7], dtype=torch.float64)

    def loss(logp: Tensor) -> Tensor:
        gap = expert_gap(logp.view(1, 1), torch.tensor([[-2.0 - level]]).double(), torch.ones(1, 1).bool(),
                         torch.zeros(1), torch.ones(1).long(), "token_aligned")  # fmt: skip
        return expert_calibrated_loss(gap, advantage, torch.tensor([passed]), alpha).sum()

    surer = level > 0  # the policy is surer than the expert
    before = passed != surer
    expected = (-1.0 if passed else 1.0) * 0.7 * (1.0 if before else alpha)
    assert slope(loss, -2.0) == pytest.approx(expected, abs=1e-6)


def test_a_linear_gate_at_ratio_one_doubles_grpo_and_the_sign_is_correctness() -> None:
    logp = numbers(4, 3).requires_grad_()
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    a = hybrid_group_advantage(rewards, torch.zeros(4).long(), torch.zeros(4).bool())
    gap = logp - numbers(4, 3, seed=5)
    (ours,) = torch.autograd.grad(expert_calibrated_loss(gap, a, rewards > 0.1, alpha=1.0).sum(), logp)
    (theirs,) = torch.autograd.grad(clipped_surrogate(logp, logp.detach(), a.unsqueeze(1)).sum(), logp)
    torch.testing.assert_close(ours, theirs)
    # A response worth 0.1 for its form alone has a positive advantage among zeros, and is still wrong.
    (form,) = torch.autograd.grad(
        expert_calibrated_loss(logp + 9, torch.full((4,), 0.5).double(), torch.zeros(4).bool()).sum(), logp
    )
    assert bool((form > 0).all())


def test_gaps_of_tokens_and_sequences_disagree_and_padding_counts_as_certain() -> None:
    logp = torch.tensor([[-1.0, -0.5, -0.1]]).double()
    expert = torch.tensor([[-0.2, -2.0, 0.0]]).double()
    mask = torch.tensor([[True, True, True]])
    total, length = expert.sum(1), torch.tensor([2])
    aligned = expert_gap(logp, expert, mask, total, length, "token_aligned")
    assert aligned[0].tolist() == pytest.approx([-0.8, 1.5, -0.1])
    summed = expert_gap(logp, expert, mask, total, length, "sequence_sum")
    assert summed[0].tolist() == pytest.approx([0.6] * 3)
    mean = expert_gap(logp, expert, mask, total, length, "sequence_mean")
    assert float(mean[0, 0]) == pytest.approx(-1.6 / 3 + 1.1)
    with pytest.raises(UsageError, match="gap is 'x'"):
        expert_gap(logp, expert, mask, total, length, "x")  # type: ignore[arg-type]


def test_no_gradient_reaches_the_expert() -> None:
    expert = numbers(2, 3).requires_grad_()
    logp = numbers(2, 3, seed=1).requires_grad_()
    for kind in ("token_aligned", "sequence_sum", "sequence_mean"):
        gap = expert_gap(logp, expert, torch.ones(2, 3).bool(), expert.sum(1), torch.full((2,), 3), kind)  # type: ignore[arg-type]
        loss = expert_calibrated_loss(gap, torch.ones(2).double(), torch.tensor([True, False])).sum()
        assert torch.autograd.grad(loss, expert, allow_unused=True, retain_graph=True)[0] is None
        assert torch.autograd.grad(loss, logp)[0].abs().sum() > 0


# --- acceptance and bonus --------------------------------------------------------------------------------------------


def test_acceptance_is_inclusive_and_the_bonus_is_for_accepted_rows_only() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.999, 1.0])
    accepted = accept_off_policy(rewards) & torch.tensor([True, True, True, False])
    assert accepted.tolist() == [True, False, False, False]
    assert annealed_bonus(rewards, accepted, step=0, total=400, alpha=1.0).tolist() == pytest.approx([2, 0, 0.999, 1])
    assert annealed_bonus(rewards, accepted, step=100, total=400, alpha=1.0)[0] == pytest.approx(1.75)
    for late in (400, 900):
        assert torch.equal(annealed_bonus(rewards, accepted, step=late, total=400, alpha=1.0), rewards)


def test_a_bonus_on_the_only_success_is_standardised_away() -> None:
    group = torch.zeros(8).long()
    accepted = torch.arange(8) == 7
    rewards = accepted.double()
    plain = grpo_advantage(rewards, group)
    raised = grpo_advantage(annealed_bonus(rewards, accepted, step=0, total=9, alpha=1.0), group)
    torch.testing.assert_close(plain, raised, atol=1e-5, rtol=0)
    rewards[0] = 1.0  # with an on-policy success the bonus matters
    raised = grpo_advantage(annealed_bonus(rewards, accepted, step=0, total=9, alpha=1.0), group)
    assert float(raised[0]) < float(grpo_advantage(rewards, group)[0]) - 0.1


# --- hindsight -------------------------------------------------------------------------------------------------------


def test_only_ties_at_the_top_of_an_unsolved_group_are_revised() -> None:
    assert select_candidates([0.2, 0.5, 0.5, 0.1], [9, 1, 2, 9]) == [2, 1]
    assert select_candidates([0.2, 0.5, 0.5, 0.1], [9, 1, 2, 9], limit=1) == [2]
    assert select_candidates([0.2, 1.0], [1, 2]) == []
    assert select_candidates([0.0, 0.0], [0, 0]) == [0, 1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_the_bonus_moves_the_mean_by_its_share_of_the_gain(scores: list[float], revised: float, alpha: float) -> None:
    before = torch.tensor(scores, dtype=torch.float64)
    after = hindsight_bonus(before, {1: [revised, revised / 2]}, alpha)
    assert float(after.mean() - before.mean()) == pytest.approx(alpha * (revised - scores[1]) / len(scores), abs=1e-12)
    assert torch.equal(after[torch.arange(len(scores)) != 1], before[torch.arange(len(scores)) != 1])
    assert torch.equal(hindsight_bonus(before, {1: [scores[1]]}, alpha), before)


def test_better_revisions_first_then_equal_ones_then_copies() -> None:
    scores = [0.2, 0.5, 0.3]
    assert select_replacements(scores, [0.5, 0.7, 0.4]) == [("revised", 1)]
    assert select_replacements(scores, [0.5, 0.4]) == [("revised", 0)]
    assert select_replacements(scores, [0.4]) == [("original", 1)]
    assert select_replacements(scores, [0.5, 0.6], top_n=4) == [
        ("revised", 1), ("revised", 0), ("original", 1), ("original", 2),
    ]  # fmt: skip
