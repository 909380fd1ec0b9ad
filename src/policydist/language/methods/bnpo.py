"""BNPO: centred rewards divided by a Beta density fitted to the batch's success rates (arXiv 2506.02864).

Not the token-mean aggregation that TRL calls ``loss_type="bnpo"``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from policydist.errors import PolicydistError
from policydist.functional import Aggregation, bnpo_advantage, decomposed_advantage
from policydist.language.credits import rewards_of
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Recipe, Setting, broadcast
from policydist.language.types import Rollouts

DIFFERENCES: tuple[str, ...] = (
    "Equal success rates (or a batch all right, or all wrong): the parameters of the released code are infinite or "
    "undefined; here the normaliser is (1, 1), so the weight is 1.",
    "A prompt with a single response: the released code takes success rate 0, so a lone success can get the weight "
    "cap; here it is compared with nothing and gets 0.",
    "Two rewards: the released code averages over every reward tensor it stores, one that is switched off included, "
    "which halves the advantage; here only over those in use (count_inactive=true restores it).",
    "Taken over as it is: the Beta is fitted to success rates estimated from a few samples, whose noise widens it; "
    "nothing is deconvolved.",
)
"""Where paper, released code and this module part."""

COMPONENT = "reward/"


@dataclass(frozen=True)
class Config(LossConfig):
    """``reward_min``/``reward_max``: the affine map of rewards to [0, 1]; ``cap``: bound on the weight 1/density; ``ddof`` 1 is
    Bessel's correction in the variance of success rates; ``decompose``: normalise each reward component by itself and average;
    ``count_inactive``: let a component that is 0 over the whole batch count in that average, as the released code does."""

    clip_high: float = 0.28
    dual_clip: float | None = 10.0
    aggregation: Aggregation = "seq-mean-token-sum"
    reward_min: float = 0.0
    reward_max: float = 1.0
    cap: float = 1e6
    ddof: int = 1
    decompose: bool = False
    count_inactive: bool = False


@dataclass(frozen=True)
class BetaCredit:
    config: Config

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        config = self.config
        options: dict[str, Any] = {
            "r_min": config.reward_min,
            "r_max": config.reward_max,
            "ddof": config.ddof,
            "cap": config.cap,
        }
        if config.decompose:
            parts = {name: values for name, values in rollouts.extras.items() if name.startswith(COMPONENT)}
            if not parts:
                raise PolicydistError(
                    "bnpo: knobs.decompose needs a task with several reward components; this one has none"
                )
            advantages, info = decomposed_advantage(
                parts, rollouts.group, count_inactive=config.count_inactive, **options
            )
            fits = {name.removeprefix(COMPONENT): fit for name, fit in info.items()}
        else:
            advantages, fit = bnpo_advantage(rewards_of(rollouts), rollouts.group, **options)
            fits = {"": fit}
        for name, fit in fits.items():
            ctx.log(f"beta/{name}alpha" if not name else f"beta/{name}/alpha", fit.alpha)
            ctx.log(f"beta/{name}beta" if not name else f"beta/{name}/beta", fit.beta)
        ctx.log("advantage_max", advantages.abs().max())
        return replace(rollouts, advantages=broadcast(advantages, rollouts))


def build(config: Config, setting: Setting) -> Recipe:
    return grpo.plain(config, setting, BetaCredit(config))
