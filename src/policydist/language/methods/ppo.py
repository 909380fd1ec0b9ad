"""PPO with a value head: generalised advantage estimation and a clipped value loss (arXiv 1707.06347, 1506.02438)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policydist.errors import PolicydistError
from policydist.functional import gae_advantage, whiten
from policydist.language.credits import at_last_token, rewards_of
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig, PolicyGradient
from policydist.language.recipe import Context, Recipe, Setting
from policydist.language.types import Policy, Rollouts


@dataclass(frozen=True)
class Config(LossConfig):
    """``gamma``, ``lam``: discount and GAE's lambda per token; ``value_coef``: weight of the value loss; ``value_clip``: how far
    values may move from their rollout-time estimate within one update phase (null: freely); ``whiten``: standardise advantages."""

    gamma: float = 1.0
    lam: float = 0.95
    value_coef: float = 0.5
    value_clip: float | None = 0.2
    whiten: bool = True


@dataclass(frozen=True)
class GAECredit:
    config: Config

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        mask = rollouts.response_mask
        values = ctx.score(rollouts, values=True).values
        if values is None:
            raise PolicydistError("ppo needs a policy with a value head")
        token_rewards = rollouts.token_rewards
        if token_rewards is None:
            token_rewards = at_last_token(rewards_of(rollouts), mask)
        advantages, returns = gae_advantage(token_rewards, values, mask, gamma=self.config.gamma, lam=self.config.lam)
        extras = {**rollouts.extras, "values": values, "returns": returns}
        ctx.log("value", (values * mask).sum() / mask.sum())
        if self.config.whiten:
            advantages = whiten(advantages, mask)
        return replace(rollouts, advantages=advantages, extras=extras)


@dataclass(frozen=True)
class ActorCritic:
    """The clipped surrogate plus the value loss, from one forward pass."""

    config: Config
    sparse = False

    def __call__(self, policy: Policy, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        actor = PolicyGradient(self.config)
        scores = policy.score(batch, entropy=self.config.entropy_coef != 0, values=True)
        loss, numbers = actor.of_scores(scores, batch, ctx)
        assert scores.values is not None
        returns, before = batch.extras["returns"], batch.extras["values"]
        errors = (scores.values - returns).square()
        if self.config.value_clip is not None:
            near = before + (scores.values - before).clamp(-self.config.value_clip, self.config.value_clip)
            errors = torch.maximum(errors, (near - returns).square())
        value_loss = 0.5 * actor.total(errors, batch, "token-mean", ctx)
        return loss + self.config.value_coef * value_loss, {**numbers, "value_loss": value_loss}


def build(config: Config, setting: Setting) -> Recipe:
    recipe = grpo.plain(config, setting, GAECredit(config))
    return replace(recipe, objective=ActorCritic(config), needs_values=True)
