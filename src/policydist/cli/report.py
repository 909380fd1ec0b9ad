"""``policydist report``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policydist.cli.main import Report


def report(asked: Report) -> int:
    """Write the report and say where it is."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from policydist.report import site

    console = Console(stderr=True)
    columns = (TextColumn("claims"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task = bars.add_task("claims", total=None)

        def tell(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)
            if not console.is_terminal and done * 5 // total > (done - 1) * 5 // total:
                console.print(f"{done} of {total} claims drawn", highlight=False)

        page = site.write(asked.out, asked.runs, asked.results, tell)
    print(f"report: {page}")
    return 0
