"""``policydist papers`` and ``policydist show``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from policydist import catalog, experiment
from policydist.claims import record
from policydist.cli.main import show_json
from policydist.cli.screen import screen
from policydist.errors import UsageError, nearest


def papers(family: str | None, words: str, as_json: bool) -> int:
    """List the papers that match."""
    verdicts = record.verdicts()
    found: list[dict[str, Any]] = [
        {
            "slug": paper.slug, "title": paper.title, "arxiv": paper.arxiv, "family": paper.family,
            "implemented": catalog.implemented(paper.slug), "verdict": verdicts.get(paper.slug),
        }
        for paper in catalog.search(words, family)
    ]  # fmt: skip
    if as_json:
        show_json(found)
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("slug", "title", "arXiv", "family", "ready", "claim"):
        table.add_column(column, no_wrap=column != "title")
    for row in found:
        ready = "yes" if row["implemented"] else ""
        # A line a paper: the column gives way to narrow terminals.
        title = Text(row["title"], no_wrap=True, overflow="ellipsis")
        table.add_row(row["slug"], title, row["arxiv"], row["family"], ready, row["verdict"] or "")
    console = screen()
    console.print(table)
    console.print(f"{len(found)} papers, {sum(bool(row['implemented']) for row in found)} implemented")
    return 0


def describe(slug: str) -> dict[str, Any]:
    """Everything `show` prints, as plain data.

    Raises:
        UsageError: for a slug that is neither a paper nor a baseline.
    """
    known = {paper.slug for paper in catalog.papers()}
    owners = {name: family for family in experiment.FAMILIES for name in experiment.names(family)}
    if slug not in known and slug not in owners:
        raise UsageError(f"no paper or baseline is called {slug!r}: {nearest(slug, known | set(owners))}")
    data: dict[str, Any] = {"slug": slug}
    if slug in known:
        data |= dataclasses.asdict(catalog.get(slug))
        data["implemented"] = catalog.implemented(slug)
        data["verdict"] = record.verdicts().get(slug)
    if slug in owners:
        method: Any = import_module(f"policydist.{owners[slug]}.methods").load(slug)
        data["about"] = (method.__doc__ or "").strip()
        data["knobs"] = {field.name: default(field) for field in dataclasses.fields(method.Config)}
        data["knobs_help"] = " ".join((method.Config.__doc__ or "").split())
        data["knob_help"] = knob_help(method.Config)
        data["differences"] = list(getattr(method, "DIFFERENCES", ()))
        given = "--data FILE" if owners[slug] == "estimation" else getattr(method, "EXAMPLE", "--task arithmetic")
        data["run"] = f"policydist train {slug} {given}".strip()
        if slug in known:
            data["claim"] = f"policydist claim {slug}"
    return data


def default(field: dataclasses.Field[Any]) -> Any:
    """What a knob is if nothing is said."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def knob_help(config: type) -> dict[str, str]:
    """The strings written under the fields of a config and of those that it inherits from."""
    texts: dict[str, str] = {}
    for cls in reversed([cls for cls in config.__mro__ if dataclasses.is_dataclass(cls)]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for field, below in itertools.pairwise(body.body):
            if (
                isinstance(field, ast.AnnAssign)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[ast.unparse(field.target)] = " ".join(str(below.value.value).split())
    return texts


def show(slug: str, as_json: bool) -> int:
    """Print one paper or baseline."""
    data = describe(slug)
    if as_json:
        show_json(data)
        return 0
    console = Console()
    if "title" in data:
        console.print(
            f"[bold]{data['title']}[/]  arXiv {data['arxiv']} ({data['year']}), {data['family']}", highlight=False
        )
        console.print(data["summary"])
        console.print(f"Reported: {data['headline'] or 'no number could be obtained'} ({data['headline_source']})")
        console.print(f"Official code: {data['official_code'] or 'none found'}")
        console.print(
            f"Implemented: {'yes' if data['implemented'] else 'not yet'}   Claim: {data['verdict'] or 'not run'}"
        )
    if "about" in data:
        console.print(f"\n{data['about']}")
    if "knobs" in data:
        console.print("\n[bold]Knobs[/] (--set name=value)")
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, value in data["knobs"].items():
            table.add_row(f"  {name}", str(value), data["knob_help"].get(name, ""))
        console.print(table)
        if not data["knobs_help"].startswith("Config("):  # dataclasses write the signature where there is no docstring
            console.print(data["knobs_help"])
    if data.get("differences"):
        console.print("\n[bold]Paper and released code[/]")
        for line in data["differences"]:
            console.print(f"  - {line}")
    for key in ("run", "claim"):
        if key in data:
            console.print(f"\n{data[key]}", highlight=False, markup=False, soft_wrap=True)
    return 0
