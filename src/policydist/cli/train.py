"""``policydist train``."""

from __future__ import annotations

import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from policydist.cli.main import show_json
from policydist.errors import UsageError
from policydist.experiment import check_options, check_resumable, family_of
from policydist.runs.config import read_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policydist.cli.main import Train

LIVE = ("reward", "eval/accuracy", "entropy", "loss", "grad_norm")
SHOWN = 5
NOTHING = (
    "warning: no step had a gradient (mean reward {:.3f}); nothing was learnt. Where all responses to a prompt get one reward "
    "there is nothing to tell them by: look at the grader, or give an easier or harder task, or more rollout.samples"
)
"""What is said of a run whose prompts were all solved or all hopeless."""


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
        self.console = console
        self.seen: dict[str, float] = {}
        self.task: Any = None

    def start(self, name: str, line: str, total: int | None = None) -> None:
        """Say what begins."""
        self.console.print(line, highlight=False)
        self.task = self.progress.add_task(name, total=total, numbers="")

    def step(self, done: int, total: int, numbers: Mapping[str, float]) -> None:
        """Show how far it is."""
        self.seen |= numbers
        text = "  ".join(f"{name.removeprefix('eval/')} {value:.3f}" for name, value in self.seen.items())
        if self.console.is_terminal:
            self.progress.update(self.task, completed=done, total=total, numbers=text)
        elif done % max(1, total // 20) == 0:
            self.console.print(f"step {done}/{total}  {text}", highlight=False)


def train(asked: Train) -> int:
    """Run or resume one training."""
    if (asked.slug is None) == (asked.resume is None):
        raise UsageError("give a method to train, or --resume with a run directory (one of the two)")
    given = {name: getattr(asked, name) for name in ("task", "model", "steps", "data", "config", "out")}
    if asked.slug is not None:
        family = family_of(asked.slug)
        check_options(asked.slug, family, given)
    else:
        for name, value in given.items():
            if value is not None:
                raise UsageError(
                    f"--resume goes on with the run's stored config; leave out --{name}, or start a new run"
                )
        assert asked.resume is not None
        check_resumable(asked.resume)
        family = "language"
    config = read_yaml(asked.config) if asked.config else None
    console = Console(stderr=True, soft_wrap=True)
    monitor = Monitor(console)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        if console.is_terminal:
            stack.enter_context(monitor.progress)
        return (language if family == "language" else estimation)(asked, config, monitor)


def language(asked: Train, config: dict[str, Any] | None, monitor: Monitor) -> int:
    """A policy trained on a task."""
    from transformers.utils import logging

    from policydist.language import experiment

    logging.disable_progress_bar()  # a bar of the training is shown; those of reading and writing weights would break it
    total = 0

    def start(path: Path, config: Any) -> None:
        nonlocal total
        total = config.train.steps
        line = f"{config.method} on {config.task.name} with {config.model.name} -> {path}"
        monitor.start(config.method, line, total)

    def step(row: dict[str, float]) -> None:
        monitor.step(int(row["step"]), total, {name: row[name] for name in LIVE if name in row})

    hooks: dict[str, Any] = {"on_step": step, "on_start": start}
    if asked.resume is not None:
        outcome = experiment.resume(asked.resume, asked.set, **hooks)
    else:
        assert asked.slug is not None
        outcome = experiment.train(
            asked.slug, task=asked.task, model=asked.model, steps=asked.steps,
            config=config, settings=asked.set, out=asked.out, **hooks,
        )  # fmt: skip
    if not any(row.get("grad_norm") for row in outcome.metrics):
        monitor.console.print(NOTHING.format(mean(outcome.metrics)), highlight=False, markup=False)
    if asked.json:
        show_json({"run": outcome.path, "metrics": outcome.final})
        return 0
    final = {
        name: value for name, value in outcome.final.items() if name in (*LIVE, "step") or name.startswith("eval/")
    }
    print("  ".join(f"{name} {value:.4g}" for name, value in final.items()))
    print(f"run: {outcome.path}   model: {outcome.path / 'model'}", file=sys.stdout)
    return 0


def mean(rows: Sequence[Mapping[str, float]]) -> float:
    """The mean reward of the steps."""
    rewards = [row["reward"] for row in rows if "reward" in row]
    return sum(rewards) / max(1, len(rewards))


def estimation(asked: Train, config: dict[str, Any] | None, monitor: Monitor) -> int:
    """An estimator fitted to data."""
    from policydist.estimation import experiment

    def warn(message: Warning | str, *_: Any, **__: Any) -> None:
        monitor.console.print(f"warning: {message}", highlight=False, markup=False)

    def start(path: Path, config: Any) -> None:
        monitor.start(config.method, f"{config.method} on {config.data or 'data of its own'} -> {path}")

    def step(done: int, total: int, numbers: Mapping[str, float]) -> None:
        monitor.step(done, total, dict(list(numbers.items())[:SHOWN]))

    warnings.showwarning = warn
    assert asked.slug is not None
    outcome = experiment.train(
        asked.slug, data=asked.data, config=config, settings=asked.set, out=asked.out, on_progress=step, on_start=start
    )
    if asked.json:
        show_json({"run": outcome.path, "metrics": outcome.final})
        return 0
    if outcome.summary:
        print(outcome.summary.rstrip())
    else:
        print("  ".join(f"{name} {value:.4g}" for name, value in outcome.final.items()))
    print(f"run: {outcome.path}   files: {', '.join(artefacts(outcome.path))}")
    return 0


def artefacts(path: Path) -> list[str]:
    """What the method left in the run directory beside the files that every run has."""
    usual = {"config.yaml", "environment.json", "metrics.jsonl", "status.json", "summary.json"}
    return sorted(entry.name for entry in path.iterdir() if entry.name not in usual)
