"""A user's own reward function, in the convention of TRL: the same function works in both.

    def reward(prompts, completions, **columns) -> list[float]

``prompts`` and ``completions`` are lists, one entry a response. For rows whose prompt is a string both hold strings;
for rows whose prompt is a list of chat messages, a prompt is that list and a completion is
``[{"role": "assistant", "content": text}]``, as in TRL. Every other column of the rows arrives by its name as a list of
the same length, with None where a row lacks it. The function returns one finite number a response.

TRL passes some arguments of its own besides, so a function for both ends its parameters with ``**kwargs``.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policydist.errors import UsageError, nearest
from policydist.language.tasks.base import Grader, Row


@dataclass(frozen=True)
class UserReward:
    """A grader that calls a user's function; ``spec``, its ``module:function``, names it in errors."""

    spec: str
    function: Callable[..., Any]

    def __call__(self, responses: Sequence[str], rows: Sequence[Row]) -> Sequence[float]:
        rewards: Sequence[float] = self.function(**trl_arguments(responses, rows))
        return rewards


def python_function(spec: str) -> Grader:
    """A grader from ``module:function``, the module being installed or lying in the working directory.

    Raises:
        UsageError: when the module or the function is not found, fails to import, or is not callable.
    """
    return UserReward(spec, load_function(spec))


def load_function(spec: str) -> Callable[..., Any]:
    """The callable that ``module:function`` names.

    Raises:
        UsageError: naming what is missing or what the import raised.
    """
    module_name, colon, name = spec.partition(":")
    if not (colon and module_name and name) or not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(f"reward function {spec!r} is not of the form module:function")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # last, so that a file in the working directory cannot replace an installed module
        importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise UsageError(
                f"reward function {spec}: no module {error.name!r} is installed or in {Path.cwd()}"
            ) from error
        raise UsageError(f"reward function {spec}: importing {module_name} failed: {error}") from error
    except Exception as error:
        raise UsageError(
            f"reward function {spec}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    function = getattr(found, name, None)
    if function is None:
        raise UsageError(f"reward function {spec}: {module_name} has no {name!r}: {nearest(name, _callables(found))}")
    if not callable(function):
        raise UsageError(f"reward function {spec}: {name} is a {type(function).__name__}, not a function")
    result: Callable[..., Any] = function
    return result


def trl_arguments(responses: Sequence[str], rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The keyword arguments of a TRL reward function: prompts, completions and one list a column."""
    names = dict.fromkeys(name for row in rows for name in row if name not in ("prompt", "prompts", "completions"))
    completions: list[Any] = [
        response if isinstance(row["prompt"], str) else [{"role": "assistant", "content": response}]
        for response, row in zip(responses, rows, strict=True)
    ]
    columns = {str(name): [row.get(name) for row in rows] for name in names}
    return {"prompts": [row["prompt"] for row in rows], "completions": completions, **columns}


def _callables(module: Any) -> list[str]:
    return [name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))]
