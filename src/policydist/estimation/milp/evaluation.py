"""Closed-loop evaluation: a policy or one of SCIP's rules branches in SCIP, and what the solve cost is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from policydist.errors import UsageError, nearest
from policydist.estimation.milp.instance import MILP
from policydist.estimation.milp.metrics import fair_nodes, gap, primal_dual_integral, shifted_geometric_mean
from policydist.estimation.milp.policy import BranchPolicy
from policydist.estimation.milp.scip import (
    RULE_NAME,
    SMALL,
    SolverSettings,
    build,
    include_rule,
    scip,
    solve,
    statistics,
)
from policydist.estimation.milp.state import extract

RULES = {
    "random": "a random fractional variable",
    "mostinf": "the most fractional variable",
    "pscost": "pseudo-costs",
    "relpscost": "reliability branching, SCIP's default",
    "vanillafullstrong": "full strong branching without side effects, the expert",
}
"""SCIP's own rules that are compared."""
UNUSABLE = ("infeasible", "unbounded", "inforunbd")
LIMITS = ("timelimit", "nodelimit", "totalnodelimit", "memlimit")


@dataclass(frozen=True)
class Row:
    """One solve."""

    instance: str
    rule: str
    status: str
    nodes: int
    """Nodes of the tree, as SCIP counts them."""
    fair_nodes: int
    """Nodes + 2 · (domain reductions + cutoffs that the branching rule itself found)."""
    lps: int
    time: float
    """Seconds of processor time."""
    gap: float
    """|primal − dual| / |primal| at the end."""
    integral: float
    """Primal-dual integral, seconds."""
    objective: float
    """Best value found; NaN without a solution."""
    solved: bool
    """Whether the limit was not hit. Solves that hit it stay in every average, with what they cost until then."""


def check_rule(name: str) -> None:
    """Raise UsageError for a rule that is not compared; the nearest names are offered."""
    if name not in RULES:
        raise UsageError(f"no branching rule is called {name!r}: {nearest(name, RULES)}")


def evaluate_one(
    milp: MILP, rule: BranchPolicy | str, settings: SolverSettings = SMALL, name: str = "", start: float = 0.0
) -> Row:
    """Solve one instance with a policy, which branches on the candidate of largest score, or with a rule of SCIP.

    Args:
        start: the integral counts from this second; the paper's SCIP script takes 2.

    Raises:
        UsageError: for an unknown rule.
        MissingExtraError: without PySCIPOpt.
    """
    errors: list[BaseException] = []
    if isinstance(rule, str):
        check_rule(rule)
        model = build(milp, settings)
        model.setParam(f"branching/{rule}/priority", 5_000_000)
    else:
        model = build(milp, settings)
        errors = include_rule(model, _greedy(rule))
    trace = _Trace(model)
    status = solve(model, errors)
    trace.note(model)
    if status in UNUSABLE:
        trace.forget()
    own = (
        statistics(model)
        .get("branchrules", {})
        .get("plugins", {})
        .get(rule if isinstance(rule, str) else RULE_NAME, {})
    )
    nodes = int(model.getNTotalNodes())
    found = model.getNSols() > 0
    primal, dual = _bounds(model)
    return Row(
        milp.name, name or (rule if isinstance(rule, str) else "policy"), status, nodes,
        fair_nodes(nodes, int(own.get("ndomreds", 0)), int(own.get("ncutoffs", 0))), int(model.getNLPs()),
        float(model.getSolvingTime()), gap(primal, dual), primal_dual_integral(*trace.columns(), start=start),
        float(model.getObjVal()) if found else math.nan, status not in LIMITS,
    )  # fmt: skip


def _greedy(policy: BranchPolicy) -> Callable[[Any, list[Any]], int]:
    def choose(model: Any, candidates: list[Any]) -> int:
        if len(candidates) == 1:
            return 0
        scores = policy.scores(extract(model))
        return int(np.argmax(scores[[variable.getCol().getLPPos() for variable in candidates]]))

    return choose


def _bounds(model: Any) -> tuple[float, float]:
    """Primal and dual bound, infinite where there is none yet."""
    infinity = model.infinity()
    values = (float(model.getPrimalbound()), float(model.getDualbound()))
    primal, dual = (v if abs(v) < infinity else math.copysign(math.inf, v) for v in values)
    return primal, dual


class _Trace:
    """Bounds over time, noted after every node and every better solution."""

    def __init__(self, model: Any) -> None:
        module = scip()
        self.rows: list[tuple[float, float, float]] = []
        trace = self

        class Handler(module.Eventhdlr):  # type: ignore[name-defined]
            def eventinit(self) -> None:
                for event in (module.SCIP_EVENTTYPE.NODESOLVED, module.SCIP_EVENTTYPE.BESTSOLFOUND):
                    self.model.catchEvent(event, self)

            def eventexit(self) -> None:
                for event in (module.SCIP_EVENTTYPE.NODESOLVED, module.SCIP_EVENTTYPE.BESTSOLFOUND):
                    self.model.dropEvent(event, self)

            def eventexec(self, event: Any) -> None:
                trace.note(self.model)

        model.includeEventhdlr(Handler(), "policydist_trace", "bounds over time")

    def note(self, model: Any) -> None:
        self.rows.append((float(model.getSolvingTime()), *_bounds(model)))

    def forget(self) -> None:
        self.rows = []

    def columns(self) -> tuple[list[float], list[float], list[float]]:
        times, primal, dual = zip(*self.rows, strict=True) if self.rows else ((), (), ())
        return list(times), list(primal), list(dual)


def evaluate(
    rules: Mapping[str, BranchPolicy | str],
    instances: Iterable[MILP],
    settings: SolverSettings = SMALL,
    seed: int = 0,
) -> list[Row]:
    """Every rule on every instance, with the same permutation seed for all rules of an instance."""
    return [
        evaluate_one(milp, rule, replace(settings, seed=seed), name)
        for milp in instances
        for name, rule in rules.items()
    ]


def summarise(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Per rule: shifted geometric means (10 for counts, 1 for times and integrals), mean gap, unsolved, unusable.

    Instances that are infeasible or unbounded are counted and left out of the means: no rule branches on them.

    Raises:
        UsageError: if no instance is left.
    """
    table: dict[str, dict[str, float]] = {}
    for rule in dict.fromkeys(row.rule for row in rows):
        mine = [row for row in rows if row.rule == rule]
        used = [row for row in mine if row.status not in UNUSABLE]
        if not used:
            raise UsageError("every instance is infeasible or unbounded; there is nothing to compare")
        table[rule] = {
            **{
                name: shifted_geometric_mean([float(getattr(row, name)) for row in used], shift)
                for name, shift in (
                    ("nodes", 10.0),
                    ("fair_nodes", 10.0),
                    ("lps", 10.0),
                    ("time", 1.0),
                    ("integral", 1.0),
                )
            },
            "gap": float(np.mean([row.gap for row in used])),
            "instances": float(len(used)),
            "unsolved": float(sum(not row.solved for row in used)),
            "unusable": float(len(mine) - len(used)),
        }
    return table


def as_record(row: Row) -> dict[str, Any]:
    """A row as JSON-able data; NaN becomes None."""
    return {
        key: None if isinstance(value, float) and math.isnan(value) else value for key, value in asdict(row).items()
    }
