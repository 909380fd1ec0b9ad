"""Values, the knapsack, the batch rule, posterior draws, upper confidence bounds, the effective ratio."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.errors import UsageError
from policydist.functional import (
    allocate_rollouts,
    decay_counts,
    effective_gradient_ratio,
    expected_info_gain,
    expected_learnability,
    filtered_rollouts,
    grpo_advantage,
    info_gain,
    posterior_mean,
    prob_nonzero,
    rollouts_for_mixed,
    rollouts_until_mixed,
    softmax_probabilities,
    solve_knapsack,
    stage_of,
    task_value,
    thompson_rates,
    top_rows,
    ucb_scores,
)

RATES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=7)


def rates(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_info_gain_peaks_at_one_third_and_prefers_hard_prompts() -> None:
    p = torch.linspace(0, 1, 3001, dtype=torch.float64)
    gain = info_gain(p)
    assert float(gain.max()) == pytest.approx(4 / 27)
    assert float(p[gain.argmax()]) == pytest.approx(1 / 3)
    assert float(info_gain(rates(0.3))) > float(info_gain(rates(0.7)))
    assert float(info_gain(rates(0.3), "p(1-p)")) == pytest.approx(float(info_gain(rates(0.7), "p(1-p)")))


@given(st.floats(0.001, 0.999), st.integers(1, 200))
def test_value_and_its_increment(p: float, n: int) -> None:
    x = rates(p)
    assert float(prob_nonzero(2, x)) == pytest.approx(2 * p * (1 - p))
    assert float(prob_nonzero(n, x)) == pytest.approx(float(prob_nonzero(n, 1 - x)), abs=1e-12)
    step = float(task_value(n + 1, x) - task_value(n, x))
    written_out = p * (1 - p) ** 2 * (p**n * (1 - p) + (1 - p) ** n * p)
    assert step == pytest.approx(written_out, abs=1e-15)
    assert written_out >= p * (1 - p) ** 2 * (p ** (n + 1) * (1 - p) + (1 - p) ** (n + 1) * p)
    if n > 1:
        ratio = float(task_value(n, x) / task_value(n, 1 - x))
        assert ratio == pytest.approx((1 - p) / p, rel=1e-6)


def test_value_of_solved_and_hopeless_prompts_is_zero() -> None:
    for n in (0, 1, 2, 64):
        assert task_value(n, rates(0.0, 1.0)).tolist() == [0.0, 0.0]


def test_rollouts_until_both_outcomes_were_seen() -> None:
    p, rng = 0.2, np.random.default_rng(0)
    draws = rng.random((40_000, 120)) < p
    first = np.maximum(draws.argmax(1), (~draws).argmax(1)) + 1
    assert first.mean() == pytest.approx(float(rollouts_until_mixed(rates(p))), rel=0.02)
    assert float(rollouts_until_mixed(rates(0.01))) == pytest.approx(100.0, abs=0.1)
    assert rollouts_for_mixed(rates(0.01, 0.5, 0.001), 0.9, 500).tolist() == [229, 3, 500]


@settings(max_examples=60, deadline=None)
@given(RATES, st.integers(1, 3), st.integers(0, 9), st.floats(0, 1))
def test_greedy_equals_dynamic_programming(values: list[float], n_low: int, span: int, fill: float) -> None:
    p = rates(*values)
    total = len(p) * n_low + round(fill * len(p) * span)
    for compat in ("paper", "official"):
        greedy = solve_knapsack(p, total, n_low, n_low + span, compat=compat)
        exact = solve_knapsack(p, total, n_low, n_low + span, method="dp", compat=compat)
        for counts in (greedy, exact):
            assert int(counts.sum()) == total
            assert n_low <= int(counts.min())
            assert int(counts.max()) <= n_low + span

        def worth(counts: torch.Tensor, compat: str = compat) -> float:
            value = task_value(counts, p)
            if compat == "official":  # nothing for those who get no more than the lower bound
                value = value * (counts > n_low)
            return float(value.sum())

        assert worth(greedy) == pytest.approx(worth(exact), abs=1e-12)


def test_greedy_against_every_allocation_of_four_prompts() -> None:
    p = rates(0.05, 0.4, 0.6, 0.93)
    best = max(
        float(task_value(torch.tensor(counts), p).sum())
        for counts in itertools.product(range(2, 15), repeat=4)
        if sum(counts) == 24
    )
    assert float(task_value(solve_knapsack(p, 24, 2, 14), p).sum()) == pytest.approx(best, abs=1e-15)


def test_equal_rates_share_evenly() -> None:
    for p in (0.0, 0.3, 1.0):
        counts = solve_knapsack(rates(*[p] * 7), 7 * 8 + 3)
        assert int(counts.max() - counts.min()) <= 1
        assert int(counts.sum()) == 59


def test_a_single_wide_prompt_gets_more_than_the_first_look_covers() -> None:
    p = rates(0.02, *[1.0] * 30)
    counts = solve_knapsack(p, 31 * 6, 2, 128)
    assert int(counts[0]) == 31 * 6 - 30 * 2


def test_not_the_heuristic_of_more_for_the_hardest() -> None:
    counts = solve_knapsack(rates(1e-6, 0.1, 0.5), 24)
    assert int(counts[0]) == 2
    assert int(counts[1]) > int(counts[2])


def test_official_form_overvalues_the_first_extra_rollout() -> None:
    p = rates(0.04, 0.2, 0.3, 0.5, 0.6, 0.93)
    paper, official = solve_knapsack(p, 60), solve_knapsack(p, 60, compat="official")
    assert float(task_value(official, p).sum()) < float(task_value(paper, p).sum())
    assert int(paper.min()) == 2
    assert int(official.min()) == 3


def test_knapsack_refuses_what_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"must lie in 6\.\.384"):
        solve_knapsack(rates(0.1, 0.2, 0.3), 5)
    with pytest.raises(UsageError, match="cannot share"):
        solve_knapsack(rates(0.1), 500)
    with pytest.raises(UsageError, match="success rates"):
        solve_knapsack(rates(), 0)
    with pytest.raises(UsageError, match=r"lie in \[0, 1\]"):
        solve_knapsack(rates(0.1, 1.2), 8)
    with pytest.raises(UsageError, match=r"lie in \[0, 1\]"):
        solve_knapsack(rates(0.1, math.nan), 8)
    with pytest.raises(UsageError, match="n_low"):
        solve_knapsack(rates(0.1), 8, n_low=0)


KNOWN = torch.ones(4, dtype=torch.bool)


def test_batch_rule_before_anything_is_known_is_uniform() -> None:
    found = allocate_rollouts(rates(0, 0, 0, 0), ~KNOWN, 8)
    assert found.counts.tolist() == [8] * 4
    assert not found.fallback


def test_surplus_goes_to_the_never_solved() -> None:
    found = allocate_rollouts(rates(0, 1, 1, 0), KNOWN, 8)
    assert found.counts.tolist() == [14, 2, 2, 14]
    assert found.surplus == 24
    solved = allocate_rollouts(rates(1, 1, 1, 1), KNOWN, 8)
    assert solved.counts.tolist() == [8] * 4
    hopeless = allocate_rollouts(rates(0, 0, 0, 0), KNOWN, 8)
    assert hopeless.counts.tolist() == [8] * 4


def test_fallback_leaves_the_knapsack_what_it_needs() -> None:
    p = rates(0.5, 0, 1, 0.4)
    found = allocate_rollouts(p, KNOWN, 8)
    need = int(rollouts_for_mixed(p[[0, 3]]).sum())
    rest = 32 - 8
    assert found.fallback
    assert found.surplus == rest - need
    assert int(found.counts[1]) == 2 + rest - need
    assert int(found.counts[2]) == 2
    assert int(found.counts[[0, 3]].sum()) == need + 4
    without = allocate_rollouts(p, KNOWN, 8, fallback=False)
    assert without.counts[1:3].tolist() == [2, 2]
    assert int(without.counts.sum()) == 32


def test_official_rule_counts_the_unknown_as_never_solved() -> None:
    p, known = rates(0.5, 0.0, 1, 0.5), torch.tensor([True, False, True, True])
    assert int(allocate_rollouts(p, known, 16, compat="official").counts[1]) > 16
    # The paper's rule leaves new prompts at n as long as some prompt was never solved.
    p = rates(0.5, 0.0, 0.0, 0.5)
    assert int(allocate_rollouts(p, known, 16).counts[1]) == 16


def test_no_prompt_gets_more_than_the_upper_bound() -> None:
    p = torch.ones(40, dtype=torch.float64)
    p[0] = 0.0
    found = allocate_rollouts(p, torch.ones(40, dtype=torch.bool), 8, n_up=20)
    assert int(found.counts.sum()) == 320
    assert int(found.counts.max()) == 20
    p[0] = 0.5
    found = allocate_rollouts(p, torch.ones(40, dtype=torch.bool), 8, n_up=20, fallback=False)
    assert int(found.counts.sum()) == 320
    assert int(found.counts.max()) == 20


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]), st.booleans()), min_size=1, max_size=12),
    st.integers(2, 12), st.booleans(), st.sampled_from(["paper", "official"]),
)  # fmt: skip
def test_batch_rule_keeps_total_and_bounds(rows: list[tuple[float, bool]], n: int, fallback: bool, compat: str) -> None:
    p, known = rates(*[row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    found = allocate_rollouts(p, known, n, n_up=16, fallback=fallback, compat=compat)  # type: ignore[arg-type]
    assert int(found.counts.sum()) == len(rows) * n
    assert int(found.counts.min()) >= 2
    assert int(found.counts.max()) <= 16


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.99, 1.0]), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 16),
)
def test_the_filter_spends_exactly_the_same_rollouts_on_the_rest(rows: list[tuple[float, bool]], n: int) -> None:
    p, known = rates(*[row[0] for row in rows]), torch.tensor([row[1] for row in rows])
    found = filtered_rollouts(p, known, n, n_up=16)
    kept = torch.tensor([rate in (0.1, 0.99) or not sure for rate, sure in rows])
    assert int(found.counts.sum()) == len(rows) * n
    assert int(found.counts.max()) <= 16
    assert found.surplus == max(0, len(rows) * n - 16 * int(kept.sum()))
    for some in (kept, ~kept):
        if bool(some.any()):
            assert int(found.counts[some].max() - found.counts[some].min()) <= 1
    if found.surplus == 0:
        assert not bool(found.counts[~kept].any())


def test_the_filter_by_hand() -> None:
    p, known = rates(0, 0.5, 1, 0, 0.25), torch.tensor([True, True, True, False, True])
    assert filtered_rollouts(p, known, 8).counts.tolist() == [0, 14, 0, 13, 13]
    assert filtered_rollouts(p, known, 8, n_up=13).counts.tolist() == [1, 13, 0, 13, 13]
    assert filtered_rollouts(rates(0, 1), KNOWN[:2], 8).counts.tolist() == [8, 8]
    assert filtered_rollouts(p, ~KNOWN[[0] * 5], 8) == (pytest.approx([8] * 5), False, 0)
    with pytest.raises(UsageError, match="more than n_up=7"):
        filtered_rollouts(p, known, 8, n_up=7)


def test_batch_rule_refuses_too_small_a_total() -> None:
    with pytest.raises(UsageError, match="fewer than n_low=4"):
        allocate_rollouts(rates(0.5), KNOWN[:1], 3, n_low=4)
    with pytest.raises(UsageError, match="more than n_up=8"):
        allocate_rollouts(rates(0.5), KNOWN[:1], 9, n_up=8)


def test_ten_thousand_prompts_are_quick() -> None:
    p = torch.sigmoid(torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2.5 - 1)
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        allocate_rollouts(p, torch.ones(10_000, dtype=torch.bool), 8)
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.05


def test_thompson_draws_follow_their_posterior() -> None:
    alpha, beta = torch.full((50_000,), 3.0), torch.full((50_000,), 1.0)
    draws = thompson_rates(alpha, beta, np.random.default_rng(0))
    assert float(draws.mean()) == pytest.approx(float(posterior_mean(alpha, beta)[0]), abs=3e-3)
    assert float(info_gain(draws).mean()) == pytest.approx(float(expected_info_gain(alpha, beta)[0]), rel=0.02)
    assert float(expected_info_gain(torch.zeros(1), torch.zeros(1))) == pytest.approx(1 / 12)
    assert float(draws.std()) > 0.1  # a posterior mean instead of a draw would not spread


def test_decay_reproduces_the_framework_figure() -> None:
    alpha, beta = rates(0.1, 2.7, 9.0), rates(8.4, 5.3, 0.2)
    hits, misses = rates(1, 4, 0), rates(7, 4, 0)
    selected = torch.tensor([True, True, False])
    torch.testing.assert_close(decay_counts(alpha, hits, selected, 0.2, 0.999), rates(1.02, 4.54, 8.991))
    torch.testing.assert_close(decay_counts(beta, misses, selected, 0.2, 0.999), rates(8.68, 5.06, 0.1998))


def test_decay_settles_at_a_memory_of_one_and_a_quarter_groups() -> None:
    alpha, one = rates(0.0), torch.tensor([True])
    for _ in range(60):
        alpha = decay_counts(alpha, rates(3.0), one, 0.2, 0.999)
    torch.testing.assert_close(alpha, rates(3.0 / 0.8))


def test_top_rows_are_distinct_and_follow_a_permutation() -> None:
    scores = torch.rand(50, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    chosen = top_rows(scores, 12)
    assert len(set(chosen.tolist())) == 12
    assert order[top_rows(scores[order], 12)].tolist() == chosen.tolist()
    assert sorted(top_rows(torch.zeros(5), 5).tolist()) == [0, 1, 2, 3, 4]


def test_ucb_by_hand_and_its_limits() -> None:
    scores = ucb_scores(rates(0.5, 0.2, 0.0), torch.tensor([4, 2, 0]))
    bonus = [math.sqrt(2 * math.log(7) / (n + 1)) for n in (4, 2, 0)]
    torch.testing.assert_close(scores, rates(0.5 + bonus[0], 0.2 + bonus[1], bonus[2]))
    # An unseen source dominates early: the released temperature gives it nine tenths.
    equal = ucb_scores(rates(0, 0, 0), torch.tensor([4, 2, 0]))
    assert float(softmax_probabilities(equal, 0.1)[2]) > 0.9
    none = softmax_probabilities(ucb_scores(rates(0, 0, 0), torch.zeros(3, dtype=torch.long)), 0.1)
    torch.testing.assert_close(none, rates(1 / 3, 1 / 3, 1 / 3))
    many = softmax_probabilities(ucb_scores(rates(0.5, 0.2), torch.tensor([10**9, 10**9])), 0.1)
    torch.testing.assert_close(many, (rates(0.5, 0.2) / 0.1).softmax(0), atol=2e-3, rtol=0)


def test_source_probabilities_are_monotone_and_sum_to_one() -> None:
    seen = torch.tensor([100, 100, 400])
    low, high = (softmax_probabilities(ucb_scores(rates(x, 0.3, 0.3), seen), 0.1) for x in (0.2, 0.4))
    assert float(high[0]) > float(low[0])
    assert float(high.sum()) == pytest.approx(1)
    assert float(low[1]) > float(low[2])  # the same signal, seen less often
    torch.testing.assert_close(softmax_probabilities(rates(1, 2, 3), 1e9), rates(1, 1, 1) / 3)
    assert softmax_probabilities(rates(1, 3, 3), 0.0).tolist() == [0.0, 0.5, 0.5]
    with pytest.raises(UsageError, match="tau is -1"):
        softmax_probabilities(rates(1), -1.0)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5))
def test_stages_follow_each_other_for_their_steps(lengths: list[int]) -> None:
    in_order = [stage for stage, length in enumerate(lengths) for _ in range(length)]
    assert [stage_of(step, lengths) for step in range(len(in_order) + 3)] == in_order + [len(lengths) - 1] * 3


def test_stages_need_steps() -> None:
    for lengths in ([], [2, 0]):
        with pytest.raises(UsageError, match="each needs a step"):
            stage_of(0, lengths)


def test_expected_learnability_is_the_mean_absolute_advantage() -> None:
    size, p = 8, 0.3
    rewards = (torch.rand(20_000, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) < p).double()
    group = torch.arange(20_000).repeat_interleave(size)
    flat = rewards.flatten()
    measured = float(grpo_advantage(flat, group).abs().mean())
    assert measured == pytest.approx(float(expected_learnability(rates(p), size)), abs=0.01)
    scaled = float(grpo_advantage(flat * 4 - 3, group).abs().mean())
    assert scaled == pytest.approx(measured, rel=1e-5)
    torch.testing.assert_close(expected_learnability(rates(p), size), expected_learnability(rates(1 - p), size))
    # Signed advantages average to nothing: they cannot rank sources.
    assert abs(float(grpo_advantage(flat, group).mean())) < 1e-9


def test_effective_ratio_by_samples_and_by_prompts() -> None:
    rewards = torch.tensor([1.0, 0, 0, 0, 0, 0, 1, 1])
    group = torch.tensor([7, 7, 7, 7, 7, 2, 2, 9])
    ratio = effective_gradient_ratio(rewards, group)
    assert ratio.samples == pytest.approx(7 / 8)
    assert ratio.prompts == pytest.approx(2 / 3)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    assert effective_gradient_ratio(rewards[order], group[order]) == ratio
    assert effective_gradient_ratio(torch.full((6,), 0.1), torch.zeros(6, dtype=torch.long)) == (0.0, 0.0)
    assert effective_gradient_ratio(torch.zeros(0), torch.zeros(0, dtype=torch.long)) == (0.0, 0.0)
