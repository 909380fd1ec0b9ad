"""Learning curves of a comparison or of one run: mean over seeds with a pointwise bootstrap band."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from policydist.report import style, words
from policydist.report.comparison import ACCURACY, FEWEST, LEVEL, REWARD, Comparison, Rows, numeric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
RESAMPLES = 2000  # bands are read by eye
POINTS = 120  # of the common grid where seeds differ in x
AXES = {"step": "training step", "tokens": "tokens sampled"}


@dataclass(frozen=True)
class Band:
    """Mean over seeds on a common grid; ``low`` and ``high`` are None below three seeds."""

    x: Array
    mean: Array
    low: Array | None
    high: Array | None
    seeds: tuple[tuple[Array, Array], ...]


def curve(rows: Rows, axis: str, metric: str) -> tuple[Array, Array]:
    """Points of one run that have both numbers; the evaluation before the first step has sampled no tokens."""
    pairs = []
    for row in rows:
        x = 0.0 if axis == "tokens" and numeric(row, "step") == 0 else numeric(row, axis)
        y = numeric(row, metric)
        if x is not None and y is not None:
            pairs.append((x, y))
    points = np.array(pairs, dtype=float).reshape(-1, 2)
    return points[:, 0], points[:, 1]


def smooth(values: Array, window: int) -> Array:
    """Centred running mean; at the ends over the part of the window that is there."""
    if window <= 1 or len(values) < 3:
        return values
    window = min(window | 1, (len(values) - 1) | 1)
    kernel = np.ones(window)
    half = window // 2
    total = np.convolve(values, kernel)[half : half + len(values)]
    count = np.convolve(np.ones_like(values), kernel)[half : half + len(values)]
    return np.asarray(total / count)


def band(curves: Sequence[tuple[Array, Array]]) -> Band | None:
    """Mean and 95 % band over seeds, on the stretch of x that all of them cover; None without data."""
    from policydist.claims.statistics import bootstrap

    curves = [(x, y) for x, y in curves if len(x)]
    if not curves:
        return None
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    same = all(np.array_equal(x, curves[0][0]) for x, _ in curves)
    grid = curves[0][0] if same else np.linspace(low, high, POINTS) if high > low else np.array([low])
    values = np.stack([np.interp(grid, x, y) for x, y in curves], axis=-1)
    bounds: tuple[Array | None, Array | None] = (None, None)
    if len(curves) >= FEWEST:
        replicates = bootstrap([values], lambda sample: sample.mean(axis=-1).T, RESAMPLES)
        lower, upper = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        bounds = (lower, upper)
    return Band(grid, values.mean(axis=-1), *bounds, tuple(curves))


def shown_metrics(data: Comparison) -> list[tuple[str, str, int]]:
    """(metric, label, smoothing window) a panel: held-out accuracy if measured at least twice; training reward."""
    window = max(1, round(max(len(run.metrics) for run in data.runs) / 20))
    found = []
    if max(sum(ACCURACY in row for row in run.metrics) for run in data.runs) >= 2:
        found.append((ACCURACY, "held-out accuracy", 1))
    rewards = {row[REWARD] for run in data.runs for row in run.metrics if REWARD in row}
    if len(rewards) > 1:  # supervised methods have no rewards: theirs are all alike
        label = "training reward" + (f"\n(running mean of {window | 1} steps)" if window > 1 else "")
        found.append((REWARD, label, window))
    return found


def shown_axes(data: Comparison) -> dict[str, str]:
    """Steps, and tokens if any method samples some."""
    sampled = any((numeric(row, "tokens") or 0) > 0 for run in data.runs for row in run.metrics)
    return {name: label for name, label in AXES.items() if name != "tokens" or sampled}


def draw(data: Comparison, path: Path) -> Path:
    """Draw the comparison's curves, against steps on the left and against tokens sampled on the right."""
    metrics, shown = shown_metrics(data), shown_axes(data)
    with style.drawing(0.6 + 2.9 * max(1, len(metrics))) as figure:
        if not metrics:
            figure.text(0.5, 0.5, "no run has a curve to show", ha="center", color=style.FAINT)
            return style.save(figure, path)
        panels = figure.subplots(len(metrics), len(shown), squeeze=False, sharey="row", sharex="col")
        for row, (metric, label, window) in enumerate(metrics):
            for column, axis in enumerate(shown):
                _panel(panels[row, column], data, axis, metric, window)
            panels[row, 0].set_ylabel(label)
        for column, name in enumerate(shown.values()):
            panels[-1, column].set_xlabel(name)
        _legend(figure, panels[0, 0], data)
        return style.save(figure, path)


def _panel(axes: Axes, data: Comparison, axis: str, metric: str, window: int) -> None:
    for place, method in enumerate(data.methods):
        runs = [curve(rows, axis, metric) for rows in data.curves(method).values()]
        found = band([(x, smooth(y, window)) for x, y in runs])
        if found is None:
            continue
        look = style.line(place)
        few = len(found.x) <= 25
        axes.plot(found.x, found.mean, lw=2, ms=4, label=method, **(look if few else {**look, "marker": ""}))
        if found.low is not None and found.high is not None:
            axes.fill_between(found.x, found.low, found.high, color=look["color"], alpha=0.18, lw=0)
        elif len(found.seeds) > 1:
            for x, y in found.seeds:
                axes.plot(x, y, lw=0.8, alpha=0.6, color=look["color"])
    if axis == "tokens":
        from matplotlib.ticker import EngFormatter

        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=6, integer=True)


def _legend(figure: Any, axes: Axes, data: Comparison) -> None:
    """Below the panels, where it cannot lie on a curve, with one line on what the bands are."""
    handles, labels = axes.get_legend_handles_labels()
    count = len(data.seeds)
    what = "bands: 95 % bootstrap over" if count >= FEWEST else "no bands:" if count == 1 else "thin lines: each of"
    columns = min(len(labels), max(1, math.floor(84 / (max(map(len, labels)) + 6))))
    title = f"mean of {count} seeds; {what} {count} seeds" if count > 1 else f"{what} one seed"
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, title=title, title_fontsize=10)


FIRST = (ACCURACY, REWARD, "entropy", "response_length", "effective_groups", "loss", "grad_norm")
PANELS = 12


def draw_run(rows: Rows, path: Path) -> Path | None:
    """The metrics of one run against its steps, the usual ones first, at most twelve; None without any."""
    keys = {key for row in rows for key in row if numeric(row, key) is not None}
    keys -= {"step", "tokens", "responses", "seconds", "memory"} | {key for key in keys if key.startswith("seconds/")}
    names = [*(key for key in FIRST if key in keys), *sorted(keys - set(FIRST))][:PANELS]
    if not names:
        return None
    height = math.ceil(len(names) / 3)
    with style.drawing(0.4 + 1.75 * height) as figure:
        panels = figure.subplots(height, 3, squeeze=False).flat
        for name, axes in zip(names, panels, strict=False):
            x, y = curve(rows, "step", name)
            axes.plot(x, y, color=style.colour(0), lw=1.5, marker="o" if len(x) <= 12 else "", ms=3)
            axes.set_title(words.cut(name, 28))
            axes.locator_params(axis="x", nbins=4, integer=True)
            axes.locator_params(axis="y", nbins=4)
        for axes in list(figure.axes)[len(names) :]:
            axes.set_visible(False)
        figure.supxlabel("training step", fontsize=11)
        return style.save(figure, path)
