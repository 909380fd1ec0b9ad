"""Training rows from memory or from a Parquet file in pieces; memory in the second case does not grow with the file."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from policydist.errors import UsageError, nearest
from policydist.estimation.lifetime.columns import ColumnEncoder, check_outcomes

CHUNK_ROWS = 65_536
POOL_ROWS = 4 * CHUNK_ROWS  # rows that are shuffled among each other


@dataclass(frozen=True)
class Batch:
    """Encoded rows: numbers (n, d), codes (n, c), outcomes (n,), weights (n,) with mean one over the training rows."""

    x: Tensor
    codes: Tensor
    y: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Batch:
        """The given rows."""
        return Batch(self.x[rows], self.codes[rows], self.y[rows], self.weight[rows])

    def to(self, device: torch.device) -> Batch:
        """The same rows on ``device``."""
        return Batch(self.x.to(device), self.codes.to(device), self.y.to(device), self.weight.to(device))


def batch_of(
    encoder: ColumnEncoder, frame: pd.DataFrame, y: NDArray[np.float64], weight: NDArray[np.float64], mean_weight: float
) -> Batch:
    """Encode a table; rows of weight zero are left out."""
    used = weight > 0
    if not used.all():
        frame, y, weight = frame[used], y[used], weight[used]
    x, codes = encoder.encode(frame, warn=False)
    scaled = (weight / mean_weight).astype(np.float32)
    return Batch(*map(torch.from_numpy, (x, codes, y.astype(np.float32), scaled)))


def memory_batches(rows: Batch, size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Minibatches for ever: every epoch in a new order, its last incomplete one left out."""
    size = min(size, len(rows))
    while True:
        order = torch.randperm(len(rows), generator=generator).to(rows.y.device)
        for start in range(0, len(rows) - size + 1, size):
            yield rows.take(order[start : start + size])


@dataclass(frozen=True)
class ParquetSource:
    """A Parquet file, which of its columns are what, and which row groups to read (None: all)."""

    path: Path
    target: str
    weight: str | None
    features: list[str]
    row_groups: tuple[int, ...]

    @classmethod
    def open(
        cls,
        path: Path,
        target: str,
        weight: str | None = None,
        drop: Sequence[str] = (),
        row_groups: Sequence[int] | None = None,
    ) -> ParquetSource:
        """Check the request against the file's schema.

        Raises:
            UsageError: no such file, not Parquet, an absent column or row group.
        """
        from pyarrow import ArrowInvalid, parquet

        if not path.is_file():
            raise UsageError(f"{path}: no such file")
        try:
            with parquet.ParquetFile(path) as file:
                names, groups = list(file.schema_arrow.names), file.num_row_groups
        except ArrowInvalid as problem:
            raise UsageError(f"{path} cannot be read as Parquet ({str(problem).splitlines()[0]})") from None
        for name in (target, *([weight] if weight else []), *drop):
            if name not in names:
                raise UsageError(f"{path} has no column {name!r}: {nearest(name, names)}")
        chosen = tuple(range(groups)) if row_groups is None else tuple(row_groups)
        if not chosen or not all(0 <= group < groups for group in chosen):
            raise UsageError(f"{path} has the row groups 0 to {groups - 1}; row_groups is {list(chosen)}")
        features = [name for name in names if name not in {target, weight, *drop}]
        if not features:
            raise UsageError(f"{path} has no column left besides the target {target!r}")
        return cls(path, target, weight, features, chosen)

    def chunks(
        self, row_groups: Sequence[int] | None = None, rows: int = CHUNK_ROWS
    ) -> Iterator[tuple[pd.DataFrame, NDArray[np.float64], NDArray[np.float64]]]:
        """(features, outcomes, weights) in pieces of at most ``rows`` rows, in the given order of row groups."""
        from pyarrow import parquet

        columns = [*self.features, self.target, *([self.weight] if self.weight else [])]
        with parquet.ParquetFile(self.path, pre_buffer=False) as file:
            for group in self.row_groups if row_groups is None else row_groups:
                for piece in file.iter_batches(rows, row_groups=[group], columns=columns, use_threads=False):
                    table = piece.to_pandas()
                    y = self._numbers(table, self.target)
                    weight = np.ones(len(y)) if self.weight is None else self._numbers(table, self.weight)
                    if not np.isfinite(weight).all() or (weight < 0).any():
                        raise UsageError(f"{self.path}: weights in {self.weight!r} must be finite and not negative")
                    yield table[self.features], y, weight

    def _numbers(self, table: pd.DataFrame, name: str) -> NDArray[np.float64]:
        if not pd.api.types.is_numeric_dtype(table[name]):
            raise UsageError(f"{self.path}: column {name!r} has type {table[name].dtype}; it must hold numbers")
        return np.asarray(table[name].to_numpy(dtype=np.float64, na_value=np.nan))

    def batches(
        self, encoder: ColumnEncoder, mean_weight: float, size: int, generator: torch.Generator
    ) -> Iterator[Batch]:
        """Minibatches for ever: row groups in a new order every epoch, rows shuffled within a pool."""
        pool: list[Batch] = []
        while True:
            order = torch.randperm(len(self.row_groups), generator=generator).tolist()
            for frame, y, weight in self.chunks([self.row_groups[i] for i in order]):
                pool.append(batch_of(encoder, frame, y, weight, mean_weight))
                if sum(map(len, pool)) >= POOL_ROWS:
                    pool = yield from _emit(pool, size, generator)
            pool = yield from _emit(pool, size, generator)


def _emit(pool: list[Batch], size: int, generator: torch.Generator) -> Generator[Batch, None, list[Batch]]:
    """Yield the pool's shuffled minibatches, and return what did not fill one."""
    rows = _joined(pool)
    rows = rows.take(torch.randperm(len(rows), generator=generator))
    whole = len(rows) // size * size
    for start in range(0, whole, size):
        yield rows.take(torch.arange(start, start + size))
    return [rows.take(torch.arange(whole, len(rows)))]


def _joined(pool: Sequence[Batch]) -> Batch:
    columns = ([b.x for b in pool], [b.codes for b in pool], [b.y for b in pool], [b.weight for b in pool])
    return Batch(*(torch.cat(column) for column in columns))


def survey_of(source: ParquetSource, survey: Any) -> None:
    """One pass over the file into ``survey``; rows are numbered from the first row read."""
    for frame, y, weight in source.chunks():
        survey.add(frame, check_outcomes(y, survey.rows), weight)
