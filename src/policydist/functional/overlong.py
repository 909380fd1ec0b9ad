"""Soft punishment of responses that come near the length limit (DAPO, arXiv 2503.14476, section 3.4)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError


def overlong_penalty(
    lengths: Int[Tensor, " N"], max_length: int, buffer: int = 4096, factor: float = 1.0
) -> Float[Tensor, " N"]:
    """Reward to *add*: ``min(0, -factor (len - (max_length - buffer)) / buffer)``.

    0 up to ``max_length - buffer`` tokens, falling to ``-factor`` at ``max_length``.

    Raises:
        UsageError: the buffer is not in 1..max_length.
    """
    if not 0 < buffer <= max_length:
        raise UsageError(f"buffer is {buffer}; it must lie in 1..{max_length} (max_length)")
    excess = (lengths - (max_length - buffer)).to(torch.get_default_dtype())
    return (excess * (-factor / buffer)).clamp(max=0.0)
