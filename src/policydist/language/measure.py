"""Evaluate any model on any task without training it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policydist.errors import UsageError
from policydist.language import experiment, methods
from policydist.language.world import World
from policydist.runs.directory import read_config

if TYPE_CHECKING:
    from policydist.language.experiment import RunConfig
    from policydist.language.tasks.base import Task

SECTIONS = ("task", "rollout", "eval", "method", "knobs")
"""What of a run's config says how its model is measured."""

SEARCHING = "rexrag"
"""The method by whose knobs and in whose episodes any model searches."""


def evaluate(
    model: str | Path,
    *,
    task: str | None = None,
    budgets: Sequence[int] = (),
    rows: int | None = None,
    samples: int | None = None,
    config: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> dict[str, float]:
    """Accuracy, pass@k, entropy and length on the task's test rows (the metrics of `policydist.language.evaluate.Evaluation`,
    without their ``eval/`` prefix).

    Args:
        model: ``embedded``, a Hugging Face directory or Hub name, or a run directory (its trained model).
        task: as for training. Without it and without ``config`` a run is measured on its own task, any other model on the
            default one.
        budgets: ascending numbers of thinking tokens after which the model is made to answer: ``accuracy@<budget>`` each, and
            their mean ``anytime``. Not where episodes are played.
        rows, samples: how many test rows, and responses to each.
        config, settings: further settings of the sections task, model, rollout and eval, as for training. A response is a whole
            episode with a search engine where the task brings documents (two-hop), where ``settings`` hold a knob of the
            search, such as ``"knobs.corpus=corpus.jsonl"`` or ``"knobs.retriever=http://…"``, and where the method (a run's own
            or the config's) is rexrag.

    Raises:
        UsageError: for anything wrong with the request, such as budgets that do not ascend or do not fit into the model's
            context, a model whose tokenizer has no end of thinking, or a search where there is nothing to search.
    """
    if config is None:
        config = run_settings([model])
    short = {"task.name": task, "model.name": weights(model), "eval.rows": rows, "eval.samples": samples}
    words = [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]
    words += [f"eval.budgets={json.dumps(list(budgets))}"] if budgets else []
    plan, loaded = planned(config, [*words, *settings])
    parts = experiment.assemble(plan, World(), loaded)
    found = parts.evaluation.measure(parts.policy)
    return {key.removeprefix("eval/"): value for key, value in found.items()}


def planned(config: Mapping[str, Any], words: Sequence[str]) -> tuple[RunConfig, Task | None]:
    """The config to measure by, and the task where it had to be read to know: by single responses, unless something says
    that answering takes a search. How a method without episodes trains is nothing to the evaluation."""
    method = str(config.get("method", "grpo"))
    if methods.plays_episodes(method):
        return experiment.configure(method, config, words), None
    bare = {key: value for key, value in config.items() if key not in ("method", "knobs")}
    if any(map(of_search, words)):
        return experiment.configure(SEARCHING, bare, words), None
    plan = experiment.configure("grpo", bare, words)
    task = experiment.read_task(plan.task)
    return (experiment.configure(SEARCHING, bare, words) if task.documents else plan), task


def of_search(word: str) -> bool:
    """Whether a ``key=value`` word sets a knob that only a method with a search engine has."""

    def settings_of(config: Any) -> set[str]:
        return {entry.name for entry in dataclasses.fields(config)}

    key = word.partition("=")[0]
    plain = settings_of(methods.load("grpo").Config)
    if key.startswith("knobs."):
        return key.removeprefix("knobs.") not in plain
    return key in settings_of(methods.load(SEARCHING).Config) - plain.union(
        *map(settings_of, experiment.SECTIONS.values())
    )


def weights(model: str | Path) -> str:
    """Where a model's weights are: a run directory keeps them in a folder of its own.

    Raises:
        UsageError: a run that has not finished.
    """
    folder = Path(model)
    if (folder / "config.yaml").is_file() and not (folder / "model").is_dir():
        raise UsageError(
            f"{model} is a run without a trained model; let it finish with policydist train --resume {model}"
        )
    return str(folder / "model") if (folder / "model").is_dir() else str(model)


def run_settings(models: Sequence[str | Path]) -> dict[str, Any]:
    """How the first run among ``models`` was measured while it trained; nothing if none of them is a run."""
    for model in models:
        if (Path(model) / "config.yaml").is_file():
            stored = read_config(Path(model))
            return {name: stored[name] for name in SECTIONS if name in stored}
    return {}
