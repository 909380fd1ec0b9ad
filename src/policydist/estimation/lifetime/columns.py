"""From a table to what a network reads: standardised numeric columns and category codes, learnt in one pass."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from policydist.errors import nearest

Floats = NDArray[np.float64]
Categorical = Literal["auto"] | Sequence[Hashable] | None

CODE_ZERO = 0  # rare and unseen categories


def split_columns(frame: pd.DataFrame, categorical: Categorical) -> tuple[list[Any], list[Any]]:
    """The numeric and the categorical columns: those named, or with ``auto`` every column of text or category type.

    Raises:
        ValueError: a named column is absent, names repeat, or a column that should be numeric is not.
    """
    names = list(frame.columns)
    chosen: list[Any]
    if not frame.columns.is_unique:
        raise ValueError(f"column {frame.columns[frame.columns.duplicated()][0]!r} occurs twice: rename one")
    if categorical is None or (isinstance(categorical, str) and categorical == "auto"):
        text = [n for n in names if not pd.api.types.is_numeric_dtype(frame[n]) and not _temporal(frame[n])]
        chosen = text if categorical is not None else []
    else:
        chosen = list(categorical)
        for name in chosen:
            if name not in names:
                raise ValueError(
                    f"there is no column {name!r} to be categorical: {nearest(str(name), map(str, names))}"
                )
    numeric = [name for name in names if name not in chosen]
    for name in numeric:
        if not pd.api.types.is_numeric_dtype(frame[name]) or pd.api.types.is_complex_dtype(frame[name]):
            raise ValueError(
                f"column {name!r} has type {frame[name].dtype}: convert it to numbers, or name it in categorical"
            )
    return numeric, chosen


def _temporal(series: pd.Series[Any]) -> bool:
    return pd.api.types.is_datetime64_any_dtype(series) or pd.api.types.is_timedelta64_dtype(series)


@dataclass
class Moments:
    """Weighted mean and sum of squared deviations per column, merged chunk by chunk (Chan, Golub and LeVeque)."""

    weight: float = 0.0
    mean: Floats = field(default_factory=lambda: np.zeros(1))
    squares: Floats = field(default_factory=lambda: np.zeros(1))

    def add(self, values: Floats, weights: Floats) -> None:
        """Take in rows ``values`` (n, d) of positive total weight."""
        total = float(weights.sum())
        mean = weights @ values / total
        squares = weights @ (values - mean) ** 2
        if self.weight == 0:
            self.weight, self.mean, self.squares = total, mean, squares
            return
        step, both = mean - self.mean, self.weight + total
        self.squares = self.squares + squares + step**2 * self.weight * total / both
        self.mean = self.mean + step * total / both
        self.weight = both

    def spread(self) -> Floats:
        """Standard deviations; 1 where a column is constant."""
        deviation = np.sqrt(self.squares / self.weight)
        return np.where(deviation > 1e-12 * np.maximum(1.0, np.abs(self.mean)), deviation, 1.0)


@dataclass(frozen=True)
class Outcome:
    """What training needs to know about the outcomes of the ``rows`` rows of positive weight."""

    rows: int
    mean_weight: float
    positive_share: float
    log_mean: float
    log_spread: float
    mean: float
    spread: float
    largest: float


class Survey:
    """One pass over the rows, in chunks: statistics of columns and outcomes, in memory that does not grow with rows."""

    def __init__(self, numeric: list[Any], categorical: list[Any]) -> None:
        self.numeric, self.categorical = numeric, categorical
        self.columns, self.log_outcome, self.outcome = Moments(), Moments(), Moments()
        self.levels: list[Counter[Any]] = [Counter() for _ in categorical]
        self.rows, self.used, self.largest = 0, 0, 0.0

    def add(self, frame: pd.DataFrame, y: Floats, weights: Floats) -> None:
        """Take in the rows of positive weight; ``y`` has been checked."""
        used, first = weights > 0, self.rows
        self.rows, self.used = self.rows + len(y), self.used + int(used.sum())
        if not used.any():
            return
        values = numbers(frame, self.numeric, first)[used]
        for name, counter in zip(self.categorical, self.levels, strict=True):
            counter.update(dict(categories(frame, name, first)[used].value_counts()))
        y, weights = y[used], weights[used]
        self.columns.add(values, weights)
        self.outcome.add(y[:, None], weights)
        positive = y > 0
        if positive.any():
            self.log_outcome.add(np.log(y[positive])[:, None], weights[positive])
            self.largest = max(self.largest, float(y.max()))

    def finish(self, min_frequency: int) -> tuple[ColumnEncoder, Outcome]:
        """The encoder and the outcome's statistics.

        Raises:
            ValueError: every outcome is zero.
        """
        if self.log_outcome.weight == 0:
            raise ValueError("y has no positive value: nothing can be learnt about sizes; check the outcome column")
        levels, rare = [], []
        for counter in self.levels:
            kept = [level for level, count in counter.items() if count >= min_frequency]
            levels.append(sorted(kept, key=lambda level: (type(level).__name__, level)))
            rare.append(sum(count for count in counter.values() if count < min_frequency))
        counts = [[int(c[level]) for level in kept] for c, kept in zip(self.levels, levels, strict=True)]
        encoder = ColumnEncoder(
            self.numeric, self.categorical, self.columns.mean, self.columns.spread(), levels,
            [[r, *c] for r, c in zip(rare, counts, strict=True)],
        )  # fmt: skip
        weight, positive = self.outcome.weight, self.log_outcome.weight
        outcome = Outcome(
            rows=self.used,
            mean_weight=weight / self.used,
            positive_share=positive / weight,
            log_mean=float(self.log_outcome.mean[0]),
            log_spread=float(np.sqrt(self.log_outcome.squares[0] / positive)),
            mean=float(self.outcome.mean[0]),
            spread=float(self.outcome.spread()[0]),
            largest=self.largest,
        )
        return encoder, outcome


@dataclass(frozen=True)
class ColumnEncoder:
    """``levels`` of each categorical column get the codes 1, 2, …; rare and unseen ones share code 0."""

    numeric: list[Any]
    categorical: list[Any]
    centre: Floats
    spread: Floats
    levels: list[list[Any]]
    counts: list[list[int]]

    def encode(self, frame: pd.DataFrame, *, warn: bool = True) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Standardised numbers (n, d) and codes (n, c).

        ``warn`` reports unseen categories. Raises ValueError for values that are missing or not finite.
        """
        x = ((numbers(frame, self.numeric) - self.centre) / self.spread).astype(np.float32)
        codes = np.empty((len(frame), len(self.categorical)), dtype=np.int64)
        for column, (name, levels) in enumerate(zip(self.categorical, self.levels, strict=True)):
            values = categories(frame, name)
            codes[:, column] = pd.Index(levels, dtype=object).get_indexer(pd.Index(values)) + 1
            # With rare levels merged into code 0, a new level is nothing unusual.
            if warn and self.counts[column][CODE_ZERO] == 0 and (codes[:, column] == CODE_ZERO).any():
                unseen = values[codes[:, column] == CODE_ZERO]
                warnings.warn(
                    f"column {name!r}: {len(unseen)} rows hold categories that fit never saw (first: "
                    f"{unseen.iloc[0]!r}); they are predicted as the average of the known ones",
                    UserWarning,
                    stacklevel=4,
                )
        return x, codes


def numbers(frame: pd.DataFrame, names: list[Any], first_row: int = 0) -> Floats:
    """Columns as float64 (n, d); the first value that is not finite is named with its row."""
    values = frame[names].to_numpy(dtype=np.float64, na_value=np.nan)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"column {names[column]!r} holds NaN or infinity (row {first_row + row}): fill or drop such rows first"
        )
    return values


def categories(frame: pd.DataFrame, name: Any, first_row: int = 0) -> pd.Series[Any]:
    """A categorical column as plain text, numbers or truth values."""
    values = frame[name].astype(object)
    missing = values.isna()
    if missing.any():
        row = first_row + int(np.flatnonzero(missing)[0])
        raise ValueError(f"column {name!r} has a missing category (row {row}): fill it, e.g. with 'missing'")
    if not values.map(lambda value: isinstance(value, str | int | float | np.generic)).all():
        raise ValueError(
            f"column {name!r} holds objects that are neither text nor numbers: convert it with astype(str)"
        )
    return values


def check_outcomes(y: Floats, first_row: int = 0) -> Floats:
    """``y`` as it is; the first outcome that is negative or not finite raises a ValueError that names its row."""
    broken = np.flatnonzero(~np.isfinite(y))
    if len(broken):
        raise ValueError(f"y[{first_row + broken[0]}] is NaN or infinity: drop rows whose outcome is not known")
    negative = np.flatnonzero(y < 0)
    if len(negative):
        row = negative[0]
        raise ValueError(
            f"y[{first_row + row}] is {y[row]:g}: lifetime values are zero or positive; set refunds to zero "
            "(y.clip(lower=0)) or model gross value"
        )
    return y
