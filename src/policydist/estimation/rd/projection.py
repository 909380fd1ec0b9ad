"""Projection of curves over the quantile grid onto non-decreasing curves."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression


def grid_weights(quantiles: Float[np.ndarray, " quantiles"]) -> Float[np.ndarray, " quantiles"]:
    """The share of dq that each grid point stands for: central differences, one-sided at the ends.

    Equal on a uniform grid, so that the projection is then the unweighted one (arXiv 2504.03992, equation 7).
    """
    if len(quantiles) == 1:
        return np.ones(1)
    return np.gradient(quantiles)


def project_isotonic(
    curves: Float[np.ndarray, "rows quantiles"], weights: Float[np.ndarray, " quantiles"]
) -> Float[np.ndarray, "rows quantiles"]:
    """Weighted least-squares projection of each row onto non-decreasing sequences (pool adjacent violators).

    On quantile functions this is the 2-Wasserstein projection that turns the local polynomial fit into local Fréchet
    regression (arXiv 2504.03992, section 3). Rows that are non-decreasing already are returned unchanged.
    """
    projected = curves.copy()
    for row in np.flatnonzero((np.diff(curves, axis=1) < 0).any(axis=1)):
        projected[row] = isotonic_regression(curves[row], weights=weights).x
    return projected


def rearrange(curve: Float[np.ndarray, " quantiles"]) -> Float[np.ndarray, " quantiles"]:
    """Monotone rearrangement: the sorted values. The "simple" estimator's repair, not the Fréchet projection."""
    return np.sort(curve)
