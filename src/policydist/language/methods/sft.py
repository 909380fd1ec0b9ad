"""SFT: cross-entropy on the data's own completions, in the same loop; the baseline of every supervised token loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.supervised import Terms, first_occurrences, sft_terms, unlikelihood
from policydist.language.recipe import Recipe, Setting
from policydist.language.supervised import SupervisedConfig, TokenLoss, supervised
from policydist.language.types import Rollouts


@dataclass(frozen=True)
class Config(SupervisedConfig):
    """``smoothing``: share of the target that is spread over the vocabulary (label smoothing); ``unlikelihood``: weight of
    the token-level unlikelihood of the completion's own earlier tokens (arXiv 1908.04319)."""

    smoothing: float = 0.0
    unlikelihood: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing is {self.smoothing}; it must lie in [0, 1)")
        if self.unlikelihood < 0:
            raise UsageError(f"unlikelihood is {self.unlikelihood}; it must not be negative")


def cross_entropy(config: Config) -> Callable[[Rollouts], TokenLoss]:
    """The token loss that the knobs ask for."""

    def of(batch: Rollouts) -> TokenLoss:
        first = first_occurrences(batch.response_ids) if config.unlikelihood else None
        steps = torch.arange(batch.response_ids.shape[1], device=batch.response_ids.device)

        def loss(logits: Tensor, targets: Tensor, rows: Tensor, positions: Tensor) -> Terms:
            found = dict(sft_terms(logits, targets, smoothing=config.smoothing))
            if first is not None:
                earlier = batch.response_ids[rows]
                negative = first[rows] & (steps < positions[:, None]) & (earlier != targets[:, None])
                repeated = unlikelihood(logits, earlier, negative)
                found |= {"loss": found["loss"] + config.unlikelihood * repeated, "unlikelihood": repeated}
            return found

        return loss

    return of


def build(config: Config, setting: Setting) -> Recipe:
    return supervised("sft", config, cross_entropy(config), setting)
