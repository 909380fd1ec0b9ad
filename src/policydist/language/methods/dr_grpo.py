"""Dr. GRPO: no division by the deviation, no division by the response's length (arXiv 2503.20783)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policydist.functional import Aggregation, dr_grpo_advantage
from policydist.language.credits import GroupCredit
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Recipe, Setting


@dataclass(frozen=True)
class Config(LossConfig):
    """``max_length`` is the constant that token losses are divided by; by default the longest response allowed."""

    aggregation: Aggregation = "dr-grpo"


def build(config: Config, setting: Setting) -> Recipe:
    length = config.max_length or setting.sampling.max_new_tokens
    return grpo.plain(replace(config, max_length=length), setting, GroupCredit(dr_grpo_advantage))
