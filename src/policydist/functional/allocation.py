"""Who gets how many rollouts: values of prompts, the rollout knapsack, Thompson draws, upper confidence bounds.

Success rates p lie in [0, 1], a group is "mixed" when its rewards differ. Everything is a pure function of statistics
that somebody else keeps; nothing here knows what a step or a data set is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.groups import Groups, group_mean

Score = Literal["p(1-p)^2", "p(1-p)"]
Weight = Literal["info_gain", "none"]
Compat = Literal["paper", "official"]
Array = NDArray[np.float64]


class EffectiveRatio(NamedTuple):
    """Shares in [0, 1] of ``samples`` that lie in a mixed group, and of ``prompts`` whose group is mixed."""

    samples: float
    prompts: float


class Allocation(NamedTuple):
    """``counts`` [M] rollouts of each prompt; ``surplus`` of them went to prompts outside the knapsack, or filtered out
    (``fallback``)."""

    counts: Int[Tensor, " M"]
    fallback: bool
    surplus: int


def effective_gradient_ratio(
    rewards: Float[Tensor, " N"], group: Int[Tensor, " N"] | Groups, tolerance: float = 0.0
) -> EffectiveRatio:
    """How much of a batch a group-relative method can learn from; groups may differ in size.

    A group is mixed when its rewards' distances from their mean add up to more than ``tolerance``. By samples (Knapsack RL,
    arXiv 2509.25849) and by prompts (VADE, arXiv 2511.18902) the numbers differ as soon as sizes do. Empty: (0, 0).
    """
    groups = Groups.of(group)
    if len(groups) == 0:
        return EffectiveRatio(0.0, 0.0)
    spread = (rewards - groups.spread(group_mean(rewards, groups))).abs()
    total = torch.zeros(len(groups), dtype=spread.dtype, device=spread.device).index_add_(0, groups.index, spread)
    mixed = total > tolerance
    return EffectiveRatio(float(groups.spread(mixed).double().mean()), float(mixed.double().mean()))


def info_gain(p: Float[Tensor, " *M"], score: Score = "p(1-p)^2") -> Float[Tensor, " *M"]:
    """``p (1-p)^2``: first-order gain in success of one gradient step on a logit, largest (4/27) at p = 1/3.

    ``score="p(1-p)"`` is the symmetric form that ablations use. arXiv 2509.25849 (Knapsack RL), 2511.18902 (VADE).
    """
    return p * (1 - p) if score == "p(1-p)" else p * (1 - p).square()


def prob_nonzero(n: Int[Tensor, " *M"] | int, p: Float[Tensor, " *M"]) -> Float[Tensor, " *M"]:
    """Probability ``1 - p^n - (1-p)^n`` that n rollouts are mixed; 0 for n below 2. arXiv 2509.25849, Theorem 1."""
    return (1 - p**n - (1 - p) ** n).clamp(min=0)


def task_value(
    n: Int[Tensor, " *M"] | int, p: Float[Tensor, " *M"], weight: Weight = "info_gain"
) -> Float[Tensor, " *M"]:
    """Value ``prob_nonzero(n, p) * p(1-p)^2`` of giving a prompt n rollouts; 0 at p = 0 and p = 1. arXiv 2509.25849.

    ``weight="none"`` leaves the gain out and values mixed groups alone.
    """
    value = prob_nonzero(n, p)
    return value * info_gain(p) if weight == "info_gain" else value


def rollouts_until_mixed(p: Float[Tensor, " *M"]) -> Float[Tensor, " *M"]:
    """Expected number ``1/p + 1/(1-p) - 1`` of rollouts until both outcomes were seen. arXiv 2509.25849, Theorem 1."""
    return 1 / p + 1 / (1 - p) - 1


def rollouts_for_mixed(p: Float[Tensor, " *M"], chance: float = 0.9, most: int = 128) -> Int[Tensor, " *M"]:
    """About how many rollouts are mixed with probability ``chance``: ``log(1-chance) / log(max(p, 1-p))``, cut off to
    a whole number and at ``most``. For 0 < p < 1. arXiv 2509.25849."""
    need = torch.maximum(p, 1 - p).log().reciprocal() * float(np.log1p(-chance))
    return need.clamp(max=most).long()


def solve_knapsack(
    p: Float[Tensor, " M"],
    total: int,
    n_low: int = 2,
    n_up: int = 128,
    *,
    method: Literal["greedy", "dp"] = "greedy",
    weight: Weight = "info_gain",
    compat: Compat = "paper",
) -> Int[Tensor, " M"]:
    """Counts N maximising ``sum_i task_value(N_i, p_i)`` with ``sum N_i = total`` and ``n_low <= N_i <= n_up``.

    The value of the next rollout falls with every one given, so taking the largest increments is exactly optimal
    (``greedy``: one partial sort of at most M (n_up - n_low) numbers). ``dp`` is dynamic programming over the budget,
    slow, the reference that the greedy solver is tested against. Equal increments are shared out evenly, earlier prompts
    first. ``compat="official"`` is the objective of the released code, which counts the value of the first ``n_low``
    rollouts once more as soon as a prompt gets another one. arXiv 2509.25849; code KnapsackRL, exploration_utils.py.

    Raises:
        UsageError: p outside [0, 1] or not a vector, or a total that the bounds cannot meet.
    """
    rates = _rates(p)
    count = len(rates)
    if not 1 <= n_low <= n_up:
        raise UsageError(f"n_low is {n_low} and n_up {n_up}; they need 1 <= n_low <= n_up")
    if not count * n_low <= total <= count * n_up:
        raise UsageError(
            f"{count} prompts with {n_low} to {n_up} rollouts each cannot share a total of {total}; "
            f"it must lie in {count * n_low}..{count * n_up}"
        )
    rest = total - count * n_low
    width = min(n_up - n_low, rest)
    if width == 0:
        return torch.full((count,), n_low)
    if method == "dp":
        return torch.from_numpy(n_low + _by_budget(_increments(rates, n_low, width, weight, compat), rest))
    # Increments that nobody gets need no place in the sort: look at a few times the mean, more only if someone took all.
    looked = 4 * rest // count + 8
    while True:
        extra = _largest(_increments(rates, n_low, min(looked, width), weight, compat), rest)
        if looked >= width or int(extra.max()) < looked:
            return torch.from_numpy(n_low + extra)
        looked *= 2


def allocate_rollouts(
    p: Float[Tensor, " M"],
    known: Bool[Tensor, " M"],
    n: int,
    *,
    n_low: int = 2,
    n_up: int = 128,
    negative_n: int = 2,
    positive_n: int = 2,
    chance: float = 0.9,
    fallback: bool = True,
    weight: Weight = "info_gain",
    compat: Compat = "paper",
) -> Allocation:
    """The whole batch rule of Knapsack RL for M prompts and ``M n`` rollouts in all (arXiv 2509.25849; released code).

    Unknown prompts get n, never solved ones ``negative_n``, always solved ones ``positive_n``, the others take part in
    the knapsack. Where these need less than is left (`rollouts_for_mixed`), the surplus goes to the never solved prompts,
    or failing those to all outside the knapsack. No prompt gets more than ``n_up``: what a rule would give beyond it goes
    to prompts that have room. With nobody in the knapsack and nobody unsolved all get n.

    ``compat="official"``: the knapsack of the released code, and prompts not known yet count as never solved when the
    surplus is shared out.

    Raises:
        UsageError: ``n`` below one of the lower counts (``M n`` cannot pay for them) or above ``n_up``.
    """
    for name, least in (("n_low", n_low), ("negative_n", negative_n), ("positive_n", positive_n)):
        if n < least:
            raise UsageError(
                f"{n} rollouts a prompt are fewer than {name}={least}; raise rollout.samples or lower {name}"
            )
    if n > n_up:
        raise UsageError(f"{n} rollouts a prompt are more than n_up={n_up}; raise n_up or lower rollout.samples")
    _rates(p)
    never, always = known & (p <= 0), known & (p >= 1)
    playing = known & ~never & ~always
    counts = torch.full((len(p),), n)
    counts[never], counts[always], counts[playing] = negative_n, positive_n, n_low
    rest = len(p) * n - int(counts.sum())
    unsolved = never | ~known if compat == "official" else never
    if not bool(playing.any()):
        if not bool(unsolved.any()):
            return Allocation(torch.full((len(p),), n), False, 0)
        return Allocation(_share(counts, rest, (unsolved,), n_up), rest > 0, rest)
    paid = min(rest, int(playing.sum()) * (n_up - n_low))
    if fallback and bool((~playing).any()):
        paid = min(paid, int(rollouts_for_mixed(p[playing].double(), chance, n_up).sum()))
    counts[playing] = solve_knapsack(
        p[playing], paid + n_low * int(playing.sum()), n_low, n_up, weight=weight, compat=compat
    )
    return Allocation(_share(counts, rest - paid, (unsolved, ~playing), n_up), paid < rest, rest - paid)


def filtered_rollouts(p: Float[Tensor, " M"], known: Bool[Tensor, " M"], n: int, n_up: int = 128) -> Allocation:
    """``M n`` rollouts shared evenly, earlier prompts first, among the prompts that are not known as never or always solved;
    the others get none. A baseline of Knapsack RL (arXiv 2509.25849).

    No prompt gets more than ``n_up``; what is left over then (``surplus``), or all where nobody is left, goes to those filtered
    out, evenly too.

    Raises:
        UsageError: ``n`` above ``n_up``, or p outside [0, 1].
    """
    if n > n_up:
        raise UsageError(f"{n} rollouts a prompt are more than n_up={n_up}; raise n_up or lower rollout.samples")
    _rates(p)
    kept = ~(known & ((p <= 0) | (p >= 1)))
    counts = _share(torch.zeros(len(p), dtype=torch.long), len(p) * n, (kept,), n_up)
    surplus = int(counts[~kept].sum())
    return Allocation(counts, surplus > 0, surplus)


def thompson_rates(
    alpha: Float[Tensor, " D"], beta: Float[Tensor, " D"], rng: np.random.Generator
) -> Float[Tensor, " D"]:
    """One draw from each posterior ``Beta(alpha + 1, beta + 1)``: success rates for Thompson sampling.

    ``alpha``/``beta``: (decayed) counts of successes and failures, at least 0. arXiv 2511.18902 (VADE).
    """
    return torch.from_numpy(rng.beta(alpha.double().numpy() + 1, beta.double().numpy() + 1))


def posterior_mean(alpha: Float[Tensor, " D"], beta: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """Mean ``(alpha + 1) / (alpha + beta + 2)`` of the posterior that `thompson_rates` draws from."""
    return (alpha + 1) / (alpha + beta + 2)


def expected_info_gain(alpha: Float[Tensor, " D"], beta: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
    """``E[p (1-p)^2]`` under ``Beta(alpha + 1, beta + 1)``: with A = alpha+1, B = beta+1, s = A+B it is
    ``A B (B+1) / (s (s+1) (s+2))``; 1/12 without evidence. arXiv 2511.18902 (VADE)."""
    a, b = alpha + 1, beta + 1
    s = a + b
    return a * b * (b + 1) / (s * (s + 1) * (s + 2))


def decay_counts(
    counts: Float[Tensor, " D"], fresh: Float[Tensor, " D"], selected: Bool[Tensor, " D"], kept: float, idle: float
) -> Float[Tensor, " D"]:
    """VADE's two-scale forgetting: ``kept * counts + fresh`` where selected, ``idle * counts`` elsewhere. The factor
    applies to the old counts only. arXiv 2511.18902."""
    return torch.where(selected, kept * counts + fresh, idle * counts)


def top_rows(scores: Float[Tensor, " D"], count: int) -> Int[Tensor, " B"]:
    """The ``count`` distinct rows with the highest scores, best first; of equal ones the earlier."""
    return torch.argsort(scores, descending=True, stable=True)[:count]


def ucb_scores(signal: Float[Tensor, " S"], seen: Int[Tensor, " S"], bonus: float = 1.0) -> Float[Tensor, " S"]:
    """``L_j + bonus sqrt(2 ln(n + 1) / (n_j + 1))`` with n the sum of all counts n_j. arXiv 2504.09710 (DUMP), Eq. 3.

    ``signal``: mean absolute advantage of each source over its window; ``seen``: responses ever drawn from it.
    """
    total = torch.log1p(seen.sum().double())
    return signal + bonus * (2 * total / (seen + 1)).sqrt().to(signal.dtype)


def softmax_probabilities(scores: Float[Tensor, " S"], tau: float) -> Float[Tensor, " S"]:
    """``softmax(scores / tau)``; tau 0 shares the probability among the highest scores. arXiv 2504.09710 (DUMP).

    Raises:
        UsageError: negative tau.
    """
    if tau < 0:
        raise UsageError(f"tau is {tau}; it must be 0 (greedy) or positive")
    if tau == 0:
        best = (scores == scores.max()).to(scores.dtype)
        return best / best.sum()
    return (scores / tau).softmax(0)


def stage_of(step: int, lengths: Sequence[int]) -> int:
    """The stage (from 0) that step ``step`` (from 0) belongs to when stages of ``lengths`` steps follow each other; the last
    goes on for ever.

    Raises:
        UsageError: no stages, or one without steps.
    """
    if not lengths or min(lengths) < 1:
        raise UsageError(f"stages of {list(lengths)} steps; there must be one, and each needs a step")
    return min(bisect_right(list(accumulate(lengths)), step), len(lengths) - 1)


def expected_learnability(p: Float[Tensor, " *M"], size: int) -> Float[Tensor, " *M"]:
    """Expected mean absolute GRPO advantage of a group of ``size`` with two-valued rewards and success rate p:
    ``E_r[2 sqrt(r/G (1 - r/G)) sqrt((G-1)/G)]``, r binomial (Bessel's correction, epsilon 0). It is symmetric in p and
    1 - p, at most 1, and does not depend on the two values. arXiv 2504.09710 (DUMP)."""
    hits = torch.arange(size + 1, dtype=p.dtype)
    share = hits / size
    magnitude = 2 * (share * (1 - share)).sqrt() * ((size - 1) / size) ** 0.5
    ways = torch.lgamma(hits[-1] + 1) - torch.lgamma(hits + 1) - torch.lgamma(size - hits + 1)
    chances = ways.exp() * p.unsqueeze(-1) ** hits * (1 - p.unsqueeze(-1)) ** (size - hits)
    expected: Tensor = (chances * magnitude).sum(-1)
    return expected


def _rates(p: Tensor) -> Array:
    if p.dim() != 1 or len(p) == 0 or not p.is_floating_point():
        raise UsageError(f"success rates must be a vector of floats, got {p.dtype} of shape {tuple(p.shape)}")
    rates: Array = p.detach().double().numpy()
    if not bool(((rates >= 0) & (rates <= 1)).all()):
        raise UsageError(f"success rates must lie in [0, 1], got {rates.min():g} to {rates.max():g}")
    return rates


def _increments(rates: Array, n_low: int, width: int, weight: Weight, compat: Compat) -> Array:
    """Value [width, M] of each further rollout, ``(p^N (1-p) + (1-p)^N p)`` times the gain, N = n_low, n_low + 1, …"""
    scale = rates * (1 - rates) ** 2 if weight == "info_gain" else np.ones_like(rates)
    up, down = scale * rates**n_low * (1 - rates), scale * (1 - rates) ** n_low * rates
    gains = np.empty((width, len(rates)))
    for row in gains:
        np.add(up, down, out=row)
        up *= rates
        down *= 1 - rates
    if compat == "official":
        gains[0] = scale * (1 - rates ** (n_low + 1) - (1 - rates) ** (n_low + 1)).clip(min=0)
    return gains


def _largest(gains: Array, rest: int) -> NDArray[np.int64]:
    """How many of the ``rest`` largest increments each prompt has."""
    size = gains.size
    edge = np.partition(gains.reshape(-1), size - rest)[size - rest]
    taken: NDArray[np.int64] = (gains > edge).sum(0)
    left = rest - int(taken.sum())
    depth, column = np.nonzero(gains == edge)
    order = np.lexsort((column, depth - taken[column]))[:left]
    return taken + np.bincount(column[order], minlength=gains.shape[1])


def _by_budget(gains: Array, rest: int) -> NDArray[np.int64]:
    """The same optimum by dynamic programming: best value of each budget over prompts 0..i, then traced back."""
    width, count = gains.shape
    best = np.full(rest + 1, -np.inf)
    best[0] = 0.0
    chosen = np.zeros((count, rest + 1), dtype=np.int64)
    for prompt in range(count):
        worth = np.concatenate([[0.0], np.cumsum(gains[:, prompt])])
        options = np.full((width + 1, rest + 1), -np.inf)
        for extra in range(width + 1):
            options[extra, extra:] = best[: rest + 1 - extra] + worth[extra]
        chosen[prompt] = options.argmax(0)
        best = options.max(0)
    extras = np.zeros(count, dtype=np.int64)
    budget = rest
    for prompt in reversed(range(count)):
        extras[prompt] = chosen[prompt, budget]
        budget -= int(extras[prompt])
    return extras


def _share(counts: Tensor, amount: int, who: tuple[Tensor, ...], n_up: int) -> Tensor:
    """Share ``amount`` out evenly among the first non-empty of the sets, the first ones getting the remainder, up to
    ``n_up`` each; what does not fit goes on to everybody."""
    first = next((some for some in who if bool(some.any())), torch.zeros_like(counts, dtype=torch.bool))
    counts = counts.clone()
    for some in (first, torch.ones_like(first)):
        while amount > 0 and bool((free := some & (counts < n_up)).any()):
            share = amount // int(free.sum())
            given = (
                torch.minimum(n_up - counts, torch.tensor(share)) * free if share else free & (free.cumsum(0) <= amount)
            )
            counts += given.long()
            amount -= int(given.sum())
    return counts
