"""How good are predicted lifetime values? Ranking, calibration, errors, and the lift chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length, column_or_1d

from policydist.functional.lifetime import norm_gini as _norm_gini

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[np.float64]


def norm_gini(y: ArrayLike, predicted: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Gini of the gain curve over that of the perfect ranking: 1 is perfect, 0 random; tied predictions share.

    Raises:
        ValueError: shapes, NaN, negative outcomes, or none above zero.
    """
    outcome, forecast, weight = _checked(y, predicted, sample_weight)
    if not outcome @ weight > 0:
        raise ValueError("y has no positive value: a Gini coefficient is not defined")
    return float(_norm_gini(*map(torch.as_tensor, (outcome, forecast, weight))))


def spearman(y: ArrayLike, predicted: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Spearman's rank correlation with average ranks (weighted: mid-ranks of weight); NaN if a side is constant."""
    outcome, forecast, weight = _checked(y, predicted, sample_weight)
    first, second = _mid_ranks(outcome, weight), _mid_ranks(forecast, weight)
    covariance = np.cov(first, second, aweights=weight, ddof=0)
    scale = float(np.sqrt(covariance[0, 0] * covariance[1, 1]))
    return float(covariance[0, 1] / scale) if scale > 0 else float("nan")


def calibration(y: ArrayLike, predicted: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Predicted over actual total: 1 is right, above 1 too much was promised."""
    outcome, forecast, weight = _checked(y, predicted, sample_weight)
    actual = float(outcome @ weight)
    return float(forecast @ weight) / actual if actual > 0 else float("nan")


def lifetime_metrics(
    y: ArrayLike, predicted: ArrayLike, sample_weight: ArrayLike | None = None, log_prob: ArrayLike | None = None
) -> dict[str, float]:
    """MAE, Norm-GINI and Spearman over all and over positive rows, calibration; ``nll`` if ``log_prob`` is given.

    Read them together: MAE alone rewards whoever predicts too little for the few largest customers. What a sample
    without a positive outcome cannot define is NaN.
    """
    outcome, forecast, weight = _checked(y, predicted, sample_weight)
    paid = (outcome > 0) & (weight > 0)
    found: dict[str, float] = {}
    for suffix, rows in (("", np.ones(len(outcome), dtype=bool)), ("_positive", paid)):
        if not paid.any():
            found |= dict.fromkeys((f"mae{suffix}", f"norm_gini{suffix}", f"spearman{suffix}"), float("nan"))
            continue
        o, f, w = outcome[rows], forecast[rows], weight[rows]
        found[f"mae{suffix}"] = float(np.average(np.abs(f - o), weights=w))
        found[f"norm_gini{suffix}"] = norm_gini(o, f, w)
        found[f"spearman{suffix}"] = spearman(o, f, w)
    if not paid.any():
        found["mae"] = float(np.average(np.abs(forecast - outcome), weights=weight))
    found["calibration"] = calibration(outcome, forecast, weight)
    if log_prob is not None:
        found["nll"] = -float(np.average(np.asarray(log_prob, dtype=np.float64), weights=weight))
    return found


def lift_table(
    y: ArrayLike, predicted: ArrayLike, bins: int = 10, sample_weight: ArrayLike | None = None
) -> pd.DataFrame:
    """Rows in ``bins`` equal parts by prediction, best first: mean prediction and outcome, lift, shares of the value.

    ``lift`` is the part's mean outcome over the overall one; ``gain`` the share of all value in this and better parts.
    Tied predictions are split between parts in the order of rows.

    Raises:
        ValueError: fewer than two bins or fewer rows than bins.
    """
    outcome, forecast, weight = _checked(y, predicted, sample_weight)
    if not 2 <= bins <= len(outcome):
        raise ValueError(f"bins is {bins}; it must lie between 2 and the number of rows ({len(outcome)})")
    order = np.argsort(-forecast, kind="stable")
    reached = (np.cumsum(weight[order]) - 0.5 * weight[order]) / weight.sum()
    part = np.minimum((reached * bins).astype(int), bins - 1)
    table = pd.DataFrame({"bin": part + 1, "w": weight[order], "p": forecast[order], "y": outcome[order]})
    table["p"], table["y"] = table["p"] * table["w"], table["y"] * table["w"]
    sums = table.groupby("bin").sum()
    found = pd.DataFrame({"weight": sums["w"], "predicted": sums["p"] / sums["w"], "actual": sums["y"] / sums["w"]})
    total = float(sums["y"].sum())
    found["lift"] = found["actual"] / (total / float(sums["w"].sum()))
    found["share"] = sums["y"] / total
    found["gain"] = found["share"].cumsum()
    return found


def plot_lift(
    y: ArrayLike,
    predictions: Mapping[str, ArrayLike],
    bins: int = 10,
    sample_weight: ArrayLike | None = None,
    axes: tuple[Axes, Axes] | None = None,
) -> tuple[Axes, Axes]:
    """Lift by decile of the prediction, and predicted against actual means per decile, one line a model.

    On the left a steeper fall is better; on the right a model whose promises are kept lies on the diagonal.
    """
    import matplotlib.pyplot as plt

    if axes is None:
        _, drawn = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        axes = (drawn[0], drawn[1])
    left, right = axes
    positive: list[float] = []
    for name, predicted in predictions.items():
        table = lift_table(y, predicted, bins, sample_weight)
        left.plot(table.index, table["lift"], marker="o", label=name)
        kept = table[(table["predicted"] > 0) & (table["actual"] > 0)]
        right.plot(kept["predicted"], kept["actual"], marker="o", label=name)
        positive += [*kept["predicted"], *kept["actual"]]
    left.axhline(1.0, color="k", lw=0.8, ls=":")
    left.set(xlabel=f"customers by prediction, best of {bins} parts first", ylabel="mean outcome / overall mean")
    if positive:
        ends = [min(positive), max(positive)]
        right.plot(ends, ends, color="k", lw=0.8, ls=":")
        right.set(xscale="log", yscale="log")
    right.set(xlabel="mean prediction", ylabel="mean outcome")
    left.legend(frameon=False)
    return axes


def _mid_ranks(values: Floats, weight: Floats) -> Floats:
    _, tie = np.unique(values, return_inverse=True)
    held = np.bincount(tie, weights=weight)
    return np.asarray((np.cumsum(held) - 0.5 * held)[tie])


def _checked(y: ArrayLike, predicted: ArrayLike, sample_weight: ArrayLike | None) -> tuple[Floats, Floats, Floats]:
    outcome: Any = column_or_1d(y).astype(np.float64)
    forecast: Any = column_or_1d(predicted).astype(np.float64)
    weight = np.ones(len(outcome)) if sample_weight is None else column_or_1d(sample_weight).astype(np.float64)
    check_consistent_length(outcome, forecast, weight)
    for name, values in (("y", outcome), ("the prediction", forecast), ("sample_weight", weight)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} holds NaN or infinity (row {int(np.flatnonzero(~np.isfinite(values))[0])})")
    if (outcome < 0).any() or (weight < 0).any() or not weight.sum() > 0:
        raise ValueError("y and sample_weight must not be negative, and some weight must be positive")
    return outcome, forecast, weight
