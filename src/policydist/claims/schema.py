"""The shape of a record, checked wherever one is read; fields beyond these are allowed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA = "claim-result/1"
Verdict = Literal["reproduced", "direction_only", "not_separated", "null", "contradicted", "invalid"]
Interval = tuple[float, float]


class _Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Paper(_Open):
    """Which paper the claim is of."""

    slug: str
    arxiv: str


class ArmEntry(_Open):
    """An arm and the hash of its resolved settings."""

    name: str
    role: str
    config_sha256: str


class MetricEntry(_Open):
    """A metric, its unit and which way is better."""

    name: str
    unit: str
    better: Literal["higher", "lower", "closer_to_zero", "none"]


class Design(_Open):
    """What was repeated, how often, with which seeds."""

    unit: str
    n_units: int = Field(ge=1)
    paired: bool
    seeds: tuple[int, int]
    strata: list[str] = Field(min_length=1)
    full_design: bool


class RawRow(_Open):
    """One number of one arm in one unit."""

    unit: int
    stratum: str
    arm: str
    metric: str
    value: float | None
    diverged: bool
    wall_s: float


class Effect(_Open):
    """An estimate with its interval; both are None where the data gave no number."""

    estimand: str
    estimate: float | None
    ci: Interval | None
    level: float = Field(gt=0, lt=1)
    method: str
    resamples: int
    bootstrap_seed: int
    p_signflip: float | None
    prob_improvement: float | None
    iqm: float | None


class RuleEntry(_Open):
    """A rule's outcome; a quorum has no effect of its own."""

    name: str
    must: bool
    verdict: Verdict
    reason: str
    effect: Effect | None = None
    threshold: dict[str, Any] | None = None


class SanityEntry(_Open):
    """A check that must hold for the verdict to count."""

    check: str
    ok: bool


class TimeEntry(_Open):
    """When and how long."""

    started_utc: str
    wall_s: float
    cpu_s: float
    budget_s: float


class Record(_Open):
    """One claim run."""

    format: Literal["claim-result/1"] = Field(alias="schema")
    claim_id: str
    claim_version: int = Field(ge=1)
    paper: Paper
    statement: str
    preregistered_sha256: str
    primary: bool
    arms: list[ArmEntry] = Field(min_length=1)
    metric: MetricEntry
    design: Design
    raw: list[RawRow] = Field(min_length=1)
    effect: Effect
    threshold: dict[str, Any]
    verdict: Verdict
    reason: str
    rules: list[RuleEntry] = Field(min_length=1)
    sanity: list[SanityEntry]
    deviations: list[dict[str, Any]]
    tuning: dict[str, Any]
    cannot_show: str
    env: dict[str, Any]
    time: TimeEntry
    history: list[dict[str, Any]]
