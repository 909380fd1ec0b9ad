"""Comparisons, runs and claim records with known contents."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def metric_rows(method: int, seed: int, steps: int = 12, every: int = 4) -> list[dict[str, Any]]:
    """Accuracy at the end is exactly ``0.5 + 0.1 method + 0.01 seed``."""
    noise = np.random.default_rng([method, seed])
    rows: list[dict[str, Any]] = [{"step": 0, "eval/accuracy": 0.2, "eval/pass@4": 0.4}]
    for step in range(1, steps + 1):
        share = step / steps
        level = 0.2 + (0.3 + 0.1 * method + 0.01 * seed) * share
        row = {
            "step": step,
            "tokens": 100 * step + seed,
            "seconds": 0.5 * step,
            "reward": level + 0.01 * noise.normal(),
        }
        rows.append(row | ({"eval/accuracy": level, "eval/pass@4": 0.9} if step % every == 0 else {}))
    return rows


def comparison(folder: Path, methods: tuple[str, ...] = ("grpo", "bnpo"), seeds: int = 4, **rest: Any) -> Path:
    """A folder with ``compare.json``."""
    runs = [
        {"method": method, "seed": seed, "metrics": metric_rows(place, seed)}
        for seed in range(seeds) for place, method in enumerate(methods)
    ]  # fmt: skip
    data = {
        "schema": "compare/1", "methods": list(methods), "seeds": list(range(seeds)), "task": "chain",
        "model": "embedded", "config": {"method": methods[0], "train": {"steps": 12}}, "runs": runs,
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "compare.json").write_text(json.dumps(data | rest))
    return folder
