"""Claims with known outcomes: an effect, none, a reversed one, a broken arm that wins, and several unit shapes."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from policydist.claims import (
    Arm,
    Beyond,
    Claim,
    Inside,
    Job,
    LogRatio,
    Metric,
    Outcome,
    Rule,
    Setting,
    difference,
    value,
)


def unit(job: Job) -> Outcome:
    """A score of 1 plus the arm's effect; noise that the arms of a unit share, and a little that they do not."""
    shared = np.random.default_rng(job.seed).normal()
    own = np.random.default_rng([job.seed, len(job.arm)]).normal(scale=0.05)
    return {"score": float(1 + job["effect"] + shared + own), "cost": float(np.exp(job["effect"] + own))}


def replicate(job: Job) -> Mapping[str, Outcome]:
    rng = np.random.default_rng(job.seed)
    shared = rng.normal()
    return {
        name: {"score": float(shared + shift), "cost": 1.0}
        for name, shift in (("method", 0.4), ("baseline", 0.0), ("broken", -1.0))
    }


def failing(job: Job) -> Outcome:
    """Fails at unit 1003 while the file named by TOY_FAIL exists, as an interruption would."""
    if job.seed == 1003 and Path(os.environ.get("TOY_FAIL", "/nonexistent")).exists():
        raise KeyboardInterrupt if os.environ.get("TOY_FAIL_HOW") == "interrupt" else RuntimeError("out of luck")
    return unit(job)


def erratic(job: Job) -> Outcome:
    return {"score": random.SystemRandom().random() + job["effect"], "cost": 1.0}


def not_a_number(job: Job) -> Outcome:
    bad = job.seed == 1004 and job.arm == "method"
    return {"score": float("nan") if bad else 1.0 + job["effect"], "cost": 1.0}


def diverging(job: Job) -> Outcome:
    bad = job.seed == 1004 and job.arm == "method"
    return {"score": float("nan") if bad else 1.0 + job["effect"], "cost": 1.0, "diverged": float(bad)}


def warning(job: Job) -> Outcome:
    import warnings

    warnings.warn("thin ice", stacklevel=1)
    return unit(job)


REPRODUCED = Claim(
    id="toy.C1", statement="The method beats the baseline by more than 0.2.", source="Table 1 of no paper",
    arxiv="0000.00000",
    arms=(
        Arm("method", "method", {"effect": 0.5}),
        Arm("baseline", "baseline"),
        Arm("broken", "broken", {"effect": -1.0}),
    ),
    metrics=(Metric("score", "higher"), Metric("cost", "lower", unit="s")),
    rules=(
        Rule("gain over the baseline", difference("score", "method", "baseline"), Beyond(">", 0.2, margin=0.1)),
        Rule("cost is told", LogRatio("cost", "method", "baseline"), Beyond("<"), must=False),
    ),
    sanity=(Rule("the broken arm loses", difference("score", "baseline", "broken"), Beyond(">", 0.5)),),
    n_units=12, budget_s=60, cannot_show="anything about the world", unit=unit,
    settings={"effect": Setting(0.0, "sheet")},
)  # fmt: skip


def variant(number: int, **changes: object) -> Claim:
    return replace(REPRODUCED, id=f"toy.C{number}", **changes)  # type: ignore[arg-type]


def arms(effect: float, broken: float = -1.0) -> tuple[Arm, ...]:
    return (
        Arm("method", "method", {"effect": effect}), Arm("baseline", "baseline"),
        Arm("broken", "broken", {"effect": broken}),
    )  # fmt: skip


CLAIMS = (
    REPRODUCED,
    variant(2, arms=arms(0.0)),
    variant(3, arms=arms(-0.5)),
    variant(4, arms=arms(0.5, broken=0.8)),
    variant(5, unit=failing),
    variant(6, unit=None, replicate=replicate),
    variant(7, unit=erratic),
    variant(8, unit=not_a_number),
    variant(9, unit=diverging),
    variant(10, budget_s=1e-9),
    variant(
        11,
        unit=erratic,
        deterministic=False,
        sanity=(),
        rules=(Rule("level", value("score", "method"), Inside(0.2, 1.8)),),
    ),
    variant(12, unit=warning, strata=("a", "b")),
)
