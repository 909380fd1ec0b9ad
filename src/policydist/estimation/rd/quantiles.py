"""Empirical quantile functions of units, and the Gini coefficient of a quantile function."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float


def quantile_matrix(
    samples: Sequence[np.ndarray],
    quantiles: Float[np.ndarray, " quantiles"],
    weights: Sequence[np.ndarray] | None = None,
) -> Float[np.ndarray, "units quantiles"]:
    """Empirical quantiles of every unit's sample, one row a unit.

    Unweighted: linear interpolation of order statistics at 1 + (n_i - 1) q (Hyndman-Fan type 7, NumPy's default).
    Weighted: see `weighted_quantiles`, which equals type 7 when a unit's weights are equal.
    """
    matrix = np.empty((len(samples), len(quantiles)))
    for i, sample in enumerate(samples):
        values = np.asarray(sample, dtype=np.float64)
        matrix[i] = (
            _type7(np.sort(values), quantiles)
            if weights is None
            else weighted_quantiles(values, np.asarray(weights[i], dtype=np.float64), quantiles)
        )
    return matrix


def weighted_quantiles(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"], quantiles: Float[np.ndarray, " quantiles"]
) -> Float[np.ndarray, " quantiles"]:
    """Type-7 quantiles for survey weights: the weighted step quantile function averaged over a window of width 1/n*.

    n* = (sum w)^2 / sum w^2 is Kish's effective size; the window for q is [(h-1)/n*, h/n*] with h = 1 + q (n* - 1).
    Equal weights give type 7 exactly, the scale of the weights is immaterial, and zero-weight values drop out
    (arXiv 2304.07265). Raises ValueError when no weight is positive.
    """
    keep = weights > 0
    if not keep.any():
        raise ValueError("a unit has no observation with a positive weight")
    values, weights = values[keep], weights[keep]
    rank = np.argsort(values, kind="stable")
    values, share = values[rank], weights[rank] / weights.sum()
    size = 1.0 / np.sum(share**2)
    if len(values) == 1:
        return np.full(len(quantiles), values[0])
    # Integrating around the centre keeps the difference of two cumulative sums accurate for outcomes far from zero.
    centre = values[len(values) // 2]
    knots = np.concatenate([[0.0], np.cumsum(share)])
    knots[-1] = 1.0
    integral = np.concatenate([[0.0], np.cumsum(share * (values - centre))])
    lower = quantiles * (size - 1.0) / size
    mass = np.interp(lower + 1.0 / size, knots, integral) - np.interp(lower, knots, integral)
    return np.clip(centre + mass * size, values[0], values[-1])


def gini(
    quantiles: Float[np.ndarray, " quantiles"], curves: Float[np.ndarray, "*rows quantiles"]
) -> Float[np.ndarray, "*rows"]:
    """Gini coefficients of quantile functions: 1 - 2 times the area under the Lorenz curve.

    The grid is padded to 0 and 1 by the end values and both integrals use the trapezoid rule. NaN where the mean is
    not positive, for there the coefficient has no meaning.
    """
    grid = np.concatenate([[0.0], quantiles, [1.0]])
    padded = np.concatenate([curves[..., :1], curves, curves[..., -1:]], axis=-1)
    steps = np.diff(grid)
    pieces = 0.5 * steps * (padded[..., 1:] + padded[..., :-1])
    partial = np.cumsum(pieces, axis=-1)
    mean = partial[..., -1]
    before = partial - pieces
    area = (0.5 * steps * (partial + before)).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(mean > 0, 1.0 - 2.0 * area / mean, np.nan)


def _type7(ordered: Float[np.ndarray, " n"], quantiles: Float[np.ndarray, " quantiles"]) -> np.ndarray:
    position = quantiles * (len(ordered) - 1)
    below = np.floor(position).astype(np.intp)
    above = np.minimum(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])
