"""Statistics of ragged groups: which responses answer the same prompt, and their sums, means and deviations.

Group ids are arbitrary integers in any order. Wherever a function takes ``group`` it also takes a `Groups`, which
holds the result of looking the ids up; make it once when several statistics of the same batch are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError


@dataclass(frozen=True)
class Groups:
    """N rows sorted into Q groups: ``index`` [N] in 0..Q-1, ``counts`` [Q] rows of each group, all at least 1."""

    index: Int[Tensor, " N"]
    counts: Int[Tensor, " Q"]

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def row_counts(self) -> Int[Tensor, " N"]:
        """For every row the size of its group."""
        return self.counts.index_select(0, self.index)

    def spread(self, values: Tensor) -> Tensor:
        """One value a group [Q] to one value a row [N]."""
        return values.index_select(0, self.index)

    @staticmethod
    def of(group: Int[Tensor, " N"] | Groups) -> Groups:
        """Look up arbitrary ids; group q is the q-th smallest distinct id. A `Groups` is returned as it is.

        Raises:
            UsageError: the ids are not a vector of integers.
        """
        if isinstance(group, Groups):
            return group
        _check_ids(group)
        _, index, counts = torch.unique(group, return_inverse=True, return_counts=True)
        return Groups(index, counts)

    @staticmethod
    def dense(group: Int[Tensor, " N"], num_groups: int) -> Groups:
        """Take ids that are 0..num_groups-1 already, each used at least once: saves the sorting of `of`.

        Raises:
            UsageError: an id is outside the range or unused.
        """
        _check_ids(group)
        if len(group) and int(group.min()) < 0:
            raise UsageError(
                f"group ids must lie in 0..{num_groups - 1}, found {int(group.min())}; use Groups.of for other ids"
            )
        counts = torch.bincount(group, minlength=num_groups)
        if len(counts) > num_groups:
            raise UsageError(
                f"group ids must lie in 0..{num_groups - 1}, found {len(counts) - 1}; use Groups.of for other ids"
            )
        if num_groups and int(counts.min()) == 0:
            raise UsageError(
                f"group {int(counts.argmin())} of {num_groups} has no rows; use Groups.of to leave such groups out"
            )
        return Groups(group, counts)


def _check_ids(group: Tensor) -> None:
    if group.dim() != 1 or group.is_floating_point() or group.dtype == torch.bool:
        raise UsageError(f"group must be a vector of integer ids, got {group.dtype} of shape {tuple(group.shape)}")


def as_float(values: Tensor) -> Tensor:
    """Rewards given as counts or truth values, in the default floating type; floating tensors unchanged."""
    return values if values.is_floating_point() else values.to(torch.get_default_dtype())


def group_count(group: Int[Tensor, " N"] | Groups) -> Int[Tensor, " Q"]:
    """Rows in each group; group q is the q-th smallest distinct id."""
    return Groups.of(group).counts


def group_sum(values: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups) -> Float[Tensor, " Q"]:
    """Sum of ``values`` over each group."""
    groups = Groups.of(group)
    values = _matching(values, groups)
    return values.new_zeros(len(groups)).index_add_(0, groups.index, values)


def group_mean(values: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups) -> Float[Tensor, " Q"]:
    """Mean of ``values`` over each group; the mean of equal values is that very value, without rounding."""
    groups = Groups.of(group)
    values = _matching(values, groups)
    least = _group_least(values, groups)
    return least + group_sum(values - groups.spread(least), groups) / groups.counts


def group_centred(values: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups) -> Float[Tensor, " N"]:
    """``values`` minus their group's mean; exactly 0 in a group whose values are all equal.

    The group's least value is taken off before averaging: without that, the mean of n equal numbers can differ from
    them in the last bit, which a division by a tiny standard deviation would turn into a visible advantage.
    """
    groups = Groups.of(group)
    values = _matching(values, groups)
    above = values - groups.spread(_group_least(values, groups))
    return above - groups.spread(group_sum(above, groups) / groups.counts)


def group_std(values: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups, *, ddof: int = 1) -> Float[Tensor, " Q"]:
    """Standard deviation sqrt(sum (x - mean)^2 / (n - ddof)) of each group, in two passes.

    Exactly 0 for equal values; also 0 for a group of at most ``ddof`` rows, for which it is undefined.
    """
    groups = Groups.of(group)
    return std_of_centred(group_centred(values, groups), groups, ddof)


def std_of_centred(centred: Float[Tensor, " N"], groups: Groups, ddof: int) -> Float[Tensor, " Q"]:
    """`group_std` of values whose group means have been taken off already."""
    freedom = (groups.counts - ddof).clamp(min=1)
    return (group_sum(centred.square(), groups) / freedom).sqrt()


def mixed_groups(rewards: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups) -> Bool[Tensor, " N"]:
    """For every row whether its group holds two different rewards: the groups that DAPO's dynamic sampling keeps."""
    groups = Groups.of(group)
    rewards = _matching(rewards, groups)
    varied = rewards != groups.spread(_group_least(rewards, groups))
    return groups.spread(group_sum(varied.to(rewards.dtype), groups)) > 0


def _group_least(values: Tensor, groups: Groups) -> Tensor:
    # Any member would do as the pivot; the least does not depend on the rows' order. It cancels out of every result,
    # so it needs no gradient.
    empty = values.new_zeros(len(groups))
    return empty.scatter_reduce_(0, groups.index, values.detach(), "amin", include_self=False)


def _matching(values: Tensor, groups: Groups) -> Tensor:
    if values.shape != groups.index.shape:
        raise UsageError(f"values of shape {tuple(values.shape)} do not match {len(groups.index)} group ids")
    return as_float(values)
