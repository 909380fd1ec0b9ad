"""The user's tables: reading them, with one clear line for everything that can be wrong with them, and writing results."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from policydist.errors import UsageError, nearest
from policydist.runs.directory import write_whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure, SubFigure

KINDS = {".csv": "csv", ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl"}


def read_frame(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A table from a CSV, Parquet or JSONL file, with all its columns or with ``columns`` in this order.

    Raises:
        UsageError: no such file, another suffix, unreadable contents, an absent column (nearest names offered), no rows.
    """
    import pandas as pd

    if path.is_dir():
        raise UsageError(f"{path} is a folder; give a .csv, .parquet or .jsonl file")
    if path.suffix.lower() not in KINDS:
        raise UsageError(
            f"{path}: a table must be a .csv, .parquet or .jsonl file, not {path.suffix or 'without suffix'}"
        )
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        present = _columns(path)
        wanted = None if columns is None else list(dict.fromkeys(columns))
        for name in wanted or ():
            if name not in present:
                raise UsageError(f"{path} has no column {name!r}: {nearest(name, present)}")
        frame = _read(path, wanted)
    except pd.errors.EmptyDataError:
        raise UsageError(f"{path} is empty; it must hold a header and rows") from None
    except (ValueError, OSError) as problem:  # ParserError, UnicodeDecodeError and ArrowInvalid are ValueErrors
        reason = str(problem).strip().splitlines()[0]
        raise UsageError(f"{path} cannot be read as {KINDS[path.suffix.lower()]} ({reason})") from None
    if frame.empty:
        raise UsageError(f"{path} holds no rows")
    return frame if wanted is None else frame[wanted]


def _columns(path: Path) -> list[str]:
    import pandas as pd

    kind = KINDS[path.suffix.lower()]
    if kind == "parquet":
        from pyarrow import parquet

        return list(parquet.read_schema(path).names)
    if kind == "csv":
        return [str(name) for name in pd.read_csv(path, nrows=0).columns]
    return [str(name) for name in pd.read_json(path, lines=True, nrows=1).columns]


def _read(path: Path, columns: list[str] | None) -> pd.DataFrame:
    import pandas as pd

    kind = KINDS[path.suffix.lower()]
    if kind == "parquet":
        return pd.read_parquet(path, columns=columns)
    return pd.read_csv(path, usecols=columns) if kind == "csv" else pd.read_json(path, lines=True)


def numeric(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """These columns as float64, in this order.

    Raises:
        UsageError: an absent column (nearest names offered), one that is not numeric, a missing or infinite value.
    """
    for name in columns:
        if name not in frame:
            raise UsageError(f"the table has no column {name!r}: {nearest(name, map(str, frame.columns))}")
    try:
        values = frame[list(columns)].astype("float64")
    except (ValueError, TypeError):
        word = next(name for name in columns if frame[name].dtype.kind not in "iufb")
        raise UsageError(f"column {word!r} is not numeric; encode it as numbers or leave it out") from None
    for name in columns:
        bad = ~values[name].between(float("-inf"), float("inf"), inclusive="neither")
        if bad.any():
            row = int(bad.to_numpy().argmax())
            raise UsageError(
                f"column {name!r} holds {int(bad.sum())} missing or infinite values, the first in row {row}"
            )
    return values


@contextmanager
def refusals() -> Iterator[None]:
    """Around an estimator's ``fit`` on a user's data: its ValueError, written for the user, becomes a UsageError."""
    try:
        yield
    except ValueError as problem:
        raise UsageError(" ".join(str(problem).split())) from problem


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write a CSV file whole, without the index."""
    write_whole(path, frame.to_csv(index=False))


def write_figure(path: Path, figure: Figure | SubFigure) -> None:
    """Write a figure whole as PNG and forget it."""
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    write_whole(path, buffer.getvalue())
