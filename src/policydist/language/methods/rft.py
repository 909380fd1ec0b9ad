"""RFT: cross-entropy on the policy's own rewarded samples (rejection-sampling fine-tuning; arXiv 2308.01825 for maths)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from policydist.language.credits import rewards_of
from policydist.language.methods import sft
from policydist.language.recipe import Context, OnPolicy, Recipe, Setting, Shuffled
from policydist.language.supervised import SupervisedObjective, imitate, streams
from policydist.language.types import Rollouts


@dataclass(frozen=True)
class Config(sft.Config):
    """``least``: the reward from which on a sample is imitated."""

    least: float = 1.0


@dataclass(frozen=True)
class Accepted:
    """Keep the samples whose reward is at least ``least``; without any, the step is skipped."""

    least: float

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        kept = rollouts.select(rewards_of(rollouts) >= self.least)
        ctx.log("rft/accepted", len(kept) / len(rollouts))
        return imitate(replace(kept, extras={**kept.extras, "stream": streams(len(kept), ctx)}), ctx)


def build(config: Config, setting: Setting) -> Recipe:
    return Recipe(
        curriculum=Shuffled(setting.source, setting.prompts_per_step, setting.samples_per_prompt),
        sampler=OnPolicy(setting.sampling),
        judge=setting.judge,
        credit=Accepted(config.least),
        objective=SupervisedObjective("rft", config, sft.cross_entropy(config)),
    )
