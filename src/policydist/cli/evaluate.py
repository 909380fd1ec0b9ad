"""``policydist evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from policydist.cli.main import show_json
from policydist.errors import UsageError
from policydist.runs.config import read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from policydist.cli.main import Evaluate

FILE, FIGURE = "evaluation.json", "anytime.png"


def evaluate(asked: Evaluate) -> int:
    """Measure every model on the same rows, then print the table or JSON, and write what was asked for."""
    check(asked)
    from transformers.utils import logging

    from policydist.language import measure, segmented

    logging.disable_progress_bar()
    budgets = () if asked.budgets is None else segmented.parse_budgets(asked.budgets)
    config = read_yaml(asked.config) if asked.config else measure.run_settings(asked.models)
    for model in asked.models:
        measure.weights(model)
    console = Console(stderr=True, soft_wrap=True)
    found: dict[str, dict[str, float]] = {}
    for model in asked.models:
        console.print(f"measuring {model}", highlight=False, markup=False)
        found[model] = measure.evaluate(
            model, task=asked.task, budgets=budgets, rows=asked.rows, samples=asked.samples,
            config=config, settings=asked.set,
        )  # fmt: skip
    data: dict[str, Any] = {"task": asked.task or config.get("task", {}).get("name"), "models": found}
    written = write(asked.out, data, found) if asked.out is not None else {}
    if asked.json:
        show_json(data | written)
        return 0
    show(found)
    for name, path in written.items():
        print(f"{name}: {path}")
    return 0


def check(asked: Evaluate) -> None:
    """Refuse what would fail only after the measuring.

    Raises:
        UsageError: no model, one given twice, or an output folder that holds an evaluation.
    """
    if not asked.models:
        raise UsageError(
            "evaluate needs a model: embedded, a local Hugging Face directory, a Hub name or a run directory"
        )
    twice = [model for model in asked.models if asked.models.count(model) > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice; name each model once")
    if asked.out is not None and (asked.out / FILE).exists():
        raise UsageError(f"{asked.out} already holds an evaluation; name another folder")
    if asked.out is not None and asked.out.exists() and not asked.out.is_dir():
        raise UsageError(f"{asked.out} is a file; --out takes a folder")


def write(out: Path, data: Mapping[str, Any], found: Mapping[str, Mapping[str, float]]) -> dict[str, Path]:
    """Numbers, and where budgets were given a figure."""
    from policydist.report import anytime
    from policydist.runs.directory import write_whole

    out.mkdir(parents=True, exist_ok=True)
    written = {"numbers": out / FILE}
    write_whole(out / FILE, json.dumps(data, indent=2))
    if all(map(anytime.curve, found.values())):
        written["figure"] = anytime.draw(found, out / FIGURE, f"task {data['task']}" if data["task"] else "")
    return written


def show(found: Mapping[str, Mapping[str, float]]) -> None:
    """One column a model, one line a metric."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right", overflow="fold")
    for metric in next(iter(found.values())):
        digits = 1 if metric == "length" else 3
        label = "anytime (mean over budgets)" if metric == "anytime" else metric
        table.add_row(label, *(f"{metrics[metric]:.{digits}f}" for metrics in found.values()))
    Console().print(table)
