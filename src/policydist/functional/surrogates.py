"""Policy-gradient surrogates per token: REINFORCE, the clipped ratio of PPO with its variants, sequence ratios.

Every function returns losses to be *minimised*, not yet masked or averaged (see `aggregation`), and treats advantages
and old log-probabilities as constants. N responses, T tokens. Conventions: verl and TRL.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policydist.errors import UsageError


def reinforce_surrogate(logprobs: Float[Tensor, "N T"], advantages: Float[Tensor, "N #T"]) -> Float[Tensor, "N T"]:
    """``-A log pi`` per token (Williams 1992)."""
    return -advantages.detach() * logprobs


def importance_ratio(
    logprobs: Float[Tensor, "N T"], old_logprobs: Float[Tensor, "N T"], *, log_ratio_clamp: float | None = 20.0
) -> Float[Tensor, "N T"]:
    """``pi / pi_old`` per token; verl clamps its logarithm to +-20, TRL (``None``) does not."""
    difference = logprobs - old_logprobs.detach()
    if log_ratio_clamp is not None:
        difference = difference.clamp(-log_ratio_clamp, log_ratio_clamp)
    return difference.exp()


def clipped_surrogate(
    logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N #T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    delta: float | None = None,
    log_ratio_clamp: float | None = 20.0,
) -> Float[Tensor, "N T"]:
    """``max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))`` with r the token's ratio (PPO, arXiv 1707.06347).

    DAPO (arXiv 2503.14476) uses ``clip_high=0.28``. ``dual_clip`` c > 1 bounds the loss of negative advantages by ``-A
    c`` (arXiv 1912.09729; verl's default is 3.0). ``delta`` clamps the unclipped ratio from above (TRL). At r = 1 the
    gradient is that of `reinforce_surrogate`.

    Raises:
        UsageError: ``dual_clip`` is not above 1, or ``delta`` not above ``1 + clip_high``.
    """
    ratio = importance_ratio(logprobs, old_logprobs, log_ratio_clamp=log_ratio_clamp)
    return _clip(ratio, advantages.detach(), clip_low, clip_high, dual_clip, delta)


def clip_fraction(
    logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N #T"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, ""]:
    """Fraction of valid tokens whose gradient the clip removes: A > 0 above the range, or A < 0 below it."""
    ratio = importance_ratio(logprobs, old_logprobs)
    clipped = ((advantages > 0) & (ratio > 1 + clip_high)) | ((advantages < 0) & (ratio < 1 - clip_low))
    valid = mask.bool()
    return (clipped & valid).sum() / valid.sum().clamp(min=1)


def gspo_surrogate(
    logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, "N #T"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    form: Literal["token", "sequence"] = "token",
    log_ratio_max: float = 10.0,
) -> Float[Tensor, "N T"]:
    """Clipped surrogate of the length-normalised sequence ratio ``s_i = exp(mean_t log r_it)`` (GSPO, 2507.18071).

    ``form="token"`` (verl) gives every token the value s_i and the gradient of its own log-probability;
    ``"sequence"`` (TRL) differentiates s_i itself and needs one advantage a response. Aggregated by
    seq-mean-token-mean, as the method asks, both have the same value and gradient. The logarithm is clamped from above
    at ``log_ratio_max``.

    Raises:
        UsageError: unknown ``form``, or token-wise advantages with ``form="sequence"``.
    """
    difference = torch.where(mask.bool(), logprobs - old_logprobs.detach(), 0.0)
    mean = (difference.sum(1) / mask.sum(1).clamp(min=1)).unsqueeze(1)
    if form == "token":
        log_ratio = mean.detach() + (logprobs - logprobs.detach())
    elif form == "sequence":
        if advantages.shape[1] != 1:
            raise UsageError(f"form='sequence' needs advantages of shape [N, 1], got {tuple(advantages.shape)}")
        log_ratio = mean.expand_as(logprobs)
    else:
        raise UsageError(f"form is {form!r}; it must be 'token' or 'sequence'")
    ratio = log_ratio.clamp(max=log_ratio_max).exp()
    return _clip(ratio, advantages.detach(), clip_low, clip_high, None, None)


def rloo_surrogate(
    logprobs: Float[Tensor, "N T"],
    old_logprobs: Float[Tensor, "N T"],
    advantages: Float[Tensor, " N"],
    mask: Bool[Tensor, "N T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Tensor, " N"]:
    """Clipped surrogate of the whole response's ratio ``exp(sum_t log r_it)``, one loss a response (RLOO in TRL).

    The sum is not normalised by length; take the plain mean over responses.
    """
    ratio = torch.where(mask.bool(), logprobs - old_logprobs.detach(), 0.0).sum(1).exp()
    return _clip(ratio, advantages.detach(), clip_low, clip_high, None, None)


def _clip(
    ratio: Tensor, advantages: Tensor, low: float, high: float, dual_clip: float | None, delta: float | None
) -> Tensor:
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    if delta is not None:
        if delta <= 1 + high:
            raise UsageError(f"delta is {delta}; it must be above 1 + clip_high = {1 + high}")
        ratio = ratio.clamp(max=delta)
    loss = torch.maximum(-advantages * ratio, clipped)
    if dual_clip is None:
        return loss
    if dual_clip <= 1:
        raise UsageError(f"dual_clip is {dual_clip}; it must be above 1")
    return torch.where(advantages < 0, torch.minimum(loss, -advantages * dual_clip), loss)
