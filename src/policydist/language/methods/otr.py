"""OTR: at every target token K tokens are sampled and rewarded for being the target (One-Token Rollout, arXiv 2509.26313)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from policydist.functional import Aggregation
from policydist.functional.supervised import Estimator, Terms, check_otr, otr_terms
from policydist.language.recipe import Recipe, Setting
from policydist.language.supervised import SupervisedConfig, TokenLoss, supervised
from policydist.language.types import Rollouts

DIFFERENCES = (
    "No code was released, and the full paper could not be read: beta -0.1 and kappa 1.0 are our reconstruction from "
    "published reviews, which give K 256, a small negative beta and a sampling temperature above 1 (kappa=1.3 is close "
    "to that).",
    "The paper divides by each sequence's own length (Eq. 8), as the default here does; aggregation=token-mean is what "
    "most trainers do.",
    "The paper samples; estimator=exact is the expectation of its gradient, without noise and, where the softmax is in "
    "memory anyway, cheaper.",
    "At kappa 1 the expected gradient is that of DFT times 1 - beta, whatever beta: the published reviews prove it, and "
    "a test here checks it.",
)


@dataclass(frozen=True)
class Config(SupervisedConfig):
    """``k``: tokens sampled at each position; ``beta``: reward of a wrong token, a right one gets 1; ``kappa``: temperature
    of the sampling distribution only; ``estimator``: sampled (mc) or its expectation (exact)."""

    aggregation: Aggregation = "seq-mean-token-mean"
    k: int = 256
    beta: float = -0.1
    kappa: float = 1.0
    estimator: Estimator = "mc"

    def __post_init__(self) -> None:
        check_otr(self.k, self.beta, self.kappa, self.estimator)


def one_token(config: Config) -> Callable[[Rollouts], TokenLoss]:
    """Each token's own rollouts; its random numbers are those of its response's stream at its position."""

    def of(batch: Rollouts) -> TokenLoss:
        streams = batch.extras["stream"]

        def loss(logits: Tensor, targets: Tensor, rows: Tensor, positions: Tensor) -> Terms:
            return otr_terms(
                logits, targets, streams[rows], positions,
                k=config.k, beta=config.beta, kappa=config.kappa, estimator=config.estimator,
            )  # fmt: skip

        return loss

    return of


def build(config: Config, setting: Setting) -> Recipe:
    return supervised("otr", config, one_token(config), setting)
