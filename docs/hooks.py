"""Marks in pages that are filled from the code, so that the site cannot fall behind it.

<!-- source path/file.py Class.method -->   the code of a function, method or class
<!-- file path/file.py -->                  a whole file
<!-- knobs slug -->                         a method's settings with their defaults, and what they mean
<!-- differences slug -->                   where paper, released code and the method part
<!-- status -->                             how many papers of each family are implemented
<!-- drawing step -->                       the six stages of a training step
<!-- drawing floors -->                     the rooms of the package, from the import contract
"""

from __future__ import annotations

import ast
import dataclasses
import html
import inspect
import re
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

from policydist import catalog
from policydist.language import methods
from policydist.language.objectives import LossConfig

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^<!-- (source|file|knobs|differences|status|drawing)((?: \S+)*) -->$", re.MULTILINE)


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


STAGES = (
    ("curriculum.select", "prompts", ""),
    ("sampler", "responses", "AEPO, DAPO, SFT"),
    ("judge", "rewards", "DAPO"),
    ("credit", "advantages", "BNPO, DCPO, AEPO, PPO …"),
    ("objective", "loss", "GSPO, PPO, SFT"),
    ("curriculum.observe", "", ""),
)


def drawing(name: str) -> str:
    """One of the drawings, as SVG in the colours of the theme."""
    return {"step": drawn_step, "floors": drawn_floors}[name]()


def svg(width: int, height: int, parts: list[str], label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}" style="width:100%;max-width:{width}px" '
        f'font-family="sans-serif" fill="currentColor" stroke="none">{"".join(parts)}</svg>'
    )


def box(x: float, y: float, width: float, text: str, note: str = "") -> str:
    """A rounded box with its name, and below the name a smaller note."""
    middle = x + width / 2
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="46" rx="6" fill="none" stroke="currentColor"/>'
        f'<text x="{middle}" y="{y + (20 if note else 28)}" text-anchor="middle" font-size="13">{html.escape(text)}</text>'
        f'<text x="{middle}" y="{y + 37}" text-anchor="middle" font-size="11" opacity="0.7">{html.escape(note)}</text>'
    )


def drawn_step() -> str:
    """The stages in a row, what passes from each to the next, and which methods change it."""
    width, parts = 130.0, []
    for number, (stage, result, changed) in enumerate(STAGES):
        x = 5 + number * (width + 30)
        middle = x + width / 2
        parts.append(box(x, 20, width, stage, f"→ {result}" if result else ""))
        parts.append(f'<text x="{middle}" y="86" text-anchor="middle" font-size="11">{html.escape(changed)}</text>')
        if number:
            parts.append(f'<path d="M{x - 28} 43 h22 m-6 -5 l6 5 l-6 5" fill="none" stroke="currentColor"/>')
    return svg(5 + len(STAGES) * 160, 95, parts, "The six stages of a training step and the methods that change them")


def drawn_floors() -> str:
    """One row a floor, rooms of the same floor side by side."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    floors = [[room.strip().removeprefix("policydist.") for room in row.split("|")] for row in contract[0]["layers"]]
    parts = []
    for number, rooms in enumerate(floors):
        width = (560 - 10 * (len(rooms) - 1)) / len(rooms)
        parts += [
            box(5 + place * (width + 10), 5 + number * 54, width, room, ROOMS.get(room, ""))
            for place, room in enumerate(rooms)
        ]
    return svg(570, 5 + 54 * len(floors), parts, "The floors of the package; a room imports only from floors below it")


ROOMS = {
    "cli": "the policydist command",
    "report": "tables, figures, static pages",
    "claims": "one experiment per paper",
    "experiment": "which family trains a method",
    "integrations": "TRL, verl",
    "language": "training loop and methods",
    "estimation": "scikit-learn style estimators",
    "runs": "run directory, config, checkpoints, seeds",
    "catalog": "the papers as data",
    "functional": "pure mathematics on tensors",
    "errors": "what a user can get wrong",
}

FILLERS: dict[str, Callable[..., str]] = {
    "source": source,
    "file": file,
    "knobs": lambda slug: shared_loss() if slug == "shared" else knobs(slug),
    "differences": differences,
    "status": status,
    "drawing": drawing,
}
