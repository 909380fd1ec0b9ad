from __future__ import annotations

from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import quick

from policydist.errors import UsageError
from policydist.functional import TRL_LOSS_TYPES, VERL_LOSS_AGG, Aggregation, aggregate

MODES = get_args(Aggregation)
LOSS = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("token-mean", 15 / 4),
        ("seq-mean-token-mean", (7 / 3 + 8) / 2),
        ("seq-mean-token-sum", 15 / 2),
        ("seq-mean-token-sum-norm", 15 / 10),
        ("dr-grpo", 15 / 20),
    ],
)
def test_the_five_normalisations_differ(mode, wanted):
    assert aggregate(LOSS, MASK, mode, max_length=10).item() == pytest.approx(wanted)


@pytest.mark.parametrize("mode", MODES)
@quick
@given(st.integers(0, 10**6), st.lists(st.integers(1, 4), min_size=2, max_size=4))
def test_micro_batches_add_up(mode, seed, cut):
    generator = torch.Generator().manual_seed(seed)
    rows = sum(cut)
    loss = torch.randn(rows, 5, dtype=torch.float64, generator=generator)
    lengths = torch.randint(0, 6, (rows, 1), generator=generator)
    mask = torch.arange(5) < lengths
    whole = aggregate(loss, mask, mode, max_length=5)
    norm = {"tokens": float(mask.sum().clamp(min=1)), "sequences": float(rows), "max_length": 5}
    # A micro-batch may be trimmed to its own longest response.
    parts = [
        aggregate(part[:, :width], valid[:, :width], mode, **norm)
        for part, valid in zip(loss.split(cut), mask.split(cut), strict=True)
        for width in [max(1, int(valid.sum(1).max()))]
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_averaging_local_means_is_another_number():
    # The trap: older forks take the mean of every micro-batch and average those.
    halves = [aggregate(LOSS[i : i + 1], MASK[i : i + 1], "token-mean") for i in range(2)]
    assert abs(sum(halves) / 2 - aggregate(LOSS, MASK, "token-mean")) > 1


def test_masked_losses_are_not_read_in_value_or_gradient():
    for mode in MODES:
        loss = torch.where(MASK, LOSS, torch.nan).requires_grad_()
        value = aggregate(loss, MASK, mode, max_length=3)
        assert value.item() == pytest.approx(aggregate(LOSS, MASK, mode, max_length=3).item())
        (gradient,) = torch.autograd.grad(value, loss)
        assert (gradient[~MASK] == 0).all()
        assert (gradient[MASK] > 0).all()


def test_empty_responses_count_as_sequences_and_add_nothing():
    mask = MASK.clone()
    mask[1] = False
    assert aggregate(LOSS, mask, "seq-mean-token-mean").item() == pytest.approx(7 / 6)
    assert aggregate(LOSS, torch.zeros_like(mask), "token-mean") == 0


def test_names_of_the_engines():
    assert set(VERL_LOSS_AGG) | set(TRL_LOSS_TYPES.values()) == set(MODES)
    assert TRL_LOSS_TYPES["bnpo"] == "token-mean"
    # TRL's Dr. GRPO divides by the batch as well, verl's mode of the similar name does not.
    mode = TRL_LOSS_TYPES["dr_grpo"]
    assert aggregate(LOSS, MASK, mode, max_length=10).item() == pytest.approx(15 / (2 * 10))


def test_errors():
    with pytest.raises(UsageError, match="did you mean token-mean"):
        aggregate(LOSS, MASK, "tokenmean")
    with pytest.raises(UsageError, match="max_length"):
        aggregate(LOSS, MASK, "dr-grpo")
