"""REINFORCE with a baseline (Williams 1992): the batch's mean reward, the prompt's, or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from policydist.functional import dr_grpo_advantage, reinforce_advantage
from policydist.language.credits import GroupCredit
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Recipe, Setting


@dataclass(frozen=True)
class Config(LossConfig):
    """``baseline``: what is subtracted from the reward."""

    baseline: Literal["batch", "group", "none"] = "batch"


def build(config: Config, setting: Setting) -> Recipe:
    def advantage(rewards: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        if config.baseline == "group":
            return dr_grpo_advantage(rewards, group)
        return reinforce_advantage(rewards, rewards.mean() if config.baseline == "batch" else 0.0)

    return grpo.plain(config, setting, GroupCredit(advantage))
