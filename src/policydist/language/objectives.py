"""The policy-gradient loss that most methods share, with the field's switches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.functional import Aggregation, aggregate, clipped_surrogate, gspo_surrogate, kl_estimate
from policydist.language.recipe import Context
from policydist.language.types import Policy, Rollouts, Scores


@dataclass(frozen=True)
class LossConfig:
    """Knobs of the clipped surrogate and its regularisers; every policy-gradient method's config begins with these.

    ``clip_low``/``clip_high``: the ratio stays in [1 - low, 1 + high]; ``dual_clip``: bound on the loss of negative advantages
    (verl: 3.0; null: none); ``aggregation``: how token losses become one number; ``kl_coef``: weight of the KL to the initial
    policy inside the loss; ``entropy_coef``: weight of the exact-entropy bonus; ``max_length``: the constant divisor of
    ``seq-mean-token-sum-norm`` (null: the batch's width).
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    aggregation: Aggregation = "token-mean"
    kl_coef: float = 0.0
    kl_kind: Literal["k1", "k2", "k3"] = "k3"
    entropy_coef: float = 0.0
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low <= 1:
            raise UsageError(f"clip_low is {self.clip_low}; it must lie in [0, 1]")
        if self.clip_high < 0:
            raise UsageError(f"clip_high is {self.clip_high}; it must not be negative")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise UsageError(f"dual_clip is {self.dual_clip}; it must be above 1, or null for none")


@dataclass(frozen=True)
class PolicyGradient:
    """Clipped surrogate on token ratios, or on length-normalised sequence ratios (``ratio="sequence"``, GSPO)."""

    config: LossConfig
    ratio: Literal["token", "sequence"] = "token"

    @property
    def sparse(self) -> bool:
        """Rows without advantage matter only to the regularisers."""
        return self.config.kl_coef == 0 and self.config.entropy_coef == 0

    def __call__(self, policy: Policy, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        return self.of_scores(policy.score(batch, entropy=self.config.entropy_coef != 0), batch, ctx)

    def of_scores(self, scores: Scores, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss from scores that are already at hand."""
        config, logprobs = self.config, scores.logprobs
        if batch.advantages is None:
            raise PolicydistError("the recipe's credit set no advantages; every policy-gradient recipe needs them")
        fresh = batch.old_logprobs is None or ctx.updates == 1
        old = logprobs.detach() if fresh else batch.old_logprobs
        assert old is not None
        token_loss = self.surrogate(logprobs, old, batch, config.clip_low, config.clip_high)
        numbers = {"entropy": self.total(-logprobs.detach(), batch, "token-mean", ctx)}
        if not fresh:
            free = self.surrogate(logprobs, old, batch, 1.0, math.inf)
            numbers["clip_fraction"] = self.total((token_loss != free).float(), batch, "token-mean", ctx)
        if config.kl_coef:
            kl = kl_estimate(logprobs, batch.extras["reference_logprobs"], config.kl_kind)
            numbers["kl"] = self.total(kl.detach(), batch, "token-mean", ctx)
            token_loss = token_loss + config.kl_coef * kl
        if config.entropy_coef and scores.entropy is not None:
            numbers["exact_entropy"] = self.total(scores.entropy.detach(), batch, "token-mean", ctx)
            token_loss = token_loss - config.entropy_coef * scores.entropy
        return self.total(token_loss, batch, config.aggregation, ctx), numbers

    def surrogate(
        self, logprobs: Float[Tensor, "N T"], old: Float[Tensor, "N T"], batch: Rollouts, low: float, high: float
    ) -> Float[Tensor, "N T"]:
        """Per-token loss with the ratio clipped to [1 - low, 1 + high]."""
        assert batch.advantages is not None
        if self.ratio == "sequence":
            return gspo_surrogate(logprobs, old, batch.advantages, batch.response_mask, clip_low=low, clip_high=high)
        return clipped_surrogate(
            logprobs, old, batch.advantages, clip_low=low, clip_high=high, dual_clip=self.config.dual_clip
        )

    def total(
        self, values: Float[Tensor, "N T"], batch: Rollouts, mode: Aggregation, ctx: Context
    ) -> Float[Tensor, ""]:
        """Aggregate with the mini-batch's global denominators."""
        return aggregate(
            values, batch.response_mask, mode,
            tokens=ctx.norm.tokens, sequences=ctx.norm.sequences,
            max_length=self.config.max_length or ctx.norm.max_length,
        )  # fmt: skip
