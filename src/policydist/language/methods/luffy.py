"""LUFFY: the expert's response as one more row of the group, its loss shaped by p / (p + 0.1) (arXiv 2504.14945)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from policydist.functional import grpo_advantage
from policydist.language import guided, origins
from policydist.language.credits import GroupCredit
from policydist.language.methods import grpo
from policydist.language.mixed_objective import MixedPolicyGradient
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Recipe, Setting
from policydist.language.types import Prompts, Rollouts


@dataclass(frozen=True)
class Config(LossConfig):
    """``gamma``: shaping of the expert's loss, p / (p + gamma); ``scale``: divide advantages by the group's deviation or not;
    ``expert_column``: where rows hold the expert's response; ``missing_expert``/``long_expert``: refuse rows without one, or
    with one longer than a response may be, or train their prompts without an expert."""

    gamma: float = 0.1
    scale: Literal["group", "none"] = "group"
    expert_column: str = "completion"
    missing_expert: guided.Absent = "error"
    long_expert: guided.Absent = "error"


@dataclass(frozen=True)
class WithExpert:
    """The policy's own rows and the expert's, in one group, judged alike."""

    setting: Setting
    experts: guided.ExpertSource

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        own = guided.tag(ctx.generate(prompts, self.setting.sampling, "rollout"), origins.MODEL)
        added = guided.expert_rows(self.experts, prompts, ctx)
        return own if added is None else guided.by_group(guided.join(own, added, ctx))


def build(config: Config, setting: Setting) -> Recipe:
    recipe = grpo.plain(config, setting, GroupCredit(partial(grpo_advantage, scale=config.scale)))
    experts = guided.find_experts(setting, config.expert_column, config.missing_expert, config.long_expert)
    objective = MixedPolicyGradient(config, gamma=config.gamma, denominator="none")
    return replace(recipe, sampler=WithExpert(setting, experts), objective=objective)
