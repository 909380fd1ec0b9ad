"""GRPO with the cross-entropy of expert responses added to its loss: the plain way to mix imitation in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import hybrid_group_advantage
from policydist.language import guided, origins
from policydist.language.credits import rewards_of
from policydist.language.methods import grpo, luffy
from policydist.language.objectives import PolicyGradient
from policydist.language.recipe import Context, Recipe, Setting, broadcast
from policydist.language.types import Rollouts


@dataclass(frozen=True)
class Config(luffy.Config):
    """``coef``: weight of the mean -log p over the experts' tokens; the other knobs are `luffy`'s (``gamma`` is not used)."""

    coef: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregation != "token-mean":
            raise UsageError("grpo_sft is defined for aggregation=token-mean only")


@dataclass(frozen=True)
class TwoMeans:
    """Advantages of the policy's own rows without the experts, and weights of the experts' tokens.

    The joint token mean divides by all tokens, so each part is scaled up to its own mean.
    """

    config: Config

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        expert = origins.off_policy_rows(rollouts)
        advantages = hybrid_group_advantage(rewards_of(rollouts), rollouts.group, expert, scale=self.config.scale)
        tokens = rollouts.response_mask.sum()
        theirs = rollouts.response_mask[expert].sum()
        own = advantages * (tokens / (tokens - theirs))
        pull = self.config.coef * tokens / theirs.clamp(min=1)
        return replace(rollouts, advantages=broadcast(torch.where(expert, pull, own), rollouts))


@dataclass(frozen=True)
class AddedCrossEntropy(PolicyGradient):
    """The clipped surrogate on the policy's own tokens, ``-A log p`` on the experts'."""

    def surrogate(
        self, logprobs: Float[Tensor, "N T"], old: Float[Tensor, "N T"], batch: Rollouts, low: float, high: float
    ) -> Float[Tensor, "N T"]:
        assert batch.advantages is not None
        own = super().surrogate(logprobs, old, batch, low, high)
        return torch.where(origins.off_policy(batch), -batch.advantages * logprobs, own)


def build(config: Config, setting: Setting) -> Recipe:
    experts = guided.find_experts(setting, config.expert_column, config.missing_expert, config.long_expert)
    recipe = grpo.plain(config, setting, TwoMeans(config))
    return replace(recipe, sampler=luffy.WithExpert(setting, experts), objective=AddedCrossEntropy(config))
