from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import batches, mean, members, quick, std

from policydist.errors import UsageError
from policydist.functional import (
    Groups,
    group_centred,
    group_count,
    group_mean,
    group_std,
    group_sum,
    mixed_groups,
)


@quick
@given(batches(binary=False), st.sampled_from([0, 1]))
def test_statistics_match_loops(batch, ddof):
    values, group = batch
    rows = [[values[i].item() for i in part] for part in members(group).values()]
    assert group_count(group).tolist() == [len(part) for part in rows]
    assert group_sum(values, group).tolist() == pytest.approx([sum(part) for part in rows], abs=1e-12)
    assert group_mean(values, group).tolist() == pytest.approx([mean(part) for part in rows], abs=1e-12)
    assert group_std(values, group, ddof=ddof).tolist() == pytest.approx([std(part, ddof) for part in rows], abs=1e-12)
    wanted = {i: len({values[j].item() for j in part}) > 1 for part in members(group).values() for i in part}
    assert mixed_groups(values, group).tolist() == [wanted[i] for i in range(len(values))]


@quick
@given(batches(binary=False), st.randoms(use_true_random=False))
def test_rows_may_come_in_any_order(batch, random):
    values, group = batch
    order = list(range(len(values)))
    random.shuffle(order)
    torch.testing.assert_close(group_std(values[order], group[order]), group_std(values, group))
    torch.testing.assert_close(group_centred(values[order], group[order]), group_centred(values, group)[order])


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, -2.3, 1e-8, 123456.789])
def test_equal_values_are_exact_in_single_precision(value):
    sizes = torch.arange(1, 40)
    group = torch.repeat_interleave(sizes, sizes)
    values = torch.full((len(group),), value)
    assert (group_centred(values, group) == 0).all()
    assert (group_std(values, group) == 0).all()
    assert (group_mean(values, group) == values[0]).all()
    assert not mixed_groups(values, group).any()


def test_small_spread_on_a_large_offset():
    # The one-pass formula E[x^2] - E[x]^2 has no correct digit here.
    values = torch.tensor([1e6, 1e6 + 1, 1e6 + 2, 5.0])
    torch.testing.assert_close(group_std(values, torch.tensor([1, 1, 1, 0])), torch.tensor([0.0, 1.0]))


def test_gradients_of_group_statistics():
    group = torch.tensor([4, 1, 4, 4, 1])
    values = torch.tensor([0.3, -1.0, 2.0, 0.3, 0.5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: group_mean(x, group), values)
    assert torch.autograd.gradcheck(lambda x: group_centred(x, group), values)
    assert torch.autograd.gradcheck(lambda x: group_std(x, group), values)


def test_dense_ids_give_the_same_groups():
    group = torch.tensor([2, 0, 1, 1, 2, 2])
    dense, general = Groups.dense(group, 3), Groups.of(group)
    assert torch.equal(dense.index, general.index)
    assert torch.equal(dense.counts, general.counts)
    assert Groups.of(dense) is dense
    assert dense.row_counts.tolist() == [3, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("ids", "count"), [([0, 2], 2), ([-1, 0], 2), ([0, 2], 3)])
def test_dense_refuses_ids_that_are_not(ids, count):
    with pytest.raises(UsageError, match="group"):
        Groups.dense(torch.tensor(ids), count)


def test_bad_input_is_named():
    with pytest.raises(UsageError, match="integer ids"):
        group_sum(torch.ones(2), torch.tensor([0.0, 1.0]))
    with pytest.raises(UsageError, match="3 group ids"):
        group_sum(torch.ones(2), torch.tensor([0, 1, 1]))


def test_truth_values_and_counts_are_rewards_too():
    assert group_mean(torch.tensor([True, False, True]), torch.tensor([0, 0, 9])).tolist() == [0.5, 1.0]
    assert group_mean(torch.tensor([3, 4, 1]), torch.tensor([0, 0, 9])).tolist() == [3.5, 1.0]
