"""One run of an estimation method from its config: data, fit, run directory.

<run>/config.yaml, environment.json, metrics.jsonl, status.json as in every run (`policydist.runs.directory`)
<run>/summary.json            the final metrics
<run>/…                       what the method writes: tables, figures, models
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from policydist.errors import UsageError
from policydist.estimation import methods
from policydist.runs.config import assign, build
from policydist.runs.directory import Run, fresh_name, read_metrics, write_whole

Row = dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result. ``data``: the user's file or folder; null: data made by the method."""

    method: str
    knobs: Any
    data: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished run: its directory, its metric rows, its final metrics."""

    path: Path
    metrics: list[Row]
    final: dict[str, float]

    @property
    def summary(self) -> str:
        """What the method has to say in words, "" if nothing."""
        file = self.path / "summary.txt"
        return file.read_text(encoding="utf-8") if file.is_file() else ""


def configure(
    method: str, data: str | Path | None = None, config: Mapping[str, Any] | None = None, words: Sequence[str] = ()
) -> RunConfig:
    """The full config of a run from plain settings (a YAML file's) and ``key=value`` words, every value checked.

    Raises:
        UsageError: naming the first setting that is unknown or ill-typed.
    """
    knobs = methods.load(method).Config
    settings = {**(config or {})}
    stated = settings.pop("method", method)
    if stated != method:
        raise UsageError(f"the config is for method {stated}, not {method}")
    if data is not None:
        settings["data"] = str(data)
    assign(settings, words, {"knobs": knobs}, top=("data",))
    typed: Any = build(knobs, settings.pop("knobs", None) or {}, "knobs")
    return replace(build(RunConfig, {"method": method, "knobs": None, **settings}), knobs=typed)


def train(
    method: str,
    *,
    data: str | Path | None = None,
    config: Mapping[str, Any] | RunConfig | None = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    on_progress: methods.Progress | None = None,
    on_start: Callable[[Path, RunConfig], None] | None = None,
) -> Outcome:
    """Fit ``method`` on ``data`` and keep the run in its own directory.

    Args:
        method: a slug, e.g. ``"r3d"``.
        data: a file or folder; by default the data that the method makes itself.
        config: further settings, as in a YAML config file, or a complete `RunConfig`.
        settings: ``"key=value"`` words, e.g. ``["cutoff=60", "unit=school"]``.
        out: the run directory; by default a fresh one under ``runs/``.
        on_progress: called with (steps done, steps in all, numbers).

    Raises:
        UsageError: for anything wrong with the request; no run directory is left behind.
    """
    if not isinstance(config, RunConfig):
        config = configure(method, data, config, settings)
    source = None if config.data is None else Path(config.data)
    if source is not None and not source.exists():
        raise UsageError(f"{source}: no such file or folder; give the data with --data")
    run = Run.create(Path(out) if out is not None else fresh_name(Path("runs"), method), config)
    if on_start:
        on_start(run.path, config)
    return execute(config, source, run, on_progress)


def execute(config: RunConfig, source: Path | None, run: Run, on_progress: methods.Progress | None) -> Outcome:
    """Run the method in a run directory just made, and record how it ended."""
    step = 0

    def progress(done: int, total: int, numbers: Mapping[str, float]) -> None:
        nonlocal step
        step = done
        run.log({"step": done, **numbers})
        if on_progress:
            on_progress(done, total, numbers)

    try:
        final = methods.load(config.method).train(config.knobs, source, run, progress)
    except UsageError as problem:
        if not withdraw(run.path):
            run.status("failed", step, error=str(problem))
        raise
    except KeyboardInterrupt:
        run.status("interrupted", step)
        raise
    except BaseException as problem:
        run.status("failed", step, error=str(problem))
        raise
    write_whole(run.path / "summary.json", json.dumps(final, indent=2))
    run.status("finished", step)
    return Outcome(run.path, read_metrics(run.path), final)


def withdraw(path: Path) -> bool:
    """Remove a run directory in which nothing has been done yet; one that holds more stays, and False is returned."""
    names = {"config.yaml", "environment.json", "status.json"}
    if {entry.name for entry in path.iterdir()} - names:
        return False
    for name in names:
        (path / name).unlink(missing_ok=True)
    path.rmdir()
    return True
