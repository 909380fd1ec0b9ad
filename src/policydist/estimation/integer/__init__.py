"""Distributions over integers with continuous parameters, and the regressor that trains them."""

from policydist.estimation.integer.base import IntegerDistribution
from policydist.estimation.integer.bitwise import Bitwise
from policydist.estimation.integer.combine import IntegerMixture, Truncated
from policydist.estimation.integer.counts import DiscreteWeibull, NegativeBinomialInt, PoissonInt
from policydist.estimation.integer.location import Dalap, Danorm, DiscretizedLaplace, DiscretizedNormal

__all__ = [
    "Bitwise",
    "Dalap",
    "Danorm",
    "DiscreteWeibull",
    "DiscretizedLaplace",
    "DiscretizedNormal",
    "IntegerDistribution",
    "IntegerMixture",
    "NegativeBinomialInt",
    "PoissonInt",
    "Truncated",
]
