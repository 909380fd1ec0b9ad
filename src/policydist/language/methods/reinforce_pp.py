"""REINFORCE++: advantages whitened over all tokens of the batch, with or without a group baseline (arXiv 2501.03262)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policydist.functional import reinforce_pp_advantage, reinforce_pp_baseline_advantage
from policydist.language.credits import at_last_token, rewards_of
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Recipe, Setting
from policydist.language.types import Rollouts


@dataclass(frozen=True)
class Config(LossConfig):
    """``group_baseline``: subtract the group's mean first; ``gamma``: discount per token of the returns without it."""

    group_baseline: bool = False
    gamma: float = 1.0


@dataclass(frozen=True)
class WhitenedCredit:
    config: Config

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        rewards, mask = rewards_of(rollouts), rollouts.response_mask
        if self.config.group_baseline:
            return replace(rollouts, advantages=reinforce_pp_baseline_advantage(rewards, rollouts.group, mask))
        token_rewards = rollouts.token_rewards
        if token_rewards is None:
            token_rewards = at_last_token(rewards, mask)
        advantages = reinforce_pp_advantage(token_rewards, mask, gamma=self.config.gamma)
        return replace(rollouts, advantages=advantages)


def build(config: Config, setting: Setting) -> Recipe:
    return grpo.plain(config, setting, WhitenedCredit(config))
