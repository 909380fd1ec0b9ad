"""DAPO: higher upper clip, token mean, dynamic sampling and overlong shaping (arXiv 2503.14476)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from policydist.errors import PolicydistError
from policydist.functional import grpo_advantage, mixed_groups, overlong_penalty
from policydist.language.credits import GroupCredit, rewards_of
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig, PolicyGradient
from policydist.language.recipe import Context, Judge, OnPolicy, Recipe, Setting, Shuffled
from policydist.language.types import Prompts, Rollouts


@dataclass(frozen=True)
class Config(LossConfig):
    """``dynamic_sampling``: draw prompt batches until enough groups have both right and wrong responses, at most ``max_batches``;
    ``overlong_buffer``: last tokens before the length limit over which a penalty grows to ``overlong_factor`` (0: none);
    ``ratio``: of tokens, or GSPO's of the sequence, whose clip range and aggregation are then yours to set."""

    clip_high: float = 0.28
    dynamic_sampling: bool = True
    max_batches: int = 10
    overlong_buffer: int = 0
    overlong_factor: float = 1.0
    ratio: Literal["token", "sequence"] = "token"


@dataclass(frozen=True)
class OverlongJudge:
    """Adds the overlong penalty to what the inner judge gave."""

    inner: Judge
    config: Config
    max_length: int

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        judged = self.inner(rollouts, ctx)
        penalty = overlong_penalty(
            judged.lengths, self.max_length, self.config.overlong_buffer, self.config.overlong_factor
        )
        accuracy = rewards_of(judged)
        return replace(judged, rewards=accuracy + penalty, extras={**judged.extras, "reward/unshaped": accuracy})


class DynamicSampling:
    """Keeps groups of mixed accuracy until the batch is full; each further try takes the next prompts of the shuffled order."""

    def __init__(self, judge: Judge, setting: Setting, max_batches: int) -> None:
        self.judge, self.setting, self.max_batches = judge, setting, max_batches
        self.order = Shuffled(setting.source, setting.prompts_per_step, setting.samples_per_prompt)
        self.drawn = 0

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        """Sample and judge until full.

        Raises:
            PolicydistError: if ``max_batches`` batches do not yield enough mixed groups.
        """
        kept: list[Rollouts] = []
        groups = 0
        for attempt in range(self.max_batches):
            rows = self.order.rows(ctx.seed, self.drawn)
            self.drawn += 1
            prompts = self.setting.source.take(rows, self.setting.samples_per_prompt)
            rollouts = ctx.generate(prompts, self.setting.sampling, f"rollout-{attempt}")
            judged = ctx.judge(self.judge, rollouts)
            part = judged.select(mixed_groups(judged.extras.get("reward/unshaped", rewards_of(judged)), judged.group))
            if len(part):
                _, dense = torch.unique(part.group, return_inverse=True)
                kept.append(replace(part, group=dense + groups))
                groups += int(dense.max()) + 1
            if groups >= len(prompts):
                ctx.log("dynamic_batches", attempt + 1)
                full = Rollouts.cat(kept)
                return full.select(full.group < len(prompts))
        raise PolicydistError(
            f"dynamic sampling: {self.max_batches} batches gave {groups} of {len(prompts)} mixed groups; the task is too easy or "
            "too hard for this policy. Raise knobs.max_batches or samples, or set knobs.dynamic_sampling=false"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.drawn = state["drawn"]


def build(config: Config, setting: Setting) -> Recipe:
    judge = setting.judge
    if config.overlong_buffer:
        judge = OverlongJudge(judge, config, setting.sampling.max_new_tokens)
    recipe = grpo.plain(config, replace(setting, judge=judge), GroupCredit(grpo_advantage))
    sampler = (
        DynamicSampling(judge, setting, config.max_batches) if config.dynamic_sampling else OnPolicy(setting.sampling)
    )
    return replace(recipe, sampler=sampler, objective=PolicyGradient(config, ratio=config.ratio))
