"""Losses on pairs of responses to one prompt, of which one is preferred.

N responses, K pairs. Log-probabilities are those of whole responses: sums over their tokens. Source: DPO, arXiv 2305.18290.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.groups import Groups, as_float


def best_worst_pairs(rewards: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups) -> Int[Tensor, "K 2"]:
    """Rows of the best and of the worst response of each group whose rewards are not all equal, in the groups' order.

    Of equally good rows the first counts, best and worst alike. K is at most the number of groups; a group of one gives
    no pair.

    Raises:
        UsageError: rewards and groups of different lengths.
    """
    groups = Groups.of(group)
    if rewards.shape != groups.index.shape:
        raise UsageError(f"rewards of shape {tuple(rewards.shape)} do not match {len(groups.index)} group ids")
    values = as_float(rewards.detach())
    rows = torch.arange(len(values), device=values.device)
    ends = []
    for signed in (values, -values):
        most = signed.new_zeros(len(groups)).scatter_reduce_(0, groups.index, signed, "amax", include_self=False)
        found = rows.masked_fill(signed != groups.spread(most), len(rows))
        ends.append(rows.new_zeros(len(groups)).scatter_reduce_(0, groups.index, found, "amin", include_self=False))
    pairs = torch.stack(ends, 1)
    return pairs[values[pairs[:, 0]] > values[pairs[:, 1]]]


def dpo_margin(
    chosen: Float[Tensor, " K"],
    rejected: Float[Tensor, " K"],
    reference_chosen: Float[Tensor, " K"],
    reference_rejected: Float[Tensor, " K"],
    beta: float = 0.1,
) -> Float[Tensor, " K"]:
    """``beta [log pi/pi_ref (chosen) - log pi/pi_ref (rejected)]`` in nats: how much more implicit reward the chosen
    response has. The reference is a constant.

    Raises:
        UsageError: ``beta`` is not positive.
    """
    if not beta > 0:
        raise UsageError(f"beta is {beta}; it must be positive")
    return beta * ((chosen - reference_chosen.detach()) - (rejected - reference_rejected.detach()))


def dpo_loss(
    chosen: Float[Tensor, " K"],
    rejected: Float[Tensor, " K"],
    reference_chosen: Float[Tensor, " K"],
    reference_rejected: Float[Tensor, " K"],
    beta: float = 0.1,
) -> Float[Tensor, " K"]:
    """``-log sigmoid(margin)`` with `dpo_margin`, one a pair, to be averaged (DPO, arXiv 2305.18290, section 4, eq. 7).

    Its gradient is ``-beta sigmoid(-margin) (grad log pi(chosen) - grad log pi(rejected))``; at pi = pi_ref the loss is
    log 2 and the factor beta / 2.
    """
    margin = dpo_margin(chosen, rejected, reference_chosen, reference_rejected, beta)
    return -torch.nn.functional.logsigmoid(margin)
