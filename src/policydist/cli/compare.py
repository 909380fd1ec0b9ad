"""``policydist compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from policydist.cli.main import show_json
from policydist.cli.screen import screen
from policydist.errors import UsageError
from policydist.experiment import family_of
from policydist.report import comparison
from policydist.runs.config import read_yaml

if TYPE_CHECKING:
    from policydist.cli.main import Compare

SPARE = ("memory MiB", "responses", "train reward", "tokens")
"""Columns that a narrow terminal does without, the first ones first."""


def compare(asked: Compare) -> int:
    """Run the comparison, then its table, figure and page."""
    for slug in (word.partition("=")[2] or word for word in asked.slugs):
        if family_of(slug) != "language":
            raise UsageError(
                f"{slug} is an estimator without a task; compare takes methods that train a language model"
            )
    config = read_yaml(asked.config) if asked.config else None
    from policydist.language.compare import compare as run

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with ExitStack() as stack:
        bars = Progress(*columns, console=console, disable=not console.is_terminal)
        stack.enter_context(bars)
        names = [word.partition("=")[0] for word in asked.slugs]
        tasks = {name: bars.add_task(name, total=None) for name in names}
        shown = dict.fromkeys(names, -1)

        def tell(done: dict[tuple[str, int], int], steps: int) -> None:
            for name, task in tasks.items():
                count = sum(step for (method, _), step in done.items() if method == name)
                total = steps * asked.seeds
                bars.update(task, completed=count, total=total)
                if not console.is_terminal and count * 10 // total > shown[name]:
                    shown[name] = count * 10 // total
                    console.print(f"{name}: {count} of {total} steps", highlight=False)

        result = run(
            asked.slugs, task=asked.task, model=asked.model, steps=asked.steps, seeds=asked.seeds, config=config,
            settings=asked.set, out=asked.out, workers=asked.workers, on_progress=tell,
        )  # fmt: skip
    page = comparison.write(result.path)
    if asked.json:
        show_json(comparison.plain(result.path))
        return 0
    shown_on = screen()
    rows = fitting(comparison.table(result.path), shown_on.width)
    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name == "method" else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    shown_on.print(table)
    print(f"figure: {result.path / 'curves.png'}\nreport: {page}")
    return 0


def fitting(rows: Sequence[Mapping[str, str]], width: int) -> list[Mapping[str, str]]:
    """The rows without as many of the `SPARE` columns as a line of ``width`` characters has no room for; the report has all."""
    names = list(rows[0])

    def line() -> int:
        return sum(max(len(name), *(len(row[name]) for row in rows)) + 2 for name in names)

    for spare in SPARE:
        if spare in names and line() > width:
            names.remove(spare)
    return [{name: row[name] for name in names} for row in rows]
