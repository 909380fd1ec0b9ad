"""Several methods on one task under one budget, over several seeds, on all cores."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policydist.errors import UsageError
from policydist.language.experiment import RunConfig, check_answering, configure, read_task, resume, slug, train
from policydist.runs import checkpoint
from policydist.runs.config import digest, plain
from policydist.runs.directory import fresh_name, read_config, read_metrics, read_status, write_whole
from policydist.runs.parallel import run_jobs

if TYPE_CHECKING:
    from policydist.language.tasks.base import Task

Job = tuple[RunConfig, Path]
"""The settings and the folder of one run."""

QUIET = ("train.save_every=0",)


@dataclass(frozen=True)
class Comparison:
    """Where it lies, and per method and seed the metric rows of the run."""

    path: Path
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    curves: Mapping[tuple[str, int], list[dict[str, float]]]


def compare(
    methods: Sequence[str],
    *,
    task: str | None = None,
    model: str | None = None,
    steps: int | None = None,
    seeds: int = 3,
    config: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    workers: int | None = None,
    on_progress: Callable[[dict[tuple[str, int], int], int], None] | None = None,
) -> Comparison:
    """Train every method with seeds 0..K-1 and equal settings.

    A method may be given a name, ``"plain=rexrag"``, and so take part twice with settings of its own. ``settings`` apply to all
    methods, ``"<name>:key=value"`` to one. A folder given again goes on where it stopped. The same seed gives all methods the
    same prompts in the same order and the same evaluation.

    Raises:
        UsageError: for anything wrong with the request, before anything is run.
    """
    slugs = named(methods)
    methods = list(slugs)
    if seeds < 1:
        raise UsageError(f"--seeds is {seeds}; it must be at least 1")
    short = {"task.name": task, "model.name": model, "train.steps": steps}
    words = [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]
    base = {
        method: _configure(method, slugs, {**(config or {}), "trackers": []}, [*QUIET, *words, *settings])
        for method in methods
    }
    path = Path(out) if out is not None else fresh_name(Path("runs"), f"compare-{slug(base[methods[0]].task.name)}")
    keys = [(method, seed) for seed in range(seeds) for method in methods]
    jobs = [(_seeded(base[method], seed), path / f"{method}-seed{seed}") for method, seed in keys]
    _check_folder(jobs)
    _check_tasks(base.values())

    def tick() -> None:
        if on_progress:
            done = {
                key: int(rows[-1]["step"]) if (rows := read_metrics(job[1])) else 0
                for key, job in zip(keys, jobs, strict=True)
            }
            on_progress(done, base[methods[0]].train.steps)

    for _ in run_jobs(run_one, drawn_order(jobs, len(methods)), workers, tick, fresh=True):
        pass
    tick()
    curves = {key: read_metrics(job[1]) for key, job in zip(keys, jobs, strict=True)}
    result = Comparison(path, tuple(methods), tuple(range(seeds)), curves)
    write_whole(path / "compare.json", json.dumps(record(result, base[methods[0]]), indent=1))
    return result


def drawn_order(jobs: Sequence[Job], methods: int) -> list[Job]:
    """Seed after seed, the methods of each in an order of its own. What runs beside a run takes some of its speed, which counts
    under a budget of seconds; in one order for all seeds it would always be the same neighbour."""
    order = random.Random(0)
    return [
        job for first in range(0, len(jobs), methods) for job in order.sample(jobs[first : first + methods], methods)
    ]


def named(methods: Sequence[str]) -> dict[str, str]:
    """Slugs by the names that runs, table and figure use: of ``"plain=rexrag"`` the first, else the slug itself.

    Raises:
        UsageError: for fewer than two, a name given twice, or one that cannot name a folder.
    """
    found = {}
    for method in methods:
        name, separator, rest = method.partition("=")
        if separator and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise UsageError(f"compare {method}: a name has letters, digits, dots, - and _ alone, as in plain=rexrag")
        found[name] = rest if separator else name
    if len(found) != len(methods) or len(methods) < 2:
        raise UsageError(
            "compare needs at least two different methods; to take one twice, name it: "
            "compare rexrag plain=rexrag --set plain:knobs.p_rev=0"
        )
    return found


def _configure(
    method: str, methods: Mapping[str, str], config: Mapping[str, Any] | None, words: Sequence[str]
) -> RunConfig:
    mine = []
    for word in words:
        owner, separator, rest = word.partition(":")
        if separator and "=" not in owner:
            if owner not in methods:
                raise UsageError(f"--set {word}: {owner} is not among the methods compared ({', '.join(methods)})")
            mine += [rest] if owner == method else []
        else:
            mine.append(word)
    return configure(methods[method], config, mine)


def _seeded(config: RunConfig, seed: int) -> RunConfig:
    return replace(config, train=replace(config.train, seed=seed))


def _check_tasks(configs: Iterable[RunConfig]) -> None:
    tasks: dict[str, Task] = {}
    for config in configs:
        key = digest(plain(config.task))
        tasks[key] = tasks.get(key) or read_task(config.task)
        check_answering(config, tasks[key])


def _check_folder(jobs: Sequence[Job]) -> None:
    for config, folder in jobs:
        if folder.is_dir() and any(folder.iterdir()) and digest(read_config(folder)) != digest(plain(config)):
            raise UsageError(f"{folder} holds a run with other settings; give another --out")


def run_one(config: RunConfig, folder: Path) -> None:
    """One run in a worker: finished ones are left alone, interrupted ones go on, others start."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # several workers share the terminal with the bars of the comparison
    if folder.exists():
        if read_status(folder)["state"] == "finished":
            return
        if checkpoint.complete(folder / "checkpoints"):
            resume(folder)
            return
        shutil.rmtree(folder)  # killed before its first checkpoint: nothing in it can be continued
    train(config.method, config=config, out=folder)


def record(result: Comparison, config: RunConfig) -> dict[str, Any]:
    """The comparison as plain data, for tables and figures."""
    return {
        "schema": "compare/1",
        "methods": list(result.methods),
        "seeds": list(result.seeds),
        "task": config.task.name,
        "model": config.model.name,
        "config": plain(config),
        "runs": [{"method": m, "seed": s, "metrics": rows} for (m, s), rows in result.curves.items()],
    }
