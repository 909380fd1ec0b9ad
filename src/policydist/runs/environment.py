"""What a run ran on: packages, processor, memory, git commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "policydist", "torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scipy", "scikit-learn", "pandas",
    "trl", "verl", "ray", "reasoning-gym", "math-verify", "gymnasium", "pyscipopt",
)  # fmt: skip


def git_state(where: Path) -> tuple[str | None, bool]:
    """The commit checked out at ``where`` and whether tracked files differ from it; ``(None, False)`` outside git.

    Recorded results are no part of what is run: one record written does not make the next one's tree look changed.
    """
    try:
        commit = subprocess.run(
            ["git", "-C", str(where), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "-C", str(where), "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results"],
            capture_output=True, text=True, timeout=10, check=True,
        ).stdout.strip()  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None, False
    return commit, bool(status)


def versions() -> dict[str, str]:
    """Installed versions of the packages that can change a result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def describe(where: Path | None = None) -> dict[str, Any]:
    """The environment as one JSON-able mapping; ``where`` is the source checkout looked at for the git commit."""
    import psutil

    commit, dirty = git_state(where or Path(__file__).resolve().parent)
    return {
        "git_commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": versions(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "ram_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "os": platform.platform(),
    }
