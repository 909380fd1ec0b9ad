"""Where tables are printed."""

from __future__ import annotations

from rich.console import Console

WIDE = 200
"""Characters of a line that no terminal bounds."""


def screen() -> Console:
    """The terminal; lines of `WIDE` characters where there is none, in a pipe or a file."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)
