"""Policies as distributions: published methods on one core, one command each, one honest verdict each.

The Python interface mirrors the command line; everything heavy is loaded on first use::

    import policydist

    outcome = policydist.train("bnpo", task="countdown", steps=60)
    effects = policydist.train("r3d", data="scores.csv", settings=["unit=school", "running=poverty", "outcome=score"])
    table = policydist.compare(["grpo", "bnpo"], task="chain", seeds=4)
    numbers = policydist.evaluate("embedded", task="chain", budgets=[3, 6, 9, 13])
    records = policydist.claim("bnpo")
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "train": ("policydist.experiment", "train"),
    "resume": ("policydist.experiment", "resume"),
    "compare": ("policydist.language.compare", "compare"),
    "evaluate": ("policydist.language.measure", "evaluate"),
    "claim": ("policydist.claims.runner", "run_paper"),
    "papers": ("policydist.catalog", "papers"),
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'policydist' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)
