"""Advantages from outcome rewards in ragged groups (GRPO and its relatives) and from token rewards (GAE, REINFORCE++).

N responses, T tokens, K reward components, Q groups. Advantages are constants of the update: pass rewards without
gradient. Token-level results are 0 outside ``mask``. Conventions: verl and TRL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.groups import Groups, as_float, group_centred, group_std, std_of_centred

Singleton = Literal["zero", "raw"]
Scale = Literal["group", "batch", "none"]


def reinforce_advantage(
    rewards: Float[Tensor, " N"], baseline: Float[Tensor, " N"] | Float[Tensor, ""] | float = 0.0
) -> Float[Tensor, " N"]:
    """``r - baseline`` (Williams 1992); the baseline may be one number, or one a response."""
    return as_float(rewards) - baseline


def grpo_advantage(
    rewards: Float[Tensor, " N"],
    group: Int[Tensor, " N"] | Groups,
    *,
    eps: float = 1e-6,
    ddof: int = 1,
    scale: Scale = "group",
    singleton: Singleton = "zero",
) -> Float[Tensor, " N"]:
    """Group-relative advantage ``(r - mean_g) / (std_g + eps)`` (arXiv 2402.03300, section 4.1.2).

    ``scale="none"`` leaves the division out (`dr_grpo_advantage`); ``"batch"`` divides by the standard deviation of
    all rewards instead. ``eps`` is 1e-6 in verl and 1e-4 in TRL; both use ``ddof=1``. Groups of equal rewards get
    exactly 0.

    A group of one has no spread and nothing to compare with: ``singleton="zero"`` gives it 0. ``"raw"`` is verl's rule,
    mean 0 and deviation 1, so that its advantage is its reward.

    Raises:
        UsageError: unknown ``scale`` or ``singleton``, or ``rewards`` and ``group`` differ in length.
    """
    groups = Groups.of(group)
    rewards = as_float(rewards)
    centred = group_centred(rewards, groups)
    if scale == "group":
        advantage = centred / (groups.spread(std_of_centred(centred, groups, ddof)) + eps)
        own: Tensor | float = 1 + eps
    elif scale == "batch":
        own = _std(rewards, ddof) + eps
        advantage = centred / own
    elif scale == "none":
        advantage, own = centred, 1.0
    else:
        raise UsageError(f"scale is {scale!r}; it must be 'group', 'batch' or 'none'")
    return _with_singletons(advantage, rewards, own, groups, singleton)


def dr_grpo_advantage(
    rewards: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups, *, singleton: Singleton = "zero"
) -> Float[Tensor, " N"]:
    """``r - mean_g``: GRPO without the division by the deviation (Dr. GRPO, arXiv 2503.20783)."""
    return grpo_advantage(rewards, group, scale="none", singleton=singleton)


def rloo_advantage(
    rewards: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups, *, singleton: Singleton = "zero"
) -> Float[Tensor, " N"]:
    """Reward minus the mean of the *others* in the group, ``n/(n-1) (r - mean_g)`` (RLOO, arXiv 2402.14740).

    A group of one has no others: 0 by default, its reward with ``singleton="raw"`` (verl).
    """
    groups = Groups.of(group)
    rewards = as_float(rewards)
    counts = groups.counts.to(rewards.dtype)
    advantage = group_centred(rewards, groups) * groups.spread(counts / (counts - 1).clamp(min=1))
    return _with_singletons(advantage, rewards, 1.0, groups, singleton)


def remax_advantage(
    rewards: Float[Tensor, " N"], greedy_rewards: Float[Tensor, " Q"], group: Int[Tensor, " N"] | Groups
) -> Float[Tensor, " N"]:
    """Reward minus the reward of the prompt's greedy response (ReMax, arXiv 2310.10505).

    ``greedy_rewards[q]`` belongs to the q-th smallest distinct id in ``group``.

    Raises:
        UsageError: the number of greedy rewards is not the number of groups.
    """
    groups = Groups.of(group)
    if greedy_rewards.shape != groups.counts.shape:
        raise UsageError(f"{len(groups)} groups need as many greedy rewards, got shape {tuple(greedy_rewards.shape)}")
    return as_float(rewards) - groups.spread(as_float(greedy_rewards))


def reinforce_pp_advantage(
    token_rewards: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], *, gamma: float = 1.0
) -> Float[Tensor, "N T"]:
    """Discounted token returns, whitened over all valid tokens (REINFORCE++, arXiv 2501.03262)."""
    return whiten(discounted_returns(token_rewards, mask, gamma=gamma), mask)


def reinforce_pp_baseline_advantage(
    rewards: Float[Tensor, " N"],
    group: Int[Tensor, " N"] | Groups,
    mask: Bool[Tensor, "N T"],
    *,
    singleton: Singleton = "zero",
) -> Float[Tensor, "N T"]:
    """``r - mean_g`` on every token, whitened over all valid tokens (REINFORCE++-baseline, arXiv 2501.03262).

    Long responses count more in the whitening's mean and deviation, once per token. ``singleton="raw"`` is verl's rule
    for a group of one: its reward enters the whitening uncentred.
    """
    centred = dr_grpo_advantage(rewards, group, singleton=singleton)
    return whiten(centred.unsqueeze(1).expand(mask.shape), mask)


def sum_then_normalize(
    rewards: Float[Tensor, "N K"],
    weights: Float[Tensor, " K"],
    group: Int[Tensor, " N"] | Groups,
    *,
    eps: float = 1e-4,
    scale: Scale = "group",
) -> Float[Tensor, " N"]:
    """TRL's default for several rewards: weighted sum over K, then `grpo_advantage`.

    NaN means that a component does not apply to a response and counts as 0. A response to which none applies gets
    advantage 0 and does not enter its group's statistics.
    """
    scorable = ~rewards.isnan().all(1)
    total = (rewards * weights).nansum(1)
    return _on_rows(scorable, total, Groups.of(group), lambda r, g: grpo_advantage(r, g, eps=eps, scale=scale))


def normalize_then_sum(
    rewards: Float[Tensor, "N K"],
    weights: Float[Tensor, " K"],
    group: Int[Tensor, " N"] | Groups,
    *,
    eps: float = 1e-4,
) -> Float[Tensor, " N"]:
    """TRL's other rule for several rewards: `grpo_advantage` of each, weighted sum, standardised over the batch.

    ``(s - mean) / (std + eps)`` with s the weighted sum. NaN as in `sum_then_normalize`.
    """
    groups = Groups.of(group)
    known = ~rewards.isnan()
    total = torch.zeros_like(rewards[:, 0])
    for k in range(rewards.shape[1]):
        part = _on_rows(known[:, k], rewards[:, k], groups, lambda r, g: grpo_advantage(r, g, eps=eps))
        total = total + weights[k] * part
    batch = torch.zeros_like(groups.index)
    return _on_rows(known.any(1), total, Groups.of(batch), lambda r, g: grpo_advantage(r, g, eps=eps))


def whiten(
    values: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], *, ddof: int = 1, eps: float = 1e-8
) -> Float[Tensor, "N T"]:
    """``(x - mean) / sqrt(var + eps)`` with mean and variance over the valid tokens; 0 on the others.

    verl's masked whitening (``ddof=1``). Equal values, or at most ``ddof`` valid tokens, give exactly 0.
    """
    valid = mask.bool()
    count = valid.sum()
    pivot = torch.where(valid, values, torch.inf).amin()
    centred = torch.where(valid, values - pivot, 0.0)
    centred = torch.where(valid, centred - centred.sum() / count.clamp(min=1), 0.0)
    variance = centred.square().sum() / (count - ddof).clamp(min=1)
    return centred * torch.rsqrt(variance + eps)


def discounted_returns(
    token_rewards: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"], *, gamma: float = 1.0
) -> Float[Tensor, "N T"]:
    """``G_t = r_t + gamma G_{t+1}`` along the valid tokens of each row; 0 on the others.

    Tokens outside the mask are passed over: they add no reward and cost no discount, wherever they stand (padding, or
    tool output between two turns).
    """
    valid = mask.bool()
    running = torch.zeros_like(token_rewards[:, 0])
    returns: list[Tensor] = []
    for reward, here in zip(reversed(token_rewards.unbind(1)), reversed(valid.unbind(1)), strict=True):
        running = torch.where(here, reward + gamma * running, running)
        returns.append(running)
    return torch.where(valid, torch.stack(returns[::-1], 1), 0.0)


def gae_advantage(
    token_rewards: Float[Tensor, "N T"],
    values: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
    """Generalised advantage estimation (arXiv 1506.02438): advantages and value targets, neither of them whitened.

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = delta_t + gamma lam A_{t+1}``, target ``A_t + V_t``, where t+1 is
    the next *valid* token of the row and the value after the last one is 0 (the response is over). ``values[:, t]`` is
    the estimate before token t. Rewards and values outside the mask are not read.
    """
    valid = mask.bool()
    next_value = torch.zeros_like(values[:, 0])
    running = torch.zeros_like(next_value)
    advantages: list[Tensor] = []
    columns = zip(token_rewards.unbind(1), values.unbind(1), valid.unbind(1), strict=True)
    for reward, value, here in reversed(list(columns)):
        delta = reward + gamma * next_value - value
        running = torch.where(here, delta + gamma * lam * running, running)
        next_value = torch.where(here, value, next_value)
        advantages.append(running)
    advantage = torch.where(valid, torch.stack(advantages[::-1], 1), 0.0)
    return advantage, torch.where(valid, advantage + values, 0.0)


def _on_rows(
    rows: Bool[Tensor, " N"], values: Float[Tensor, " N"], groups: Groups, advantage: Callable[[Tensor, Tensor], Tensor]
) -> Float[Tensor, " N"]:
    """``advantage`` of the chosen rows alone, 0 for the others."""
    result = torch.zeros_like(values)
    result[rows] = advantage(values[rows], groups.index[rows])
    return result


def _std(values: Tensor, ddof: int) -> Tensor:
    return group_std(values, Groups.of(torch.zeros(len(values), dtype=torch.int64, device=values.device)), ddof=ddof)


def _with_singletons(
    advantage: Tensor, rewards: Tensor, scale: Tensor | float, groups: Groups, singleton: Singleton
) -> Tensor:
    if singleton == "zero":  # already so: a lone value minus itself
        return advantage
    if singleton == "raw":
        return torch.where(groups.row_counts == 1, rewards / scale, advantage)
    raise UsageError(f"singleton is {singleton!r}; it must be 'zero' or 'raw'")
