"""GSPO: the ratio of whole sequences, length-normalised, clipped in a narrow band (arXiv 2507.18071).

Its band only matters with several updates a batch; the paper takes four (``train.updates=4``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from policydist.functional import Aggregation, grpo_advantage
from policydist.language.credits import GroupCredit
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig, PolicyGradient
from policydist.language.recipe import Recipe, Setting


@dataclass(frozen=True)
class Config(LossConfig):
    """Clip range of the paper, 3e-4 below and 4e-4 above, around sequence ratios."""

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    aggregation: Aggregation = "seq-mean-token-mean"


def build(config: Config, setting: Setting) -> Recipe:
    recipe = grpo.plain(config, setting, GroupCredit(grpo_advantage))
    return replace(recipe, objective=PolicyGradient(config, ratio="sequence"))
