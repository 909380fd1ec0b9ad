"""``policydist train``."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from policydist import catalog
from policydist.cli.main import show_json
from policydist.errors import UsageError, nearest
from policydist.language import methods
from policydist.runs.config import read_yaml

if TYPE_CHECKING:
    from policydist.cli.main import Train

LIVE = ("reward", "eval/accuracy", "entropy", "loss", "grad_norm")


def check_slug(slug: str) -> None:
    """Refuse what cannot be trained, before anything heavy is loaded.

    Raises:
        UsageError: for an unknown slug, or a paper that is not implemented.
    """
    if slug in methods.names():
        return
    known = {paper.slug for paper in catalog.papers()}
    if slug in known:
        raise UsageError(f"{slug} is not implemented yet; policydist papers lists what is")
    raise UsageError(f"no method is called {slug!r}: {nearest(slug, known | set(methods.names()))}")


class Monitor:
    """A progress bar with the newest metrics; on a terminal live, else one line now and then."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
        )
        self.progress = Progress(*columns, console=console, transient=False)
        self.console, self.total, self.seen = console, 0, {}  # type: ignore[var-annotated]
        self.task: Any = None

    def start(self, path: Path, config: Any) -> None:
        self.total = config.train.steps
        self.console.print(f"{config.method} on {config.task.name} with {config.model.name} -> {path}", highlight=False)
        self.task = self.progress.add_task(config.method, total=self.total, numbers="")

    def step(self, row: dict[str, float]) -> None:
        self.seen |= {name: row[name] for name in LIVE if name in row}
        numbers = "  ".join(f"{name.removeprefix('eval/')} {value:.3f}" for name, value in self.seen.items())
        if self.console.is_terminal:
            self.progress.update(self.task, completed=int(row["step"]), numbers=numbers)
        elif int(row["step"]) % max(1, self.total // 20) == 0:
            self.console.print(f"step {int(row['step'])}/{self.total}  {numbers}", highlight=False)


def train(asked: Train) -> int:
    """Run or resume one training."""
    if (asked.slug is None) == (asked.resume is None):
        raise UsageError("give a method to train, or --resume with a run directory (one of the two)")
    if asked.slug is not None:
        check_slug(asked.slug)
    for name in ("task", "model", "steps", "config", "out"):
        if asked.resume is not None and getattr(asked, name) is not None:
            raise UsageError(f"--resume goes on with the run's stored config; leave out --{name}, or start a new run")
    config = read_yaml(asked.config) if asked.config else None
    from transformers.utils import logging

    from policydist.language import experiment

    logging.disable_progress_bar()  # a bar of the training is shown; those of reading and writing weights would break it
    console = Console(stderr=True, soft_wrap=True)
    monitor = Monitor(console)
    with ExitStack() as stack:
        if console.is_terminal:
            stack.enter_context(monitor.progress)
        hooks: dict[str, Any] = {"on_step": monitor.step, "on_start": monitor.start}
        if asked.resume is not None:
            outcome = experiment.resume(asked.resume, asked.set, **hooks)
        else:
            assert asked.slug is not None
            outcome = experiment.train(
                asked.slug, task=asked.task, model=asked.model, steps=asked.steps,
                config=config, settings=asked.set, out=asked.out, **hooks,
            )  # fmt: skip
    if asked.json:
        show_json({"run": outcome.path, "metrics": outcome.final})
        return 0
    final = {
        name: value for name, value in outcome.final.items() if name in (*LIVE, "step") or name.startswith("eval/")
    }
    print("  ".join(f"{name} {value:.4g}" for name, value in final.items()))
    print(f"run: {outcome.path}   model: {outcome.path / 'model'}", file=sys.stdout)
    return 0
