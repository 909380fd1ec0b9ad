"""One-sided local polynomial regression at the cutoff, for all quantiles at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from policydist.estimation.rd.kernels import Kernel, Side, evaluate

# Below this reciprocal condition number the normal equations carry no usable digits.
MIN_RCOND = 1e-12


@dataclass(frozen=True)
class SideFit:
    """A local polynomial fit on one side of the cutoff.

    ``alpha`` are coefficients in u = x/h (the j-th derivative at the cutoff is j! alpha[j]/h^j); ``weights`` are the
    equivalent intercept weights w with intercept = sum_i w_i y_i, zero for units off this side or out of the window;
    ``window`` marks this side's units with |u| <= 1 and ``fitted`` holds their fitted values (zero elsewhere).
    """

    alpha: Float[np.ndarray, "terms quantiles"]
    weights: Float[np.ndarray, "units bandwidths"]
    fitted: Float[np.ndarray, "units quantiles"]
    window: Bool[np.ndarray, "units bandwidths"]

    @property
    def intercept(self) -> Float[np.ndarray, " quantiles"]:
        """The fitted value at the cutoff."""
        return self.alpha[0]


def side_mask(x: Float[np.ndarray, " units"], side: Side) -> Bool[np.ndarray, " units"]:
    """x >= 0 is the plus side, x < 0 the minus side (x centred at the cutoff)."""
    return x >= 0 if side == "plus" else x < 0


def fit_side(
    x: Float[np.ndarray, " units"],
    outcomes: Float[np.ndarray, "units quantiles"],
    bandwidth: Float[np.ndarray, " bandwidths"],
    *,
    order: int,
    kernel: Kernel,
    side: Side,
    unit_weight: Float[np.ndarray, " units"] | None = None,
) -> SideFit:
    """Weighted least squares of every outcome column on 1, u, …, u^order with weights K(u), u = x/h, on one side.

    ``bandwidth`` has one entry (shared by all columns) or one per column. Source: arXiv 2504.03992, equations 4-5.
    Raises ValueError when the weighted design is singular (too few distinct x in the window).
    """
    rows = np.flatnonzero(side_mask(x, side))
    u = x[rows, None] / bandwidth[None, :]
    kernel_weight = evaluate(u, kernel)
    if unit_weight is not None:
        kernel_weight = kernel_weight * unit_weight[rows, None]
    # u can be tiny when h is far beyond the data; working in v = u/scale keeps the normal equations well conditioned.
    scale = np.max(np.abs(u), axis=0, where=kernel_weight > 0, initial=0.0)
    scale = np.where(scale > 0, scale, 1.0)
    v = u / scale
    gram = _gram(v, kernel_weight, order, side, bandwidth)
    alpha = _solve(v, kernel_weight, outcomes[rows], gram, order)
    first_row = np.linalg.inv(gram)[:, 0, :]
    equivalent = kernel_weight * _polynomial(v, first_row.T)
    inside = np.abs(u) <= 1.0
    fitted = _polynomial(v, alpha) * inside
    n = len(x)
    return SideFit(
        alpha=alpha / scale ** np.arange(order + 1)[:, None],
        weights=_scatter(equivalent, rows, n),
        fitted=_scatter(fitted, rows, n),
        window=_scatter(inside, rows, n),
    )


def _gram(
    v: Float[np.ndarray, "rows bandwidths"],
    kernel_weight: Float[np.ndarray, "rows bandwidths"],
    order: int,
    side: Side,
    bandwidth: Float[np.ndarray, " bandwidths"],
) -> Float[np.ndarray, "bandwidths terms terms"]:
    """The normal matrices sum_i k_i r(v_i) r(v_i)', one per bandwidth; refuses singular ones."""
    power = kernel_weight.copy()
    moments = [power.sum(axis=0)]
    for _ in range(2 * order):
        power *= v
        moments.append(power.sum(axis=0))
    pair = np.add.outer(np.arange(order + 1), np.arange(order + 1))
    gram = np.moveaxis(np.stack(moments)[pair], -1, 0)
    total = moments[0]
    rcond = 1.0 / np.linalg.cond(gram / np.where(total > 0, total, 1.0)[:, None, None])
    worst = int(np.argmin(rcond))
    if not np.all(total > 0) or not rcond[worst] >= MIN_RCOND:
        bad = worst if np.all(total > 0) else int(np.argmin(total))
        raise ValueError(
            f"the order-{order} fit on the {side} side is singular at bandwidth {bandwidth[bad]:.4g}: "
            f"too few distinct values of the running variable in the window; widen the bandwidth or lower the order"
        )
    return gram


def _solve(
    v: Float[np.ndarray, "rows bandwidths"],
    kernel_weight: Float[np.ndarray, "rows bandwidths"],
    outcomes: Float[np.ndarray, "rows quantiles"],
    gram: Float[np.ndarray, "bandwidths terms terms"],
    order: int,
) -> Float[np.ndarray, "terms quantiles"]:
    """Coefficients in v. One shared system with many right-hand sides, or one system per column."""
    power = kernel_weight.copy()
    right = []
    for _ in range(order + 1):
        right.append(power[:, 0] @ outcomes if power.shape[1] == 1 else np.einsum("im,im->m", power, outcomes))
        power = power * v
    stacked = np.stack(right)
    if len(gram) == 1:
        return np.linalg.solve(gram[0], stacked)
    return np.linalg.solve(gram, stacked.T[:, :, None])[:, :, 0].T


def _polynomial(
    v: Float[np.ndarray, "rows bandwidths"], alpha: Float[np.ndarray, "terms columns"]
) -> Float[np.ndarray, "rows columns"]:
    """sum_j alpha[j] v^j by Horner's rule, broadcasting one bandwidth over all columns."""
    value = np.broadcast_to(alpha[-1], (v.shape[0], alpha.shape[1])).copy()
    for coefficient in alpha[-2::-1]:
        value *= v
        value += coefficient
    return value


def _scatter(values: np.ndarray, rows: np.ndarray, n: int) -> np.ndarray:
    full = np.zeros((n, values.shape[1]), dtype=values.dtype)
    full[rows] = values
    return full
