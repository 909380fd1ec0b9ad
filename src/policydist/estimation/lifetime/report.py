"""One command's work: split the rows, fit the models, and write what they predict for the rows held out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from policydist.errors import UsageError, nearest
from policydist.estimation.frames import read_frame, write_figure, write_frame
from policydist.estimation.lifetime.metrics import lift_table, plot_lift
from policydist.estimation.lifetime.regressor import Progress
from policydist.estimation.lifetime.segments import segments
from policydist.estimation.lifetime.stream import ParquetSource
from policydist.runs.seeds import numpy_generator

if TYPE_CHECKING:
    from policydist.runs.directory import Run

EMBEDDED_ROWS = 12_000


def evaluate_run(
    config: Any, models: Mapping[str, Any], data: Path | None, run: Run, progress: Progress
) -> dict[str, float]:
    """Fit every model on the same rows, and write model, tables and figure; the final metrics are the first model's.

    ``config`` has the columns' names, ``holdout``, ``stream``, ``seed`` and ``max_steps``
    (:class:`policydist.estimation.methods.optdist.Config`).
    """
    fit, (x, y, weight) = _streamed(config, data) if config.stream else _in_memory(config, data)
    if not (y > 0).any():
        raise UsageError(f"none of the {len(y)} rows held out has a positive {config.target}: raise holdout")
    total, notes = config.max_steps * len(models), []
    metrics, means, laws = {}, {}, {}
    for number, (name, model) in enumerate(models.items()):

        def step(done: int, of: int, row: Mapping[str, float], name: str = name, before: int = number) -> None:
            progress(before * config.max_steps + done, total, {f"{name}/{k}": v for k, v in row.items() if k != "step"})

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            fit(model, step)
            metrics[name] = model.evaluate(x, y, weight)
        notes += [f"{name}: {warning.message}" for warning in caught if warning.category is UserWarning]
        means[name], laws[name] = model.predict(x), model.predict_distribution(x)
    first = next(iter(models))
    models[first].save(run.path / "model.safetensors")
    _write(run, y, weight, metrics, means, laws[first].to_frame(), notes)
    return dict(metrics[first])


def _write(
    run: Run,
    y: NDArray[np.float64],
    weight: NDArray[np.float64],
    metrics: Mapping[str, Mapping[str, float]],
    means: Mapping[str, NDArray[np.float64]],
    law: pd.DataFrame,
    notes: list[str],
) -> None:
    from policydist.runs.directory import write_whole

    table = pd.DataFrame(metrics)
    write_frame(run.path / "metrics.csv", table.rename_axis("metric").reset_index())
    law.insert(0, "actual", y)
    write_frame(run.path / "predictions.csv", law)
    bins = min(10, len(y))
    lifts = [lift_table(y, mean, bins, weight).reset_index().assign(model=name) for name, mean in means.items()]
    write_frame(run.path / "lift.csv", pd.concat(lifts))
    write_figure(run.path / "lift.png", plot_lift(y, means, bins, weight)[0].figure)
    text = [f"{len(y)} rows held out", table.to_string(float_format=lambda v: f"{v:.4g}"), *dict.fromkeys(notes)]
    write_whole(run.path / "summary.txt", "\n".join(text) + "\n")


def _in_memory(config: Any, data: Path | None) -> Any:
    """(how to fit, held-out rows): a random split of the whole table."""
    if data is None:
        values, outcome = segments(EMBEDDED_ROWS, seed=config.seed)
        frame = pd.DataFrame(values, columns=[f"x{i}" for i in range(values.shape[1])]).assign(
            **{config.target: outcome}
        )
    else:
        frame = read_frame(data)
    x, y, weight = _parts(config, frame, data)
    order = numpy_generator(config.seed, "optdist", "split").permutation(len(y))
    held = max(1, round(config.holdout * len(y)))
    test, train = order[:held], order[held:]
    if len(train) == 0:
        raise UsageError(f"{len(y)} rows are too few to hold out {held}")

    def fit(model: Any, step: Progress) -> None:
        model.fit(x.iloc[train], y[train], weight[train], validation=(x.iloc[test], y[test]), progress=step)

    return fit, (x.iloc[test], y[test], weight[test])


def _streamed(config: Any, data: Path | None) -> Any:
    """(how to fit, held-out rows): the last row groups of the file are held out and only they are held in memory."""
    if data is None or data.suffix.lower() not in (".parquet", ".pq"):
        raise UsageError("stream=true needs a Parquet file; give one with --data, or set stream=false")
    source = ParquetSource.open(data, config.target, config.weight, config.drop)
    groups = source.row_groups
    held = max(1, round(config.holdout * len(groups)))
    if held >= len(groups):
        raise UsageError(f"{data} has {len(groups)} row group(s); streaming holds out some, so write it with more")
    pieces = list(source.chunks(groups[-held:]))
    x = pd.concat([piece[0] for piece in pieces], ignore_index=True)
    y, weight = (np.concatenate([piece[i] for piece in pieces]) for i in (1, 2))

    def fit(model: Any, step: Progress) -> None:
        model.fit_parquet(
            data, config.target, sample_weight=config.weight, drop=config.drop, row_groups=groups[:-held],
            validation=(x, y), progress=step,
        )  # fmt: skip

    return fit, (x, y, weight)


def _parts(config: Any, frame: pd.DataFrame, data: Path | None) -> tuple[pd.DataFrame, Any, Any]:
    for name in (config.target, *([config.weight] if config.weight else []), *config.drop):
        if name not in frame.columns:
            raise UsageError(f"{data or 'the data'} has no column {name!r}: {nearest(name, map(str, frame.columns))}")
    for name in (config.target, *([config.weight] if config.weight else [])):
        if not pd.api.types.is_numeric_dtype(frame[name]):
            raise UsageError(f"column {name!r} has type {frame[name].dtype}; it must hold numbers")
    y = frame[config.target].to_numpy(dtype=np.float64, na_value=np.nan)
    weight = np.ones(len(y)) if config.weight is None else frame[config.weight].to_numpy(dtype=np.float64)
    unused = [config.target, *([config.weight] if config.weight else []), *config.drop]
    return frame.drop(columns=unused), y, weight
