"""Rewards that fall with length, by hand and against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import IDS, members, quick

from policydist.errors import UsageError
from policydist.functional import length_shaped

REWARDS = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5, 1.0], dtype=torch.float64)
CORRECT = torch.tensor([True, True, False, True, False, True])
LENGTHS = torch.tensor([10, 30, 70, 20, 40, 80])
GROUP = torch.tensor([4, 4, 4, 4, 9, 9])


def test_absolute_by_hand() -> None:
    found = length_shaped(REWARDS, CORRECT, LENGTHS, GROUP, "absolute", max_length=80)
    assert found.tolist() == pytest.approx([1 - 10 / 160, 1 - 30 / 160, 0.0, 1 - 20 / 160, 0.5, 0.5])


def test_relative_by_hand_over_the_right_ones_alone() -> None:
    found = length_shaped(REWARDS, CORRECT, LENGTHS, GROUP, "relative", alpha=0.2)
    spread = math.sqrt(200 / 3)  # right ones of the first group: 10, 30, 20

    def falls(z: float) -> float:
        return 1 - 0.2 / (1 + math.exp(-z))

    assert found.tolist() == pytest.approx([falls(-10 / spread), falls(10 / spread), 0.0, 0.9, 0.5, 0.9])


@st.composite
def judged(draw: st.DrawFn) -> tuple[torch.Tensor, ...]:
    count = draw(st.integers(0, 9))
    rows = [
        draw(st.tuples(st.sampled_from([-1.0, 0.0, 1.0]), st.integers(1, 60), st.sampled_from(IDS[:3])))
        for _ in range(count)
    ]
    rewards, lengths, group = zip(*rows, strict=True) if rows else ((), (), ())
    kept = torch.tensor(rewards, dtype=torch.float64)
    return kept, kept > 0.5, torch.tensor(lengths, dtype=torch.long), torch.tensor(group, dtype=torch.long)


@quick
@given(judged(), st.sampled_from([0.0, 0.2, 0.9]))
def test_order_bounds_and_what_is_left_alone(batch: tuple[torch.Tensor, ...], alpha: float) -> None:
    rewards, correct, lengths, group = batch
    absolute = length_shaped(rewards, correct, lengths, group, "absolute", max_length=60)
    relative = length_shaped(rewards, correct, lengths, group, "relative", alpha=alpha)
    for found, least in ((absolute, 0.5), (relative, 1 - alpha)):
        assert torch.equal(found[~correct], rewards[~correct])
        assert bool((found[correct] >= least - 1e-12).all())
        assert bool((found[correct] <= 1).all())
    assert alpha or torch.equal(relative, rewards)
    for rows in members(group).values():
        right = [row for row in rows if correct[row]]
        for a in right:
            for b in right:
                if lengths[a] < lengths[b]:
                    assert absolute[a] > absolute[b]
                    assert relative[a] > relative[b] or alpha == 0
                if lengths[a] == lengths[b]:
                    assert absolute[a] == absolute[b]
                    assert relative[a] == relative[b]


@quick
@given(judged(), st.integers(2, 5))
def test_the_relative_form_has_no_unit(batch: tuple[torch.Tensor, ...], factor: int) -> None:
    rewards, correct, lengths, group = batch
    one, other = (length_shaped(rewards, correct, part, group, "relative") for part in (lengths, lengths * factor + 7))
    torch.testing.assert_close(one, other)


def test_what_cannot_be_shaped_is_refused() -> None:
    with pytest.raises(UsageError, match=r"max_length is 79; .* >= 80"):
        length_shaped(REWARDS, CORRECT, LENGTHS, GROUP, "absolute", max_length=79)
    with pytest.raises(UsageError, match="max_length is None"):
        length_shaped(REWARDS, CORRECT, LENGTHS, GROUP, "absolute")
    with pytest.raises(UsageError, match=r"alpha is 1\.0"):
        length_shaped(REWARDS, CORRECT, LENGTHS, GROUP, "relative", alpha=1.0)
