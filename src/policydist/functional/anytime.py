"""Budget-relative advantages: a thinking trace rated at several token budgets (BRPO, arXiv 2505.13438).

N traces, S budgets ``b_1 < ... < b_S`` in tokens, segment s = tokens ``(b_{s-1}, b_s]`` with ``b_0 = 0``; ``r[n, s]`` the mean
reward of the answers given after cutting trace n at budget s. Everything here is a constant of the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.groups import Groups, group_mean

Prior = Literal["base", "linear", "uniform"]
Baseline = Literal["brpo", "v1", "v2", "none"]
Mixing = Literal["index", "length"]


def check_budgets(budgets: Sequence[int]) -> None:
    """Refuse budgets that are no ascending positive token counts.

    Raises:
        UsageError: naming the first one that does not ascend.
    """
    if not budgets:
        raise UsageError("no token budgets given; name at least one")
    for number, budget in enumerate(budgets):
        least = budgets[number - 1] if number else 0
        if budget <= least:
            raise UsageError(f"token budgets {list(budgets)} must be positive and ascend; {budget} does not")


def budget_prior(kind: Prior, budgets: Sequence[int]) -> Float[Tensor, " S"]:
    """Weights P over budgets, summing to 1: ``base`` the last one only, ``uniform`` 1/S, ``linear`` P_s ~ b_s (section 4)."""
    check_budgets(budgets)
    weights = {
        "base": [float(number == len(budgets) - 1) for number in range(len(budgets))],
        "uniform": [1.0] * len(budgets),
        "linear": [float(budget) for budget in budgets],
    }[kind]
    prior = torch.tensor(weights, dtype=torch.float64)
    return prior / prior.sum()


@dataclass(frozen=True)
class AnytimeAdvantage:
    """``advantages`` [N, S], one a segment, and what they are made of: ``returns`` R, ``progress`` V1, ``average`` V2."""

    advantages: Float[Tensor, "N S"]
    returns: Float[Tensor, "N S"]
    progress: Float[Tensor, "N S"]
    average: Float[Tensor, "N S"]


def anytime_advantage(
    scores: Float[Tensor, "N S"],
    group: Int[Tensor, " N"] | Groups,
    prior: Float[Tensor, " S"],
    *,
    baseline: Baseline = "brpo",
    discount: float = 0.5,
    mixing: Mixing = "index",
    budgets: Sequence[int] | None = None,
) -> AnytimeAdvantage:
    """Segment advantages of BRPO (arXiv 2505.13438, equations 6 to 9), without any division by a deviation.

    - ``R_s = sum_{s' >= s} P_s' r_s'``, the return of what is still to come;
    - ``V2_s``: the mean of R_s over the trace's group, itself included;
    - ``V1_s = (sum_{k<s} discount^{s-k} r_k) / (sum_{k<s} discount^{s-k}) * sum_{s' >= s} P_s'``, the trace's own progress so
      far, the newest budget weighing most; 0 in the first segment;
    - ``A_s = R_s - lambda_s V1_s - (1 - lambda_s) V2_s``, ``lambda_s = (s-1)/S`` by the budget's number (``index``) or
      ``b_{s-1}/b_S`` (``length``, the paper's first figure; equal for equally spaced budgets).

    ``baseline`` ``v1`` or ``v2`` takes that one alone, ``none`` leaves R. The prior is normalised to sum 1. A group of one
    has V2 = 0, as in the released code.

    Raises:
        UsageError: shapes that do not match, a prior with a negative or only zero weights, a discount outside (0, 1], or
            ``mixing="length"`` without ascending budgets.
    """
    count = scores.shape[1]
    if prior.shape != (count,) or bool((prior < 0).any()) or not float(prior.sum()) > 0:
        raise UsageError(f"the prior {prior.tolist()} must give {count} budgets weights of at least 0, one above 0")
    if not 0 < discount <= 1:
        raise UsageError(f"discount is {discount}; it must lie in (0, 1]")
    groups = Groups.of(group)
    weights = (prior / prior.sum()).to(scores)
    left = weights.flip(0).cumsum(0).flip(0)
    returns = (scores * weights).flip(1).cumsum(1).flip(1)
    average = torch.stack([groups.spread(group_mean(column, groups)) for column in returns.T], 1)
    average = average * (groups.row_counts > 1).unsqueeze(1)
    progress = torch.zeros_like(scores)
    total, mass = scores.new_zeros(len(scores)), 0.0
    for s in range(1, count):
        total = discount * (total + scores[:, s - 1])
        mass = discount * (mass + 1.0)
        progress[:, s] = total / mass * left[s]
    share = {"brpo": _mixing(count, mixing, budgets), "v1": [1.0] * count, "v2": [0.0] * count, "none": [0.0] * count}
    lam = scores.new_tensor(share[baseline])
    known = lam * progress + (1 - lam) * average if baseline != "none" else torch.zeros_like(scores)
    return AnytimeAdvantage(returns - known, returns, progress, average)


def _mixing(count: int, mixing: Mixing, budgets: Sequence[int] | None) -> list[float]:
    if mixing == "index":
        return [s / count for s in range(count)]
    if budgets is None or len(budgets) != count:
        raise UsageError(f"mixing by length needs the {count} budgets")
    check_budgets(budgets)
    return [budget / budgets[-1] for budget in (0, *budgets[:-1])]


def budget_segments(width: int, budgets: Sequence[int]) -> Int[Tensor, " T"]:
    """The segment of each of ``width`` token places: the number of the first budget that the token still fits into.

    Raises:
        UsageError: if the budgets do not ascend, or the last one is below ``width``.
    """
    check_budgets(budgets)
    if width > budgets[-1]:
        raise UsageError(f"a trace of {width} tokens is longer than the last budget, {budgets[-1]}")
    return torch.searchsorted(torch.tensor(budgets), torch.arange(1, width + 1))
