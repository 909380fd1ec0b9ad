"""Rewards by what a reader can do with a text: a frozen Solver's pass rate, and which problems it may be asked again.

Source: DoGe, arXiv 2512.06835, stage rewards and seed problem pool, and its released code. K analyses, D problems.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError

RewardForm = Literal["code", "paper"]


def context_reward(
    pass_rate: Float[Tensor, " K"], format_rate: Float[Tensor, " K"], beta: float = 0.1, form: RewardForm = "code"
) -> Float[Tensor, " K"]:
    """Reward of an analysis from the share of Solver answers that are right, and a format rate; both lie in [0, 1].

    - ``code``: ``(1 - beta) p + beta f`` with f the format of the analysis itself, in [0, 1];
    - ``paper``: ``p + beta f`` with f the share of well-formed Solver answers, in [0, 1 + beta].

    With all formats 1 both give the same standardised advantages up to the eps of the division. The ``code`` form is also
    the reward of a direct answer (stage 2), with p its correctness.

    Raises:
        UsageError: ``beta`` outside [0, 1], or an unknown ``form``.
    """
    if not 0 <= beta <= 1:
        raise UsageError(f"beta is {beta}; the weight of the format must lie in [0, 1]")
    if form == "code":
        return (1 - beta) * pass_rate + beta * format_rate
    if form == "paper":
        return pass_rate + beta * format_rate
    raise UsageError(f"the reward's form is {form!r}; it must be 'code' or 'paper'")


def sometimes_solved(right: Int[Tensor, " D"], samples: int, low: float = 0.1, high: float = 0.3) -> Bool[Tensor, " D"]:
    """Problems whose pass rate ``right / samples`` lies in [low, high], both ends included (DoGe's seed pool).

    Compared as counts in float64, so that 3 of 10 is not above 0.3.

    Raises:
        UsageError: no samples, or bounds that are not ``0 <= low <= high <= 1``.
    """
    if samples < 1:
        raise UsageError(f"a pass rate needs samples, got {samples}")
    if not 0 <= low <= high <= 1:
        raise UsageError(f"the pool's bounds are {low} and {high}; they must satisfy 0 <= low <= high <= 1")
    count, slack = right.to(torch.float64), 1e-9 * samples
    return (count >= low * samples - slack) & (count <= high * samples + slack)
