"""Evaluate any model on any task without training it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from policydist.errors import UsageError
from policydist.language.experiment import assemble, configure
from policydist.language.world import World


def evaluate(
    model: str,
    *,
    task: str | None = None,
    budgets: Sequence[int] = (),
    rows: int | None = None,
    samples: int | None = None,
    config: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> dict[str, float]:
    """The metrics of `policydist.language.evaluate.Evaluation` on the task's test rows, without their ``eval/`` prefix.

    Args:
        model: ``embedded``, a Hugging Face directory or Hub name, or a run directory (its trained model).
        task: as for training; the embedded default if none is given.
        budgets: ascending numbers of thinking tokens after which the model is made to answer.
        rows, samples: how many test rows, and responses to each.
        config, settings: further settings of the sections task, model, rollout and eval, as for training.

    Raises:
        UsageError: for anything wrong with the request.
    """
    folder = Path(model)
    if (folder / "config.yaml").is_file() and not (folder / "model").is_dir():
        raise UsageError(f"{model} is a run without a trained model; it has not finished")
    name = str(folder / "model") if (folder / "model").is_dir() else model
    short = {"task.name": task, "model.name": name, "eval.rows": rows, "eval.samples": samples}
    words = [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]
    words += [f"eval.budgets={json.dumps(list(budgets))}"] if budgets else []
    stored = {key: value for key, value in (config or {}).items() if key not in ("method", "knobs")}
    parts = assemble(configure("grpo", stored, [*words, *settings]), World())
    found = parts.evaluation.measure(parts.policy)
    return {key.removeprefix("eval/"): value for key, value in found.items()}
