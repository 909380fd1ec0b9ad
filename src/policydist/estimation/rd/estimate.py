"""The jump of the average quantile function at the cutoff, its residuals and its influence rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from policydist.estimation.rd.kernels import Kernel
from policydist.estimation.rd.polynomial import SideFit, fit_side
from policydist.estimation.rd.projection import project_isotonic, rearrange

Shape = Literal["isotonic", "rearranged", "free"]

# Treatment jumps smaller than this in absolute value cannot be divided by.
MIN_FIRST_STAGE = 1e-14


@dataclass(frozen=True)
class Jump:
    """One-sided fits at the cutoff and their difference.

    ``m_plus`` and ``m_minus`` are the curves after the shape step, ``residuals`` are zero for units out of the window,
    and ``influence`` holds psi_i(q) = (w_plus,i - w_minus,i) e_i(q), so that sum_i xi_i psi_i is one bootstrap draw.
    """

    plus: SideFit
    minus: SideFit
    m_plus: Float[np.ndarray, " quantiles"]
    m_minus: Float[np.ndarray, " quantiles"]
    residuals: Float[np.ndarray, "units quantiles"]
    influence: Float[np.ndarray, "units quantiles"]

    @property
    def difference(self) -> Float[np.ndarray, " quantiles"]:
        """m_plus - m_minus. Never itself made monotone: an effect may fall with q."""
        return self.m_plus - self.m_minus


def estimate_jump(
    x: Float[np.ndarray, " units"],
    outcomes: Float[np.ndarray, "units quantiles"],
    bandwidth: Float[np.ndarray, " bandwidths"],
    *,
    order: int,
    kernel: Kernel,
    shape: Shape,
    column_weight: Float[np.ndarray, " quantiles"],
    unit_weight: Float[np.ndarray, " units"] | None = None,
) -> Jump:
    """Fits both sides and applies the shape step to each side's curve (arXiv 2504.03992, sections 3.1-3.2).

    "isotonic" is the Fréchet estimator: curves and every unit's fitted curve are projected; "rearranged" sorts the two
    curves and leaves fitted values alone; "free" does neither (for scalar outcomes such as the treatment).
    Residuals are those of all units with |x/h| <= 1, whatever the sign of their weight.
    """
    plus = fit_side(x, outcomes, bandwidth, order=order, kernel=kernel, side="plus", unit_weight=unit_weight)
    minus = fit_side(x, outcomes, bandwidth, order=order, kernel=kernel, side="minus", unit_weight=unit_weight)
    fitted = plus.fitted + minus.fitted
    window = plus.window | minus.window
    if shape == "isotonic":
        rows = np.flatnonzero(window[:, 0])
        fitted[rows] = project_isotonic(fitted[rows], column_weight)
    residuals = np.where(window, outcomes - fitted, 0.0)
    return Jump(
        plus=plus,
        minus=minus,
        m_plus=_shaped(plus.intercept, shape, column_weight),
        m_minus=_shaped(minus.intercept, shape, column_weight),
        residuals=residuals,
        influence=(plus.weights - minus.weights) * residuals,
    )


def fuzzy_ratio(outcome: Jump, treatment: Jump) -> tuple[np.ndarray, np.ndarray]:
    """The fuzzy effect N(q)/D and its influence (D psi(q) - N(q) psi^T)/D^2 (arXiv 2504.03992, equations 9-10).

    Both are NaN where |D| < 1e-14: there is then no jump in treatment to divide by.
    """
    first_stage = float(treatment.difference[0])
    if abs(first_stage) < MIN_FIRST_STAGE:
        return np.full_like(outcome.m_plus, np.nan), np.full_like(outcome.influence, np.nan)
    top = first_stage * outcome.influence - treatment.influence * outcome.difference[None, :]
    return outcome.difference / first_stage, top / first_stage**2


def _shaped(curve: Float[np.ndarray, " quantiles"], shape: Shape, column_weight: np.ndarray) -> np.ndarray:
    if shape == "isotonic":
        return project_isotonic(curve[None, :], column_weight)[0]
    return rearrange(curve) if shape == "rearranged" else curve.copy()
