"""DCPO: correct samples reweighted towards a hotter or colder policy hold the entropy at a target (arXiv 2601.12730).

Distribution-Centric, not Dynamic Clipping, Policy Optimization.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from policydist.errors import PolicydistError
from policydist.functional import dcpo_advantage, dcpo_alpha, entropy_switch, grpo_advantage
from policydist.language.credits import rewards_of
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, OnPolicy, Recipe, Setting, broadcast
from policydist.language.types import Rollouts

DIFFERENCES: tuple[str, ...] = (
    "No correct response in the batch: the released code divides by zero (NaN); here the step is plain GRPO, or an "
    "error with on_no_correct=raise.",
    "Sampling is exact (top_p 1.0); the released configuration samples at top_p 0.99 and ignores the mismatch in the "
    "ratio.",
    "The entropy is a token mean over the whole update; the released code averages the means of micro-batches. "
    "entropy_source=current_exact uses the full distribution of the current policy instead.",
    "Padding gets advantage 0; the released code leaves alpha * rho there, which its loss mask hides.",
    "Taken over from the code: the first step sees entropy 0 and is hot at full strength; equality with the target "
    "counts as below it.",
)
"""Where paper, released code and this module part."""


@dataclass(frozen=True)
class Config(LossConfig):
    """``target_entropy`` (nats a token), ``high``/``low``: temperatures used below and above it; ``cap``: bound on the entropy
    error; ``threshold``: reward above which a sample is correct; ``entropy_source``: the last update's sampled entropy (official)
    or the exact entropy of the current policy; ``on_no_correct``: plain GRPO for a batch without a correct sample, or stop;
    ``reweight`` false sets the target ratio to 1 (the paper's ablation)."""

    dual_clip: float | None = 3.0
    target_entropy: float = 0.5
    high: float = 1.2
    low: float = 0.8
    cap: float = 0.1
    threshold: float = 0.05
    entropy_source: Literal["previous_sampled", "current_exact"] = "previous_sampled"
    on_no_correct: Literal["skip", "raise"] = "skip"
    reweight: bool = True

    def temperature(self, entropy: float) -> float:
        """Of the target, given the entropy that the controller sees."""
        return entropy_switch(entropy, self.target_entropy, self.high, self.low)


@dataclass(frozen=True)
class TiltedCredit:
    config: Config

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        config, mask = self.config, rollouts.response_mask
        correct = rewards_of(rollouts) > config.threshold
        fraction = float(correct.float().mean())
        if fraction == 0 and config.on_no_correct == "raise":
            raise PolicydistError(
                f"dcpo: no response of step {ctx.step + 1} is correct; use an easier task or on_no_correct=skip"
            )
        entropy = self.entropy(rollouts, ctx)
        temperature = config.temperature(entropy)
        alpha = dcpo_alpha(entropy, config.target_entropy, fraction, config.cap)
        advantages = broadcast(grpo_advantage(rewards_of(rollouts), rollouts.group), rollouts)
        log_rho = advantages.new_zeros(advantages.shape)
        if config.reweight and alpha > 0:
            # Only correct samples carry the ratio, so only they need it.
            rows = correct.nonzero().flatten()
            log_rho[rows] = self.log_rho(rollouts.select(rows), temperature, ctx)
        chosen = correct.unsqueeze(1) & mask
        for name, value in (
            ("entropy", entropy),
            ("temperature", temperature),
            ("alpha", alpha),
            ("correct", fraction),
        ):
            ctx.log(f"dcpo/{name}", value)
        if bool(chosen.any()):
            ctx.log("dcpo/rho_mean", log_rho[chosen].exp().mean())
            ctx.log("dcpo/rho_max", log_rho[chosen].exp().max())
        return replace(rollouts, advantages=dcpo_advantage(advantages, correct, log_rho, alpha, mask))

    def log_rho(self, rollouts: Rollouts, temperature: float, ctx: Context) -> Float[Tensor, "N T"]:
        """What the sampler noted in passing; without that, a second look at the responses."""
        noted = rollouts.extras.get("tilted_logprobs")
        if noted is not None and rollouts.old_logprobs is not None:
            return noted - rollouts.old_logprobs
        scores = ctx.score(rollouts, tilts=(temperature,))
        return scores.tilted[temperature] - scores.logprobs

    def entropy(self, rollouts: Rollouts, ctx: Context) -> float:
        if self.config.entropy_source == "previous_sampled":
            return ctx.entropy
        exact = ctx.score(rollouts, entropy=True).entropy
        assert exact is not None
        return float((exact * rollouts.response_mask).sum() / rollouts.response_mask.sum())


def build(config: Config, setting: Setting) -> Recipe:
    recipe = grpo.plain(config, setting, TiltedCredit(config))
    # The last update's entropy is known before sampling, and with it the temperature that credit will ask for.
    if config.reweight and config.entropy_source == "previous_sampled" and setting.sampling.exact:
        return replace(recipe, sampler=OnPolicy(setting.sampling, lambda ctx: config.temperature(ctx.entropy)))
    return recipe
