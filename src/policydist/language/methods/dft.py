"""DFT: cross-entropy weighted by the probability the target has already (dynamic fine-tuning, arXiv 2508.05629)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from policydist.functional.supervised import Terms, dft_terms
from policydist.language.recipe import Recipe, Setting
from policydist.language.supervised import SupervisedConfig, TokenLoss, supervised
from policydist.language.types import Rollouts


@dataclass(frozen=True)
class Config(SupervisedConfig):
    """As SFT, without knobs of its own."""


def weighted(batch: Rollouts) -> TokenLoss:
    def loss(logits: Tensor, targets: Tensor, rows: Tensor, positions: Tensor) -> Terms:
        return dft_terms(logits, targets)

    return loss


def build(config: Config, setting: Setting) -> Recipe:
    return supervised("dft", config, weighted, setting)
