"""``policydist claim``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from policydist import catalog
from policydist.claims import record, runner
from policydist.claims.jobs import available, load
from policydist.cli.main import show_json
from policydist.errors import UsageError
from policydist.report import words

if TYPE_CHECKING:
    from policydist.cli.main import Claim

COLOURS = {"reproduced": "green", "contradicted": "red", "invalid": "red"}


def claim(asked: Claim) -> int:
    """Run all claims of one paper, or of every paper that has some; exit code 1 if one is invalid."""
    slugs = available() if asked.slug == "all" else [asked.slug]
    if asked.slug != "all" and asked.slug not in available():
        catalog.get(asked.slug)
        raise UsageError(f"{asked.slug} has no claim yet; claims exist for {', '.join(available())}")
    console = Console(stderr=True)
    records = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for slug in slugs:
            for one in load(slug):
                task = progress.add_task(one.id, total=None)

                def tell(state: runner.Progress, task: Any = task) -> None:
                    progress.update(task, completed=state.done, total=state.total)

                records.append(
                    runner.run_claim(
                        slug,
                        one.id,
                        seeds=asked.seeds,
                        smoke=asked.smoke,
                        engine=asked.engine,
                        workers=asked.workers,
                        results_dir=asked.results,
                        progress=tell,
                    )
                )
    if asked.json:
        show_json(records)
    else:
        for data in records:
            show(data, Console())
    full = not asked.smoke and asked.seeds is None
    return 1 if full and any(data["verdict"] == "invalid" for data in records) else 0


def show(data: dict[str, Any], console: Console) -> None:
    """Print one record: statement, verdict, every rule with its effect and interval."""
    colour = COLOURS.get(data["verdict"], "yellow")
    console.print(f"[bold]{data['claim_id']}[/]  [{colour}]{data['verdict']}[/]  {data['statement']}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("rule", "effect", "interval", "needs", "verdict"):
        table.add_column(column, overflow="fold")
    for rule in data["rules"]:
        effect = rule.get("effect") or {"estimate": None, "ci": None}  # a quorum has none of its own
        table.add_row(
            rule["name"] + ("" if rule["must"] else " (reported)"),
            words.number(effect["estimate"]),
            words.interval(effect["ci"]),
            words.threshold(rule.get("threshold")),
            rule["verdict"],
        )
    console.print(table)
    if data["reason"]:
        console.print(data["reason"], highlight=False)
    summary = record.summary(data)
    console.print(
        f"{summary['n_units']} units, {summary['wall_s']:.0f} s, {summary['deviations']} deviations\n", highlight=False
    )
