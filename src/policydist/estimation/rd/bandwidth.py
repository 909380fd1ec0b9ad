"""MSE- and IMSE-optimal bandwidths for the jump of the average quantile function."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from policydist.estimation.rd.kernels import Kernel, Side, boundary_constants, evaluate
from policydist.estimation.rd.polynomial import fit_side, side_mask

Criterion = Literal["mse", "imse"]
PilotMethod = Literal["paper_repaired", "package"]
SIDES: tuple[Side, Side] = ("plus", "minus")

# Bias differences below this are taken for zero; a rule of thumb then replaces the formula (as in the R package).
ZERO_BIAS = 1e-14
# The unit that fixes the smallest admissible window must weigh something, so the window ends a little beyond it.
FLOOR_MARGIN = 1.01


@dataclass(frozen=True)
class BandwidthChoice:
    """A selected bandwidth (one entry for "imse", one per column for "mse") and everything it was computed from.

    ``pilot`` is the bandwidth of the local pilot fits, ``density`` the estimate of f_X at the cutoff; the biases B
    (per h^(s+1)) and variances V (per 1/(n h)) are those of step 3, per side and column. ``fallback`` is true where
    the bias difference vanished and the rule of thumb was used, ``widened`` where the guard raised the bandwidth to
    ``floor``, the smallest one with enough units on both sides.
    """

    bandwidth: Float[np.ndarray, " bandwidths"]
    pilot: Float[np.ndarray, " bandwidths"]
    density: float
    bias_plus: Float[np.ndarray, " columns"]
    bias_minus: Float[np.ndarray, " columns"]
    variance_plus: Float[np.ndarray, " columns"]
    variance_minus: Float[np.ndarray, " columns"]
    floor: float
    fallback: bool
    widened: bool


@dataclass(frozen=True)
class _Problem:
    """What every step of the selector needs."""

    x: Float[np.ndarray, " units"]
    outcomes: Float[np.ndarray, "units columns"]
    unit_weight: Float[np.ndarray, " units"]
    column_weight: Float[np.ndarray, " columns"]
    criterion: Criterion
    order: int
    kernel: Kernel
    density: float
    spread: float

    @property
    def size(self) -> float:
        """Kish's effective number of units, which is n for equal weights."""
        return float(self.unit_weight.sum() ** 2 / np.sum(self.unit_weight**2))


def select_bandwidth(
    x: Float[np.ndarray, " units"],
    outcomes: Float[np.ndarray, "units columns"],
    *,
    criterion: Criterion,
    order: int,
    bandwidth_order: int,
    kernel: Kernel,
    method: PilotMethod = "paper_repaired",
    unit_weight: Float[np.ndarray, " units"] | None = None,
    column_weight: Float[np.ndarray, " columns"] | None = None,
    coverage_shrinkage: bool = False,
) -> BandwidthChoice:
    """Bandwidth optimal for order s = ``bandwidth_order``, to be used with order p = ``order`` > s.

    h* = [(V_+ + V_-) / (2(s+1)(B_+ - B_-)^2)]^(1/(2s+3)) n^(-1/(2s+3)); "imse" integrates numerator and denominator
    over the columns with ``column_weight`` (arXiv 2504.03992, equation 11 and App. A-4.2). Global fits of order s+1
    give a pilot bandwidth, local fits there give B and V.
    "paper_repaired" fits order s+1 in the local step, for the paper's order s has no (s+1)-th derivative; "package"
    repeats the released code: triangular order-s fits, the slope in scaled units over (s+1)! as bias, no kernel
    constants in the last step, positive-weight units only in the variance, unit weights ignored.
    """
    uniform = np.ones(len(x))
    weight = uniform if unit_weight is None or method == "package" else unit_weight
    spread = float(np.std(x, ddof=1))
    problem = _Problem(
        x=x,
        outcomes=outcomes,
        unit_weight=weight,
        column_weight=np.ones(outcomes.shape[1]) if column_weight is None else column_weight,
        criterion=criterion,
        order=bandwidth_order,
        kernel=kernel,
        density=density_at_cutoff(x, kernel, weight),
        spread=spread,
    )
    active = uniform if unit_weight is None else unit_weight
    floor = smallest_bandwidth(x, max(order, bandwidth_order + 1), active)
    pilot, _ = _plug_in(problem, *_global_guess(problem, ddof=1 if method == "package" else 0))
    pilot = np.maximum(pilot, floor)
    bias, variance = (_package_local if method == "package" else _local)(problem, pilot)
    raw, fallback = _plug_in(problem, bias, variance)
    if coverage_shrinkage:
        s = bandwidth_order
        raw = raw * len(x) ** (-s / ((2 * s + 3) * (s + 3)))
    return BandwidthChoice(
        bandwidth=np.maximum(raw, floor),
        pilot=pilot,
        density=problem.density,
        bias_plus=bias[0],
        bias_minus=bias[1],
        variance_plus=variance[0],
        variance_minus=variance[1],
        floor=floor,
        fallback=fallback,
        widened=bool(np.any(raw < floor)),
    )


def density_at_cutoff(
    x: Float[np.ndarray, " units"], kernel: Kernel, unit_weight: Float[np.ndarray, " units"] | None = None
) -> float:
    """f_X(0) = mean K(x/c)/c with c = 1.06 sd(x) n^(-1/5). Raises ValueError where the window is empty."""
    c = 1.06 * float(np.std(x, ddof=1)) * len(x) ** (-0.2)
    density = float(np.average(evaluate(x / c, kernel), weights=unit_weight) / c)
    if not density > 0:
        raise ValueError(
            f"no unit lies within {c:.4g} of the cutoff, so no bandwidth can be selected; pass a number as bandwidth"
        )
    return density


def smallest_bandwidth(x: Float[np.ndarray, " units"], order: int, unit_weight: Float[np.ndarray, " units"]) -> float:
    """The smallest bandwidth with order+2 distinct values of x in the window on both sides.

    Raises ValueError when a side has fewer distinct values in all.
    """
    needed = order + 2
    floor = 0.0
    for side in SIDES:
        distance = np.unique(np.abs(x[side_mask(x, side) & (unit_weight > 0)]))
        if len(distance) < needed:
            raise ValueError(
                f"the {side} side of the cutoff has {len(distance)} distinct values of the running variable; "
                f"an order-{order} fit needs at least {needed}"
            )
        floor = max(floor, float(distance[needed - 1]))
    return floor * FLOOR_MARGIN


def _plug_in(problem: _Problem, bias: list[np.ndarray], variance: list[np.ndarray]) -> tuple[np.ndarray, bool]:
    """The optimal bandwidth for given one-sided biases and variances, and whether the rule of thumb stepped in."""
    s = problem.order
    squared = (bias[0] - bias[1]) ** 2
    total = variance[0] + variance[1]
    if problem.criterion == "imse":
        squared = np.atleast_1d(problem.column_weight @ squared)
        total = np.atleast_1d(problem.column_weight @ total)
    zero = np.sqrt(squared) <= ZERO_BIAS
    ratio = total / (2 * (s + 1) * np.where(zero, 1.0, squared) * problem.size)
    thumb = 1.06 * problem.spread * len(problem.x) ** (-1.0 / (2 * s + 1))
    return np.where(zero, thumb, ratio ** (1.0 / (2 * s + 3))), bool(np.any(zero))


def _global_guess(problem: _Problem, ddof: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Step 1: bias and variance from one polynomial of order s+1 over each whole side."""
    degree = problem.order + 1
    bias, variance = [], []
    for side in SIDES:
        rows = side_mask(problem.x, side) & (problem.unit_weight > 0)
        x, weight = problem.x[rows], problem.unit_weight[rows]
        reach = np.max(np.abs(x))
        design = np.vander(x / reach, degree + 1, increasing=True)
        root = np.sqrt(weight)[:, None]
        coefficient = np.linalg.lstsq(design * root, problem.outcomes[rows] * root, rcond=None)[0]
        squared = (problem.outcomes[rows] - design @ coefficient) ** 2
        constants = boundary_constants(problem.order, problem.kernel, side)
        bias.append(constants.bias * coefficient[degree] / reach**degree)
        mean_square = np.average(squared, axis=0, weights=weight) * len(x) / (len(x) - ddof)
        variance.append(constants.variance * mean_square / problem.density)
    return bias, variance


def _local(problem: _Problem, pilot: Float[np.ndarray, " bandwidths"]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Step 2, repaired: local fits of order s+1 at the pilot bandwidth, so that the (s+1)-th derivative exists."""
    degree = problem.order + 1
    bias, variance = [], []
    for side in SIDES:
        fit = fit_side(
            problem.x, problem.outcomes, pilot,
            order=degree, kernel=problem.kernel, side=side, unit_weight=problem.unit_weight,
        )  # fmt: skip
        weight = evaluate(problem.x[:, None] / pilot, problem.kernel) * problem.unit_weight[:, None]
        weight = weight * side_mask(problem.x, side)[:, None]
        squared = np.where(fit.window, problem.outcomes - fit.fitted, 0.0) ** 2
        constants = boundary_constants(problem.order, problem.kernel, side)
        bias.append(constants.bias * fit.alpha[degree] / pilot**degree)
        variance.append(constants.variance * _weighted_mean(squared, weight) / problem.density)
    return bias, variance


def _package_local(
    problem: _Problem, pilot: Float[np.ndarray, " bandwidths"]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Step 2 as released: order s, always triangular, scaled slope as bias, positive intercept weights only."""
    bias, variance = [], []
    triangular = replace(problem, kernel="triangular")
    for side in SIDES:
        fit = fit_side(
            triangular.x, triangular.outcomes, pilot, order=problem.order, kernel=triangular.kernel, side=side
        )
        squared = np.where(fit.window, problem.outcomes - fit.fitted, 0.0) ** 2
        bias.append(fit.alpha[problem.order] / math.factorial(problem.order + 1))
        variance.append(_weighted_mean(squared, np.maximum(fit.weights, 0.0)) / problem.density)
    return bias, variance


def _weighted_mean(values: np.ndarray, weight: Float[np.ndarray, "units bandwidths"]) -> Float[np.ndarray, " columns"]:
    return (weight * values).sum(axis=0) / weight.sum(axis=0)
