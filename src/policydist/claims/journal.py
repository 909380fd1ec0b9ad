"""Finished jobs of an unfinished run, one JSON line each, so that a killed run continues where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from policydist.errors import PolicydistError


class Journal:
    """A JSONL file named by claim and by the hash of claim file and config; other hashes have other files.

    Opening it cuts off a last line that a kill left unfinished.
    """

    def __init__(self, state_dir: Path, claim_id: str, digest: str) -> None:
        self.path = state_dir / f"{claim_id}-{digest[:16]}.jsonl"
        self._digest = digest
        self._entries: dict[str, dict[str, Any]] = {}
        self._sessions: list[dict[str, Any]] = []
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._read()
        except OSError as problem:
            raise PolicydistError(f"cannot use journal {self.path}: {problem.strerror}; set POLICYDIST_HOME") from None

    def _read(self) -> None:
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole != len(data):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                if "session" in entry:
                    if entry["session"]["digest"] != self._digest:
                        raise PolicydistError(f"journal {self.path} belongs to another claim file or config; remove it")
                    self._sessions.append(entry["session"])
                else:
                    self._entries[entry["key"]] = entry
            except (json.JSONDecodeError, KeyError, TypeError):
                raise PolicydistError(f"{self.path}, line {number}: damaged; remove the file to start again") from None

    def begin(self, session: dict[str, Any]) -> None:
        """Note that a process starts or continues the run."""
        session = {**session, "digest": self._digest}
        self._sessions.append(session)
        self._append({"session": session})

    def add(self, entry: dict[str, Any]) -> None:
        """Keep a finished job."""
        self._entries[entry["key"]] = entry
        self._append(entry)

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    @property
    def done(self) -> dict[str, dict[str, Any]]:
        """Finished jobs by key."""
        return self._entries

    @property
    def sessions(self) -> list[dict[str, Any]]:
        """The processes that worked on this run, oldest first."""
        return self._sessions

    def remove(self) -> None:
        """Forget the run, once its record is written."""
        self.path.unlink(missing_ok=True)
