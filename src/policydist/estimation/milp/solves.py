"""Many closed-loop solves: on several processes, kept line by line, so that an interrupted evaluation goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from policydist.errors import PolicydistError, UsageError
from policydist.estimation.milp.collection import Item, Source, items
from policydist.estimation.milp.evaluation import RULES, UNUSABLE, Row, as_record, evaluate_one
from policydist.estimation.milp.folders import in_turn
from policydist.estimation.milp.policy import BranchPolicy
from policydist.estimation.milp.scip import SolverSettings


@dataclass(frozen=True)
class Request:
    """Which instances are solved by whom. A rule that is not one of SCIP's is the folder of a policy."""

    source: Source
    count: int
    rules: list[str]
    settings: SolverSettings
    seed: int = 0


@lru_cache(maxsize=4)
def _policy(folder: str) -> BranchPolicy:
    return BranchPolicy.load(Path(folder))


def solve_item(item: Item, rule: str, settings: SolverSettings) -> Row:
    """One solve, for a worker process."""
    return evaluate_one(item.load(), rule if rule in RULES else _policy(rule), settings, rule)


def solve_all(
    request: Request, out: Path | None = None, workers: int = 1, progress: Callable[[int, int], None] | None = None
) -> list[Row]:
    """Every rule on every instance, in this order. With ``out``, solves that the file holds are taken from it.

    Raises:
        UsageError: if there is no test instance, or the file is of another request.
        PolicydistError: if the file is damaged other than by a line cut short at its end.
    """
    wanted = items(request.source, "test", request.count, request.seed)
    if not wanted:
        raise UsageError("there is no test instance to solve")
    pairs = [(item, rule) for item in wanted for rule in request.rules]
    known = _read(out, request) if out is not None else {}
    keys = [f"{item.file}|{rule}" for item, rule in pairs]
    missing = [place for place, key in enumerate(keys) if key not in known]
    jobs = [(*pairs[place], replace(request.settings, seed=request.seed)) for place in missing]
    for done, (number, row) in enumerate(in_turn(solve_item, jobs, workers), 1):
        key = keys[missing[number]]
        known[key] = row
        if out is not None:
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, **as_record(row)}) + "\n")
        if progress:
            progress(len(pairs) - len(missing) + done, len(pairs))
    _warn([known[key] for key in keys])
    return [known[key] for key in keys]


def _warn(rows: list[Row]) -> None:
    import warnings

    for name, status in dict.fromkeys((row.instance, row.status) for row in rows if row.status in UNUSABLE):
        warnings.warn(f"{name} is {status}: it is counted and left out of the means", stacklevel=3)


def _read(out: Path, request: Request) -> dict[str, Row]:
    """The solves that a file holds; its first line says what they are of."""
    place = request.source.name if hasattr(request.source, "name") else str(request.source.path)
    settings = replace(request.settings, seed=request.seed)
    header = {"format": "milp-solves/1", "source": place, "settings": repr(settings)}
    if not out.is_file():
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    lines = out.read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise PolicydistError(f"{out}, line {number}: not JSON; remove the file and start again") from None
            # A kill cut the last line short: that solve is done again, on a line of its own.
            out.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    if not rows or rows[0] != header:
        raise UsageError(f"{out} holds solves of other instances or settings; give another --out")
    values: list[dict[str, Any]] = [{k: math.nan if v is None else v for k, v in row.items()} for row in rows[1:]]
    return {row.pop("key"): Row(**row) for row in values}
