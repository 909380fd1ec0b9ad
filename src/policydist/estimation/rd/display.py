"""The printed table and the figure of a fitted `R3D`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from policydist.estimation.rd.bootstrap import Band, TestResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULE = "-" * 78


def summary_text(
    head: Sequence[tuple[str, str]], rows: np.ndarray, band: Band, tests: Sequence[TestResult], n_draws: int
) -> str:
    """A fixed-width table; ``rows`` has the columns q, effect, se, lower, upper, left curve, right curve."""
    level = f"{100 * band.confidence:g}%"
    lines = ["Regression discontinuity with distribution-valued outcomes", RULE]
    lines += [f"{name + ':':<32}{value}" for name, value in head]
    lines += [RULE, f"{'q':>6}{'effect':>12}{'se':>10}{level + ' uniform band':>26}{'left':>12}{'right':>12}"]
    for q, tau, se, lower, upper, left, right in rows:
        interval = f"[{lower:.4g}, {upper:.4g}]"
        lines.append(f"{q:>6.3g}{tau:>12.4g}{se:>10.3g}{interval:>26}{left:>12.4g}{right:>12.4g}")
    lines.append(RULE)
    for test in tests:
        p_value = f"= {test.p_value:.4f}" if test.p_value > 0 else f"< {1 / n_draws:.2g}"
        scope = f"q in [{test.interval[0]:g}, {test.interval[1]:g}]"
        lines.append(f"{test.hypothesis:<14}{scope:<22}statistic {test.statistic:<10.4g} p {p_value}")
    lines.append("left, right: average quantile functions at the cutoff; se: pointwise")
    return "\n".join(lines)


def draw(
    what: Literal["effect", "curves"],
    quantiles: np.ndarray,
    tau: np.ndarray,
    m_minus: np.ndarray,
    m_plus: np.ndarray,
    band: Band,
    ax: Axes | None,
) -> Axes:
    """The effect with its uniform and pointwise bands, or the two average quantile functions."""
    import matplotlib.pyplot as plt

    axes: Any = plt.subplots(figsize=(6.4, 4.0), layout="constrained")[1] if ax is None else ax
    if what == "effect":
        level = f"{100 * band.confidence:g} %"
        axes.fill_between(quantiles, band.lower, band.upper, alpha=0.2, lw=0, color="C0", label=f"{level} uniform band")
        for edge, label in ((band.pointwise_lower, f"{level} pointwise"), (band.pointwise_upper, None)):
            axes.plot(quantiles, edge, color="C0", lw=0.8, ls=":", label=label)
        axes.plot(quantiles, tau, color="C0", marker="o", ms=3, label="effect")
        axes.axhline(0.0, color="0.4", lw=0.8)
        axes.set_ylabel("jump of the average quantile function")
    else:
        axes.plot(quantiles, m_minus, color="C1", marker="o", ms=3, label="left of the cutoff")
        axes.plot(quantiles, m_plus, color="C2", marker="o", ms=3, label="right of the cutoff")
        axes.set_ylabel("average quantile function at the cutoff")
    axes.set_xlabel("quantile q")
    axes.legend(frameon=False)
    return axes
