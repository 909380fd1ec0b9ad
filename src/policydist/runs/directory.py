"""The run directory: config, environment, metrics and status of one run, never overwritten, every file written whole.

<run>/config.yaml         the resolved config
<run>/environment.json    packages, processor, git commit
<run>/metrics.jsonl       one JSON object a step
<run>/status.json         running | finished | interrupted | failed, with the step
<run>/checkpoints/        see `policydist.runs.checkpoint`
<run>/model/              the trained policy, in the format it was loaded from
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policydist.errors import PolicydistError, UsageError
from policydist.runs import environment
from policydist.runs.config import digest, plain, read_yaml, write_yaml


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name in the same folder, then rename: readers see the old or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def fresh_name(parent: Path, stem: str) -> Path:
    """A path under ``parent`` that does not exist yet: ``<stem>-<UTC time>``, with a number if two start in one second."""
    base = f"{stem}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
    candidates = [base, *(f"{base}-{count}" for count in range(2, 1000))]
    return next(parent / name for name in candidates if not (parent / name).exists())


class Run:
    """One run directory, open for writing."""

    def __init__(self, path: Path, start_step: int = 0) -> None:
        self.path = path
        self.start_step = start_step

    @classmethod
    def create(cls, path: Path, config: Any) -> Run:
        """Make the directory and write config and environment.

        Raises:
            UsageError: if the directory exists and is not empty, or cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(f"{path} exists; give another --out, or continue it with --resume {path}")
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_whole(path / "config.yaml", write_yaml(plain(config)))
            about = {"config_sha256": digest(plain(config)), **environment.describe()}
            write_whole(path / "environment.json", json.dumps(about, indent=2))
        except OSError as problem:
            raise UsageError(f"cannot write run directory {path}: {problem.strerror}; give a writable --out") from None
        run = cls(path)
        run.status("running", 0)
        return run

    @classmethod
    def reopen(cls, path: Path, config: Any, step: int) -> Run:
        """Continue a run from ``step``: the config must be the stored one, and metrics after ``step`` are dropped.

        Raises:
            UsageError: if there is no run, or its config differs (the first differing key is named) or was edited.
        """
        stored, wanted = read_config(path), plain(config)
        if digest(stored) != digest(wanted):
            key = next(k for k in sorted(stored.keys() | wanted.keys()) if stored.get(k) != wanted.get(k))
            raise UsageError(
                f"{path}: config changed ({_first_difference(key, stored.get(key), wanted.get(key))}); "
                "resume with the stored config, or start a new run"
            )
        if digest(stored) != read_environment(path).get("config_sha256"):
            raise UsageError(
                f"{path / 'config.yaml'}: config changed since the run began; restore the file, or start a new run"
            )
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_whole(path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
        run = cls(path, start_step=step)
        run.status("running", step)
        return run

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one step's metrics."""
        with (self.path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def status(self, state: str, step: int, **more: Any) -> None:
        """Record where the run stands."""
        write_whole(self.path / "status.json", json.dumps({"state": state, "step": step, "time": time.time(), **more}))


def _first_difference(key: str, old: Any, new: Any) -> str:
    while isinstance(old, dict) and isinstance(new, dict):
        name = next(k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k))
        key, old, new = f"{key}.{name}", old.get(name), new.get(name)
    return f"{key} was {old!r}, now {new!r}"


def read_config(path: Path) -> dict[str, Any]:
    """The stored config of a run as plain data.

    Raises:
        UsageError: if ``path`` is not a run directory.
    """
    if not (path / "config.yaml").is_file():
        raise UsageError(f"{path} is not a run directory (no config.yaml in it)")
    return read_yaml(path / "config.yaml")


def read_environment(path: Path) -> dict[str, Any]:
    """What a run started on, with the hash of its config.

    Raises:
        PolicydistError: if it cannot be read.
    """
    try:
        return dict(json.loads((path / "environment.json").read_text()))
    except (OSError, ValueError) as problem:
        raise PolicydistError(f"{path / 'environment.json'} cannot be read ({problem}); start a new run") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All metric rows of a run; a last line cut short by a kill is passed over.

    Raises:
        PolicydistError: if another line is not JSON.
    """
    file = path / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number < len(lines):
                raise PolicydistError(f"{file}, line {number}: not JSON; the file was changed by hand") from None
    return rows


def read_status(path: Path) -> dict[str, Any]:
    """Where a run stands, or ``{"state": "unknown"}``."""
    file = path / "status.json"
    return json.loads(file.read_text()) if file.is_file() else {"state": "unknown"}
