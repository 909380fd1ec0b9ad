from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import batches, mean, members, quick, std

from policydist.errors import UsageError
from policydist.functional import (
    Groups,
    discounted_returns,
    dr_grpo_advantage,
    gae_advantage,
    grpo_advantage,
    normalize_then_sum,
    reinforce_advantage,
    reinforce_pp_advantage,
    reinforce_pp_baseline_advantage,
    remax_advantage,
    rloo_advantage,
    sum_then_normalize,
    whiten,
)

NAN = math.nan


def per_row(rewards, group, rule):
    """``rule(own, all of the group)`` for every row."""
    result = [0.0] * len(rewards)
    for part in members(group).values():
        for i in part:
            result[i] = rule(rewards[i].item(), [rewards[j].item() for j in part])
    return torch.tensor(result, dtype=torch.float64)


@quick
@given(batches(binary=False), st.sampled_from([0, 1]), st.sampled_from([1e-6, 1e-4]))
def test_grpo_matches_loops(batch, ddof, eps):
    rewards, group = batch
    spread = std(rewards.tolist(), ddof)
    rules = {
        "group": lambda r, all_: (r - mean(all_)) / (std(all_, ddof) + eps),
        "batch": lambda r, all_: (r - mean(all_)) / (spread + eps),
        "none": lambda r, all_: r - mean(all_),
    }
    for scale, rule in rules.items():
        got = grpo_advantage(rewards, group, eps=eps, ddof=ddof, scale=scale)
        torch.testing.assert_close(got, per_row(rewards, group, rule), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(dr_grpo_advantage(rewards, group), grpo_advantage(rewards, group, scale="none"))


@quick
@given(batches(binary=False))
def test_rloo_is_reward_minus_mean_of_the_others(batch):
    rewards, group = batch

    def rule(own, all_):
        others = list(all_)
        others.remove(own)
        return own - mean(others) if others else 0.0

    torch.testing.assert_close(rloo_advantage(rewards, group), per_row(rewards, group, rule), atol=1e-12, rtol=1e-12)


@quick
@given(batches(), st.sampled_from([grpo_advantage, dr_grpo_advantage, rloo_advantage]))
def test_sums_to_zero_and_pure_groups_are_exactly_zero(batch, function):
    rewards, group = batch
    advantage = function(rewards.float() * 0.1, group)
    for part in members(group).values():
        assert advantage[part].sum().item() == pytest.approx(0, abs=1e-5)
        if len({rewards[i].item() for i in part}) == 1:
            assert (advantage[part] == 0).all()


def test_bessel_is_the_default():
    advantage = grpo_advantage(torch.tensor([1.0, 0, 0, 0]), torch.zeros(4, dtype=torch.long))
    assert advantage[0].item() == pytest.approx(0.75 / (0.5 + 1e-6), rel=1e-6)


def test_group_of_one():
    rewards, group = torch.tensor([0.7, 1.0, 0.0]), torch.tensor([5, 2, 2])
    for function in (grpo_advantage, dr_grpo_advantage, rloo_advantage):
        assert function(rewards, group)[0] == 0
        raw = function(rewards, group, singleton="raw")
        assert raw[0].item() == pytest.approx(0.7, rel=2e-6)
        assert torch.equal(raw[1:], function(rewards, group)[1:])


def test_unknown_options_are_refused():
    rewards, group = torch.ones(2), torch.tensor([0, 0])
    with pytest.raises(UsageError, match="scale"):
        grpo_advantage(rewards, group, scale="prompt")
    with pytest.raises(UsageError, match="singleton"):
        rloo_advantage(rewards, group, singleton="nan")
    with pytest.raises(UsageError, match="greedy"):
        remax_advantage(rewards, torch.ones(2), group)


def test_remax_pairs_greedy_rewards_with_ascending_ids():
    advantage = remax_advantage(torch.tensor([1.0, 0, 1, 1]), torch.tensor([0.25, 1.0]), torch.tensor([9, 3, 3, 9]))
    assert advantage.tolist() == [0.0, -0.25, 0.75, 0.0]


def test_reinforce_baselines():
    rewards = torch.tensor([1.0, 0.0])
    assert reinforce_advantage(rewards).tolist() == [1.0, 0.0]
    assert reinforce_advantage(rewards, rewards.mean()).tolist() == [0.5, -0.5]
    assert reinforce_advantage(rewards, torch.tensor([1.0, 2.0])).tolist() == [0.0, -2.0]


@st.composite
def token_batches(draw, gaps=True):
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    mask = torch.tensor(draw(st.lists(st.booleans(), min_size=rows * width, max_size=rows * width))).view(rows, width)
    if not gaps:
        mask = mask.int().cummin(1).values.bool()
    seed = draw(st.integers(0, 999))
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, width, dtype=torch.float64, generator=generator)
    return rewards, values, mask


def loop_gae(rewards, values, mask, gamma, lam):
    """The definition: discounted sums of temporal differences along the valid tokens."""
    advantage = torch.zeros_like(rewards)
    for i in range(len(rewards)):
        valid = [t for t in range(rewards.shape[1]) if mask[i, t]]
        following = [values[i, t].item() for t in valid[1:]] + [0.0] * bool(valid)
        deltas = [rewards[i, t].item() + gamma * v - values[i, t].item() for t, v in zip(valid, following, strict=True)]
        for k, t in enumerate(valid):
            advantage[i, t] = sum((gamma * lam) ** j * delta for j, delta in enumerate(deltas[k:]))
    return advantage


@quick
@given(token_batches(), st.sampled_from([1.0, 0.9]), st.sampled_from([0.0, 0.7, 1.0]))
def test_gae_matches_the_definition(batch, gamma, lam):
    rewards, values, mask = batch
    advantage, target = gae_advantage(rewards, values, mask, gamma=gamma, lam=lam)
    wanted = loop_gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantage, wanted)
    torch.testing.assert_close(target, (wanted + values) * mask)
    zero = torch.zeros_like(values)
    torch.testing.assert_close(
        discounted_returns(rewards, mask, gamma=gamma), loop_gae(rewards, zero, mask, gamma, 1.0)
    )


@quick
@given(token_batches(gaps=False))
def test_what_stands_on_padding_is_not_read(batch):
    rewards, values, mask = batch
    dirty = torch.where(mask, rewards, NAN), torch.where(mask, values, NAN)
    for got, wanted in zip(gae_advantage(*dirty, mask), gae_advantage(rewards, values, mask), strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(reinforce_pp_advantage(dirty[0], mask), reinforce_pp_advantage(rewards, mask))


@quick
@given(token_batches(), st.sampled_from([0, 1]))
def test_whiten_matches_loops(batch, ddof):
    values, _, mask = batch
    valid = values[mask].tolist()
    got = whiten(values, mask, ddof=ddof)
    assert (got[~mask] == 0).all()
    if valid:
        scale = math.sqrt(std(valid, ddof) ** 2 + 1e-8)
        torch.testing.assert_close(got[mask], (values[mask] - mean(valid)) / scale, atol=1e-9, rtol=1e-9)


def test_whitening_equal_values_gives_exact_zero():
    assert (whiten(torch.full((3, 7), 0.1), torch.ones(3, 7, dtype=torch.bool)) == 0).all()


def test_reinforce_pp_discounts_from_the_last_token_and_whitens():
    rewards = torch.tensor([[0.0, 0, 1], [0, 1, 0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    returns = [0.25, 0.5, 1.0, 0.5, 1.0]
    wanted = [(g - mean(returns)) / math.sqrt(std(returns) ** 2 + 1e-8) for g in returns]
    assert reinforce_pp_advantage(rewards, mask, gamma=0.5)[mask].tolist() == pytest.approx(wanted)


def test_reinforce_pp_baseline_whitens_over_tokens_not_responses():
    rewards, group = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64), torch.tensor([1, 1, 0, 0])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    tokens = [0.5] * 3 + [-0.5] + [0.0] * 3
    wanted = [(x - mean(tokens)) / math.sqrt(std(tokens) ** 2 + 1e-8) for x in tokens]
    got = reinforce_pp_baseline_advantage(rewards, group, mask)
    assert got[mask].tolist() == pytest.approx(wanted)
    assert (got[~mask] == 0).all()


REWARDS = torch.tensor([[1.0, 0.2], [0.0, NAN], [1.0, 0.9], [NAN, NAN], [0.0, 0.4], [1.0, NAN]], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 0.5], dtype=torch.float64)
GROUP = torch.tensor([8, 2, 8, 8, 2, 2])


def test_sum_then_normalize_leaves_unscorable_rows_out():
    total = {0: 1.1, 1: 0.0, 2: 1.45, 4: 0.2, 5: 1.0}
    got = sum_then_normalize(REWARDS, WEIGHTS, GROUP)
    for part in ([0, 2], [1, 4, 5]):
        sums = [total[i] for i in part]
        for i in part:
            assert got[i].item() == pytest.approx((total[i] - mean(sums)) / (std(sums) + 1e-4))
    assert got[3] == 0


def test_normalize_then_sum_normalises_each_reward_and_then_the_batch():
    combined = dict.fromkeys([0, 1, 2, 4, 5], 0.0)
    for k, parts in enumerate([([0, 2], [1, 4, 5]), ([0, 2], [4])]):
        for part in parts:
            column = [REWARDS[i, k].item() for i in part]
            for i in part:
                combined[i] += WEIGHTS[k].item() * (REWARDS[i, k].item() - mean(column)) / (std(column) + 1e-4)
    batch = list(combined.values())
    got = normalize_then_sum(REWARDS, WEIGHTS, GROUP)
    for i, value in combined.items():
        assert got[i].item() == pytest.approx((value - mean(batch)) / (std(batch) + 1e-4))
    assert got[3] == 0


def test_precomputed_groups_give_the_same_advantages():
    rewards, group = torch.tensor([1.0, 0, 0, 1, 1]), torch.tensor([1, 0, 1, 0, 0])
    for function in (grpo_advantage, dr_grpo_advantage, rloo_advantage):
        assert torch.equal(function(rewards, Groups.dense(group, 2)), function(rewards, group))
