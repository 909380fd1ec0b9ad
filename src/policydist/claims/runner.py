"""Run a claim: every arm in every unit, on all cores, resumable, judged, recorded.

Published runs use confirmation seeds (1000 onwards) and the declared number of units. Runs limited by ``seeds`` or
``smoke`` use
development seeds (0 onwards), so the confirmation seeds stay unseen, and their records go to ``<state>/development``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from policydist.claims import engines, record
from policydist.claims.declare import CONFIRMATION, DEVELOPMENT, Claim, level_of
from policydist.claims.jobs import Task, find, load, module_of, settings_of
from policydist.claims.journal import Journal
from policydist.claims.judge import Judgement, judge
from policydist.claims.schema import SCHEMA
from policydist.errors import UsageError
from policydist.runs.config import digest

Engine = Literal["local", "ray"]
SMOKE_UNITS = 2
RERUN_UNITS = 2


@dataclass(frozen=True)
class Progress:
    """What the progress callback is told after each finished job (once before the first)."""

    claim_id: str
    done: int
    total: int


@dataclass(frozen=True)
class Plan:
    """A claim run before it starts: which units, with which hashes."""

    slug: str
    claim: Claim
    level: float
    units: range
    smoke: bool
    full: bool
    file: Path
    file_sha256: str
    rules_sha256: str

    def tasks(self) -> list[Task]:
        """Every job; a full run ends with a repetition of its first and last unit."""
        arms = [arm.name for arm in self.claim.arms] if self.claim.unit else [""]
        where = [(seed, stratum, arm) for seed in self.units for stratum in self.claim.strata for arm in arms]
        again = {self.units[0], self.units[-1]} if self.full else set()

        def task(seed: int, stratum: str, arm: str, repeat: bool) -> Task:
            return Task(self.slug, self.claim.id, arm, seed, stratum, self.smoke, repeat)

        return [task(*w, False) for w in where] + [task(*w, True) for w in where if w[0] in again]

    def digest(self) -> str:
        """What a journal must agree with: claim file, rules, settings, units."""
        config = settings_of(self.claim, self.smoke)
        return digest([self.file_sha256, self.rules_sha256, config, list(self.units), self.smoke])


def plan(slug: str, claim_id: str, seeds: int | None = None, smoke: bool = False) -> Plan:
    """Resolve a request.

    Raises:
        UsageError: for an unknown slug or claim, or more units than there are development seeds.
    """
    claim = find(slug, claim_id)
    if seeds is not None and not 1 <= seeds <= len(DEVELOPMENT):
        raise UsageError(f"--seeds {seeds}: give 1 to {len(DEVELOPMENT)}, or leave it out for the full design")
    limited = seeds is not None or smoke
    count = min(claim.n_units, seeds or SMOKE_UNITS) if limited else claim.n_units
    start = (DEVELOPMENT if limited else CONFIRMATION).start
    file = Path(str(module_of(slug).__file__))
    return Plan(
        slug, claim, level_of(claim, load(slug)), range(start, start + count), smoke, not limited, file,
        record.file_digest(file), _rules_digest(claim),
    )  # fmt: skip


def _rules_digest(claim: Claim) -> str:
    """Hash of what may not change within a version: everything that decides the verdict, wording and functions left
    out.
    """
    free = {"unit", "replicate", "source", "statement", "cannot_show", "deviations", "version", "arxiv", "smoke"}
    return digest({field.name: repr(getattr(claim, field.name)) for field in fields(claim) if field.name not in free})


def run_claim(
    slug: str,
    claim_id: str,
    *,
    seeds: int | None = None,
    smoke: bool = False,
    engine: Engine = "local",
    workers: int | None = None,
    results_dir: Path | None = None,
    state_dir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    allow_uncommitted: bool = False,
) -> dict[str, Any]:
    """Run one claim, write its record and return it. An interrupted run continues from its journal.

    Args:
        slug: the paper's slug, or the dotted name of a module with ``CLAIMS``.
        seeds: run only so many units, on development seeds; the record is then not published.
        smoke: two development units with the claim's short settings.
        workers: processes; all cores by default, 1 runs inside this process.
        allow_uncommitted: run the full design though the claim file is not committed; the record says so.

    Raises:
        UsageError: unknown claim, uncommitted claim file, or rules changed without a new version.
        PolicydistError: an experiment raised; the jobs finished before it are kept.
        MissingExtraError: ``engine="ray"`` without Ray.
    """
    wanted = plan(slug, claim_id, seeds, smoke)
    published, state = results_dir or record.results_dir(), state_dir or record.data_home() / "claims"
    folder = published if wanted.full else state / "development"
    in_git, commit = record.committed(wanted.file)
    if wanted.full:
        _guard(wanted, published, in_git, allow_uncommitted)
    workers = workers or engines.cores()
    journal = Journal(state / "journal", claim_id, wanted.digest())
    _work(wanted, journal, engine, workers, progress or (lambda _: None))
    entries = [journal.done[task.key] for task in wanted.tasks()]
    result = _record(wanted, entries, journal.sessions) | {"committed": in_git, "preregistered_commit": commit}
    result["env"] |= {"threads": 1, "workers": workers, "engine": engine}
    record.write(result, folder)
    journal.remove()
    return record.read(folder / f"{claim_id}.json")


def run_paper(slug: str, **options: Any) -> list[dict[str, Any]]:
    """Run all claims of a paper in order; options as for `run_claim`."""
    return [run_claim(slug, claim.id, **options) for claim in load(slug)]


def _guard(wanted: Plan, published: Path, in_git: bool | None, allow_uncommitted: bool) -> None:
    if in_git is False and not allow_uncommitted:
        raise UsageError(f"commit {wanted.file.name} before its confirmation run, or try it out with --seeds K")
    path = published / f"{wanted.claim.id}.json"
    if not path.is_file():
        return
    old = record.read(path)
    if old["claim_version"] > wanted.claim.version:
        raise UsageError(
            f"{path} records version {old['claim_version']} of {wanted.claim.id}; raise version in the claim file"
        )
    if old["claim_version"] == wanted.claim.version and old.get("rules_sha256") != wanted.rules_sha256:
        raise UsageError(
            f"the rules of {wanted.claim.id} changed since {path} was recorded; raise version in the claim file"
        )


def _work(wanted: Plan, journal: Journal, engine: Engine, workers: int, progress: Callable[[Progress], None]) -> None:
    from policydist.runs.environment import git_state

    tasks = wanted.tasks()
    missing = [task for task in tasks if task.key not in journal.done]
    done = len(tasks) - len(missing)
    progress(Progress(wanted.claim.id, done, len(tasks)))
    if not missing:
        return
    journal.begin({"started": time.time(), "commit": git_state(wanted.file.parent)[0]})
    results: Iterator[dict[str, Any]] = {"local": engines.local, "ray": engines.ray}[engine](missing, workers)
    with closing(results):  # type: ignore[type-var]
        for entry in results:
            journal.add(entry)
            done += 1
            progress(Progress(wanted.claim.id, done, len(tasks)))


def _record(wanted: Plan, entries: Sequence[dict[str, Any]], sessions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from policydist.runs.environment import describe

    claim, timing = wanted.claim, _time(wanted.claim, entries, sessions)
    raw = [row for entry in entries if not entry["repeat"] for row in _raw(entry)]
    checks = [
        {
            "check": "budget",
            "ok": timing["wall_s"] <= claim.budget_s,
            "detail": f"{timing['wall_s']:.1f} of {claim.budget_s:g} s",
        }
    ]
    if wanted.full:
        checks.append(_rerun(claim, entries))
    outcome = judge(claim, raw, wanted.level, checks)
    commits = sorted({str(session["commit"]) for session in sessions})
    notes = [f"run continued over several commits: {', '.join(commits)}"] if len(commits) > 1 else []
    caught = sorted({text for entry in entries for text in entry["warnings"]})
    return {
        "schema": SCHEMA, "claim_id": claim.id, "claim_version": claim.version, "module": wanted.slug,
        "paper": {"slug": claim.slug, "arxiv": claim.arxiv}, "statement": claim.statement, "source": claim.source,
        "primary": claim.primary, "preregistered_sha256": wanted.file_sha256, "rules_sha256": wanted.rules_sha256,
        **_design(wanted), "raw": raw, **_outcome(outcome),
        "deviations": [{"what": d.what, "why": d.why, "tag": d.tag} for d in claim.deviations],
        "tuning": {"trials": claim.tuning.trials, "space": dict(claim.tuning.space)}, "cannot_show": claim.cannot_show,
        "warnings": notes + caught, "env": describe(wanted.file.parent), "time": timing, "history": [],
    }  # fmt: skip


def _design(wanted: Plan) -> dict[str, Any]:
    claim = wanted.claim
    shown = claim.rules[0].estimand.uses() if not hasattr(claim.rules[0], "rules") else set()
    first = sorted(metric for metric, _ in shown)[0]
    metrics = [{"name": m.name, "unit": m.unit, "better": m.better} for m in claim.metrics]
    arms = [
        {"name": arm.name, "role": arm.role, "config_sha256": digest(config), "settings": config}
        for arm, config in zip(claim.arms, settings_of(claim, wanted.smoke).values(), strict=True)
    ]
    return {
        "arms": arms, "metric": next(m for m in metrics if m["name"] == first), "metrics": metrics,
        "settings": {name: {"value": s.value, "source": s.source} for name, s in claim.settings.items()},
        "design": {
            "unit": claim.unit_of_replication, "n_units": len(wanted.units), "declared_units": claim.n_units,
            "paired": True, "seeds": [wanted.units[0], wanted.units[-1]], "strata": list(claim.strata),
            "full_design": wanted.full,
            "note": "" if wanted.full else "not the full design: development seeds, not published",
            "smoke": wanted.smoke,
        },
    }  # fmt: skip


def _outcome(outcome: Judgement) -> dict[str, Any]:
    first = outcome.findings[0]
    return {
        "effect": first.effect, "threshold": first.rule.passes.threshold(), "verdict": outcome.verdict,
        "reason": outcome.reason, "rules": list(outcome.rules), "sanity": list(outcome.sanity),
        "diverged": dict(outcome.diverged),
    }  # fmt: skip


def _raw(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """Long format. A replication that runs all arms at once has its time shared out evenly among them."""
    share = max(len({row["arm"] for row in entry["rows"]}), 1)
    common = {"unit": entry["seed"], "stratum": entry["stratum"]}
    cost = {"wall_s": round(entry["wall_s"] / share, 4), "cpu_s": round(entry["cpu_s"] / share, 4)}
    return [{**common, **row, **cost} for row in entry["rows"]]


def _time(claim: Claim, entries: Sequence[dict[str, Any]], sessions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Wall time counts the moments in which a job ran: an interruption adds nothing, nor do repeated units."""
    again = sum(entry["wall_s"] for entry in entries if entry["repeat"])
    entries = [entry for entry in entries if not entry["repeat"]]
    wall, end = 0.0, float("-inf")
    for start, stop in sorted((entry["started"], entry["started"] + entry["wall_s"]) for entry in entries):
        wall += max(0.0, stop - max(start, end))
        end = max(end, stop)
    per_arm = {arm.name: 0.0 for arm in claim.arms}
    for entry in entries:
        names = {row["arm"] for row in entry["rows"]}
        for name in names:
            per_arm[name] += entry["wall_s"] / len(names)
    begun = time.gmtime(min(session["started"] for session in sessions))
    return {
        "started_utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", begun), "wall_s": round(wall, 3),
        "cpu_s": round(sum(entry["cpu_s"] for entry in entries), 3), "budget_s": claim.budget_s,
        "wall_s_per_arm": {name: round(seconds, 3) for name, seconds in per_arm.items()},
        "peak_rss_mb": max(entry["rss_mb"] for entry in entries), "sessions": len(sessions),
        "rerun_s": round(again, 3),
    }  # fmt: skip


def _rerun(claim: Claim, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Whether the repeated units gave the same numbers to the last bit; for a non-deterministic claim, by how much
    they differ.
    """
    steady = {metric.name for metric in claim.metrics if metric.reproducible}

    def numbers(repeat: bool) -> dict[tuple[Any, ...], list[float | None]]:
        return {
            (entry["seed"], entry["stratum"], row["arm"], row["metric"]): row.get("inner") or [row["value"]]
            for entry in entries if entry["repeat"] is repeat for row in entry["rows"] if row["metric"] in steady
        }  # fmt: skip

    first, second = numbers(False), numbers(True)
    differing = [key for key, values in second.items() if first.get(key) != values]
    spread = max((_gap(first.get(key), second[key]) for key in differing), default=0.0)
    detail = "identical" if not differing else f"largest difference {spread:.3g}, in {differing[0]}"
    return {
        "check": f"rerun of {RERUN_UNITS} units is identical",
        "ok": not differing or not claim.deterministic,
        "detail": detail,
    }


def _gap(first: list[float | None] | None, second: list[float | None]) -> float:
    """Largest difference; infinite if the repetition returned other metrics."""
    if first is None or len(first) != len(second):
        return float("inf")
    return max(
        (abs(a - b) for a, b in zip(first, second, strict=True) if a is not None and b is not None),
        default=float("nan"),
    )
