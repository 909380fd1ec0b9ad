"""The table, figure and page of ``policydist compare``, from its ``compare.json``.

Intervals are 95 % percentile bootstraps over seeds. Below three seeds there is none: resampling one or two numbers says
nothing about the others. Below ten they are too narrow, and the exact sign-flip p of the paired difference stands
beside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from policydist.errors import PolicydistError
from policydist.report import words

LEVEL = 0.95
FEWEST = 3  # seeds for an interval
EXACT_UP_TO = 16  # seeds for which all sign patterns are tried
ACCURACY = "eval/accuracy"
REWARD = "reward"
TAIL = 0.1  # share of the steps that "reward at the end" averages over

TITLES = {"reward": "train reward", "memory": "memory MiB"}
ORDER = ("accuracy", "reward", "tokens", "responses", "seconds", "memory")
FORMATS: Mapping[str, Callable[[float | None], str]] = {
    "reward": words.number, "tokens": words.short, "responses": words.short, "seconds": words.seconds,
    "memory": words.short,
}  # fmt: skip

Rows = list[dict[str, Any]]


class Entry(BaseModel):
    """One run of a comparison."""

    method: str
    seed: int
    metrics: list[dict[str, Any]]


class Comparison(BaseModel):
    """What ``compare.json`` holds."""

    format: Literal["compare/1"] = Field(alias="schema")
    methods: list[str] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    task: str
    model: str
    config: dict[str, Any]
    runs: list[Entry] = Field(min_length=1)

    def curves(self, method: str) -> dict[int, Rows]:
        """Metric rows by seed."""
        return {run.seed: run.metrics for run in self.runs if run.method == method}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its interval; ``mean`` is None where no run has the number."""

    mean: float | None
    interval: tuple[float, float] | None
    seeds: int
    p_signflip: float | None = None


@dataclass(frozen=True)
class Line:
    """One method of a comparison. ``difference`` is accuracy minus the first method's, paired by seed."""

    method: str
    measures: Mapping[str, Estimate]
    difference: Estimate | None


def read(path: Path) -> Comparison:
    """The comparison kept in folder ``path``.

    Raises:
        PolicydistError: if there is none or it is damaged.
    """
    file = path / "compare.json"
    try:
        return Comparison.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as problem:
        raise PolicydistError(f"{file} cannot be read ({problem}); run policydist compare again") from None
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise PolicydistError(f"{file}: {where}: {first['msg']}; run policydist compare again") from None


def estimate(values: Sequence[float], exact: bool = False) -> Estimate:
    """Mean over seeds, from three seeds on with a bootstrap interval; ``exact`` adds the two-sided sign-flip p."""
    import numpy as np

    from policydist.claims import statistics

    if not values:
        return Estimate(None, None, 0)
    data = np.asarray(values, dtype=float)
    mean, bounds, p = float(data.mean()), None, None
    if len(data) >= FEWEST:
        replicates = statistics.bootstrap([data[None]], lambda sample: sample[0].mean(axis=-1))
        bounds = statistics.percentile_interval(replicates, LEVEL)
        if exact and len(data) <= EXACT_UP_TO:
            p = statistics.sign_flip(data, side="two-sided")
    return Estimate(mean, bounds, len(data), p)


def numeric(row: Mapping[str, Any], key: str) -> float | None:
    """A finite number of a metric row, or None."""
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def final(rows: Rows, key: str) -> float | None:
    """A metric of the last step; None if it was not measured there: an older evaluation is not the final one."""
    return numeric(rows[-1], key) if rows else None


def reward_at_end(rows: Rows) -> float | None:
    """Mean training reward over the last tenth of the steps, at least one."""
    values = [value for row in rows if (value := numeric(row, REWARD)) is not None]
    tail = values[-max(1, math.ceil(TAIL * len(values))) :]
    return sum(tail) / len(tail) if tail else None


def measures(rows: Rows) -> dict[str, float | None]:
    """The final numbers of one run, by the names the table shows."""
    passes = sorted({key for row in rows for key in row if key.startswith("eval/pass@")})
    return {
        "accuracy": final(rows, ACCURACY),
        **{key.removeprefix("eval/"): final(rows, key) for key in passes},
        "reward": reward_at_end(rows),
        "tokens": final(rows, "tokens"),
        "responses": final(rows, "responses"),
        "seconds": final(rows, "seconds"),
        "memory": max((value for row in rows if (value := numeric(row, "memory")) is not None), default=None),
    }


def summary(data: Comparison) -> list[Line]:
    """Every method's final numbers, and its paired difference to the first method."""
    finals = {method: {seed: measures(rows) for seed, rows in data.curves(method).items()} for method in data.methods}
    names = list(dict.fromkeys(name for runs in finals.values() for end in runs.values() for name in end))
    names.sort(key=lambda name: ORDER.index(name) if not name.startswith("pass@") else 0.5)
    lines = []
    for method, runs in finals.items():
        by_seed = {name: {s: v for s, end in runs.items() if (v := end.get(name)) is not None} for name in names}
        found = {name: estimate(list(values.values())) for name, values in by_seed.items()}
        first = {s: v for s, end in finals[data.methods[0]].items() if (v := end["accuracy"]) is not None}
        pairs = [value - first[seed] for seed, value in by_seed.get("accuracy", {}).items() if seed in first]
        lines.append(Line(method, found, None if method == data.methods[0] else estimate(pairs, exact=True)))
    return lines


def plain(path: Path) -> list[dict[str, Any]]:
    """The summary as JSON-able data, numbers in full."""
    return [asdict(line) for line in summary(read(path))]


def table(path: Path) -> list[dict[str, str]]:
    """The summary as rows of text, for terminal and page."""
    data = read(path)
    return rows_of(data, summary(data))


def rows_of(data: Comparison, lines: Sequence[Line]) -> list[dict[str, str]]:
    """The summary lines as rows of text. Columns that no run has anything for are left out."""
    first = data.methods[0]
    names = [name for name in lines[0].measures if any(line.measures[name].mean is not None for line in lines)]
    uneven = any(e.seeds != len(data.seeds) for line in lines for name in names for e in [line.measures[name]])
    exact = any(line.difference and line.difference.p_signflip is not None for line in lines)
    rows = []
    for line in lines:
        row = {"method": line.method}
        if uneven:
            row["runs"] = "/".join(sorted({str(line.measures[name].seeds) for name in names}, key=int))
        for name in names:
            found, other = line.measures[name], line.difference
            row[TITLES.get(name, name)] = FORMATS.get(name, words.share)(found.mean)
            if name == "accuracy":
                row["accuracy"] = words.share(found.mean, found.interval)
                row[f"minus {first}"] = words.share(other.mean, other.interval, sign=True) if other else words.NOTHING
                if exact:
                    row["exact p"] = words.number(other.p_signflip) if other else words.NOTHING
        rows.append(row)
    return rows


def notes(data: Comparison, lines: Sequence[Line]) -> list[str]:
    """What a reader must know about the table."""
    count = len(data.seeds)
    if count < FEWEST:
        found = [f"{words.plural(count, 'seed')} a method: too few for an interval. Give --seeds 5 or more for one."]
    else:
        found = [
            f"Means over {count} seeds; in brackets 95 % percentile bootstrap intervals over seeds (10 000 resamples)."
        ]
        if count < 10:
            least = words.number(2.0 ** (1 - count))
            found.append(
                "With fewer than ten seeds such intervals come out too narrow. The exact two-sided sign-flip p of the "
                f"paired difference stays right; with {count} seeds its least value is {least}."
            )
    missing = [line.method for line in lines if any(0 < e.seeds < count for e in line.measures.values())]
    if missing:
        found.append(f"Some runs lack a number; the means are over the runs that have it: {', '.join(missing)}.")
    if all(line.measures.get("accuracy", Estimate(None, None, 0)).mean is None for line in lines):
        found.append("No run ended with a held-out evaluation; set train.eval_every to get one.")
    found.append(
        "Train reward is the mean over the last tenth of the steps; tokens and responses are those sampled; seconds are "
        "those of the training steps, evaluation not counted; memory is the largest seen after a step."
    )
    return found


def write(path: Path) -> Path:
    """Write ``curves.png`` and ``index.html`` into the comparison's folder; returns the page's path."""
    from policydist.report.curves import draw
    from policydist.report.pages import comparison_page
    from policydist.runs.directory import write_whole

    data = read(path)
    draw(data, path / "curves.png")
    page = path / "index.html"
    write_whole(page, comparison_page(data, path.resolve().name, "curves.png"))
    return page
