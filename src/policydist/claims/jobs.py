"""Finding claims by name and running single jobs; this is what worker processes import."""

from __future__ import annotations

import importlib
import math
import os
import pkgutil
import resource
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from policydist.claims.declare import Claim, Job, Outcome
from policydist.errors import PolicydistError, UsageError, nearest

MACHINERY = {"check", "conditions", "declare", "engines", "estimands", "jobs", "journal", "judge", "record", "runner", "schema",
             "statistics"}  # fmt: skip
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def available() -> list[str]:
    """Slugs that have a claim file."""
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return sorted(name for name in found - MACHINERY if not name.startswith("_"))


def module_of(slug: str) -> ModuleType:
    """The claim module of a slug; a dotted name is taken as a module anywhere on the path.

    Raises:
        UsageError: if there is none (near names offered).
    """
    if "." in slug:
        return importlib.import_module(slug)
    if slug not in available():
        raise UsageError(f"no claim for {slug!r}; {nearest(slug, available())}")
    return importlib.import_module(f"policydist.claims.{slug}")


def load(slug: str) -> tuple[Claim, ...]:
    """The claims of a paper, C1 first.

    Raises:
        UsageError: if there is no such claim file.
        PolicydistError: if the file declares claims of another paper, the same id twice, or no C1.
    """
    module = module_of(slug)
    claims: tuple[Claim, ...] = tuple(getattr(module, "CLAIMS", ()))
    ids = [claim.id for claim in claims]
    if len(set(ids)) != len(ids) or not claims or not claims[0].primary:
        raise PolicydistError(f"{module.__file__}: CLAIMS must hold different claims, C1 first; it holds {ids}")
    if len({claim.slug for claim in claims}) != 1 or (
        module.__name__.startswith("policydist.") and claims[0].slug != slug
    ):
        raise PolicydistError(f"{module.__file__}: all claim ids must begin with the slug; found {ids}")
    return claims


def find(slug: str, claim_id: str) -> Claim:
    """One claim by its id.

    Raises:
        UsageError: if the paper has no such claim.
    """
    claims = {claim.id: claim for claim in load(slug)}
    if claim_id not in claims:
        raise UsageError(f"no claim {claim_id!r}; {nearest(claim_id, claims)}")
    return claims[claim_id]


@dataclass(frozen=True)
class Task:
    """One job by name, so that nothing but text travels to a worker. ``arm`` is empty for a whole replication."""

    slug: str
    claim_id: str
    arm: str
    seed: int
    stratum: str
    smoke: bool
    repeat: bool = False

    @property
    def key(self) -> str:
        """Name of the job in the journal."""
        return f"{'repeat:' if self.repeat else ''}{self.stratum}/{self.seed}/{self.arm}"


def single_thread() -> None:
    """Initialise a worker: one thread in every numerical library, and Ctrl-C left to the parent."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"


def perform(task: Task) -> dict[str, Any]:
    """Run one job and return its journal entry.

    Raises:
        PolicydistError: naming the job, if the experiment itself raises or returns something else than numbers.
    """
    claim = find(task.slug, task.claim_id)
    arm = next((arm for arm in claim.arms if arm.name == task.arm), None)
    job = Job(task.arm, task.seed, task.stratum, claim.resolved(arm, task.smoke))
    _limit_torch()
    started, wall, cpu = time.time(), time.perf_counter(), time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            outcomes = {task.arm: claim.unit(job)} if claim.unit else _all_arms(claim, job)
            rows = [row for name, outcome in outcomes.items() for row in _rows(claim, name, outcome)]
        except Exception as problem:
            where = f"{task.claim_id}, arm {task.arm or 'all'}, seed {task.seed}, stratum {task.stratum}"
            raise PolicydistError(f"{where}: {type(problem).__name__}: {problem}") from problem
    return {
        "key": task.key, "repeat": task.repeat, "seed": task.seed, "stratum": task.stratum, "arm": task.arm,
        "rows": rows, "started": started, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu,
        "rss_mb": _peak_rss_mb(), "warnings": sorted({f"{w.category.__name__}: {w.message}" for w in caught}),
    }  # fmt: skip


def _all_arms(claim: Claim, job: Job) -> Mapping[str, Outcome]:
    assert claim.replicate is not None  # a claim has one of the two
    return claim.replicate(job)


def _limit_torch() -> None:
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def _rows(claim: Claim, arm: str, outcome: Outcome) -> list[dict[str, Any]]:
    if arm not in {known.name for known in claim.arms}:
        raise ValueError(f"the unit returned arm {arm!r}, which is not declared")
    rest = dict(outcome)
    diverged = bool(rest.pop("diverged", 0.0))
    names = {metric.name for metric in claim.metrics}
    if set(rest) - names:
        raise ValueError(f"the unit returned metrics that are not declared: {sorted(set(rest) - names)}")
    rows = []
    for name, value in rest.items():
        numbers = _numbers(value)
        row: dict[str, Any] = {"metric": name, "arm": arm, "diverged": diverged}
        row["value"] = _finite(sum(numbers) / len(numbers)) if numbers else None
        if not _is_single(value):
            row["inner"] = [_finite(number) for number in numbers]
        rows.append(row)
    return rows


def _is_single(value: object) -> bool:
    return not hasattr(value, "__len__")


def _numbers(value: Any) -> list[float]:
    items: Sequence[Any] = [value] if _is_single(value) else list(value)
    return [float(item) for item in items]


def _finite(number: float) -> float | None:
    """JSON knows no NaN; None stands for every number that is not finite."""
    return number if math.isfinite(number) else None


def settings_of(claim: Claim, smoke: bool) -> Mapping[str, Mapping[str, Any]]:
    """Resolved settings by arm."""
    return {arm.name: claim.resolved(arm, smoke) for arm in claim.arms}
