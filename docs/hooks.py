"""Marks in pages that are filled from the code, so that the site cannot fall behind it.

<!-- source path/file.py Class.method -->   the code of a function, method or class
<!-- file path/file.py -->                  a whole file
<!-- knobs slug -->                         a method's settings with their defaults, and what they mean
<!-- differences slug -->                   where paper, released code and the method part
<!-- status -->                             how many papers of each family are implemented
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

from policydist import catalog
from policydist.language import methods
from policydist.language.objectives import LossConfig

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^<!-- (source|file|knobs|differences|status)((?: \S+)*) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """MkDocs calls this for every page."""

    def fill(mark: re.Match[str]) -> str:
        try:
            return FILLERS[mark[1]](*mark[2].split())
        except Exception as problem:
            raise PluginError(f"{page.file.src_path}: {mark[0]}: {problem}") from problem

    return MARK.sub(fill, markdown)


def source(path: str, name: str) -> str:
    """The code of one definition."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found: Any = ast.parse(text)
    for part in name.split("."):
        found = next(node for node in found.body if getattr(node, "name", None) == part)
    first = min([found.lineno, *(node.lineno for node in found.decorator_list)])
    lines = text.splitlines()[first - 1 : found.end_lineno]
    return fenced(path, textwrap.dedent("\n".join(lines)))


def file(path: str) -> str:
    """A whole file."""
    return fenced(path, (ROOT / path).read_text(encoding="utf-8"))


def fenced(path: str, code: str) -> str:
    return f'```python title="{path}"\n{code.rstrip()}\n```'


def knobs(slug: str) -> str:
    """The settings that a method adds, or sets otherwise than the shared loss does."""
    method: Any = methods.load(slug)
    shared = {field.name: field.default for field in dataclasses.fields(LossConfig)}
    rows, same = [], []
    for field in dataclasses.fields(method.Config):
        if field.name in shared and shared[field.name] == field.default:
            same.append(f"`{field.name}`")
        else:
            rows.append(f"| `{field.name}` | `{shown(field.default)}` |")
    table = "\n".join(["| knob | default |", "|---|---|", *rows]) if rows else "None of its own."
    about = inspect.cleandoc(method.Config.__doc__ or "")
    rest = f"As in [the shared loss](baselines.md#the-shared-loss): {', '.join(same)}." if same else ""
    return f"{table}\n\n{about}\n\n{rest}"


def shown(default: Any) -> str:
    """A default as one would write it after ``--set name=``."""
    if default is None:
        return "null"
    return str(default).lower() if isinstance(default, bool) else str(default)


def shared_loss() -> str:
    """The settings of the shared loss."""
    rows = [f"| `{field.name}` | `{shown(field.default)}` |" for field in dataclasses.fields(LossConfig)]
    return "\n".join(["| knob | default |", "|---|---|", *rows, "", inspect.cleandoc(LossConfig.__doc__ or "")])


def differences(slug: str) -> str:
    """The method's DIFFERENCES as a list."""
    method: Any = methods.load(slug)
    return "\n".join(f"- {line}" for line in method.DIFFERENCES)


def status() -> str:
    """Papers and implemented papers by family."""
    papers = catalog.papers()
    every = Counter(paper.family for paper in papers)
    done = Counter(paper.family for paper in papers if catalog.implemented(paper.slug))
    rows = [f"| {name} | {every[name]} | {done[name]} |" for name in catalog.FAMILIES if every[name]]
    total = f"| **all** | **{len(papers)}** | **{sum(done.values())}** |"
    return "\n".join(["| family | papers | implemented |", "|---|--:|--:|", *rows, total])


FILLERS: dict[str, Callable[..., str]] = {
    "source": source,
    "file": file,
    "knobs": lambda slug: shared_loss() if slug == "shared" else knobs(slug),
    "differences": differences,
    "status": status,
}
