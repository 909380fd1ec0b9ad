"""From raw rows to effects and a verdict. Pure: no clock, no files, no experiment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policydist.claims import statistics
from policydist.claims.conditions import ORDER, SMALL, Evidence
from policydist.claims.declare import Claim, Metric, Quorum, Rule
from policydist.claims.statistics import Array

Row = Mapping[str, Any]  # one line of the record's raw list: unit, stratum, arm, metric, value, diverged, inner, wall_s


class Table:
    """Scores by metric, arm and stratum, units in seed order; diverged ones at the worst observed value, normalised
    if asked.
    """

    def __init__(self, claim: Claim, rows: Sequence[Row]) -> None:
        self.claim = claim
        self.faults: list[str] = []
        self.diverged = {arm.name: 0 for arm in claim.arms}
        self._scores: dict[tuple[str, str, str], Array] = {}
        for metric in claim.metrics:
            for stratum in claim.strata:
                mine = [row for row in rows if row["metric"] == metric.name and row["stratum"] == stratum]
                if mine:
                    self._fill(metric, stratum, mine)
        marked = {(row["arm"], row["stratum"], row["unit"]) for row in rows if row["diverged"]}
        for arm, _, _ in marked:
            self.diverged[arm] += 1

    def _fill(self, metric: Metric, stratum: str, rows: list[Row]) -> None:
        worst = _worst(metric, rows)
        random, reference = metric.normalise.get(stratum, (0.0, 1.0))
        units = sorted({int(row["unit"]) for row in rows})
        for arm in self.claim.arms:
            mine = sorted((row for row in rows if row["arm"] == arm.name), key=lambda row: int(row["unit"]))
            if mine and [int(row["unit"]) for row in mine] != units:  # else pairs would be made of different units
                self.faults.append(f"{metric.name} of {arm.name} is not there once in every unit ({stratum})")
            values = [self._value(metric, row, worst) for row in mine]
            if len({np.shape(value) for value in values}) > 1:
                self.faults.append(
                    f"{metric.name} of {arm.name} has a different number of inner draws in different units"
                )
            elif values:
                scores = np.array(values, dtype=float)
                self._scores[metric.name, arm.name, stratum] = (scores - random) / (reference - random)

    def _value(self, metric: Metric, row: Row, worst: float | None) -> Any:
        value = row["inner"] if row.get("inner") else row["value"]
        shape = np.shape(value)
        if row["diverged"] and worst is not None:
            return np.full(shape, worst)
        numbers = np.array(np.nan if value is None else value, dtype=float)
        if not np.isfinite(numbers).all():
            self.faults.append(f"{metric.name} of {row['arm']} is not finite in unit {row['unit']} ({row['stratum']})")
        return numbers

    def of(self, stratum: str) -> Any:
        """The look-up that estimands take.

        Raises:
            KeyError: for scores that were not returned.
        """
        return lambda metric, arm: self._scores[metric, arm, stratum]


def _worst(metric: Metric, rows: Sequence[Row]) -> float | None:
    seen = [
        row["value"] for row in rows if not row["diverged"] and row["value"] is not None and math.isfinite(row["value"])
    ]
    if not seen or metric.better == "none":
        return None
    if metric.better == "closer_to_zero":
        return float(max(seen, key=abs))
    return float(min(seen) if metric.better == "higher" else max(seen))


@dataclass(frozen=True)
class Finding:
    """What one rule found: the effect as the record writes it, and the verdict."""

    rule: Rule
    effect: dict[str, Any]
    verdict: str
    reason: str

    def row(self) -> dict[str, Any]:
        """The rule's entry in the record."""
        return {
            "name": self.rule.name, "must": self.rule.must, "effect": self.effect,
            "threshold": self.rule.passes.threshold(), "verdict": self.verdict, "reason": self.reason,
        }  # fmt: skip


def examine(rule: Rule, table: Table, level: float, alpha: float = 0.05) -> Finding:
    """Estimate, interval and verdict of one rule; ``alpha`` is what the exact test of few units must reach."""
    strata = rule.strata or table.claim.strata
    estimand = rule.estimand
    try:
        parts = [estimand.components(table.of(stratum), rule.aggregate) for stratum in strata]
        pieces = [estimand.contrasts(table.of(stratum)) for stratum in strata]
    except KeyError as missing:
        return Finding(rule, _effect(rule, level, None, None), "invalid", f"no scores for {missing}")
    except ValueError as problem:
        return Finding(rule, _effect(rule, level, None, None), "invalid", f"arms do not match unit by unit ({problem})")
    if not all(np.isfinite(part).all() for part in parts):
        return Finding(
            rule, _effect(rule, level, None, None), "invalid", f"{estimand.describe()} is not finite in some unit"
        )
    estimate = statistics.evaluate(parts, lambda sample: estimand.statistic(sample, rule.aggregate))
    replicates = statistics.bootstrap(parts, lambda sample: estimand.statistic(sample, rule.aggregate))
    if not math.isfinite(estimate) or not np.isfinite(replicates).all():
        return Finding(rule, _effect(rule, level, None, None), "invalid", f"{estimand.describe()} is not finite")
    evidence = _evidence(rule, estimate, replicates, pieces, parts, level, alpha)
    verdict, reason = rule.passes.judge(evidence)
    return Finding(rule, _effect(rule, level, evidence, replicates), verdict, reason)


def _evidence(
    rule: Rule,
    estimate: float,
    replicates: Array,
    pieces: list[Array | None],
    parts: list[Array],
    level: float,
    alpha: float,
) -> Evidence:
    flat = [piece for piece in pieces if piece is not None]
    contrasts = np.concatenate([p if p.ndim == 1 else p.mean(axis=-1) for p in flat]) if flat else None
    values = np.concatenate([p.ravel() for p in flat]) if flat else np.array([estimate])
    interval = statistics.percentile_interval(replicates, level)
    wide = statistics.percentile_interval(replicates, statistics.equivalence_level(level))
    if rule.interval == "wilson":
        outcomes = np.concatenate([part[0].ravel() for part in parts])
        interval, wide = (
            statistics.wilson(int(outcomes.sum()), outcomes.size, width)
            for width in (level, statistics.equivalence_level(level))
        )
        return Evidence(estimate, interval, wide, 1 - level, None, values)
    return Evidence(estimate, interval, wide, alpha, contrasts, values)


def _effect(rule: Rule, level: float, evidence: Evidence | None, replicates: Array | None) -> dict[str, Any]:
    nested = "nested " if evidence is not None and evidence.values.size > _units(evidence) else ""
    method = "Wilson" if rule.interval == "wilson" else f"{nested}paired percentile bootstrap"
    row: dict[str, Any] = {
        "estimand": f"{rule.aggregate} of {rule.estimand.describe()}", "estimate": None, "ci": None, "level": level,
        "method": method,
        "resamples": statistics.RESAMPLES, "bootstrap_seed": statistics.BOOTSTRAP_SEED, "equivalence_ci": None,
        "p_signflip": None, "p_bootstrap": None, "prob_improvement": None, "prob_improvement_ci": None,
        "mean": None, "median": None, "iqm": None, "sd": None, "n_contrasts": None, "power": None,
    }  # fmt: skip
    if evidence is None or replicates is None:
        return row
    row |= {
        "estimate": evidence.estimate,
        "ci": list(evidence.interval),
        "equivalence_ci": list(evidence.equivalence_interval),
    }
    row["p_bootstrap"] = _p_bootstrap(rule, replicates)
    few = evidence.contrasts
    if few is None:
        return row
    flips = statistics.sign_flip(few, side="two-sided") if few.size < SMALL else None
    better = statistics.bootstrap([few[None]], lambda sample: statistics.probability_of_improvement(sample[0]))
    return row | {
        "p_signflip": flips, "prob_improvement": float(statistics.probability_of_improvement(few)),
        "prob_improvement_ci": list(statistics.percentile_interval(better, level)), "mean": float(few.mean()),
        "median": float(np.median(few)), "iqm": float(statistics.interquartile_mean(few)),
        "sd": float(few.std(ddof=1)) if few.size > 1 else None, "n_contrasts": int(few.size),
        "power": _power(rule, few, level),
    }  # fmt: skip


def _power(rule: Rule, contrasts: Array, level: float) -> float | None:
    """Power against the claimed minimum effect with the spread that was found; None where no minimum is claimed."""
    size = rule.passes.threshold()["min_effect"]
    if not isinstance(size, int | float) or size == 0 or contrasts.size < 2:
        return None
    return statistics.power(float(contrasts.std(ddof=1)), float(size), contrasts.size, level)


def _units(evidence: Evidence) -> int:
    return evidence.contrasts.size if evidence.contrasts is not None else evidence.values.size


def _p_bootstrap(rule: Rule, replicates: Array) -> float | None:
    threshold = rule.passes.threshold()
    direction = threshold["direction"]
    if direction not in (">", "<"):
        return None
    size = threshold.get("bound", threshold["min_effect"])
    bound = float(size) if isinstance(size, int | float) else 0.0
    if "bound" not in threshold and direction == "<":
        bound = -bound
    return statistics.bootstrap_p(replicates, bound, "greater" if direction == ">" else "less")


@dataclass(frozen=True)
class Judgement:
    """The outcome of a claim."""

    verdict: str
    reason: str
    findings: tuple[Finding, ...]
    rules: tuple[dict[str, Any], ...]
    sanity: tuple[dict[str, Any], ...]
    diverged: Mapping[str, int]


def judge(claim: Claim, rows: Sequence[Row], level: float, checks: Sequence[Mapping[str, Any]] = ()) -> Judgement:
    """Verdict of a claim: `invalid` if a check or a sanity rule fails, else the worst verdict of its must rules.

    Args:
        checks: results of checks made by the runner, ``{"check": ..., "ok": ..., "detail": ...}``.
    """
    table = Table(claim, rows)
    rows_out, findings, verdicts = [], [], []
    for item in claim.rules:
        found = [examine(rule, table, level) for rule in (item.rules if isinstance(item, Quorum) else (item,))]
        findings += found
        rows_out += [
            finding.row() | ({"quorum": item.name, "must": False} if isinstance(item, Quorum) else {})
            for finding in found
        ]
        verdict, reason = _quorum(item, found) if isinstance(item, Quorum) else (found[0].verdict, found[0].reason)
        if isinstance(item, Quorum):
            rows_out.append(
                {"name": item.name, "must": item.must, "need": item.need, "verdict": verdict, "reason": reason}
            )
        if item.must:
            verdicts.append((verdict, reason and f"{item.name}: {reason}"))
    sanity = [_sanity(rule, table) for rule in claim.sanity] + [dict(check) for check in checks]
    faults = table.faults[:1] + [
        f"sanity check failed: {row['check']} ({row['detail']})" for row in sanity if not row["ok"]
    ]
    verdict, reason = max(verdicts, key=lambda pair: ORDER.index(pair[0]))  # max keeps the first of equals
    if faults:
        verdict, reason = "invalid", "; ".join(faults)
    return Judgement(verdict, reason, tuple(findings), tuple(rows_out), tuple(sanity), table.diverged)


def _quorum(item: Quorum, found: Sequence[Finding]) -> tuple[str, str]:
    ranked = sorted(found, key=lambda finding: ORDER.index(finding.verdict))
    deciding = ranked[item.need - 1]
    return deciding.verdict, deciding.reason and f"{deciding.rule.name}: {deciding.reason}"


def _sanity(rule: Rule, table: Table) -> dict[str, Any]:
    finding = examine(rule, table, 0.95, alpha=1.0)  # so that a run on a few development seeds can pass
    estimate, interval = finding.effect["estimate"], finding.effect["ci"]
    shown = "" if estimate is None else f"{estimate:.4g} [{interval[0]:.4g}, {interval[1]:.4g}]"
    return {"check": rule.name, "ok": finding.verdict == "reproduced", "detail": finding.reason or shown}
