"""Configs are frozen dataclasses; this module reads them from YAML and ``key=value`` words and writes them back.

Every error names the key, what was given and what is allowed, and is raised before anything is run or written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from policydist.errors import UsageError, nearest

C = TypeVar("C")


def build(cls: type[C], data: Mapping[str, Any], where: str = "") -> C:
    """Make the dataclass ``cls`` from plain data, checking keys and types all the way down.

    Raises:
        UsageError: for an unknown key (nearest names offered), a missing one or a value of the wrong type or range.
    """
    if not isinstance(data, Mapping):
        raise UsageError(f"{where or cls.__name__}: expected settings as key: value, got {data!r}")
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in dataclasses.fields(cls) if field.init}  # type: ignore[arg-type]
    values = {}
    for key, value in data.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in known:
            raise UsageError(f"{path} is not a setting: {nearest(str(key), known)}")
        values[key] = _convert(hints[key], value, path)
    missing = [
        name for name, field in known.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise UsageError(f"{where or cls.__name__}: {', '.join(missing)} must be given")
    try:
        return cls(**values)
    except (ValueError, TypeError) as problem:
        raise UsageError(f"{where or cls.__name__}: {problem}") from None


def _convert(hint: Any, value: Any, path: str) -> Any:
    nested = _dataclass_of(hint)
    if nested is not None and isinstance(value, Mapping):
        return build(nested, value, path)
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        return TypeAdapter(hint, config=None if nested else ConfigDict(arbitrary_types_allowed=True)).validate_python(
            value
        )
    except ValidationError as problem:
        reason = problem.errors()[0]["msg"]
        raise UsageError(f"{path}: {value!r} will not do ({reason[0].lower()}{reason[1:]})") from None


def _dataclass_of(hint: Any) -> Any:
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def plain(config: Any) -> dict[str, Any]:
    """The config as nested dictionaries of YAML-able values."""

    def simple(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): simple(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [simple(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return typing.cast(dict[str, Any], simple(dataclasses.asdict(config)))


def digest(data: Any) -> str:
    """SHA-256 of plain data in canonical JSON."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UsageError: if the file is absent, not YAML (with the line), or not a mapping.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise UsageError(f"cannot read config {path}: {problem.strerror}") from None
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path}: not UTF-8 text ({problem.reason} at byte {problem.start})") from None
    except yaml.YAMLError as problem:
        line = getattr(getattr(problem, "problem_mark", None), "line", 0) + 1
        raise UsageError(f"{path}, line {line}: not valid YAML ({getattr(problem, 'problem', problem)})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path}: expected settings as key: value, got {type(data).__name__}")
    return data


def write_yaml(data: Mapping[str, Any]) -> str:
    """The settings as YAML text, in their order."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)


def assign(data: dict[str, Any], words: Iterable[str], sections: Mapping[str, type], top: Collection[str] = ()) -> None:
    """Apply ``key=value`` words in place. A key is dotted (``train.lr``), the bare name of a setting that only one section has,
    or one of ``top``, the settings outside all sections.

    Values are read as YAML, so ``lr=1e-3``, ``clip=null`` and ``budgets=[4, 8]`` all work.
    """
    for word in words:
        key, separator, text = word.partition("=")
        if not separator:
            raise UsageError(f"--set {word}: write it as key=value")
        path = key.split(".")
        if len(path) == 1 and key not in top:
            homes = [name for name, cls in sections.items() if key in {f.name for f in dataclasses.fields(cls)}]
            if len(homes) != 1:
                options = [f"{name}.{f.name}" for name, cls in sections.items() for f in dataclasses.fields(cls)]
                hint = (
                    f"write {' or '.join(f'{home}.{key}' for home in homes)}"
                    if homes
                    else nearest(key, [*_bare(options), *top])
                )
                raise UsageError(f"--set {word}: {'ambiguous' if homes else f'no setting {key}'}; {hint}")
            path = [homes[0], key]
        place = data
        for step in path[:-1]:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise UsageError(f"--set {word}: {step} holds {place!r}, not settings")
        try:
            place[path[-1]] = yaml.safe_load(text)
        except yaml.YAMLError:
            place[path[-1]] = text


def _bare(options: Iterable[str]) -> list[str]:
    return sorted({option.rpartition(".")[2] for option in options})
