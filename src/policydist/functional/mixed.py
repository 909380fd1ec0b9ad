"""On- and off-policy rows in one group: shaped off-policy weights, truncated importance weights, mixture behaviour
log-probabilities, expert-calibrated exploration, and the selection rules of guided groups.

N responses, T tokens. Losses are to be minimised, per token, not yet masked or averaged (see `aggregation`); advantages
and every log-probability but the policy's own are constants. Sources: HeRL (arXiv 2603.20046), ICPO (2510.26519),
CalibRL (2602.20197), LUFFY (2504.14945), RL-PLUS (2508.00222), REX-RAG (2508.08149), DoGe (2512.06835).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.advantages import Scale, Singleton, grpo_advantage
from policydist.functional.surrogates import clipped_surrogate

Gap = Literal["token_aligned", "sequence_sum", "sequence_mean"]
PadPolicy = Literal["zero", "mask"]
LOG_RATIO = 20.0
"""Log-ratios are held within +-20 before the exponential, as the released codes of HeRL and ICPO do."""


def shaping_weight(ratio: Float[Tensor, "*shape"], gamma: float | None) -> Float[Tensor, "*shape"]:
    """``w = x / (x + gamma)`` of a ratio or probability x >= 0; ``gamma`` None or <= 0 means no shaping, ``w = x``.

    With x = exp(log x): ``dw / dlog x = gamma x / (x + gamma)^2``, at most 1/4, reached at x = gamma. As gamma falls to
    0 the weight goes to 1 and its gradient to 0, which is not the same as switching it off (HeRL, ICPO, LUFFY).
    """
    return ratio if gamma is None or gamma <= 0 else ratio / (ratio + gamma)


def off_policy_ratio(
    logprobs: Float[Tensor, "N T"], denominator: Float[Tensor, "N T"] | None = None
) -> Float[Tensor, "N T"]:
    """``exp(clip(log pi - d, -20, 20))``; without ``denominator`` (d = 0) the plain probability, as LUFFY and ICPO
    take."""
    difference = logprobs if denominator is None else logprobs - denominator.detach()
    return difference.clamp(-LOG_RATIO, LOG_RATIO).exp()


def off_policy_loss(
    logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N #T"],
    *,
    denominator: Float[Tensor, "N T"] | None = None,
    gamma: float | None = 1.0,
) -> Float[Tensor, "N T"]:
    """``-A w(x)`` with x from `off_policy_ratio` and w from `shaping_weight`: no clipping, gradient through w."""
    return -advantages.detach() * shaping_weight(off_policy_ratio(logprobs, denominator), gamma)


def truncated_importance_weight(
    old_logprobs: Float[Tensor, "N T"], behavior_logprobs: Float[Tensor, "N T"], cap: float = 2.0
) -> Float[Tensor, "N T"]:
    """``min(pi_old / mu, cap)``, a constant: corrects for tokens that were drawn from mu instead of pi_old.

    mu is the distribution really drawn from: another engine's, or another temperature's (DoGe, stage losses, cap 2).

    Raises:
        UsageError: ``cap`` is not positive.
    """
    if not cap > 0:
        raise UsageError(f"cap is {cap}; the largest importance weight must be positive")
    return (old_logprobs - behavior_logprobs).clamp(-LOG_RATIO, LOG_RATIO).exp().clamp(max=cap).detach()


def mixture_logprobs(
    logprobs: Float[Tensor, "*shape"],
    other_logprobs: Float[Tensor, "*shape"],
    share: float | Float[Tensor, "#*shape"],
) -> Float[Tensor, "*shape"]:
    """``log((1 - a) pi + a mu)`` from ``log pi``, ``log mu`` and the share a in [0, 1): multiple importance sampling.

    mu may be 0 (``-inf``: the other source never gives this token) and may exceed 1: REX-RAG divides a prefix's density by
    the failure rate. Share 0 gives ``log pi`` exactly.

    Raises:
        UsageError: a share outside [0, 1).
    """
    weight = torch.as_tensor(share, dtype=logprobs.dtype, device=logprobs.device)
    if bool((weight < 0).any()) or bool((weight >= 1).any()):
        raise UsageError(f"the mixture's share is {share}; it must lie in [0, 1)")
    mixed = torch.logaddexp(torch.log1p(-weight) + logprobs, weight.log() + other_logprobs)
    return torch.where(weight == 0, logprobs, mixed)


def multiple_importance_ratio(
    logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    uniform: float | Float[Tensor, "N T"] = 1.0,
) -> Float[Tensor, "N T"]:
    """``2 pi / (pi_omega + pi_old)`` with ``pi_omega = (pi_old + U) / 2``, the estimate of an expert's unknown density.

    U >= 0 is the density of an expert of whom nothing is known, 1 in the released code; the other half of the belief is
    that the expert is the old policy. At most ``4/3 pi / pi_old``, and at most ``4 pi / U``: bounded wherever pi is
    near pi_old, however unlikely the token. ``U = pi_old`` gives the plain ratio ``pi / pi_old``. ``old_logprobs`` are a
    constant. Source: RL-PLUS, arXiv 2508.00222, section 3.1 (eq. 4, theorem 3.1).

    Raises:
        UsageError: a negative ``uniform``.
    """
    density = torch.as_tensor(uniform, dtype=logprobs.dtype, device=logprobs.device)
    if bool((density < 0).any()):
        raise UsageError(f"uniform is {uniform}; a density must not be negative")
    old = old_logprobs.detach()
    expert = mixture_logprobs(old, density.log().expand_as(old), 0.5)
    return off_policy_ratio(logprobs, mixture_logprobs(old, expert, 0.5))


def exploration_weight(logprobs: Float[Tensor, "*shape"], gamma: float = 0.5) -> Float[Tensor, "*shape"]:
    """``(1 - pi)^gamma``, a constant: what the policy finds unlikely counts in full, what it is sure of not at all.

    ``gamma = 0`` switches it off. Source: RL-PLUS, arXiv 2508.00222, section 3.2 (eq. 6), after the focal loss.

    Raises:
        UsageError: a negative ``gamma``.
    """
    if gamma < 0:
        raise UsageError(f"gamma is {gamma}; it must not be negative")
    return (-torch.expm1(logprobs.detach())).clamp(min=0).pow(gamma)  # rounding may put log pi above 0


def rl_plus_loss(
    logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N #T"],
    *,
    gamma: float = 0.5,
    uniform: float | Float[Tensor, "N T"] = 1.0,
) -> Float[Tensor, "N T"]:
    """``-A (1 - sg pi)^gamma 2 pi / (pi_omega + pi_old)`` on an expert's tokens, without clipping.

    `exploration_weight` times `multiple_importance_ratio`; the gradient on log pi is the loss itself. Source: RL-PLUS,
    arXiv 2508.00222, section 3.3 (second term of eq. 7).
    """
    weight = exploration_weight(logprobs, gamma)
    return -advantages.detach() * weight * multiple_importance_ratio(logprobs, old_logprobs, uniform)


def mixed_policy_loss(
    logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N #T"],
    off_mask: Bool[Tensor, "N T"],
    *,
    off_denominator: Float[Tensor, "N T"] | None = None,
    gamma: float | None = 1.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
    weights: Float[Tensor, "N T"] | None = None,
) -> Float[Tensor, "N T"]:
    """`clipped_surrogate` on the policy's own tokens, `off_policy_loss` where ``off_mask`` is true.

    ``off_denominator`` None leaves the off-policy ratio without one (LUFFY, ICPO); HeRL's code passes the row's old
    log-probabilities, under the prompt stored in the row. ``weights`` multiply the on-policy losses
    (`truncated_importance_weight`). An empty ``off_mask`` gives the clipped surrogate bit for bit.
    """
    on = clipped_surrogate(
        logprobs, old_logprobs, advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
    )
    if weights is not None:
        on = on * weights.detach()
    off = off_policy_loss(logprobs, advantages, denominator=off_denominator, gamma=gamma)
    return torch.where(off_mask, off, on)


def hybrid_group_advantage(
    rewards: Float[Tensor, " N"],
    group: Int[Tensor, " N"],
    expert: Bool[Tensor, " N"],
    *,
    scale: Scale = "none",
    eps: float = 1e-6,
    singleton: Singleton = "zero",
) -> Float[Tensor, " N"]:
    """`grpo_advantage` over the policy's own rows; ``expert`` rows enter no statistic and get 0 (CalibRL).

    ``scale="none"`` is the released script's choice: r minus the group's mean.
    """
    own = ~expert
    result = torch.zeros(len(rewards), dtype=rewards.dtype, device=rewards.device)
    result[own] = grpo_advantage(rewards[own], group[own], scale=scale, eps=eps, singleton=singleton)
    return result


def expert_gap(
    logprobs: Float[Tensor, "N T"],
    expert_logprobs: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    expert_total: Float[Tensor, " N"],
    expert_length: Int[Tensor, " N"],
    kind: Gap,
) -> Float[Tensor, "N T"]:
    """How much surer the policy is of its own response o than of the expert's e, ``dl``:

    - ``token_aligned`` (code): ``log pi(o_t) - b_t`` with b_t the expert's token at the same place, 0 behind its end;
    - ``sequence_sum`` (paper): ``log pi(o) - log pi(e)``, the same on all tokens of the row;
    - ``sequence_mean``: the same with each side divided by its length.

    The expert's side is a constant.

    Raises:
        UsageError: unknown ``kind``.
    """
    if kind == "token_aligned":
        return logprobs - expert_logprobs.detach()
    own = torch.where(mask, logprobs, 0.0).sum(1)
    total = expert_total.detach()
    if kind == "sequence_mean":
        own = own / mask.sum(1).clamp(min=1)
        total = total / expert_length.clamp(min=1)
    elif kind != "sequence_sum":
        raise UsageError(f"gap is {kind!r}; it must be 'token_aligned', 'sequence_sum' or 'sequence_mean'")
    return (own - total).unsqueeze(1).expand_as(logprobs)


def expert_calibrated_loss(
    gap: Float[Tensor, "N T"],
    advantages: Float[Tensor, " N"],
    passed: Bool[Tensor, " N"],
    alpha: float = 0.5,
) -> Float[Tensor, "N T"]:
    """``|A| LeakyReLU(-s dl)`` with s = +1 for passed responses, -1 for failed ones, and slope ``alpha`` below 0.

    dl is `expert_gap`. The gradient on log pi is ``-s |A|`` before the expert's level is crossed (a right response less
    sure than the expert, a wrong one surer) and alpha times that after it. s comes from correctness, not from the sign
    of A. Source: CalibRL, arXiv 2602.20197, exploration term. alpha = 1 is linear, alpha = 0 a hard gate.
    """
    sign = torch.where(passed, 1.0, -1.0).to(gap.dtype).unsqueeze(1)
    weight = advantages.detach().abs().unsqueeze(1)
    return weight * torch.nn.functional.leaky_relu(-sign * gap, alpha)


def accept_off_policy(rewards: Float[Tensor, " M"], delta: float = 1.0) -> Bool[Tensor, " M"]:
    """The expert region: off-policy responses with ``R >= delta`` (ICPO; its notes write ``>``, which would accept no
    reward of 1 at delta 1)."""
    return rewards >= delta


def annealed_bonus(
    rewards: Float[Tensor, " N"], accepted: Bool[Tensor, " N"], *, step: int, total: int, alpha: float
) -> Float[Tensor, " N"]:
    """``R + alpha max(0, 1 - step / total)`` for the ``accepted`` off-policy rows, R for all others (ICPO, reward
    shaping).

    Raises:
        UsageError: ``total`` is below 1.
    """
    if total < 1:
        raise UsageError(f"the bonus is annealed over {total} steps; it must be at least 1")
    return rewards + alpha * max(0.0, 1 - step / total) * accepted.to(rewards.dtype)


def select_candidates(
    scores: Sequence[float], met: Sequence[int], *, threshold: float = 1.0, limit: int = 16, tolerance: float = 1e-6
) -> list[int]:
    """Which responses of one group are revised: those tied at the group's best score, unless it reaches ``threshold``.

    Ordered by how many criteria they meet, most first, and cut to ``limit`` (HeRL; the best failures, never the worst).
    """
    best = max(scores)
    if best >= threshold:
        return []
    tied = [i for i, score in enumerate(scores) if abs(score - best) < tolerance]
    return sorted(tied, key=lambda i: -met[i])[:limit]


def hindsight_bonus(
    scores: Float[Tensor, " N"], revised: Mapping[int, Sequence[float]], alpha: float = 0.05
) -> Float[Tensor, " N"]:
    """``r_i + alpha (max_j r~_ij - r_i)`` for every revised response i; a worse revision *lowers* the score (HeRL)."""
    result = scores.clone()
    for row, gains in revised.items():
        result[row] = scores[row] + alpha * (max(gains) - scores[row])
    return result


def select_replacements(
    scores: Sequence[float], revised: Sequence[float], top_n: int = 1
) -> list[tuple[Literal["revised", "original"], int]]:
    """What enters a group of ``scores`` (before any bonus): ``top_n`` picks, each a revision or a copy of an original.

    Revisions better than the best original first, then equally good ones, best first; what is still missing is filled
    by copies of the best originals, as HeRL's released code does.
    """
    best = max(scores)
    order = sorted(range(len(revised)), key=lambda j: -revised[j])
    good = [j for j in order if revised[j] > best] + [j for j in order if revised[j] == best]
    picks: list[tuple[Literal["revised", "original"], int]] = [("revised", j) for j in good[:top_n]]
    copies = sorted(range(len(scores)), key=lambda i: -scores[i])
    return picks + [("original", i) for i in copies[: top_n - len(picks)]]
