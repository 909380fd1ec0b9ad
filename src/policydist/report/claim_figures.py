"""The figures of a claim, all drawn from its record: effects with thresholds, units, score distributions, times."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from policydist.report import style, words
from policydist.report.comparison import estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = NDArray[np.float64]
Record = Mapping[str, Any]
EDGE = style.VERDICT_COLOURS["reproduced"]
WIDE_RATIO = 50  # of largest to smallest value, from which a logarithmic axis is used


@dataclass(frozen=True)
class Effect:
    """One row of a forest plot."""

    label: str
    estimate: float | None
    interval: Sequence[float] | None
    equivalence: Sequence[float] | None
    threshold: Mapping[str, Any] | None
    verdict: str


@dataclass(frozen=True)
class Scores:
    """One arm's values of a metric in one stratum, units in order of their seeds."""

    arm: str
    units: Array
    values: Array
    diverged: NDArray[np.bool_]


def effects(record: Record) -> list[Effect]:
    """The rules of a record that have an effect of their own, in their order."""
    found = []
    for rule in record["rules"]:
        if rule.get("effect") is None:
            continue  # a quorum: its members have the effects
        note = f" (of: {rule['quorum']})" if rule.get("quorum") else "" if rule["must"] else " (reported only)"
        found.append(_effect(rule["name"] + note, rule["effect"], rule.get("threshold"), rule["verdict"]))
    return found


def headline(record: Record) -> Effect:
    """The effect that stands for the whole claim in overviews, with the claim's own verdict."""
    return _effect(record["claim_id"], record["effect"], record["threshold"], record["verdict"])


def _effect(label: str, effect: Mapping[str, Any], threshold: Mapping[str, Any] | None, verdict: str) -> Effect:
    return Effect(label, effect["estimate"], effect["ci"], effect.get("equivalence_ci"), threshold, verdict)


def forest(rows: Sequence[Effect], path: Path, source: str = "") -> Path:
    """One axis a row, because effects have different units: estimate, interval, zero, and shaded what passes."""
    with style.drawing(0.8 + 0.98 * len(rows)) as figure:
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            _forest_row(axes, row)
        figure.legend(handles=_forest_key(rows), loc="outside lower center", ncols=3)
        return style.save(figure, path, source)


def _forest_row(axes: Axes, row: Effect) -> None:
    region = words.passing_region(row.threshold)
    low, high = _limits(row, region)
    axes.set(xlim=(low, high), ylim=(-1, 1), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    if region is not None:
        axes.axvspan(max(region[0], low), min(region[1], high), color=style.SHADE, lw=0)
        for edge in region:
            if math.isfinite(edge):
                axes.axvline(edge, color=EDGE, lw=1.2)
    if (least := words.least_estimate(row.threshold)) is not None:
        axes.axvline(least, color=EDGE, lw=1.2, ls="--")
    if low < 0 < high:
        axes.axvline(0, color=style.INK, lw=1, ls=":")
    ink = style.VERDICT_COLOURS.get(row.verdict, style.INK)
    if row.interval is not None:
        axes.plot(row.interval, [0, 0], color=ink, lw=2, solid_capstyle="butt", marker="|", ms=9)
    if row.equivalence is not None and row.threshold and row.threshold.get("direction") == "inside":
        axes.plot(row.equivalence, [0, 0], color=ink, lw=5, solid_capstyle="butt")
    if row.estimate is None:
        axes.text(0.5, 0.5, "no number", transform=axes.transAxes, ha="center", va="center", color=style.FAINT)
    else:
        axes.plot([row.estimate], [0], marker="o", ms=8, color=ink, mec="white", mew=1)
    label = textwrap.fill(row.label, 32, max_lines=4, placeholder=" …")
    axes.text(-0.03, 0.5, label, transform=axes.transAxes, ha="right", va="center")
    shown = "" if row.estimate is None else f"{words.number(row.estimate)} {words.interval(row.interval)}"
    needs = f"needs {words.threshold(row.threshold)}" if row.threshold else ""
    place: Any = {"transform": axes.transAxes, "ha": "left", "va": "center", "fontsize": 10}
    axes.text(1.03, 0.82, shown, **place)
    axes.text(1.03, 0.45, textwrap.fill(needs, 32, max_lines=2, placeholder=" …"), color="#555555", **place)
    axes.text(1.03, 0.08, row.verdict.replace("_", " "), color=ink, fontweight="bold", **place)


def _limits(row: Effect, region: tuple[float, float] | None) -> tuple[float, float]:
    known = [*(row.interval or ()), *(region or ())] + ([] if row.estimate is None else [row.estimate])
    direction = (row.threshold or {}).get("direction")
    if direction in ("<", ">") and "bound" not in (row.threshold or {}):
        known.append(0.0)
    if (least := words.least_estimate(row.threshold)) is not None:
        known.append(least)
    finite = [value for value in known if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    room = 0.15 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _forest_key(rows: Sequence[Effect]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink = style.INK
    key: list[Any] = [
        Line2D([], [], color=ink, marker="o", lw=2, mec="white", ms=8, label="estimate and interval"),
        Patch(color=style.SHADE, label="interval passes here"),
        Line2D([], [], color=ink, ls=":", lw=1, label="zero"),
    ]
    if any(row.equivalence and row.threshold and row.threshold.get("direction") == "inside" for row in rows):
        key.insert(1, Line2D([], [], color=ink, lw=5, label="equivalence interval"))
    if any(words.least_estimate(row.threshold) is not None for row in rows):
        key.append(Line2D([], [], color=EDGE, ls="--", lw=1.2, label="least estimate"))
    return key


def scores(record: Record, metric: str) -> dict[str, list[Scores]]:
    """By stratum: every arm's values. A diverged unit stands at the worst value observed, as it does in the verdict."""
    better = next((m["better"] for m in metrics(record) if m["name"] == metric), "none")
    found = {}
    for stratum in record["design"]["strata"]:
        rows = [row for row in record["raw"] if row["metric"] == metric and row["stratum"] == stratum]
        seen = [row["value"] for row in rows if _finite(row["value"]) and not row["diverged"]]
        if not seen:
            continue
        worst = {"higher": min(seen), "lower": max(seen), "closer_to_zero": max(seen, key=abs)}.get(better, math.nan)
        arms = [
            _scores(arm["name"], [row for row in rows if row["arm"] == arm["name"]], worst) for arm in record["arms"]
        ]
        found[stratum] = [arm for arm in arms if len(arm.values)]
    return found


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _scores(arm: str, rows: list[Mapping[str, Any]], worst: float) -> Scores:
    rows = sorted(rows, key=lambda row: int(row["unit"]))
    values = np.array(
        [worst if row["diverged"] else math.nan if row["value"] is None else row["value"] for row in rows]
    )
    marked = np.array([bool(row["diverged"]) for row in rows], dtype=bool)
    kept = np.isfinite(values.astype(float))
    units = np.array([row["unit"] for row in rows], dtype=float)
    return Scores(arm, units[kept], values[kept].astype(float), marked[kept])


def metrics(record: Record) -> list[dict[str, Any]]:
    """The declared metrics, the one that the first rule reads first."""
    rest = [metric for metric in record.get("metrics", []) if metric["name"] != record["metric"]["name"]]
    return [record["metric"], *rest]


def _label(metric: Mapping[str, Any]) -> str:
    unit = f" ({metric['unit']})" if metric["unit"] else ""
    better = "" if metric["better"] == "none" else f"; better: {metric['better'].replace('_', ' ')}"
    return f"{metric['name']}{unit}{better}"


def _panels(figure: Any, strata: Sequence[str], columns: int) -> Iterator[tuple[str, Axes]]:
    count = len(strata)
    grid = figure.subplots(math.ceil(count / columns), columns, squeeze=False, sharey=True)
    for place, axes in enumerate(grid.flat):
        if place >= count:
            axes.set_visible(False)
            continue
        if strata[place] != "all":
            axes.set_title(words.cut(strata[place], 40))
        axes.tick_params(labelleft=place % columns == 0)
        yield strata[place], axes


def _scale(axes: Axes, arms: Sequence[Scores]) -> None:
    """A logarithmic axis where a linear one would press most units into a corner."""
    values = np.concatenate([arm.values for arm in arms])
    sizes = np.abs(values[values != 0])
    if not len(sizes) or sizes.max() <= WIDE_RATIO * np.median(sizes):
        axes.locator_params(axis="x", nbins=5)
        return
    if (values > 0).all():
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=float(np.median(sizes)))
    axes.xaxis.set_major_formatter(lambda value, _: words.number(value))
    axes.xaxis.set_minor_formatter(lambda value, _: "")


def _columns(strata: int) -> int:
    return 2 if strata == 4 else min(strata, 3)


def paired(record: Record, metric: Mapping[str, Any], path: Path, source: str = "") -> Path | None:
    """A dot a unit and arm, dots of one unit joined; diamonds are means with 95 % intervals. None without scores."""
    data = scores(record, metric["name"])
    if not data:
        return None
    columns = _columns(len(data))
    arms = max(len(found) for found in data.values())
    with style.drawing(0.9 + math.ceil(len(data) / columns) * (0.7 + 0.48 * arms)) as figure:
        for stratum, axes in _panels(figure, list(data), columns):
            _paired_panel(axes, data[stratum])
        figure.supxlabel(_label(metric), fontsize=11)
        return style.save(figure, path, source)


def _paired_panel(axes: Axes, arms: Sequence[Scores]) -> None:
    _scale(axes, arms)
    count = max(len(arm.units) for arm in arms)
    by_unit: dict[float, list[tuple[float, int]]] = {}
    for place, arm in enumerate(arms):
        for unit, value in zip(arm.units, arm.values, strict=True):
            by_unit.setdefault(unit, []).append((value, place))
    for points in by_unit.values():
        axes.plot(*zip(*points, strict=True), color="#999999", lw=0.7, alpha=max(0.08, min(0.6, 12 / count)))
    for place, arm in enumerate(arms):
        rows = np.full(len(arm.values), place)
        axes.scatter(
            arm.values[~arm.diverged],
            rows[~arm.diverged],
            s=22,
            color=style.colour(place),
            alpha=max(0.2, min(0.8, 20 / count)),
            lw=0,
        )
        axes.scatter(
            arm.values[arm.diverged],
            rows[arm.diverged],
            s=45,
            marker="x",
            color=style.VERDICT_COLOURS["contradicted"],
            lw=1.6,
        )
        if (bounds := estimate(list(arm.values)).interval) is not None:
            axes.plot(bounds, [place - 0.26] * 2, color=style.INK, lw=1.8)
        axes.plot([arm.values.mean()], [place - 0.26], marker="D", ms=5, color=style.INK, ls="")
    axes.set_yticks(range(len(arms)), [words.cut(arm.arm, 28) for arm in arms])
    axes.set_ylim(len(arms) - 0.5, -0.6)
    axes.grid(False, axis="y")


def distributions(record: Record, metric: Mapping[str, Any], path: Path, source: str = "") -> Path | None:
    """Share of units at or below each value, a curve an arm. None without scores."""
    data = scores(record, metric["name"])
    if not data:
        return None
    columns = _columns(len(data))
    with style.drawing(1.0 + math.ceil(len(data) / columns) * 2.6) as figure:
        names = [arm["name"] for arm in record["arms"]]
        shown: dict[str, Any] = {}
        for stratum, axes in _panels(figure, list(data), columns):
            _scale(axes, data[stratum])
            for arm in data[stratum]:
                look = {**style.line(names.index(arm.arm)), "marker": ""}
                (shown[arm.arm],) = [axes.ecdf(arm.values, lw=2, **look)]
            axes.set_ylim(0, 1.02)
        figure.supylabel("share of units at or below", fontsize=11)
        columns = max(1, 84 // (max(map(len, shown)) + 6))
        key: Any = {"loc": "outside lower center", "ncols": columns, "title": _label(metric), "title_fontsize": 11}
        figure.legend(list(shown.values()), list(shown), **key)
        return style.save(figure, path, source)


def seconds_per_unit(record: Record) -> dict[str, list[float]]:
    """Seconds of every unit and stratum, by arm; a unit that returned several metrics is counted once."""
    found: dict[str, dict[tuple[int, str], float]] = {arm["name"]: {} for arm in record["arms"]}
    for row in record["raw"]:
        found.setdefault(row["arm"], {})[row["unit"], row["stratum"]] = row["wall_s"]
    return {arm: list(values.values()) for arm, values in found.items() if values}


def times(record: Record, path: Path, source: str = "") -> Path:
    """A bar an arm: mean seconds a unit, with the range from fastest to slowest."""
    data = seconds_per_unit(record)
    with style.drawing(0.8 + 0.5 * len(data)) as figure:
        axes = figure.subplots()
        for place, (_, values) in enumerate(data.items()):
            mean = float(np.mean(values))
            axes.barh(place, mean, height=0.6, color=style.colour(0), alpha=0.75)
            axes.plot([min(values), max(values)], [place, place], color=style.INK, lw=1.5, marker="|", ms=8)
            text = f"{words.number(float(f'{mean:.3g}'))} s × {len(values)} = {words.seconds(sum(values))}"
            axes.annotate(text, (max(values), place), xytext=(8, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(data)), [words.cut(arm, 28) for arm in data])
        axes.set_ylim(len(data) - 0.4, -0.6)
        axes.set_xlim(0, 1.55 * max(max(values) for values in data.values()) or 1)
        axes.grid(False, axis="y")
        axes.set_xlabel("seconds per unit (bar: mean; line: fastest to slowest)")
        return style.save(figure, path, source)
