"""Every method of the estimation family, one module each: its estimator, and ``Config`` and ``train`` for the command line."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from policydist.errors import UsageError, nearest

if TYPE_CHECKING:
    from policydist.runs.directory import Run

Progress = Callable[[int, int, Mapping[str, float]], None]
"""``progress(done, total, numbers)``: one row of metrics.jsonl, shown live."""


class Method(Protocol):
    """What each module of this package provides to be run as one command.

    ``Config`` is a frozen dataclass of knobs with ``seed: int = 0`` among them. ``train`` fits on ``data`` (a file or folder
    of the user's; None: data that the module makes itself), reports through ``progress``, writes its artefacts whole under
    ``run.path`` (`summary.txt`, if there is one, is printed at the end) and returns the final metrics.
    """

    Config: type

    def train(self, config: Any, data: Path | None, run: Run, progress: Progress) -> dict[str, float]: ...


def names() -> list[str]:
    """Slugs of all methods."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(slug: str) -> Method:
    """The method's module.

    Raises:
        UsageError: for an unknown slug, with the nearest names, or a method without a command.
    """
    if slug not in names():
        raise UsageError(f"no method {slug}: {nearest(slug, names())}")
    module = importlib.import_module(f"{__name__}.{slug}")
    if not (hasattr(module, "Config") and hasattr(module, "train")):
        raise UsageError(f"{slug} has no command; use it from Python: policydist.estimation.methods.{slug}")
    return cast(Method, module)
