"""GRPO: group-relative advantages and the clipped surrogate (DeepSeekMath, arXiv 2402.03300)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from policydist.errors import UsageError
from policydist.functional import effective_gradient_ratio, grpo_advantage, length_shaped
from policydist.language.credits import GroupCredit, rewards_of
from policydist.language.objectives import LossConfig, PolicyGradient
from policydist.language.recipe import Context, Credit, OnPolicy, Recipe, Setting, Shuffled
from policydist.language.statistics import successes
from policydist.language.types import Rollouts


@dataclass(frozen=True)
class Config(LossConfig):
    """``scale``: divide by the group's or the batch's standard deviation, or not at all; ``ddof`` 1 is Bessel's correction
    (verl, TRL), 0 the population form; ``eps`` is 1e-6 in verl, 1e-4 in TRL; ``singleton``: advantage of a group of one;
    ``length_penalty``: advantages from rewards of right responses that fall with their length, to a half at the longest allowed
    (absolute), or by up to ``length_alpha`` against the right ones of the group (relative)."""

    scale: Literal["group", "batch", "none"] = "group"
    ddof: int = 1
    eps: float = 1e-6
    singleton: Literal["zero", "raw"] = "zero"
    length_penalty: Literal["none", "absolute", "relative"] = "none"
    length_alpha: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.length_alpha < 1:
            raise UsageError(f"length_alpha is {self.length_alpha}; it must lie in [0, 1)")


@dataclass(frozen=True)
class ShorterCredit:
    """Credit from rewards that fall with length. ``reward`` stays what the judge gave, the effective ratios become those of
    the shaped rewards."""

    inner: Credit
    form: Literal["absolute", "relative"]
    alpha: float
    longest: int

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        given, right = rewards_of(rollouts), successes(rollouts).bool()
        shaped = length_shaped(
            given, right, rollouts.lengths, rollouts.group, self.form, max_length=self.longest, alpha=self.alpha
        )
        effective = effective_gradient_ratio(shaped, rollouts.group, tolerance=1e-6)
        ctx.log("shaped_reward", shaped.mean())
        ctx.log("effective_groups", effective.prompts)
        ctx.log("effective_samples", effective.samples)
        return replace(self.inner(replace(rollouts, rewards=shaped), ctx), rewards=given)


def plain(config: LossConfig, setting: Setting, credit: Credit) -> Recipe:
    """On-policy rollouts of shuffled prompts, a judge, some credit, the clipped surrogate: what most recipes start from."""
    return Recipe(
        curriculum=Shuffled(setting.source, setting.prompts_per_step, setting.samples_per_prompt),
        sampler=OnPolicy(setting.sampling),
        judge=setting.judge,
        credit=credit,
        objective=PolicyGradient(config),
        needs_reference=config.kl_coef != 0,
    )


def build(config: Config, setting: Setting) -> Recipe:
    advantage = partial(
        grpo_advantage, scale=config.scale, ddof=config.ddof, eps=config.eps, singleton=config.singleton
    )
    credit: Credit = GroupCredit(advantage)
    if config.length_penalty != "none":
        credit = ShorterCredit(credit, config.length_penalty, config.length_alpha, setting.sampling.max_new_tokens)
    return plain(config, setting, credit)
