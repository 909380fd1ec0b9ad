"""Evaluate any model on any task without training it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policydist.errors import UsageError
from policydist.language import methods
from policydist.language.experiment import assemble, configure
from policydist.language.world import World
from policydist.runs.directory import read_config

SECTIONS = ("task", "rollout", "eval", "method", "knobs")
"""What of a run's config says how its model is measured."""


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
            their mean ``anytime``.
        rows, samples: how many test rows, and responses to each.
        config, settings: further settings of the sections task, model, rollout and eval, as for training. With a method whose
            responses are whole episodes (rexrag; a run's own or the config's) these are played.

    Raises:
        UsageError: for anything wrong with the request, such as budgets that do not ascend or do not fit into the model's
            context, or a model whose tokenizer has no end of thinking.
    """
    if config is None:
        config = run_settings([model])
    short = {"task.name": task, "model.name": weights(model), "eval.rows": rows, "eval.samples": samples}
    words = [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]
    words += [f"eval.budgets={json.dumps(list(budgets))}"] if budgets else []
    method, stored = str(config.get("method", "grpo")), dict(config)
    if not getattr(methods.load(method), "EPISODES", False):  # how other methods train is nothing to the evaluation
        method, stored = "grpo", {key: value for key, value in config.items() if key not in ("method", "knobs")}
    parts = assemble(configure(method, stored, [*words, *settings]), World())
    found = parts.evaluation.measure(parts.policy)
    return {key.removeprefix("eval/"): value for key, value in found.items()}


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
