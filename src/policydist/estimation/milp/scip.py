"""SCIP through PySCIPOpt: building and reading instances, solver settings, and a branching rule that calls a function.

PySCIPOpt swallows what a callback raises, so the rule keeps the error, interrupts the solve and `solve` raises it again.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policydist.errors import MissingExtraError, PolicydistError, UsageError
from policydist.estimation.milp.instance import MILP, matrix

SUFFIXES = (".mps", ".lp", ".mps.gz", ".lp.gz")
"""File names that are taken for instances."""
RULE_PRIORITY = 10_000_000
RULE_NAME = "policydist"


def scip() -> Any:
    """The module ``pyscipopt``.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        import pyscipopt
    except ImportError:
        raise MissingExtraError("pyscipopt", "milp") from None
    return pyscipopt


@dataclass(frozen=True)
class SolverSettings:
    """How SCIP is set before a solve. The paper's scripts: cuts at the root only, no restarts, permutation seeds."""

    time_limit: float | None = 800.0
    """Seconds of processor time; None for no limit."""
    node_limit: int | None = None
    """Nodes; unlike the time limit it gives the same result on every machine."""
    cuts: bool = True
    """Cutting planes at the root."""
    heuristics: bool = True
    presolve: bool = True
    seed: int = 0
    """Permutes rows and columns, and seeds every random choice of SCIP."""

    def __post_init__(self) -> None:
        if (self.time_limit is not None and self.time_limit <= 0) or (
            self.node_limit is not None and self.node_limit < 1
        ):
            raise UsageError("limits: time_limit must be positive and node_limit at least 1")


SMALL = SolverSettings(time_limit=60.0, cuts=False, heuristics=False)
"""For small instances, whose trees would be cut away otherwise."""


def build(milp: MILP, settings: SolverSettings) -> Any:
    """A SCIP model of the instance.

    Raises:
        MissingExtraError: without PySCIPOpt.
    """
    handle, name = tempfile.mkstemp(suffix=".mps")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(milp.to_mps())
        model = _load(Path(name))
    finally:
        os.unlink(name)
    _apply(model, settings)
    return model


def _apply(model: Any, settings: SolverSettings) -> None:
    off = scip().SCIP_PARAMSETTING.OFF
    seed = settings.seed % 2**31
    values: dict[str, Any] = {
        "separating/maxrounds": 0, "presolving/maxrestarts": 0, "timing/clocktype": 1, "parallel/maxnthreads": 1,
        "randomization/permutationseed": seed, "randomization/permutevars": True, "randomization/randomseedshift": seed,
    }  # fmt: skip
    if not settings.cuts:
        values["separating/maxroundsroot"] = 0
    if settings.time_limit is not None:
        values["limits/time"] = settings.time_limit
    if settings.node_limit is not None:
        values["limits/totalnodes"] = settings.node_limit
    model.setParams(values)
    if not settings.heuristics:
        model.setHeuristics(off)
    if not settings.presolve:
        model.setPresolve(off)


def _load(path: Path) -> Any:
    model = scip().Model()
    model.hideOutput()
    with _silent():
        model.readProblem(str(path))
    return model


@contextmanager
def _silent() -> Iterator[None]:
    """SCIP writes what is wrong with a file to the process's standard error; our own line says it instead."""
    kept = os.dup(2)
    with open(os.devnull, "w", encoding="ascii") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def read_instance(path: Path) -> MILP:
    """Read an MPS or LP file, plain or gzipped, by SCIP's own readers.

    Raises:
        UsageError: if the file is absent or not named like an instance.
        PolicydistError: if SCIP cannot read it, or it holds something else than linear rows; the file is named.
        MissingExtraError: without PySCIPOpt.
    """
    if not path.is_file():
        raise UsageError(f"no instance file {path}")
    if not path.name.endswith(SUFFIXES):
        raise UsageError(f"{path} is not called like an instance ({', '.join(SUFFIXES)})")
    try:
        return _convert(_load(path), path.name.partition(".")[0])
    except MissingExtraError:
        raise
    except PolicydistError as problem:
        raise type(problem)(f"{path}: {problem}") from None
    except Exception as problem:  # PySCIPOpt raises plain Exception for some of SCIP's return codes
        raise PolicydistError(f"{path} is corrupt or not an MPS/LP file ({problem}); fetch it again") from None


def _convert(model: Any, name: str) -> MILP:
    variables = model.getVars()
    place = {variable.name: j for j, variable in enumerate(variables)}
    if not variables:
        raise PolicydistError("holds no variable; fetch it again")
    infinity = model.infinity()
    row, column, value, low, high = [], [], [], [], []
    for i, constraint in enumerate(model.getConss(transformed=False)):
        if not constraint.isLinear():
            raise PolicydistError(f"row {constraint.name} is not linear; only mixed-integer linear programs are read")
        low.append(model.getLhs(constraint))
        high.append(model.getRhs(constraint))
        for variable, coefficient in model.getValsLinear(constraint).items():
            row.append(i)
            column.append(place[variable])
            value.append(coefficient)
    bounds = np.array([(v.getLbOriginal(), v.getUbOriginal()) for v in variables]).T
    sides = [np.array(low), np.array(high), bounds[0], bounds[1]]
    kinds = {"BINARY": "B", "CONTINUOUS": "C"}
    where = (np.array(row, dtype=np.int64), np.array(column, dtype=np.int64), np.array(value, dtype=float))
    low_, high_, lower, upper = (np.where(np.abs(s) >= infinity, np.copysign(np.inf, s), s) for s in sides)
    return MILP(
        name, "max" if model.getObjectiveSense() == "maximize" else "min", np.array([v.getObj() for v in variables]),
        matrix(where, len(low), len(variables)), low_, high_, lower, upper,
        np.array([kinds.get(v.vtype(), "I") for v in variables]), model.getObjoffset(), tuple(place),
    )  # fmt: skip


Chooser = Callable[[Any, list[Any]], int | None]
"""Given the model and its fractional candidates, the position of the one to branch on; None leaves it to SCIP's rules."""


def include_rule(model: Any, choose: Chooser) -> list[BaseException]:
    """Put ``choose`` in front of SCIP's branching rules. Errors that it raises are appended to the returned list."""
    module = scip()
    errors: list[BaseException] = []

    class Rule(module.Branchrule):  # type: ignore[name-defined]
        def branchexeclp(self, allowaddcons: bool) -> dict[str, Any]:
            try:
                found = self.model.getLPBranchCands()
                # Only those of highest priority may be branched on.
                candidates = found[0][: found[4]]
                chosen = choose(self.model, candidates)
                if chosen is None:
                    return {"result": module.SCIP_RESULT.DIDNOTRUN}
                self.model.branchVar(candidates[chosen])
            except BaseException as problem:
                errors.append(problem)
                self.model.interruptSolve()
                return {"result": module.SCIP_RESULT.DIDNOTRUN}
            return {"result": module.SCIP_RESULT.BRANCHED}

        def branchexecext(self, allowaddcons: bool) -> dict[str, Any]:
            return {"result": module.SCIP_RESULT.DIDNOTRUN}

        def branchexecps(self, allowaddcons: bool) -> dict[str, Any]:
            return {"result": module.SCIP_RESULT.DIDNOTRUN}

    rule = Rule()
    model.includeBranchrule(rule, RULE_NAME, "chooses by a Python function", RULE_PRIORITY, -1, 1.0)
    return errors


def solve(model: Any, errors: list[BaseException] | None = None) -> str:
    """Optimise and return SCIP's status; an error of the branching function is raised here."""
    model.optimize()
    if errors:
        raise errors[0]
    return str(model.getStatus())


def statistics(model: Any) -> dict[str, Any]:
    """SCIP's own statistics tables of a finished solve."""
    handle, name = tempfile.mkstemp(suffix=".json")
    os.close(handle)
    try:
        model.writeStatisticsJson(name)
        return dict(json.loads(Path(name).read_text(encoding="utf-8", errors="replace")))
    finally:
        os.unlink(name)
