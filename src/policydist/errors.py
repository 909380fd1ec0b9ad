"""The errors a user can cause. The command line prints their text and nothing else, with exit code 1 or 2."""

from __future__ import annotations

from collections.abc import Iterable


class PolicydistError(Exception):
    """A run failed for a reason the user can mend; the text names the thing and the mend. Exit code 1."""


class UsageError(PolicydistError):
    """The request itself is wrong (unknown name, ill-typed value, missing file). Exit code 2."""


class MissingExtraError(UsageError):
    """An optional dependency is absent; the text names the pip command."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed: run pip install 'policydist[{extra}]'")
        self.module, self.extra = module, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        """Worker processes send their errors back pickled; the default would call the constructor with the text."""
        return type(self), (self.module, self.extra)


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """A phrase that offers the known names closest to ``name``: ``did you mean a, b?``, or the start of the list."""
    import difflib

    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=count, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    shown = ", ".join(options[:12])
    return f"known: {shown}{', …' if len(options) > 12 else ''}"
