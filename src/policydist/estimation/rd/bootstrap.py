"""Gaussian multiplier bootstrap: uniform bands and tests for the effect curve."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from policydist.estimation.rd.quantiles import gini

Hypothesis = Literal["nullity", "homogeneity", "gini"]
# Multipliers held at once. The stream does not depend on it, and memory stays linear in units x quantiles.
CHUNK_NUMBERS = 1 << 20


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws of the effect, and of the two curves it is the difference of (reduced form when fuzzy)."""

    effect: Float[np.ndarray, "draws quantiles"]
    plus: Float[np.ndarray, "draws quantiles"]
    minus: Float[np.ndarray, "draws quantiles"]


@dataclass(frozen=True)
class Band:
    """tau(q) +- one critical value for all q: uniform in q, of constant width, not studentised.

    ``pointwise_lower`` and ``pointwise_upper`` use each q's own critical value and cover single quantiles only.
    """

    lower: Float[np.ndarray, " quantiles"]
    upper: Float[np.ndarray, " quantiles"]
    critical: float
    pointwise_lower: Float[np.ndarray, " quantiles"]
    pointwise_upper: Float[np.ndarray, " quantiles"]
    confidence: float


@dataclass(frozen=True)
class TestResult:
    """One test over the quantiles in ``interval``; reject where ``p_value`` is at most one minus ``confidence``."""

    __test__ = False  # pytest would otherwise try to collect a class of this name
    hypothesis: str
    statistic: float
    critical: float
    p_value: float
    interval: tuple[float, float]
    confidence: float
    detail: str


def multiplier_draws(
    effect: Float[np.ndarray, "units quantiles"],
    reduced: Float[np.ndarray, "units quantiles"],
    plus_side: np.ndarray,
    *,
    n_draws: int,
    rng: np.random.Generator,
    multipliers: Float[np.ndarray, "draws units"] | None = None,
) -> Draws:
    """G^b(q) = sum_i xi_i^b psi_i(q) with one N(0,1) multiplier a unit, shared by all q, both sides and the treatment.

    ``effect`` are the influence rows of the effect, ``reduced`` those of m_plus - m_minus (the same array in a sharp
    design), ``plus_side`` marks units at or right of the cutoff. Given ``multipliers`` replace random ones.
    Source: arXiv 2504.03992, Algorithm 1.
    """
    active = np.flatnonzero(np.any(effect != 0, axis=1) | np.any(reduced != 0, axis=1))
    right = plus_side[active]
    rows_plus, rows_minus = reduced[active[right]], -reduced[active[~right]]
    rows_effect = None if effect is reduced else effect[active]
    n_draws = n_draws if multipliers is None else len(multipliers)
    m = effect.shape[1]
    total, plus, minus = (np.empty((n_draws, m)) for _ in range(3))
    step = max(1, CHUNK_NUMBERS // max(1, len(active)))
    for start in range(0, n_draws, step):
        part = slice(start, min(start + step, n_draws))
        if multipliers is None:
            xi = rng.standard_normal((part.stop - part.start, len(active)))
        else:
            xi = multipliers[part][:, active]
        plus[part] = xi[:, right] @ rows_plus
        minus[part] = xi[:, ~right] @ rows_minus
        total[part] = plus[part] - minus[part] if rows_effect is None else xi @ rows_effect
    return Draws(total, plus, minus)


def critical_value(statistics: Float[np.ndarray, " draws"], confidence: float) -> float:
    """The order statistic ceil(confidence (B+1)) of the draws, capped at the largest."""
    count = len(statistics)
    # The small subtraction undoes rounding such as 0.95 * 1000 = 950.0000000000001.
    rank = min(max(math.ceil(confidence * (count + 1) - 1e-9), 1), count)
    return float(np.partition(statistics, rank - 1)[rank - 1])


def uniform_band(tau: Float[np.ndarray, " quantiles"], draws: Draws, confidence: float) -> Band:
    """The uniform band of arXiv 2504.03992, Algorithm 1, with the pointwise one beside it."""
    size = np.abs(draws.effect)
    critical = critical_value(size.max(axis=1), confidence)
    each = np.array([critical_value(size[:, k], confidence) for k in range(size.shape[1])])
    return Band(tau - critical, tau + critical, critical, tau - each, tau + each, confidence)


def nullity(tau: np.ndarray, draws: Draws, keep: np.ndarray, confidence: float) -> tuple[float, float, float, str]:
    """H0: tau(q) = 0 for every q kept. Statistic max |tau|."""
    statistic = float(np.max(np.abs(tau[keep])))
    null = np.abs(draws.effect[:, keep]).max(axis=1)
    return statistic, critical_value(null, confidence), float(np.mean(null >= statistic)), "largest |effect|"


def homogeneity(tau: np.ndarray, draws: Draws, keep: np.ndarray, confidence: float) -> tuple[float, float, float, str]:
    """H0: tau(q) is the same for every q kept. Statistic max |tau - mean tau|."""
    statistic = float(np.max(np.abs(tau[keep] - tau[keep].mean())))
    kept = draws.effect[:, keep]
    null = np.abs(kept - kept.mean(axis=1, keepdims=True)).max(axis=1)
    return statistic, critical_value(null, confidence), float(np.mean(null >= statistic)), "largest |effect - its mean|"


def gini_difference(
    quantiles: np.ndarray, m_plus: np.ndarray, m_minus: np.ndarray, draws: Draws, confidence: float
) -> tuple[float, float, float, str]:
    """H0: both average quantile functions have the same Gini coefficient. Statistic |difference|.

    The bootstrap differences are centred at the estimated one before they are compared with it (the released code
    compares uncentred ones). Raises ValueError where an average outcome is not positive.
    """
    right, left = float(gini(quantiles, m_plus)), float(gini(quantiles, m_minus))
    if not np.isfinite(right - left):
        raise ValueError("the Gini test needs outcomes with a positive mean on both sides of the cutoff")
    resampled = gini(quantiles, m_plus + draws.plus) - gini(quantiles, m_minus + draws.minus)
    if not np.all(np.isfinite(resampled)):
        raise ValueError("the mean outcome is too close to zero for a Gini test: some bootstrap draws have none")
    null = np.abs(resampled - (right - left))
    detail = f"Gini {right:.4f} right of the cutoff, {left:.4f} left"
    statistic = abs(right - left)
    return statistic, critical_value(null, confidence), float(np.mean(null >= statistic)), detail
