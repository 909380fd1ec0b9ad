"""Figures of audits. matplotlib is loaded on the first call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from policydist.estimation.inference_audit.grid import GridReport, SharesReport
    from policydist.estimation.inference_audit.report import AuditReport


def _axes(columns: int, width: float) -> tuple[Figure, Any]:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, columns, figsize=(width, 3.6), layout="constrained", squeeze=False)
    return figure, axes[0]


def plot_audit(report: AuditReport) -> Figure:
    """Left: accuracy of every attack with its interval. Right: where it meets the bound, a triangle saying "at least"."""
    results = report.results
    figure, axes = _axes(1 if report.shift is None else 2, 5.2 if report.shift is None else 10.0)
    rows = np.arange(len(results))[::-1]
    for row, found in zip(rows, results, strict=True):
        axes[0].plot([found.low, found.high], [row, row], color=f"C{len(results) - 1 - row}", lw=2)
        axes[0].plot(found.accuracy, row, "o", color=f"C{len(results) - 1 - row}")
    axes[0].axvline(0.5, color="0.4", lw=0.8, ls=":")
    axes[0].set_yticks(rows, [found.attack for found in results])
    axes[0].set_xlim(min(0.45, *(found.low for found in results)) - 0.02, 1.02)
    axes[0].set_ylim(-0.6, len(results) - 0.4)
    axes[0].set_xlabel(f"victims guessed right ({100 * report.confidence:g} % interval)")
    axes[0].set_title(f"{report.names[0]}\nor {report.names[1]}?", fontsize="medium")
    if report.shift is None:
        return figure
    reached = [value for found in results for value in (found.n_leaked, found.n_leaked_exact)]
    finite = [value for value in reached if math.isfinite(value) and value > 0]
    first, last = min([0.5, *finite]) / 1.5, max([10.0, *finite]) * 1.5
    n = np.geomspace(first, last, 100)
    axes[1].plot(n, [report.shift.bound(float(k)) for k in n], color="k", lw=1, label="upper bound")
    whole = np.unique(n[n >= 1].round())
    exact = _exact_curve(report, whole)
    if exact is not None:
        axes[1].plot(whole, exact, color="k", lw=1, ls="--", label="best test, exact")
    for count, found in enumerate(results):
        if 0 < found.n_leaked < math.inf:
            height = report.shift.bound(found.n_leaked)
            axes[1].plot(found.n_leaked, height, ">" if found.at_least else "o", color=f"C{count}", label=found.attack)
    axes[1].set_xscale("log")
    axes[1].set_xlabel("samples handed to an adversary without a model")
    axes[1].set_ylabel("accuracy")
    axes[1].legend(frameon=False, fontsize="small")
    return figure


def _exact_curve(report: AuditReport, n: np.ndarray) -> list[float] | None:
    from policydist.estimation.inference_audit.leak import Ratios
    from policydist.functional.leakage import exact_accuracy

    if not isinstance(report.shift, Ratios):
        return None
    return [exact_accuracy(report.shift.a, report.shift.b, int(k)) for k in n]


def plot_grid(grid: GridReport) -> Figure:
    """Accuracy and n_leaked of every attack against the other share; the reference is dotted."""
    figure, axes = _axes(2, 10.0)
    shares = sorted(grid.reports)
    for count, attack in enumerate(found.attack for found in grid.reports[shares[0]].results):
        found = [grid.reports[share][attack] for share in shares]
        axes[0].fill_between(shares, [r.low for r in found], [r.high for r in found], alpha=0.15, color=f"C{count}")
        axes[0].plot(shares, [r.accuracy for r in found], "o-", ms=4, color=f"C{count}", label=attack)
        leaked = [r.n_leaked if math.isfinite(r.n_leaked) else math.nan for r in found]
        axes[1].plot(shares, leaked, "o-", ms=4, color=f"C{count}", label=attack)
    axes[0].axhline(0.5, color="0.4", lw=0.8, ls=":")
    axes[0].set_ylabel("victims guessed right")
    axes[1].set_ylabel("n_leaked, samples")
    for ax in axes:
        ax.axvline(grid.reference, color="0.4", lw=0.8, ls=":")
        ax.set_xlabel(f"other share (reference {grid.reference:g})")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def plot_shares(report: SharesReport) -> Figure:
    """Estimated against true shares, one dot a victim."""
    figure, axes = _axes(1, 4.6)
    axes[0].plot([0, 1], [0, 1], color="0.4", lw=0.8, ls=":")
    for found in report.results:
        axes[0].plot(np.full(len(found.estimates), found.share), found.estimates, ".", color="C0", alpha=0.3)
        axes[0].plot(found.share, np.mean(found.estimates), "_", color="k", ms=14)
    axes[0].set_xlabel("true share in the training data")
    axes[0].set_ylabel("share read from the weights")
    return figure
