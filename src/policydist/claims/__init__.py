"""One experiment a paper: declared before it is run, judged by a written rule, recorded whatever comes out.

``declare`` holds the types that a ``claims/<slug>.py`` is written with, ``runner`` runs them, ``record`` reads and
writes results. The names below are loaded when first used, so that reading verdicts costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policydist.claims.conditions import Beyond, Bound, Every, Inside, Intersects, Point
    from policydist.claims.declare import Arm, Claim, Deviation, Job, Metric, Outcome, Quorum, Rule, Setting, Tuning
    from policydist.claims.estimands import Contrast, Correlation, LogRatio, RatioOfMeans, Trend, difference, value
    from policydist.claims.jobs import available, load
    from policydist.claims.runner import Progress, run_claim, run_paper

_HOME = {
    "conditions": ("Beyond", "Bound", "Every", "Inside", "Intersects", "Point"),
    "declare": (
        "Arm", "Claim", "Deviation", "Job", "Metric", "Outcome", "Quorum", "Rule", "Setting", "Tuning",
    ),
    "estimands": ("Contrast", "Correlation", "LogRatio", "RatioOfMeans", "Trend", "difference", "value"),
    "jobs": ("available", "load"),
    "runner": ("Progress", "run_claim", "run_paper"),
}  # fmt: skip

__all__ = [
    "Arm", "Beyond", "Bound", "Claim", "Contrast", "Correlation", "Deviation", "Every", "Inside", "Intersects", "Job",
    "LogRatio", "Metric", "Outcome", "Point", "Progress", "Quorum", "RatioOfMeans", "Rule", "Setting", "Trend",
    "Tuning", "available", "difference", "load", "run_claim", "run_paper", "value",
]  # fmt: skip


def __getattr__(name: str) -> object:
    import importlib

    for module, names in _HOME.items():
        if name in names:
            return getattr(importlib.import_module(f"policydist.claims.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
