"""Several tasks as one: every row carries the ``source`` it comes from and is graded by that source's own graders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from policydist.errors import UsageError, nearest
from policydist.language.tasks.base import Grader, Row, Task

TASK = "task"
"""The column that says which task's graders a row of a mixture goes to."""


def source_name(spec: str) -> str:
    """What a task is called in a mixture: ``chain``, or the file's own name for ``jsonl:/data/sums.jsonl``."""
    kind, colon, rest = spec.partition(":")
    return Path(rest).stem if colon and kind in ("jsonl", "parquet") else spec


def load_mixture(spec: str, load: Callable[[str, Mapping[str, Any]], Task], options: Mapping[str, Any]) -> Task:
    """The task ``mix:<task>,<task>,…``.

    Args:
        spec: the whole name.
        load: loads one of the tasks from its name and its options.
        options: ``{task: its options}``, by the names of `source_name`.

    Rows of the tasks take turns, so that the first rows of the test part hold all sources in equal shares. A row that has
    a ``source`` of its own keeps it behind its task's name, ``sums/hard``. The first reward component of each task is the
    mixture's ``accuracy``; a task that lacks one of the further components earns 0 there.

    Raises:
        UsageError: no task, one named twice, options for a task that is not in the mixture, weighted components, or a task
            that is answered by searching.
    """
    specs = [part.strip() for part in spec.partition(":")[2].split(",")]
    names = [source_name(part) for part in specs]
    if not all(specs):
        raise UsageError(f"task {spec!r}: write mix:<task>,<task>,…, for example mix:arithmetic,chain,logic")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"task {spec!r}: {name} is named twice; sources are told apart by their names")
    for name in options:
        if name not in names:
            raise UsageError(f"task {spec!r}: options for {name!r}, which is not in it: {nearest(name, names)}")
        if not isinstance(options[name], Mapping):
            raise UsageError(f"task {spec!r}: write options as task.options.{name}.<option>=…")
    tasks = {name: load(part, options.get(name, {})) for name, part in zip(names, specs, strict=True)}
    for name, task in tasks.items():
        if task.weights is not None:
            raise UsageError(f"task {spec!r}: {name} weights its rewards, which a mixture cannot keep")
        if not task.train:
            raise UsageError(f"task {spec!r}: {name} has no rows to train on")
        if task.documents:
            raise UsageError(f"task {spec!r}: {name} brings documents to search, which a mixture cannot keep")
    return Task(
        spec,
        _turns({name: task.train for name, task in tasks.items()}),
        _turns({name: task.test for name, task in tasks.items()}),
        _graders(tasks),
        max_new_tokens=max(task.max_new_tokens for task in tasks.values()),
    )


def _turns(parts: Mapping[str, Sequence[Row]]) -> list[Row]:
    """Rows of all parts in turn, marked with their task and source."""
    marked = [[_marked(name, row) for row in rows] for name, rows in parts.items()]
    return [row for row in chain.from_iterable(zip_longest(*marked)) if row is not None]


def _marked(name: str, row: Row) -> Row:
    own = row.get("source")
    return {**row, TASK: name, "source": name if own is None else f"{name}/{own}"}


def _graders(tasks: Mapping[str, Task]) -> dict[str, Grader]:
    """One grader a component, which hands every row to its own task's."""
    by_task = {
        name: {
            ("accuracy" if place == 0 else component): grader
            for place, (component, grader) in enumerate(task.graders.items())
        }
        for name, task in tasks.items()
    }
    components = dict.fromkeys(component for graders in by_task.values() for component in graders)
    return {
        component: _dispatch({name: graders.get(component) for name, graders in by_task.items()})
        for component in components
    }


def _dispatch(graders: Mapping[str, Grader | None]) -> Grader:
    def grade(responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
        scores = [0.0] * len(rows)
        for name, grader in graders.items():
            places = [place for place, row in enumerate(rows) if row[TASK] == name]
            if grader is None or not places:
                continue
            given = grader([responses[place] for place in places], [rows[place] for place in places])
            for place, score in zip(places, given, strict=True):
                scores[place] = score
        return scores

    return grade
