"""Failed trajectories that are resumed behind a forced hint: the hint pool's exact distribution, which resumed ones are
kept, and the mixture that originals and resumed ones are drawn from (REX-RAG, arXiv 2508.08149).

N trajectories, T tokens. Log-probabilities are those of the policy before the update, natural logarithms.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.mixed import mixture_logprobs


class HintPool:
    """Token sequences, one of which is drawn uniformly; equal ones count as often as they occur.

    Raises:
        UsageError: no sequence, or an empty one.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.sequences = [tuple(sequence) for sequence in sequences]
        if not self.sequences:
            raise UsageError("the hint pool is empty; give it at least one hint")
        if not all(self.sequences):
            raise UsageError("the hint pool holds a hint without tokens; remove it")
        self.ends = Counter(self.sequences)
        self.prefixes = Counter(hint[:n] for hint in self.sequences for n in range(len(hint) + 1))

    def __len__(self) -> int:
        return len(self.sequences)

    def sample(self, count: int, generator: torch.Generator) -> list[tuple[int, ...]]:
        """``count`` independent draws."""
        return [self.sequences[i] for i in torch.randint(len(self), (count,), generator=generator).tolist()]

    def token_logprobs(self, sequence: Sequence[int]) -> list[float]:
        """Log of each token's share among the pool's continuations of what stands before it (a trie's branches).

        The first token's is its share of the pool, 0 (certain) if all hints begin alike. Where a hint goes on beyond the
        end of ``sequence``, the probability of stopping there belongs to the last token, so that the sum is always `logprob`.
        Tokens that the pool never gives get minus infinity.
        """
        hint = tuple(sequence)
        counts = [self.prefixes[hint[:n]] for n in range(len(hint) + 1)]
        counts[-1] = self.ends[hint]
        return [math.log(after / before) if after else -math.inf for before, after in pairwise(counts)]

    def logprob(self, sequence: Sequence[int]) -> float:
        """Log of the share of the pool that equals ``sequence``; minus infinity if none does."""
        count = self.ends[tuple(sequence)]
        return math.log(count / len(self)) if count else -math.inf


def moving_average(old: float, new: float, weight: float = 0.1) -> float:
    """``(1 - w) old + w new``: REX-RAG's share of resumed trajectories to keep, from their success rates."""
    return (1 - weight) * old + weight * new


def keep_likely(
    old_logprobs: Float[Tensor, "N T"], hint: Bool[Tensor, "N T"], resumed: Bool[Tensor, " N"], count: int
) -> Bool[Tensor, " N"]:
    """All originals, and the ``count`` resumed trajectories whose hint the policy finds likeliest (mean log-probability of its
    tokens); the earlier ones win ties."""
    mean = (old_logprobs * hint).sum(1) / hint.sum(1).clamp(min=1)
    order = torch.argsort(torch.where(resumed, mean, -math.inf), descending=True, stable=True)
    keep = ~resumed
    keep[order[: min(count, int(resumed.sum()))]] = True
    return keep


def most_resumed(originals: int, clip_high: float) -> int:
    """The most resumed trajectories beside ``originals`` at which no original is clipped before the first update.

    Its ratio begins at 1 / (1 - a), a = K / (n + K), which is below 1 + clip_high while K < clip_high n.
    """
    return originals if math.isinf(clip_high) else max(0, math.ceil(clip_high * originals - 1e-9) - 1)


def resumed_mixture(
    old_logprobs: Float[Tensor, "N T"],
    resumed: Bool[Tensor, " N"],
    before: Bool[Tensor, "N T"],
    hint: Bool[Tensor, "N T"],
    hint_logprobs: Float[Tensor, "N T"],
    share: float,
    failure_rate: float,
) -> Float[Tensor, "N T"]:
    """``log((1 - a) pi + a mu)`` token by token, REX-RAG's corrected old log-probability (released code).

    mu is 0 on originals; on resumed trajectories it is ``pi / z^(1/j)`` on the j tokens ``before`` the hint (together
    pi(prefix) / z, the prefix given that it failed; above 1 is possible and left so), the pool's conditional probability on
    ``hint`` tokens, and pi behind it. Without tokens before the hint there is no such factor.

    Args:
        share: a, the share of resumed trajectories among all.
        failure_rate: z, one minus the success rate of the originals.

    Raises:
        UsageError: resumed trajectories although nothing failed (z is not positive), or a share outside [0, 1).
    """
    if bool(resumed.any()) and not failure_rate > 0:
        raise UsageError(f"the failure rate is {failure_rate}, yet there are resumed trajectories: nothing failed")
    length = before.sum(1, keepdim=True).clamp(min=1)
    lift = -math.log(failure_rate) / length if failure_rate > 0 else torch.zeros_like(old_logprobs[:, :1])
    other = torch.where(before, old_logprobs + lift, old_logprobs)
    other = torch.where(hint, hint_logprobs, other)
    other = torch.where(resumed.unsqueeze(1), other, -math.inf)
    return mixture_logprobs(old_logprobs, other, share)


def trajectory_weights(other_logratio: Float[Tensor, " N"], share: float) -> Float[Tensor, " N"]:
    """``w = pi / ((1 - a) pi + a mu)`` of whole trajectories from ``log(mu / pi)`` (minus infinity: mu never gives them).

    With trajectories drawn from pi and mu in the shares 1 - a and a, the mean of ``w f`` is the expectation of f under pi
    (multiple importance sampling with the balance heuristic), whichever of the two a trajectory came from.
    """
    return (-mixture_logprobs(torch.zeros_like(other_logratio), other_logratio, share)).exp()
