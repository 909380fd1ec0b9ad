"""Entropy of next-token distributions, in nats: exact from logits, and estimated from the sampled tokens."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def entropy_from_logits(logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """``H = -sum_v p log p`` of ``p = softmax(logits)``, in [0, log V]; logits of -inf exclude their symbol."""
    log_p = logits.log_softmax(-1)
    excluded = log_p == -torch.inf  # 0 log 0 = 0, in value and gradient
    return -(log_p.exp() * log_p.masked_fill(excluded, 0.0)).sum(-1)


def sampled_entropy(logprobs: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, ""]:
    """Mean of ``-log p`` over the valid sampled tokens, 0 if there are none (the entropy signal of DCPO and AEPO, 3.2).

    Unbiased for the mean exact entropy only if the tokens were drawn from p itself: top-p sampling makes it too small.
    """
    valid = mask.bool()
    return -torch.where(valid, logprobs, 0.0).sum() / valid.sum().clamp(min=1)
