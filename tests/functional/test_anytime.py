"""Budgets, priors, segments and the budget-relative advantage: against plain loops, in its limits, and its mean gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import IDS, members, quick
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import anytime_advantage, budget_prior, budget_segments, dr_grpo_advantage

BASELINES = ("brpo", "v1", "v2", "none")
SCORE = st.integers(0, 4).map(lambda quarter: quarter / 4)


@st.composite
def rated(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [N, S], group ids [N], weights of the budgets [S] that do not sum to 1."""
    count, cuts = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    rows = draw(st.lists(st.lists(SCORE, min_size=cuts, max_size=cuts), min_size=count, max_size=count))
    ids = draw(st.lists(st.sampled_from(IDS[:3]), min_size=count, max_size=count))
    weights = draw(st.lists(st.integers(0, 5), min_size=cuts, max_size=cuts).filter(any))
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(ids), torch.tensor(weights, dtype=torch.float64)


def by_loops(scores: Tensor, group: Tensor, weights: Tensor, baseline: str, discount: float) -> Tensor:
    """The equations, one number at a time."""
    rows, prior = scores.tolist(), (weights / weights.sum()).tolist()
    cuts = len(prior)
    total = [[math.fsum(prior[k] * row[k] for k in range(s, cuts)) for s in range(cuts)] for row in rows]
    result = torch.zeros_like(scores)
    for own in members(group).values():
        for row, s in itertools.product(own, range(cuts)):
            average = math.fsum(total[other][s] for other in own) / len(own) if len(own) > 1 else 0.0
            past = [(discount ** (s - k), rows[row][k]) for k in range(s)]
            mass = math.fsum(weight for weight, _ in past)
            mean = math.fsum(weight * score for weight, score in past) / mass if past else 0.0
            progress = mean * math.fsum(prior[s:])
            share = {"brpo": s / cuts, "v1": 1.0, "v2": 0.0, "none": 0.0}[baseline]
            known = 0.0 if baseline == "none" else share * progress + (1 - share) * average
            result[row, s] = total[row][s] - known
    return result


@quick
@given(rated(), st.sampled_from(BASELINES), st.sampled_from([0.25, 0.5, 1.0]))
def test_advantages_are_those_of_plain_loops(data: Any, baseline: Any, discount: float) -> None:
    scores, group, weights = data
    found = anytime_advantage(scores, group, weights, baseline=baseline, discount=discount).advantages
    torch.testing.assert_close(found, by_loops(scores, group, weights, baseline, discount), atol=1e-12, rtol=1e-10)


def advantage(rows: Sequence[Sequence[float]], weights: Sequence[float], **options: Any) -> Any:
    group = options.pop("group", torch.zeros(len(rows), dtype=torch.long))
    return anytime_advantage(
        torch.tensor(rows, dtype=torch.float64), group, torch.tensor(weights, dtype=torch.float64), **options
    )


@quick
@given(rated())
def test_one_budget_is_dr_grpo(data: Any) -> None:
    scores, group, _ = data
    found = anytime_advantage(scores[:, :1], group, torch.ones(1)).advantages[:, 0]
    several = (
        torch.bincount(torch.unique(group, return_inverse=True)[1])[torch.unique(group, return_inverse=True)[1]] > 1
    )
    expected = dr_grpo_advantage(scores[:, 0], group)
    torch.testing.assert_close(found[several], expected[several], atol=1e-12, rtol=0)
    torch.testing.assert_close(found[~several], scores[~several, 0])  # a group of one keeps its reward, as in the code


@quick
@given(rated())
def test_the_first_segment_is_centred_and_group_means_sum_to_zero(data: Any) -> None:
    scores, group, weights = data
    found = anytime_advantage(scores, group, weights)
    average = anytime_advantage(scores, group, weights, baseline="v2").advantages
    assert torch.equal(found.advantages[:, 0], average[:, 0])
    assert not bool(found.progress[:, 0].any())
    for own in members(group).values():
        if len(own) > 1:
            torch.testing.assert_close(average[own].sum(0), torch.zeros_like(average[0]), atol=1e-12, rtol=0)


@quick
@given(rated())
def test_the_last_budget_alone_gives_every_segment_the_same_return(data: Any) -> None:
    scores, group, weights = data
    base = torch.zeros_like(weights)
    base[-1] = 3.0
    returns = anytime_advantage(scores, group, base).returns
    torch.testing.assert_close(returns, scores[:, -1:].expand_as(returns))


@quick
@given(st.lists(SCORE, min_size=2, max_size=6), st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_a_steady_score_is_predicted_perfectly_by_progress(levels: list[float], weights: list[int]) -> None:
    """Fails if V1 is not scaled by the weight of the budgets still to come."""
    found = advantage([[level] * 4 for level in levels], weights, baseline="v1")
    torch.testing.assert_close(found.advantages[:, 1:], torch.zeros(len(levels), 3).double(), atol=1e-12, rtol=0)


@quick
@given(rated(), st.sampled_from([0.1, 7.0]))
def test_a_scaled_prior_changes_nothing_and_scaled_scores_scale(data: Any, factor: float) -> None:
    """The second half fails if advantages are divided by a deviation."""
    scores, group, weights = data
    found = anytime_advantage(scores, group, weights).advantages
    torch.testing.assert_close(anytime_advantage(scores, group, weights * factor).advantages, found, atol=1e-12, rtol=0)
    scaled = anytime_advantage(scores * factor, group, weights).advantages
    torch.testing.assert_close(scaled, found * factor, atol=1e-12, rtol=1e-9)


def test_the_newest_budget_weighs_most_in_progress() -> None:
    late = advantage([[0.0, 1.0, 0.0]], [0, 0, 1]).progress[0, 2]
    early = advantage([[1.0, 0.0, 0.0]], [0, 0, 1]).progress[0, 2]
    assert (float(early), float(late)) == pytest.approx((1 / 3, 2 / 3))


def test_a_traces_own_return_is_in_the_groups_mean() -> None:
    """Fails for a leave-one-out mean, whose advantages would be 1 and -1."""
    found = advantage([[1.0], [0.0]], [1], baseline="v2").advantages[:, 0]
    assert found.tolist() == [0.5, -0.5]


def test_the_share_of_progress_by_number_and_by_length() -> None:
    rows = [[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.0]]
    number = advantage(rows, [1] * 4).advantages
    torch.testing.assert_close(advantage(rows, [1] * 4, mixing="length", budgets=[5, 10, 15, 20]).advantages, number)
    unequal = advantage(rows, [1] * 4, mixing="length", budgets=[1, 2, 4, 8])
    share = torch.tensor([0, 1 / 8, 2 / 8, 4 / 8], dtype=torch.float64)
    expected = unequal.returns - share * unequal.progress - (1 - share) * unequal.average
    torch.testing.assert_close(unequal.advantages, expected)
    assert not torch.allclose(unequal.advantages, number)


TRACES = list(itertools.product((0, 1), repeat=4))
"""Two tokens, and whether the answer after each of them is right."""
RIGHT = torch.tensor([0.2, 0.7]), torch.tensor([[0.1, 0.5], [0.4, 0.9]])
PRIOR = torch.tensor([0.3, 0.7], dtype=torch.float64)


def log_chances(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability [16, 2] of both tokens of every trace, and probability [16] of its answers."""
    tokens, answers = [], []
    for first, second, one, two in TRACES:
        odds = torch.stack([logits[0] * (2 * first - 1), logits[1 + first] * (2 * second - 1)])
        tokens.append(torch.nn.functional.logsigmoid(odds))
        chance = RIGHT[0][first].double(), RIGHT[1][first, second].double()
        answers.append((chance[0] if one else 1 - chance[0]) * (chance[1] if two else 1 - chance[1]))
    return torch.stack(tokens), torch.stack(answers)


def test_every_baseline_leaves_the_mean_gradient_but_for_the_groups_shrinkage() -> None:
    """All groups of two traces of a two-token chain with random answers, against the gradient of the objective itself."""
    logits = torch.tensor([0.3, -0.4, 0.8], dtype=torch.float64, requires_grad=True)
    tokens, answers = log_chances(logits)
    scores = torch.tensor([trace[2:] for trace in TRACES], dtype=torch.float64)
    objective = (tokens.sum(1).exp() * answers * (scores @ PRIOR)).sum()
    true = torch.autograd.grad(objective, logits, retain_graph=True)[0]
    slopes = torch.stack(
        [
            torch.stack([torch.autograd.grad(tokens[i, s], logits, retain_graph=True)[0] for s in range(2)])
            for i in range(16)
        ]
    )
    chance = (tokens.sum(1).exp() * answers).detach()
    pairs = list(itertools.product(range(16), repeat=2))
    rows = torch.tensor(pairs).flatten()
    group = torch.arange(len(pairs)).repeat_interleave(2)
    weight = torch.stack([chance[i] * chance[j] for i, j in pairs]).repeat_interleave(2) / 2
    mean = {}
    for baseline in BASELINES:
        found = anytime_advantage(scores[rows], group, PRIOR, baseline=baseline).advantages  # type: ignore[arg-type]
        # One gradient a segment, as each shrinks by its own factor.
        mean[baseline] = torch.einsum("n,ns,nsp->sp", weight, found, slopes[rows])
    torch.testing.assert_close(mean["none"].sum(0), true)
    torch.testing.assert_close(mean["v1"], mean["none"])
    torch.testing.assert_close(mean["v2"] * 2, mean["none"])  # its leave-one-out form, n/(n-1) as large
    shrinkage = torch.tensor([[1 / 2], [1 - 1 / 4]], dtype=torch.float64)  # 1 - (1 - lambda) / G
    torch.testing.assert_close(mean["brpo"], mean["none"] * shrinkage)


def test_priors() -> None:
    assert budget_prior("base", [2, 4, 6]).tolist() == [0, 0, 1]
    assert budget_prior("uniform", [2, 4]).tolist() == [0.5, 0.5]
    torch.testing.assert_close(budget_prior("linear", [1, 3]), torch.tensor([0.25, 0.75], dtype=torch.float64))


@quick
@given(st.sets(st.integers(1, 30), min_size=1, max_size=5))
def test_a_token_belongs_to_the_first_budget_it_fits_into(chosen: set[int]) -> None:
    budgets = sorted(chosen)
    expected = [next(s for s, b in enumerate(budgets) if place <= b) for place in range(1, budgets[-1] + 1)]
    assert budget_segments(budgets[-1], budgets).tolist() == expected


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: budget_prior("uniform", []), "no token budgets"),
        (lambda: budget_prior("uniform", [4, 4]), "ascend; 4 does not"),
        (lambda: budget_prior("uniform", [0, 4]), "positive"),
        (lambda: budget_segments(9, [4, 8]), "longer than the last budget, 8"),
        (lambda: advantage([[1.0, 0.0]], [1]), "must give 2 budgets"),
        (lambda: advantage([[1.0, 0.0]], [0, 0]), "one above 0"),
        (lambda: advantage([[1.0, 0.0]], [1, 1], discount=0.0), "discount is 0.0"),
        (lambda: advantage([[1.0, 0.0]], [1, 1], mixing="length"), "needs the 2 budgets"),
    ],
)
def test_wrong_requests_are_named(call: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call()
