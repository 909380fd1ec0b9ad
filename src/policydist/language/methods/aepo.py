"""AEPO: correct samples drawn hotter or colder, as plain REINFORCE samples, hold the entropy at a target (arXiv 2510.08141)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from policydist.errors import UsageError
from policydist.functional import aepo_count, aepo_select, entropy_switch, grpo_advantage
from policydist.language.credits import rewards_of
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Recipe, Setting, broadcast
from policydist.language.types import Prompts, Rollouts
from policydist.runs import seeds

DIFFERENCES: tuple[str, ...] = (
    "No auxiliary response kept: the released code fails; here the step is plain GRPO.",
    "The paper writes a weight alpha on the extra term; the code, followed by default, sets it by how many main "
    "responses are replaced. mode=explicit_alpha is the paper's form.",
    "The paper turns hot below the target; the code, followed here, at equality too.",
    "Auxiliary rewards are logged as reward_auxiliary; in the released code they overwrite the step's reward, so its "
    "curves show the hot or cold quarter.",
    "Sampling is exact (top_p 1.0); the released configuration samples at top_p 0.99.",
    "Taken over from the code: auxiliary samples count as if drawn at temperature 1, without importance weights, and "
    "enter the entropy that steers the next step (entropy_on=main leaves them out).",
)
"""Where paper, released code and this module part."""


@dataclass(frozen=True)
class Config(LossConfig):
    """``target_entropy`` (nats a token), ``high``/``low``: sampling temperatures below and above it; ``budget``: how many auxiliary
    samples may enter (halved above the target); ``fraction`` of the prompts sampled a second time, the batch's first ones
    (official) or random ones; ``threshold``: auxiliary advantage above which a sample is kept; ``mode``: replace main responses
    (official code) or append with the weight ``alpha`` (the paper's formula); ``entropy_on``: all of the update's samples
    (official) or the main ones only."""

    dual_clip: float | None = 3.0
    target_entropy: float = 0.5
    high: float = 1.2
    low: float = 0.8
    budget: int = 60
    fraction: float = 0.25
    choice: Literal["first", "random"] = "first"
    threshold: float = 0.05
    mode: Literal["replace", "explicit_alpha"] = "replace"
    alpha: float = 0.02
    entropy_on: Literal["all", "main"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.fraction <= 1:
            raise UsageError(f"aepo: fraction is {self.fraction}; it must lie in (0, 1]")
        if self.mode == "explicit_alpha" and self.aggregation != "token-mean":
            raise UsageError("aepo: mode=explicit_alpha is defined for aggregation=token-mean only")


class AuxiliarySampler:
    """The main pass at temperature 1, and a second, hot or cold, one over a part of the prompts."""

    def __init__(self, config: Config, setting: Setting) -> None:
        self.config, self.sampling = config, setting.sampling
        self.main_entropy = 0.0

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        config = self.config
        entropy = self.main_entropy if config.entropy_on == "main" else ctx.entropy
        temperature = entropy_switch(entropy, config.target_entropy, config.high, config.low)
        ctx.log("aepo/entropy", entropy)
        ctx.log("aepo/temperature", temperature)
        main = ctx.generate(prompts, self.sampling, "rollout")
        self.main_entropy = float(-(main.behavior_logprobs * main.response_mask).sum() / main.response_mask.sum())
        count = int(len(prompts) * config.fraction)
        order = torch.arange(len(prompts))
        if config.choice == "random":
            order = torch.randperm(
                len(prompts), generator=seeds.torch_generator(ctx.seed, ctx.step, "auxiliary-prompts")
            )
        if count == 0:
            return mark(main, False)
        second = prompts.select(order[:count].sort().values)
        auxiliary = ctx.generate(second, replace(self.sampling, temperature=temperature), "auxiliary")
        return Rollouts.cat([mark(main, False), mark(replace(auxiliary, group=auxiliary.group + len(prompts)), True)])

    def state_dict(self) -> dict[str, Any]:
        return {"main_entropy": self.main_entropy}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.main_entropy = state["main_entropy"]


def mark(rollouts: Rollouts, auxiliary: bool) -> Rollouts:
    """Flag the rows, and drop their rollout-time log-probabilities: all rows' are taken anew, at temperature 1."""
    flags = torch.full((len(rollouts),), auxiliary, device=rollouts.group.device)
    return replace(rollouts, old_logprobs=None, extras={**rollouts.extras, "auxiliary": flags})


@dataclass(frozen=True)
class MixedCredit:
    """GRPO advantages for the main responses; correct auxiliary ones with advantage 1."""

    config: Config

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        config, auxiliary = self.config, rollouts.extras["auxiliary"]
        advantages = grpo_advantage(rewards_of(rollouts), rollouts.group)
        rollouts = replace(rollouts, advantages=broadcast(advantages, rollouts))
        main, second = rollouts.select(~auxiliary), rollouts.select(auxiliary)
        if config.mode == "explicit_alpha":
            return append(main, second, config.alpha)
        kept = aepo_select(advantages[auxiliary], config.threshold)
        count = aepo_count(len(kept), config.budget, ctx.metrics["aepo/entropy"], config.target_entropy)
        count = min(count, len(main))
        ctx.log("aepo/kept", count)
        chosen = second.select(kept[:count])
        chosen = replace(chosen, advantages=chosen.response_mask.to(advantages.dtype))
        return Rollouts.cat([chosen, main.select(torch.arange(count, len(main), device=kept.device))])


def append(main: Rollouts, second: Rollouts, alpha: float) -> Rollouts:
    """The paper's formula: token mean over the main responses plus ``alpha`` times the token mean of ``R log pi`` over the second.

    The joint token mean divides by all tokens, so each part is scaled up to its own mean.
    """
    if len(second) == 0 or main.advantages is None:
        return main
    tokens, more = main.response_mask.sum(), second.response_mask.sum()
    total = tokens + more
    pulled = broadcast(rewards_of(second) * alpha * (total / more), second)
    return Rollouts.cat(
        [replace(main, advantages=main.advantages * (total / tokens)), replace(second, advantages=pulled)]
    )


def build(config: Config, setting: Setting) -> Recipe:
    recipe = grpo.plain(config, setting, MixedCredit(config))
    return replace(recipe, sampler=AuxiliarySampler(config, setting))
