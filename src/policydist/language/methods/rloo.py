"""RLOO: each response against the mean of the others in its group (arXiv 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass

from policydist.functional import rloo_advantage
from policydist.language.credits import GroupCredit
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Recipe, Setting


@dataclass(frozen=True)
class Config(LossConfig):
    """The shared loss knobs only."""


def build(config: Config, setting: Setting) -> Recipe:
    return grpo.plain(config, setting, GroupCredit(rloo_advantage))
