"""Rewards that fall with the response's length: near the limit, from the first token on, or against others of the group."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.groups import Groups, group_centred, std_of_centred

LengthPenalty = Literal["absolute", "relative"]


def overlong_penalty(
    lengths: Int[Tensor, " N"], max_length: int, buffer: int = 4096, factor: float = 1.0
) -> Float[Tensor, " N"]:
    """Reward to *add*: ``min(0, -factor (len - (max_length - buffer)) / buffer)``. DAPO, arXiv 2503.14476, section 3.4.

    0 up to ``max_length - buffer`` tokens, falling to ``-factor`` at ``max_length``.

    Raises:
        UsageError: the buffer is not in 1..max_length.
    """
    if not 0 < buffer <= max_length:
        raise UsageError(f"buffer is {buffer}; it must lie in 1..{max_length} (max_length)")
    excess = (lengths - (max_length - buffer)).to(torch.get_default_dtype())
    return (excess * (-factor / buffer)).clamp(max=0.0)


def length_shaped(
    rewards: Float[Tensor, " N"],
    correct: Bool[Tensor, " N"],
    lengths: Int[Tensor, " N"],
    group: Int[Tensor, " N"] | Groups,
    form: LengthPenalty,
    *,
    max_length: int | None = None,
    alpha: float = 0.2,
) -> Float[Tensor, " N"]:
    """Rewards that are smaller the longer a correct response is; those of other responses stay as they are.

    - ``absolute``: ``r (1 - len / (2 max_length))``, from r down to r/2 at the limit. A baseline of BRPO (arXiv 2505.13438,
      section 3.2.1) in our reconstruction, after arXiv 2503.04697.
    - ``relative``: ``r (1 - alpha sigmoid((len - mean) / deviation))``, mean and deviation (population) over the *correct*
      responses of the group, so that hard prompts may keep long answers; ``r (1 - alpha / 2)`` where these are equally
      long. arXiv 2502.04463; alpha 0.2 in BRPO's comparison.

    Raises:
        UsageError: alpha outside [0, 1); ``absolute`` without ``max_length``, or with a response beyond it.
    """
    if not 0 <= alpha < 1:
        raise UsageError(f"alpha is {alpha}; the length penalty's weight must lie in [0, 1)")
    if form == "absolute":
        longest = int(lengths.max()) if len(lengths) else 0
        if max_length is None or not longest <= max_length:
            raise UsageError(
                f"max_length is {max_length}; an absolute length penalty needs the limit, here >= {longest}"
            )
        factor = 1 - lengths.to(rewards.dtype) / (2 * max_length)
        return torch.where(correct, rewards * factor, rewards)
    groups = Groups.of(Groups.of(group).index[correct])
    centred = group_centred(lengths[correct].to(rewards.dtype), groups)
    spread = groups.spread(std_of_centred(centred, groups, ddof=0))
    shaped = rewards.clone()
    shaped[correct] *= 1 - alpha * torch.sigmoid(centred / spread.clamp(min=1e-6))
    return shaped
