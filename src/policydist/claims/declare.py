"""The declaration of a claim: everything that is fixed before the first confirmation run.

``claims/<slug>.py`` defines ``CLAIMS: tuple[Claim, ...]``; C1 is the primary claim and alone decides the paper's badge.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from policydist.claims.conditions import LEAST, SMALL, Beyond, Bound, Condition, Every, Inside, Intersects, Point
from policydist.claims.estimands import Estimand
from policydist.claims.statistics import Aggregate, simultaneous_level

CONFIRMATION = range(1000, 2000)
DEVELOPMENT = range(100)

Role = Literal["method", "baseline", "ablation", "broken", "variant"]
Source = Literal["paper", "code", "default", "sheet", "reconstructed", "tuned"]
Better = Literal["higher", "lower", "closer_to_zero", "none"]
Outcome = Mapping[str, float | Sequence[float]]
"""Metrics of one arm in one unit. A sequence holds the inner draws of a nested design (victims of an attack, episodes).
The reserved key ``diverged`` (1.0) says that training blew up: its metrics (return NaN for them) then count as the
worst observed. NaN without it makes the claim `invalid`."""


@dataclass(frozen=True)
class Setting:
    """A hyperparameter or a constant of the task, with where its value comes from.

    ``sheet`` is the specification that the maintainers wrote for the small experiment before its first run.
    """

    value: Any
    source: Source


@dataclass(frozen=True)
class Arm:
    """One thing that is run. ``settings`` override the claim's, so an ablation states exactly what it removes."""

    name: str
    role: Role
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """A number that a unit returns.

    ``better`` decides what the worst value is for a diverged unit. ``normalise`` maps a stratum to fixed (random,
    reference)
    scores; the metric then becomes ``(score - random) / (reference - random)``. ``reproducible=False`` is for times.
    """

    name: str
    better: Better
    unit: str = ""
    normalise: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    reproducible: bool = True


@dataclass(frozen=True)
class Job:
    """What a unit function is told. ``job["lr"]`` reads a resolved setting; every arm of a unit has the same seed."""

    arm: str
    seed: int
    stratum: str
    settings: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]


@dataclass(frozen=True)
class Rule:
    """One condition of a claim: a number, and where it must lie. ``must=False`` is reported without deciding
    anything.
    """

    name: str
    estimand: Estimand
    passes: Condition
    must: bool = True
    aggregate: Aggregate = "mean"
    interval: Literal["bootstrap", "wilson"] = "bootstrap"
    strata: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quorum:
    """ "At least ``need`` of these": its verdict is the ``need``-th best of its rules'."""

    name: str
    need: int
    rules: tuple[Rule, ...]
    must: bool = True


@dataclass(frozen=True)
class Deviation:
    """Where the experiment leaves the paper."""

    what: str
    why: str
    tag: Literal["RECONSTRUCTED", "SCALED_DOWN", "CODE_DIFFERS", "OWN_CHOICE"] = "RECONSTRUCTED"


@dataclass(frozen=True)
class Tuning:
    """A search on development seeds: the same number of trials and the same space for every arm."""

    trials: int = 0
    space: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """One sentence of a paper that a small experiment can contradict.

    Exactly one of the two unit functions is given; both must be module-level functions, because workers import them
    by name:

    - ``unit(job) -> {metric: number}`` runs one arm of one unit;
    - ``replicate(job) -> {arm: {metric: number}}`` runs every arm of one unit at once (cheap simulations that share
      data);
      ``job.arm`` is then empty and ``job.settings`` holds the claim's own settings.

    ``sanity`` rules must all pass, or the verdict is `invalid`: the broken arm loses, the baseline reaches its known
    level.
    ``budget_s`` is wall time of the whole run. ``smoke`` overrides settings in the short runs of continuous
    integration.
    """

    id: str
    statement: str
    source: str
    arxiv: str
    arms: tuple[Arm, ...]
    metrics: tuple[Metric, ...]
    rules: tuple[Rule | Quorum, ...]
    n_units: int
    budget_s: float
    cannot_show: str
    unit: Callable[[Job], Outcome] | None = None
    replicate: Callable[[Job], Mapping[str, Outcome]] | None = None
    unit_of_replication: str = "seed"
    strata: tuple[str, ...] = ("all",)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    smoke: Mapping[str, Any] = field(default_factory=dict)
    sanity: tuple[Rule, ...] = ()
    deviations: tuple[Deviation, ...] = ()
    tuning: Tuning = field(default_factory=Tuning)
    deterministic: bool = True
    version: int = 1

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise ValueError(f"claim {self.id}: {problem}")

    @property
    def slug(self) -> str:
        """The paper's slug."""
        return self.id.partition(".")[0]

    @property
    def primary(self) -> bool:
        """Whether this claim decides the paper's badge."""
        return self.id.endswith(".C1")

    def flat_rules(self) -> Iterator[Rule]:
        """The rules, those inside quorums included."""
        for item in self.rules:
            yield from item.rules if isinstance(item, Quorum) else (item,)

    def resolved(self, arm: Arm | None = None, smoke: bool = False) -> dict[str, Any]:
        """Settings of an arm: the claim's, then the arm's, then in a smoke run the short ones."""
        values = {name: setting.value for name, setting in self.settings.items()}
        return values | dict(arm.settings if arm else {}) | (dict(self.smoke) if smoke else {})


def level_of(claim: Claim, claims: Sequence[Claim]) -> float:
    """Interval level: 0.95 for the primary claim, ``1 - 0.05/m`` for each of a paper's m secondary ones."""
    return 0.95 if claim.primary else simultaneous_level(sum(not other.primary for other in claims))


def _problems(claim: Claim) -> Iterator[str]:
    if not re.fullmatch(r"[a-z][a-z0-9_]*\.C[1-9][0-9]*", claim.id):
        yield "id must read <slug>.C<number>"
    if not all((claim.statement.strip(), claim.source.strip(), claim.cannot_show.strip())):
        yield "statement, source and cannot_show must say something"
    if (claim.unit is None) == (claim.replicate is None):
        yield "give either unit (one arm at a time) or replicate (all arms at once)"
    if not 1 <= claim.n_units <= len(CONFIRMATION):
        yield f"n_units must lie in 1..{len(CONFIRMATION)}, got {claim.n_units}"
    if claim.budget_s <= 0 or claim.version < 1:
        yield "budget_s must be positive and version at least 1"
    names = [arm.name for arm in claim.arms]
    if len(set(names)) != len(names) or not names:
        yield "arm names must be there and differ"
    if not any(rule.must for rule in claim.rules):
        yield "at least one rule must decide the verdict (must=True)"
    elif not claim.rules[0].must or isinstance(claim.rules[0], Quorum):
        yield "the first rule is the one shown in tables: a single rule with must=True"
    yield from _rule_problems(claim, set(names))


def _rule_problems(claim: Claim, arms: set[str]) -> Iterator[str]:
    metrics = {metric.name for metric in claim.metrics}
    for rule in (*claim.flat_rules(), *claim.sanity):
        for metric, arm in rule.estimand.uses():
            if metric not in metrics:
                yield f"rule {rule.name!r} reads metric {metric!r}, which is not declared"
            if arm not in arms:
                yield f"rule {rule.name!r} reads arm {arm!r}, which is not declared"
        if set(rule.strata) - set(claim.strata):
            yield f"rule {rule.name!r} names strata {rule.strata}, the claim has {claim.strata}"
    for item in claim.rules:
        if isinstance(item, Quorum) and not 1 <= item.need <= len(item.rules):
            yield f"quorum {item.name!r} needs {item.need} of {len(item.rules)} rules"
    for rule in claim.flat_rules():
        contrasts = claim.n_units * len(rule.strata or claim.strata)
        if not (rule.must and rule.interval == "bootstrap" and rule.passes.needs_interval()):
            continue
        if not rule.estimand.exact_test() and contrasts < SMALL:
            yield f"rule {rule.name!r} has no exact test to set beside the bootstrap; take at least {SMALL} units"
        if contrasts < LEAST:
            yield f"rule {rule.name!r}: {contrasts} units never reach p <= 0.05 in the exact test; take {LEAST} or more"


__all__ = [
    "CONFIRMATION", "DEVELOPMENT", "Arm", "Beyond", "Bound", "Claim", "Deviation", "Every", "Inside", "Intersects",
    "Job", "Metric", "Outcome", "Point", "Quorum", "Rule", "Setting", "Tuning", "level_of",
]  # fmt: skip
