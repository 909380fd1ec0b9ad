"""Short first-person doubts that reopen a question which looked settled; each begins a thought."""

from __future__ import annotations

from pathlib import Path

from policydist.errors import UsageError

HINTS: tuple[str, ...] = tuple(
    f"<think>{doubt}</think>"
    for doubt in (
        "Did I miss a step?",
        "I should look again.",
        "That may be only half of it.",
        "I am not sure of this yet.",
        "Is that what was asked?",
        "One more search may help.",
        "I answered too soon.",
        "Let me check the facts.",
        "Something is missing here.",
        "I have not seen it all.",
        "Maybe I took a wrong turn.",
        "I could ask in another way.",
        "I need better evidence.",
        "Let me read that once more.",
        "I guessed; I should search.",
        "What else could it be?",
        "This does not add up yet.",
        "I was hasty just now.",
        "Another look will not hurt.",
        "Which part is still open?",
        "I doubt my last idea.",
        "Did I use the right words?",
        "The source may say more.",
        "I want to verify this.",
        "Let me go on searching.",
        "My reasoning has a gap.",
        "I stopped before the end.",
        "Let me think it over again.",
        "I might be off the track.",
        "There may be more to find.",
    )
)
"""The pool that REX-RAG draws from by default (our own wording)."""


def read_hints(file: str | None) -> tuple[str, ...]:
    """The hints of a file, one a line, or the built-in ones.

    Raises:
        UsageError: no such file, or no hint in it.
    """
    if file is None:
        return HINTS
    path = Path(file).expanduser()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the hints {path}: {error}; name a text file with one hint a line") from None
    hints = tuple(line.strip() for line in lines if line.strip())
    if not hints:
        raise UsageError(f"the hint pool {path} is empty; write one hint a line, or leave knobs.hints out")
    return hints
