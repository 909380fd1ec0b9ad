"""Temperature-tilted distributions ``pi^T(v) ~ pi(v)^(1/T)``: what DCPO reweights to and AEPO samples from."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError


def tilted_logprobs(
    logits: Float[Tensor, "*N V"], tokens: Int[Tensor, "*N"], temperature: float = 1.0
) -> Float[Tensor, "*N"]:
    """``log softmax(logits / T)`` at the given tokens, over the whole vocabulary; at least single precision.

    Raises:
        UsageError: the temperature is not positive.
    """
    if temperature <= 0:
        raise UsageError(f"temperature is {temperature}; it must be positive")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    scaled = precise if temperature == 1 else precise / temperature
    return scaled.log_softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def tilt_logratio(logits: Float[Tensor, "*N V"], tokens: Int[Tensor, "*N"], temperature: float) -> Float[Tensor, "*N"]:
    """``log rho = log pi^T - log pi`` of each token given its prefix (DCPO, arXiv 2601.12730).

    A token's ratio, to be neither clipped nor multiplied along the sequence: ``E_pi[rho] = 1`` at every prefix, and
    ``E_pi[rho f] = E_{pi^T}[f]``. It is 0 at T = 1 and does not change when a constant is added to the logits.
    """
    return tilted_logprobs(logits, tokens, temperature) - tilted_logprobs(logits, tokens)
