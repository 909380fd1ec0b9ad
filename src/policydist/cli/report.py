"""``policydist report``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from policydist.cli.main import Report


def report(asked: Report) -> int:
    """Write the report and say where it is."""
    from policydist.report import site

    page = site.write(asked.out, asked.runs, asked.results)
    print(f"report: {page}")
    return 0
