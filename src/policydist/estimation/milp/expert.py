"""The expert: strong branching on the LP candidates, and the collection of what it does (arXiv 2406.06954, section 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policydist.errors import UsageError
from policydist.estimation.milp.instance import MILP
from policydist.estimation.milp.samples import BranchSample
from policydist.estimation.milp.scip import SMALL, SolverSettings, build, include_rule, solve
from policydist.estimation.milp.state import extract
from policydist.runs.seeds import numpy_generator

INFEASIBLE_GAIN = 1e6
LEAST_GAIN = 1e-6
ITERATIONS = 100


def strong_scores(model: Any, candidates: list[Any], iterations: int = ITERATIONS) -> NDArray[np.float64] | None:
    """Scores max(Δ⁻, 1e-6) · max(Δ⁺, 1e-6) of both children's bounds over the LP's value, ``[K]``.

    Δ is 10⁶ for an infeasible child (also one beyond the incumbent). The solver's own state stays as it was, so that
    asking the expert changes nothing. None if an LP could not be solved.
    """
    value = model.getLPObjVal()
    scores = np.empty(len(candidates))
    model.startStrongbranch()
    try:
        for place, variable in enumerate(candidates):
            down, up, _, _, no_down, no_up, _, _, failed = model.getVarStrongbranch(
                variable, iterations, idempotent=True
            )
            if failed:
                return None
            gains = (INFEASIBLE_GAIN if no_down else down - value, INFEASIBLE_GAIN if no_up else up - value)
            scores[place] = max(gains[0], LEAST_GAIN) * max(gains[1], LEAST_GAIN)
    finally:
        model.endStrongbranch()
    return scores


@dataclass(frozen=True)
class CollectConfig:
    """How samples are taken from an instance."""

    per_instance: int = 10
    """Samples of an instance, after which its solve stops."""
    query: float = 0.05
    """Probability of asking the expert at a node; the root is always asked if ``root`` is set."""
    root: bool = True
    """Always ask at the root. The paper asks there like elsewhere."""
    follow: bool = True
    """Branch where the expert says after asking it (the paper); otherwise pseudo-cost branching goes on."""
    solver: SolverSettings = SMALL

    def __post_init__(self) -> None:
        if self.per_instance < 1 or not 0 < self.query <= 1:
            raise UsageError("collect: per_instance must be at least 1 and query lie in (0, 1]")


@dataclass(frozen=True)
class Collected:
    """What one instance gave."""

    samples: list[BranchSample]
    status: str
    """SCIP's status when the solve ended: ``userinterrupt`` if the wanted samples were there before."""


def collect(milp: MILP, config: CollectConfig, seed: int = 0, domain: str = "") -> Collected:
    """Solve by pseudo-cost branching; at a node with at least two fractional candidates ask the expert with probability
    ``query`` and keep state, candidates and scores. Nodes whose LPs fail are not kept.

    Raises:
        MissingExtraError: without PySCIPOpt.
    """
    rng = numpy_generator(seed, "milp", "collect")
    model = build(milp, replace(config.solver, seed=seed))
    model.setParam("branching/pscost/priority", 1_000_000)
    samples: list[BranchSample] = []

    def choose(model: Any, candidates: list[Any]) -> int | None:
        asked = rng.random() < config.query or (config.root and model.getDepth() == 0)
        if not asked or len(candidates) < 2:
            return None
        state = extract(model)
        columns = np.array([variable.getCol().getLPPos() for variable in candidates], dtype=np.int32)
        scores = strong_scores(model, candidates)
        if scores is None:
            return None
        depth = int(model.getDepth())
        samples.append(BranchSample(state, columns, scores, domain, milp.name, depth))
        if len(samples) >= config.per_instance:
            model.interruptSolve()
            return None
        return int(np.argmax(scores)) if config.follow else None

    status = solve(model, include_rule(model, choose))
    return Collected(samples, status)
