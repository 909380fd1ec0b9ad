"""Training by slug: which family a method belongs to, and that family's experiment."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policydist import catalog
from policydist.errors import UsageError, nearest
from policydist.runs.directory import read_config

FAMILIES = ("language", "estimation")
"""Families whose methods one command can run."""


def names(family: str) -> list[str]:
    """Slugs of a family's methods, baselines included."""
    return list(importlib.import_module(f"policydist.{family}.methods").names())


def family_of(slug: str) -> str:
    """The family that trains this method; nothing heavy is loaded to find out.

    Raises:
        UsageError: for an unknown slug (nearest names offered), or a paper that is not implemented.
    """
    known = {paper.slug for paper in catalog.papers()}
    for family in FAMILIES:
        if slug in names(family):
            return family
        known |= set(names(family))
    if any(paper.slug == slug for paper in catalog.papers()):
        raise UsageError(f"{slug} is not implemented yet; policydist papers lists what is")
    raise UsageError(f"no method is called {slug!r}: {nearest(slug, known)}")


def check_options(slug: str, family: str, given: Mapping[str, Any]) -> None:
    """Refuse options that mean nothing to the method's family.

    Raises:
        UsageError: naming the options and what to give instead.
    """
    foreign = ("data",) if family == "language" else ("task", "model", "steps")
    wrong = [f"--{name}" for name in foreign if given.get(name) is not None]
    if not wrong:
        return
    if family == "language":
        raise UsageError(
            f"{slug} trains on a task: leave out --data and give --task, such as --task jsonl:problems.jsonl"
        )
    raise UsageError(f"{slug} fits data, without task or language model: leave out {', '.join(wrong)} and give --data")


def train(
    method: str,
    *,
    task: str | None = None,
    model: str | None = None,
    steps: int | None = None,
    data: str | Path | None = None,
    config: Any = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    **hooks: Any,
) -> Any:
    """Train by ``method`` and keep the run in its own directory.

    Args:
        method: a slug, e.g. ``"bnpo"`` or ``"r3d"``.
        task, model, steps: of language methods, see `policydist.language.experiment.train`.
        data: of estimation methods, see `policydist.estimation.experiment.train`.
        config: further settings, as in a YAML config file.
        settings: ``"key=value"`` words, e.g. ``["train.lr=1e-4"]``.
        out: the run directory; by default a fresh one under ``runs/``.
        hooks: the family's own callbacks.

    Returns:
        The family's outcome: ``path``, ``metrics``, ``final``, and the trained policy of a language method.

    Raises:
        UsageError: for anything wrong with the request.
    """
    family = family_of(method)
    own = {"data": data} if family == "estimation" else {"task": task, "model": model, "steps": steps}
    check_options(method, family, {"task": task, "model": model, "steps": steps, "data": data})
    experiment = importlib.import_module(f"policydist.{family}.experiment")
    return experiment.train(method, **own, config=config, settings=settings, out=out, **hooks)


def check_resumable(path: str | Path) -> None:
    """Only runs of language methods have checkpoints.

    Raises:
        UsageError: no run there, or the run is an estimator's.
    """
    path = Path(path)
    folder = path.parent.parent if path.name.startswith("step-") else path
    method = read_config(folder).get("method")
    if method is not None and family_of(str(method)) == "estimation":
        raise UsageError(
            f"{path}: a run of {method} has no checkpoints; fit again with "
            f"policydist train {method} --config {path / 'config.yaml'}"
        )


def resume(path: str | Path, settings: Sequence[str] = (), **hooks: Any) -> Any:
    """Continue a run, see `policydist.language.experiment.resume`.

    Raises:
        UsageError: no run or no checkpoint there, or the run is an estimator's.
    """
    check_resumable(path)
    return importlib.import_module("policydist.language.experiment").resume(path, settings, **hooks)
