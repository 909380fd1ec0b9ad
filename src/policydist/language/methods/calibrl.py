"""CalibRL: the expert's response is a level of confidence to compare with, not something to imitate (arXiv 2602.20197)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import expert_calibrated_loss, expert_gap, group_mean, grpo_advantage
from policydist.functional.mixed import Gap, PadPolicy
from policydist.language import guided
from policydist.language.credits import rewards_of
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig, PolicyGradient
from policydist.language.recipe import Context, Recipe, Setting, broadcast
from policydist.language.types import Prompts, Rollouts, Scores

DIFFERENCES: tuple[str, ...] = (
    "The paper compares log-probabilities of whole responses; the released code, followed by default, token by token at "
    "the same position. gap=sequence_sum is the paper's form. The two disagree in sign on many tokens.",
    "How the paper averages its sequence form could not be read: here one loss a response stands on each of its tokens.",
    "Behind the expert's end the code compares with a log-probability of 0, so late tokens always count as less sure "
    "than the expert (pad_policy=zero); pad_policy=mask leaves them out.",
    "The released script does not divide advantages by the group's deviation, followed here (scale=group does).",
    "The code computes the expert's log-probabilities once a batch, with the policy before the update; so does this module.",
    "mixup=pass drops experts of groups whose pass rate lies outside a range; the range's ends are knobs here.",
)
"""Where paper, released code and this module part."""


@dataclass(frozen=True)
class Config(LossConfig):
    """``lam``: weight of the exploration term |A| LeakyReLU(-s gap); ``alpha``: its slope once the expert's level is crossed;
    ``gap``: how confidence is compared (``token_aligned`` the code, ``sequence_sum`` the paper, ``sequence_mean`` by length);
    ``pad_policy``: tokens behind the expert's end; ``pass_threshold``: a response with more reward counts as right;
    ``scale``: divide advantages by the group's deviation or not; ``mixup``: keep an expert with probability ``mix_ratio``
    (random) or if the group's pass rate lies in [``pass_low``, ``pass_high``] (pass). ``expert_column``: where rows hold the
    expert's response; ``missing_expert``/``long_expert``: refuse rows without a fitting one, or train them by GRPO alone."""

    dual_clip: float | None = 3.0
    alpha: float = 0.5
    lam: float = 0.1
    gap: Gap = "token_aligned"
    pad_policy: PadPolicy = "zero"
    pass_threshold: float = 0.1
    scale: Literal["group", "none"] = "none"
    mixup: Literal["random", "pass"] = "random"
    mix_ratio: float = 1.0
    pass_low: float = 0.0
    pass_high: float = 1.0
    expert_column: str = "completion"
    missing_expert: guided.Absent = "error"
    long_expert: guided.Absent = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "mix_ratio", "pass_low", "pass_high"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"calibrl: {name} is {getattr(self, name)}; it must lie in [0, 1]")
        if self.lam < 0:
            raise UsageError(f"calibrl: lam is {self.lam}; it must not be negative")


@dataclass(frozen=True)
class WithReference:
    """The policy's own rows, each with its group's expert log-probabilities, position by position, as extras.

    The expert itself is no row: it enters neither loss nor advantage, and no gradient can reach it.
    """

    setting: Setting
    experts: guided.ExpertSource

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        own = ctx.generate(prompts, self.setting.sampling, "rollout")
        rows = guided.expert_rows(self.experts, prompts, ctx)
        level = torch.zeros(len(prompts), own.response_ids.shape[1], device=own.group.device)
        total, length = level.new_zeros(len(prompts)), level.new_zeros(len(prompts), dtype=torch.long)
        if rows is not None:
            logprobs = ctx.score(rows).logprobs
            width = min(level.shape[1], logprobs.shape[1])
            level[rows.group, :width] = logprobs[:, :width].to(level.dtype)
            total[rows.group], length[rows.group] = logprobs.sum(1).to(total.dtype), rows.lengths
        extras = {"expert_logprobs": level, "expert_total": total, "expert_length": length}
        return replace(own, extras={**own.extras, **{name: value[own.group] for name, value in extras.items()}})


@dataclass(frozen=True)
class CalibratedCredit:
    """Advantages over the policy's own rows; which responses passed, and which groups keep their expert."""

    config: Config

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        config, rewards = self.config, rewards_of(rollouts)
        passed = rewards > config.pass_threshold
        kept = rollouts.extras["expert_length"] > 0
        if config.mixup == "pass":
            rate = group_mean(passed.float(), rollouts.group)[torch.unique(rollouts.group, return_inverse=True)[1]]
            kept &= (rate >= config.pass_low) & (rate <= config.pass_high)
        elif config.mix_ratio < 1:
            groups = int(rollouts.group.max()) + 1
            chance = torch.rand(groups, generator=ctx.generator("mixup")).to(rewards.device)
            kept &= (chance < config.mix_ratio)[rollouts.group]
        ctx.log("calibrl/pass_rate", passed.float().mean())
        ctx.log("calibrl/with_expert", kept.float().mean())
        advantages = grpo_advantage(rewards, rollouts.group, scale=config.scale)
        return replace(
            rollouts,
            advantages=broadcast(advantages, rollouts),
            extras={**rollouts.extras, "passed": passed, "with_expert": kept},
        )


@dataclass(frozen=True)
class CalibratedPolicyGradient(PolicyGradient):
    """The clipped surrogate plus ``lam`` times the exploration term, both averaged over the policy's own tokens."""

    config: Config

    def of_scores(self, scores: Scores, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        loss, numbers = super().of_scores(scores, batch, ctx)
        config, extras = self.config, batch.extras
        assert batch.advantages is not None
        gap = expert_gap(
            scores.logprobs, extras["expert_logprobs"], batch.response_mask,
            extras["expert_total"], extras["expert_length"], config.gap,
        )  # fmt: skip
        size = batch.advantages.abs().amax(1)
        counted = self.counted(batch.response_mask, extras["with_expert"], extras["expert_length"])
        explore = expert_calibrated_loss(gap, size, extras["passed"], config.alpha) * counted
        term = self.total(explore, batch, config.aggregation, ctx)
        full = counted & ((gap < 0) == extras["passed"].unsqueeze(1)) & (size > 0).unsqueeze(1)
        push = size.unsqueeze(1) * torch.where(full, 1.0, config.alpha) * counted
        numbers |= {
            "calibrl/exploration": term.detach(),
            "calibrl/gap": self.total(gap.detach() * counted, batch, "token-mean", ctx),
            "calibrl/full_push": self.total(full.to(gap.dtype), batch, "token-mean", ctx),
            "calibrl/pull_grpo": self.total(batch.advantages.abs(), batch, "token-mean", ctx),
            "calibrl/pull_expert": config.lam * self.total(push, batch, "token-mean", ctx),
        }
        return loss + config.lam * term, numbers

    def counted(
        self, mask: Bool[Tensor, "N T"], kept: Bool[Tensor, " N"], length: Int[Tensor, " N"]
    ) -> Float[Tensor, "N T"] | Bool[Tensor, "N T"]:
        """Tokens that the exploration term reads."""
        found = mask & kept.unsqueeze(1)
        if self.config.gap == "token_aligned" and self.config.pad_policy == "mask":
            found = found & (torch.arange(mask.shape[1], device=mask.device) < length.unsqueeze(1))
        return found


def build(config: Config, setting: Setting) -> Recipe:
    experts = guided.find_experts(setting, config.expert_column, config.missing_expert, config.long_expert)
    recipe = grpo.plain(config, setting, CalibratedCredit(config))
    return replace(recipe, sampler=WithReference(setting, experts), objective=CalibratedPolicyGradient(config))
