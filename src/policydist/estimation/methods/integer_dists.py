"""Predicting integers from continuous parameters (arXiv 2602.10751): what the paper adds, under one name.

The paper's contribution is which *discrete* laws a network with continuous outputs should use: ``Dalap``, ``Danorm``
and ``Bitwise``, against ``DiscretizedLaplace``, ``DiscretizedNormal``, ``DiscreteWeibull`` and the count baselines.
``IntegerRegressor`` fits any of them; ``make_head`` gives the same heads to a network of your own, and
``integer_nll`` is its loss.
"""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor

from policydist.estimation.integer import (
    Bitwise,
    Dalap,
    Danorm,
    DiscreteWeibull,
    DiscretizedLaplace,
    DiscretizedNormal,
    IntegerDistribution,
    IntegerMixture,
    NegativeBinomialInt,
    PoissonInt,
    Truncated,
)
from policydist.estimation.integer.heads import HEADS, IntegerHead, make_head
from policydist.estimation.integer.regressor import IntegerRegressor

__all__ = [
    "HEADS",
    "Bitwise",
    "Dalap",
    "Danorm",
    "DiscreteWeibull",
    "DiscretizedLaplace",
    "DiscretizedNormal",
    "IntegerDistribution",
    "IntegerHead",
    "IntegerMixture",
    "IntegerRegressor",
    "NegativeBinomialInt",
    "PoissonInt",
    "Truncated",
    "integer_nll",
    "make_head",
]


def integer_nll(
    head: IntegerHead,
    raw: Float[Tensor, "*s P"],
    target: Shaped[Tensor, "*s"],
    reduction: Literal["mean", "sum", "none"] = "mean",
    base: float = 2.0,
) -> Tensor:
    """−log p(target) under ``head.distribution(raw)``: bits for base 2, nats for base e.

    Raises ValueError if a target lies outside the head's range: it is never clipped.
    """
    law = head.distribution(raw)
    law._validate_sample(target)
    loss = -law.log_prob(target) / math.log(base)
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()
