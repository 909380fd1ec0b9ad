"""RL-PLUS: the expert's response as one more row of the group, weighed by multiple importance sampling and by how little
the policy expects its tokens (arXiv 2508.00222)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import rl_plus_loss
from policydist.language import origins
from policydist.language.methods import luffy
from policydist.language.objectives import PolicyGradient
from policydist.language.recipe import Recipe, Setting
from policydist.language.types import Rollouts

DIFFERENCES: tuple[str, ...] = (
    "The expert's unknown density is estimated as half the old policy, half a uniform distribution U (section 3.1). The "
    "released code puts 1 for U on every token, followed here, which is no distribution over tokens: uniform=1/V is one. At "
    "1 the push on tokens that the policy hardly expects goes to nothing; at 1/V it stays.",
    "Section 3.2 divides the reward's distance from the group's mean by its deviation, the default here; the released "
    "script does not (scale=none). In its code, as here, the expert's reward is part of the group's statistics.",
    "Section 3.3 does without clipping, and the released script switches it off for the policy's own tokens as well. "
    "CalibRL's code of this baseline clips them, as this library's GRPO does by default (clip_low=1, clip_high=inf: no "
    "clipping). With one update a batch all three are the same.",
    "The released script sums the losses over a constant length (aggregation=dr-grpo here) and adds an entropy bonus "
    "(entropy_coef=0.001).",
    "In the released code the expert takes the place of one of eight samples; here it comes on top of them.",
)
"""Where paper, released code and this module part."""


@dataclass(frozen=True)
class Config(luffy.Config):
    """``gamma``: exponent of (1 - p), by which the expert's tokens count the more the less they are expected; ``uniform``:
    density of an expert of whom nothing is known, one half of the estimate of the real one's; the other knobs are `luffy`'s."""

    gamma: float = 0.5
    uniform: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gamma", "uniform"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"rl_plus: {name} is {getattr(self, name)}; it must not be negative")


@dataclass(frozen=True)
class HybridPolicyGradient(PolicyGradient):
    """The clipped surrogate on the policy's own tokens, `rl_plus_loss` on the experts'."""

    config: Config

    def surrogate(
        self, logprobs: Float[Tensor, "N T"], old: Float[Tensor, "N T"], batch: Rollouts, low: float, high: float
    ) -> Float[Tensor, "N T"]:
        assert batch.advantages is not None
        own = super().surrogate(logprobs, old, batch, low, high)
        config = self.config
        theirs = rl_plus_loss(logprobs, old, batch.advantages, gamma=config.gamma, uniform=config.uniform)
        return torch.where(origins.off_policy(batch), theirs, own)


def build(config: Config, setting: Setting) -> Recipe:
    return replace(luffy.build(config, setting), objective=HybridPolicyGradient(config))
