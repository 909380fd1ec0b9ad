"""GRPO: group-relative advantages and the clipped surrogate (DeepSeekMath, arXiv 2402.03300)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from policydist.functional import grpo_advantage
from policydist.language.credits import GroupCredit
from policydist.language.objectives import LossConfig, PolicyGradient
from policydist.language.recipe import Credit, OnPolicy, Recipe, Setting, Shuffled


@dataclass(frozen=True)
class Config(LossConfig):
    """``scale``: divide by the group's or the batch's standard deviation, or not at all; ``ddof`` 1 is Bessel's correction
    (verl, TRL), 0 the population form; ``eps`` is 1e-6 in verl, 1e-4 in TRL; ``singleton``: advantage of a group of one."""

    scale: Literal["group", "batch", "none"] = "group"
    ddof: int = 1
    eps: float = 1e-6
    singleton: Literal["zero", "raw"] = "zero"


def plain(config: LossConfig, setting: Setting, credit: Credit) -> Recipe:
    """On-policy rollouts of shuffled prompts, a judge, some credit, the clipped surrogate: what most recipes start from."""
    return Recipe(
        curriculum=Shuffled(setting.source, setting.prompts_per_step, setting.samples_per_prompt),
        sampler=OnPolicy(setting.sampling),
        judge=setting.judge,
        credit=credit,
        objective=PolicyGradient(config),
        needs_reference=config.kl_coef != 0,
    )


def build(config: Config, setting: Setting) -> Recipe:
    advantage = partial(
        grpo_advantage, scale=config.scale, ddof=config.ddof, eps=config.eps, singleton=config.singleton
    )
    return plain(config, setting, GroupCredit(advantage))
