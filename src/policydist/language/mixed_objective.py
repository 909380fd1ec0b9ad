"""The policy-gradient loss for batches that hold both the policy's own tokens and others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from policydist.functional import mixed_policy_loss, truncated_importance_weight
from policydist.language import origins
from policydist.language.objectives import PolicyGradient
from policydist.language.recipe import Context
from policydist.language.types import Rollouts, Scores

Denominator = Literal["same_prompt", "behavior", "none"]
MIXTURE = "mixture_logprobs"
"""An extra [N, T]: log-probabilities of the behaviour mixture, taken instead of the old ones where it is set."""


@dataclass(frozen=True)
class MixedPolicyGradient(PolicyGradient):
    """Clipped surrogate on the policy's own tokens; ``-A w`` with ``w = x / (x + gamma)`` on off-policy ones (`origins`).

    ``denominator`` of the off-policy ratio x: ``same_prompt`` the policy before the update under the prompt stored in the
    row, so that x starts at 1; ``behavior`` what the token was really drawn from; ``none`` x is the probability itself.
    ``truncation`` caps importance weights ``pi_old / behaviour`` that multiply the on-policy losses (None: no such weights).
    """

    gamma: float | None = 1.0
    denominator: Denominator = "same_prompt"
    truncation: float | None = None

    def of_scores(self, scores: Scores, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        loss, numbers = super().of_scores(scores, batch, ctx)
        off = origins.off_policy(batch)
        numbers["off_tokens"] = self.total(off.to(scores.logprobs.dtype), batch, "token-mean", ctx)
        return loss, numbers

    def surrogate(
        self, logprobs: Float[Tensor, "N T"], old: Float[Tensor, "N T"], batch: Rollouts, low: float, high: float
    ) -> Float[Tensor, "N T"]:
        assert batch.advantages is not None
        weights = None
        if self.truncation is not None:
            weights = truncated_importance_weight(old, batch.behavior_logprobs, self.truncation)
        choices = {"same_prompt": old, "behavior": batch.behavior_logprobs, "none": None}
        return mixed_policy_loss(
            logprobs, batch.extras.get(MIXTURE, old), batch.advantages, origins.off_policy(batch),
            off_denominator=choices[self.denominator], gamma=self.gamma,
            clip_low=low, clip_high=high, dual_clip=self.config.dual_clip, weights=weights,
        )  # fmt: skip
