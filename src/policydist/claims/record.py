"""Records: one JSON file a claim, written whole, checked when read, and the only source of tables and figures.

Nothing heavy is imported here, because the catalogue reads verdicts at every start.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policydist.errors import PolicydistError, UsageError

UNREADABLE = "unreadable"


def data_home() -> Path:
    """The user's data folder: ``$POLICYDIST_HOME``, or ``policydist`` under the XDG data directory."""
    home = os.environ.get("POLICYDIST_HOME")
    if home:
        return Path(home)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "policydist"


def results_dir() -> Path:
    """``results/`` of the source checkout that this package runs from, or of the user's data folder."""
    root = Path(__file__).resolve().parents[3]
    checkout = (root / "pyproject.toml").is_file() and (root / "src" / "policydist").is_dir()
    return (root if checkout else data_home()) / "results"


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def committed(path: Path) -> tuple[bool | None, str | None]:
    """Whether ``path`` stands in git exactly as it is on disk, and the commit that wrote it; ``(None, None)`` without
    git.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(path.parent), *words, "--", path.name]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        subprocess.run(["git", "-C", str(path.parent), "rev-parse"], capture_output=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, None
    try:
        git("ls-files", "--error-unmatch")
        if git("status", "--porcelain"):
            return False, None
        return True, git("log", "-1", "--format=%H") or None
    except (OSError, subprocess.SubprocessError):
        return False, None


def write(record: Mapping[str, Any], folder: Path) -> Path:
    """Write ``<folder>/<claim_id>.json`` whole. An earlier run's verdict there moves into ``history``.

    Raises:
        PolicydistError: if the folder cannot be written, or the file there is damaged.
    """
    from policydist.runs.directory import write_whole

    path = folder / f"{record['claim_id']}.json"
    history = [*record["history"]]
    if path.is_file():
        old = read(path)
        entry = {key: old.get(key) for key in ("claim_version", "verdict", "preregistered_sha256", "rules_sha256")}
        history = [*old["history"], {**entry, "started_utc": old["time"]["started_utc"]}]
    data = check({**record, "history": history}, str(path))
    try:
        write_whole(path, json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    except OSError as problem:
        raise PolicydistError(f"cannot write {path}: {problem.strerror}; give a writable results folder") from None
    return path


def check(data: Any, where: str) -> dict[str, Any]:
    """The record itself, if it has the right shape.

    Raises:
        PolicydistError: naming ``where`` and the first wrong field.
    """
    from pydantic import ValidationError

    from policydist.claims.schema import Record

    try:
        Record.model_validate(data)
    except ValidationError as problem:
        first = problem.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise PolicydistError(f"{where} is not a claim record: {field}: {first['msg']}; run the claim again") from None
    return dict(data)


def read(path: Path) -> dict[str, Any]:
    """Read and check one record.

    Raises:
        UsageError: if there is no such file.
        PolicydistError: if it is not JSON or has the wrong shape.
    """
    return check(_json(path), str(path))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"cannot read record {path}: {problem.strerror}; run the claim first") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as problem:
        raise PolicydistError(f"{path} is not a claim record: not JSON ({problem}); run the claim again") from None


def files(folder: Path) -> list[Path]:
    """The record files of a results folder."""
    return sorted(folder.glob("*.C*.json")) if folder.is_dir() else []


def verdicts(folder: Path | None = None) -> dict[str, str]:
    """Badge by slug: the verdict of each paper's primary claim; ``unreadable`` where the file is damaged."""
    found = {}
    for path in files(folder or results_dir()):
        if path.stem.endswith(".C1"):
            try:
                found[path.stem.partition(".")[0]] = str(_json(path)["verdict"])
            except (PolicydistError, KeyError, TypeError):
                found[path.stem.partition(".")[0]] = UNREADABLE
    return found


def summary(record: Mapping[str, Any]) -> dict[str, Any]:
    """The row of the summary table."""
    effect = record["effect"]
    return {
        "claim_id": record["claim_id"], "verdict": record["verdict"], "reason": record["reason"],
        "estimate": effect["estimate"], "ci": effect["ci"], "level": effect["level"], "threshold": record["threshold"],
        "n_units": record["design"]["n_units"],
        "full_design": record["design"]["full_design"], "wall_s": record["time"]["wall_s"],
        "deviations": len(record["deviations"]),
    }  # fmt: skip


def overview(folder: Path | None = None) -> dict[str, Any]:
    """Summary rows of every record, with the false greens to expect among primary claims and the false-discovery list
    at 10 %.
    """
    from policydist.claims.statistics import benjamini_hochberg

    records = [read(path) for path in files(folder or results_dir())]
    primary = [record for record in records if record["primary"]]
    p_values = {
        r["claim_id"]: r["effect"]["p_bootstrap"] for r in primary if r["effect"].get("p_bootstrap") is not None
    }
    return {
        "rows": [summary(record) for record in records],
        "expected_false_greens": 0.025 * len(primary),
        "false_discovery_list": benjamini_hochberg(p_values, 0.10),
    }


def problems(folder: Path | None = None) -> list[str]:
    """What continuous integration fails on: `invalid`, stale or silently changed records. `contradicted` is not among
    them.
    """
    found: list[str] = []
    for path in files(folder or results_dir()):
        try:
            record = read(path)
        except PolicydistError as problem:
            found.append(str(problem))
            continue
        found += [f"{record['claim_id']}: {text}" for text in _faults(record)]
    return found


def _faults(record: Mapping[str, Any]) -> list[str]:
    from policydist.claims.jobs import find, module_of

    slug = record.get("module") or record["paper"]["slug"]
    found = []
    if record["verdict"] == "invalid":
        found.append(f"invalid: {record['reason']}")
    if not record["design"]["full_design"]:
        found.append("a run on fewer units or other seeds stands among the published results")
    if record.get("committed") is False:
        found.append("the claim file was not committed before the run")
    earlier = [old for old in record["history"] if old["claim_version"] == record["claim_version"]]
    if any(old["verdict"] != record["verdict"] for old in earlier):
        found.append(f"verdict changed within version {record['claim_version']}; raise the claim's version")
    try:
        claim, file = find(slug, record["claim_id"]), module_of(slug).__file__
    except (PolicydistError, ImportError) as problem:
        return [*found, f"its claim file cannot be loaded ({problem})"]
    if claim.version < record["claim_version"]:
        found.append(f"the record is of version {record['claim_version']}, the claim file declares {claim.version}")
    stale = file is not None and file_digest(Path(file)) != record["preregistered_sha256"]
    if stale and claim.version <= record["claim_version"]:
        found.append("claim file changed since the run; run it again, with a raised version if a rule changed")
    return found
