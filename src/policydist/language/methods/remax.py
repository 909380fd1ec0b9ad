"""ReMax: each response against the prompt's greedy one (arXiv 2310.10505)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from policydist.functional import remax_advantage
from policydist.language.credits import rewards_of
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Judge, Recipe, Setting, broadcast
from policydist.language.types import Prompts, Rollouts, Sampling


@dataclass(frozen=True)
class Config(LossConfig):
    """The shared loss knobs only. The paper samples one response a prompt: ``rollout.samples=1``."""


@dataclass(frozen=True)
class GreedyCredit:
    """``A_i = r_i - r(greedy response to the same prompt)``: one more response a prompt, decoded by the weights that sampled."""

    sampling: Sampling
    judge: Judge

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        plain = replace(self.sampling, temperature=0.0)
        greedy = ctx.generate(prompts_of(rollouts), plain, "greedy")
        aside = replace(ctx, metrics={})  # the judge's own numbers are those of the samples
        greedy = aside.judge(self.judge, greedy)
        baseline = rewards_of(greedy)
        ctx.log("greedy_reward", baseline.mean())
        return replace(
            rollouts,
            advantages=broadcast(remax_advantage(rewards_of(rollouts), baseline, rollouts.group), rollouts),
        )


def prompts_of(rollouts: Rollouts) -> Prompts:
    """Every group's prompt once, in the order of the groups' numbers."""
    groups, member = rollouts.group.unique(return_inverse=True)
    first = torch.stack([(member == q).nonzero()[0, 0] for q in range(len(groups))])
    items = tuple(rollouts.items[i] for i in first.tolist()) if rollouts.items else ()
    ids, mask = rollouts.prompt_ids[first], rollouts.prompt_mask[first]
    return Prompts(ids, mask, torch.ones(len(groups), dtype=torch.long), rollouts.index[first], items)


def build(config: Config, setting: Setting) -> Recipe:
    return grpo.plain(config, setting, GreedyCredit(setting.sampling, setting.judge))
