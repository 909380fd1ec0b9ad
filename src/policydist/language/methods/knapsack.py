"""Knapsack RL: a fixed number of rollouts a step, given to the prompts where they are worth most (arXiv 2509.25849)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import allocate_rollouts, filtered_rollouts, grpo_advantage
from policydist.functional.allocation import Allocation, Compat, Weight
from policydist.functional.groups import Groups
from policydist.language.credits import GroupCredit
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Recipe, Setting, Shuffled
from policydist.language.statistics import Statistics, main_rows, successes
from policydist.language.types import Prompts, Rollouts

DIFFERENCES: tuple[str, ...] = (
    "The released solver counts the value of the first n_low rollouts again once a prompt gets one more, so nearly every "
    "prompt in the knapsack gets at least n_low + 1; here the paper's program is solved exactly (compat=official: theirs).",
    "In the released code prompts not seen yet count as never solved and share the surplus on top of their n; here only "
    "prompts known to be unsolved do (compat=official: theirs).",
    "The released code gives surplus beyond n_up to few prompts and divides by zero when all prompts are in the knapsack and "
    "need less than there is; here n_up holds always and what is left goes to prompts with room.",
    "The released configuration caps rollout log-probability ratios after the loss is aggregated, without effect: left out.",
    "The released script takes eight updates a batch; set train.updates=8.",
)
"""Where paper, released code and this module part."""


@dataclass(frozen=True)
class Config(LossConfig):
    """``n_low``/``n_up``: bounds of a prompt's rollouts; ``negative_n``/``positive_n``: of prompts never and always solved so
    far; ``recent``: responses that the success rate is taken from; ``min_count``: responses before a prompt takes part;
    ``allocation``: the paper's knapsack, or a baseline that leaves prompts never or always solved so far out of the batch and
    shares all rollouts evenly among the others, up to n_up each (filter); ``chance``: of a mixed group, up to which a prompt is
    said to need rollouts; ``fallback``: give what nobody needs to the never solved; ``value``: mixed groups weighted by the gain
    p(1-p)^2, or alike; ``compat``: the paper's program, or the released code's; ``advantage_clip``: bound on advantages, which
    grow with the group's size; ``apply``: the allocation decides the samples, and with the token mean by them each prompt's
    weight (the paper); or the samples at equal weight; or the weight alone at equal samples; ``success``, ``success_above``:
    reward component that says right or wrong (null: accuracy if there is one, else the whole reward), and the bound it must
    exceed."""

    clip_high: float = 0.28
    dual_clip: float | None = 10.0
    n_low: int = 2
    n_up: int = 128
    negative_n: int = 2
    positive_n: int = 2
    recent: int = 16
    min_count: int = 8
    allocation: Literal["knapsack", "filter"] = "knapsack"
    chance: float = 0.9
    fallback: bool = True
    value: Weight = "info_gain"
    compat: Compat = "paper"
    advantage_clip: float = 5.0
    apply: Literal["samples", "samples_equal_weight", "weight"] = "samples"
    success: str | None = None
    success_above: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("n_low", "negative_n", "positive_n", "recent", "min_count"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.chance < 1:
            raise UsageError(f"chance is {self.chance}; it must lie between 0 and 1")
        if not self.advantage_clip > 0:
            raise UsageError(f"advantage_clip is {self.advantage_clip}; it must be positive")


class BudgetedPrompts:
    """Shuffled prompts; their rollouts by the knapsack, from success rates of earlier epochs."""

    def __init__(self, config: Config, setting: Setting) -> None:
        self.config, self.source, self.samples = config, setting.source, setting.samples_per_prompt
        self.order = Shuffled(setting.source, setting.prompts_per_step, setting.samples_per_prompt)
        self.statistics = Statistics(len(setting.source), recent=config.recent)
        self.planned = torch.full((self.order.count,), self.samples)
        """[Q] rollouts that the allocation gives the prompts taken at the current step."""
        self.allocate(torch.tensor([0]))  # a budget that cannot pay for the lower bounds fails now

    def allocate(self, rows: Int[Tensor, " Q"]) -> Allocation:
        config, known = self.config, self.statistics.seen[rows] >= self.config.min_count
        if config.allocation == "filter":
            return filtered_rollouts(self.statistics.rates()[rows], known, self.samples, config.n_up)
        return allocate_rollouts(
            self.statistics.rates()[rows], known, self.samples,
            n_low=config.n_low, n_up=config.n_up, negative_n=config.negative_n, positive_n=config.positive_n,
            chance=config.chance, fallback=config.fallback, weight=config.value, compat=config.compat,
        )  # fmt: skip

    def select(self, ctx: Context) -> Prompts:
        rows = self.order.rows(ctx.seed, ctx.step)
        found = self.allocate(rows)
        ctx.log("knapsack/largest", found.counts.max())
        ctx.log("knapsack/left_out", (found.counts == 0).double().mean())
        ctx.log("knapsack/surplus", found.surplus)
        ctx.log("knapsack/known", (self.statistics.seen[rows] >= self.config.min_count).double().mean())
        if self.config.apply == "weight":
            self.planned = found.counts
            return self.source.take(rows, self.samples)
        taken = found.counts > 0
        self.planned = found.counts[taken]
        return self.source.take(rows[taken], self.planned)

    def observe(self, rollouts: Rollouts, ctx: Context) -> None:
        main = main_rows(rollouts)
        self.statistics.observe(main.index, successes(main, self.config.success, self.config.success_above))

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.statistics.load_state_dict(state)


@dataclass(frozen=True)
class BudgetedAdvantage:
    """GRPO's advantages in groups of unequal size, clipped, and weighted as ``Config.apply`` says."""

    config: Config
    curriculum: BudgetedPrompts

    def __call__(self, rewards: Float[Tensor, " N"], group: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        bound, n = self.config.advantage_clip, self.curriculum.samples
        advantages = grpo_advantage(rewards, group).clamp(-bound, bound)
        if self.config.apply == "samples_equal_weight":
            return advantages * n / Groups.of(group).row_counts
        if self.config.apply == "weight":
            return advantages * self.curriculum.planned.to(group.device)[group] / n
        return advantages


def build(config: Config, setting: Setting) -> Recipe:
    curriculum = BudgetedPrompts(config, setting)
    recipe = grpo.plain(config, setting, GroupCredit(BudgetedAdvantage(config, curriculum)))
    return replace(recipe, curriculum=curriculum)
