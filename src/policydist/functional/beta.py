"""Beta normalisation of advantages (BNPO, arXiv 2506.02864): centred reward over a Beta density at p.

Not to be confused with the aggregation that TRL calls ``loss_type="bnpo"``. The weights depend on the prompt, so the
estimator is no longer an unbiased gradient of the mean reward: it trades that for a smaller variance.
Q prompts, N responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.advantages import Singleton
from policydist.functional.groups import Groups, as_float, group_mean

LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class BetaNormalization:
    """What `bnpo_advantage` fitted: success rates ``p`` [Q], their Beta(``a``, ``b``), the normaliser's ``alpha`` and
    ``beta``, and the weight [Q] of each prompt. Groups are ordered by id."""

    p: Float[Tensor, " Q"]
    a: Float[Tensor, ""]
    b: Float[Tensor, ""]
    alpha: Float[Tensor, ""]
    beta: Float[Tensor, ""]
    weight: Float[Tensor, " Q"]


def beta_moments(p: Float[Tensor, " Q"], *, ddof: int = 1) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Beta(a, b) whose mean and variance are those of the prompts' success rates (arXiv 2506.02864, released code).

    ``c = mu (1 - mu) / v - 1``, ``a = c mu``, ``b = c (1 - mu)`` with ``v`` over Q - ``ddof``. ``p`` are *estimated*
    rates: their sampling noise inflates ``v``, as in the paper. Overdispersed rates give negative a and b.

    Where no Beta fits (v at most 1e-12, or all rates 0 or all 1) the result is (0, 0), which `bnpo_params` turns into
    the neutral normaliser (1, 1). One prompt alone is treated as the released code does, mu = 0 and v = 1: (0, -1),
    neutral too.
    """
    p = as_float(p)
    if len(p) == 1:
        return p.new_zeros(()), p.new_full((), -1.0)
    variance, mean = torch.var_mean(p, correction=ddof)
    failure = 1 - mean
    # Rates that are all 0 or all 1 have variance 0 as well.
    concentration = torch.where(variance > LEAST_VARIANCE, mean * failure / variance - 1, 0.0)
    return concentration * mean, concentration * failure


def bnpo_params(
    a: Float[Tensor, "..."], b: Float[Tensor, "..."], *, floor: float = 1.0
) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Least-variance normaliser ``alpha = max(floor, 1 + a/3)``, ``beta = max(floor, 1 + b/3)`` (arXiv 2506.02864)."""
    return (1 + a / 3).clamp(min=floor), (1 + b / 3).clamp(min=floor)


def bnpo_weight(
    p: Float[Tensor, "*Q"],
    alpha: Float[Tensor, ""] | float,
    beta: Float[Tensor, ""] | float,
    *,
    cap: float = 1e6,
) -> Float[Tensor, "*Q"]:
    """``min(cap, 1 / f(p; alpha, beta))`` with f the Beta density, for p in [0, 1] (arXiv 2506.02864).

    (1, 1) gives 1, (3/2, 3/2) gives ``(pi/8) / sqrt(p (1-p))``. Where the density is 0 the weight is ``cap``, never
    infinite.
    """
    # Evaluated in double precision: for close success rates alpha and beta are large, and the terms of log f cancel.
    p64 = p.double()
    first, second = (torch.as_tensor(x, dtype=torch.float64, device=p.device) for x in (alpha, beta))
    log_density = torch.xlogy(first - 1, p64) + torch.special.xlog1py(second - 1, -p64) - _log_beta(first, second)
    return torch.exp(-log_density).clamp(max=cap).to(p.dtype)


def bnpo_advantage(
    rewards: Float[Tensor, " N"],
    group: Int[Tensor, " N"] | Groups,
    *,
    r_min: float = 0.0,
    r_max: float = 1.0,
    ddof: int = 1,
    floor: float = 1.0,
    cap: float = 1e6,
    singleton: Singleton = "zero",
) -> tuple[Float[Tensor, " N"], BetaNormalization]:
    """``A = w(p_q) (R - p_q)``: rewards mapped to [0, 1], centred by the prompt's mean p_q, weighted by `bnpo_weight`.

    The Beta is fitted to this batch's prompt means (not to single rewards). Advantages sum to 0 in every group, and
    groups of equal rewards get exactly 0. A group of one has p_q = R and advantage 0; ``singleton="raw"`` is the
    released code's rule p_q = 0 for it, under which a lone success can get the weight ``cap``.

    Raises:
        UsageError: a reward outside [r_min, r_max], or lengths differ.
    """
    groups = Groups.of(group)
    rewards = as_float(rewards)
    if r_max <= r_min:
        raise UsageError(f"r_max is {r_max}, r_min is {r_min}: r_max must be the greater one")
    if len(rewards):
        low, high = (float(x) for x in rewards.aminmax())
        if not (r_min <= low and high <= r_max):
            raise UsageError(
                f"rewards run from {low:g} to {high:g}, outside [{r_min:g}, {r_max:g}]; set r_min and r_max"
            )
    scaled = (rewards - r_min) / (r_max - r_min)
    p = group_mean(scaled, groups)
    if singleton == "raw":
        p = torch.where(groups.counts == 1, 0.0, p)
    elif singleton != "zero":
        raise UsageError(f"singleton is {singleton!r}; it must be 'zero' or 'raw'")
    a, b = beta_moments(p, ddof=ddof)
    alpha, beta = bnpo_params(a, b, floor=floor)
    weight = bnpo_weight(p, alpha, beta, cap=cap)
    return groups.spread(weight) * (scaled - groups.spread(p)), BetaNormalization(p, a, b, alpha, beta, weight)


def decomposed_advantage(
    rewards: Mapping[str, Float[Tensor, " N"]],
    group: Int[Tensor, " N"] | Groups,
    *,
    r_min: float = 0.0,
    r_max: float = 1.0,
    ddof: int = 1,
    floor: float = 1.0,
    cap: float = 1e6,
    singleton: Singleton = "zero",
    count_inactive: bool = False,
) -> tuple[Float[Tensor, " N"], dict[str, BetaNormalization]]:
    """Mean over reward components of their own `bnpo_advantage`, each with its own Beta (arXiv 2506.02864).

    A component that is 0 for the whole batch is inactive: it adds nothing, and by default does not count in the mean.
    The released code counts it (``count_inactive=True``), which halves the advantage when a second reward is switched
    off. The returned mapping holds the active components.

    Raises:
        UsageError: no component is given, or one fails `bnpo_advantage`'s checks.
    """
    if not rewards:
        raise UsageError("decomposed_advantage needs at least one reward component")
    groups = Groups.of(group)
    total = torch.zeros_like(as_float(next(iter(rewards.values()))))
    fitted: dict[str, BetaNormalization] = {}
    for name, values in rewards.items():
        if bool((values != 0).any()):
            advantage, fitted[name] = bnpo_advantage(
                values, groups, r_min=r_min, r_max=r_max, ddof=ddof, floor=floor, cap=cap, singleton=singleton
            )
            total = total + advantage
    return total / max(1, len(rewards) if count_inactive else len(fitted)), fitted


def bnpo_variance(
    alpha: Float[Tensor, "..."] | float,
    beta: Float[Tensor, "..."] | float,
    a: Float[Tensor, "..."] | float,
    b: Float[Tensor, "..."] | float,
) -> Float[Tensor, "..."]:
    """Gradient variance under success rates p ~ Beta(a, b), up to the scale of the score vectors.

    The variance theorem of arXiv 2506.02864, in our own derivation:
    ``V = E[p (1-p) / f(p; alpha, beta)^2] = B(alpha, beta)^2 B(a + 3 - 2 alpha, b + 3 - 2 beta) / B(a, b)``, assuming
    that score and advantage are uncorrelated. Infinite unless ``alpha < (a+3)/2`` and ``beta < (b+3)/2``; least at
    ``alpha = 1 + a/3``, ``beta = 1 + b/3``. Arguments broadcast; the result is in double precision.

    Raises:
        UsageError: a parameter is not positive.
    """
    first, second, a64, b64 = (torch.as_tensor(x, dtype=torch.float64) for x in (alpha, beta, a, b))
    for name, value in (("alpha", first), ("beta", second), ("a", a64), ("b", b64)):
        if not bool((value > 0).all()):
            raise UsageError(f"{name} is {float(value.min()):g}; the parameters of a Beta must be positive")
    left, right = a64 + 3 - 2 * first, b64 + 3 - 2 * second
    finite = (left > 0) & (right > 0)
    log_ratio = _log_beta(torch.where(finite, left, 1.0), torch.where(finite, right, 1.0)) - _log_beta(a64, b64)
    return torch.where(finite, torch.exp(2 * _log_beta(first, second) + log_ratio), torch.inf)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
