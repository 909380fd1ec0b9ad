"""From token losses [N, T] to one number: the normalisations that verl and TRL name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from policydist.errors import UsageError, nearest

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm", "dr-grpo"]

VERL_LOSS_AGG: tuple[Aggregation, ...] = (
    "token-mean",
    "seq-mean-token-mean",
    "seq-mean-token-sum",
    "seq-mean-token-sum-norm",
)
"""verl's values of ``loss_agg_mode`` under the same names; verl 0.9.1's ``seq-mean-token-sum-norm`` is our ``dr-grpo``."""

TRL_LOSS_TYPES: Mapping[str, Aggregation] = MappingProxyType(
    {"grpo": "seq-mean-token-mean", "dapo": "token-mean", "bnpo": "token-mean", "dr_grpo": "dr-grpo"}
)
"""TRL's ``loss_type`` to `aggregate`'s mode. ``dapo`` takes the whole accumulated batch's token count, ``bnpo`` the
micro-batch's own; the latter has nothing to do with Beta normalisation."""


def aggregate(
    token_loss: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    mode: Aggregation = "token-mean",
    *,
    tokens: float | Tensor | None = None,
    sequences: float | Tensor | None = None,
    max_length: int | None = None,
) -> Float[Tensor, ""]:
    """Average token losses l over the valid tokens (mask m) and the B responses:

    - ``token-mean``: sum l m / sum m
    - ``seq-mean-token-mean``: 1/B sum_i (sum_t l m / sum_t m)
    - ``seq-mean-token-sum``: 1/B sum_i sum_t l m
    - ``seq-mean-token-sum-norm``: sum_i sum_t l m / max_length, as verl had it before it divided by B too (0.9.1 does)
    - ``dr-grpo``: sum_i sum_t l m / (B max_length)

    ``tokens`` and ``sequences`` replace ``sum m`` and ``B`` by those of a whole mini-batch: the results of its
    micro-batches then add up to the mini-batch's result, however it is cut. Without them each call is a batch by
    itself, and averaging over unequal micro-batches gives another number. A response without valid tokens counts in B
    and adds 0. Losses outside the mask are not read, NaN included.

    Raises:
        UsageError: unknown mode, or a mode that divides by ``max_length`` without it.
    """
    if mode not in get_args(Aggregation):
        raise UsageError(f"unknown aggregation {mode!r}: {nearest(str(mode), get_args(Aggregation))}")
    valid = mask.bool()
    losses = torch.where(valid, token_loss, 0.0)
    count = len(losses) if sequences is None else sequences
    if mode == "token-mean":
        return losses.sum() / (valid.sum().clamp(min=1) if tokens is None else tokens)
    if mode == "seq-mean-token-mean":
        return (losses.sum(1) / valid.sum(1).clamp(min=1)).sum() / count
    if mode == "seq-mean-token-sum":
        return losses.sum() / count
    if max_length is None:
        raise UsageError(f"aggregation {mode!r} divides by max_length: pass the longest response that is allowed")
    return losses.sum() / (max_length if mode == "seq-mean-token-sum-norm" else max_length * count)
