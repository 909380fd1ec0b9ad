"""What was typed wrongly, in one line that says what to do, instead of the parser's boxes.

tyro has one hook for this, in a module that it calls private. Nothing here depends on it to be there: without the hook the
same words are refused with the same exit code, in tyro's own layout.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from policydist.errors import UsageError, nearest

KINDS = {"INT": "a whole number", "FLOAT": "a number"}


def one_line(words: Sequence[str], commands: Mapping[str, type]) -> AbstractContextManager[Any]:
    """While this is open, tyro's refusals become a `UsageError` about ``words``."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:
        return nullcontext()

    def refuse(event: Any) -> None:
        raise UsageError(explain(words, event, commands))

    hooked: AbstractContextManager[Any] = on_parse_error(refuse)
    return hooked


def explain(words: Sequence[str], event: Any, commands: Mapping[str, type]) -> str:
    """One line: the word that is wrong, what would be right, where to read more."""
    if not words:
        return f"give a command: {', '.join(commands)}; policydist --help says what they do"
    command, rest = words[0], words[1:]
    if command.startswith("-"):
        return f"{command} is no option of policydist itself; options follow a command ({', '.join(commands)})"
    if command not in commands:
        return f"no command is called {command!r}: {nearest(command, commands)}"
    known = [f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(commands[command])]
    more = f"policydist {command} --help lists what it takes"
    for word in rest:
        name = word.partition("=")[0]
        if re.match("--[a-z]", name) and name not in known:
            return f"{command} has no option {name}: {nearest(name, known)} {more}"
    return f"{fault(command, event)}; {more}"


def fault(command: str, event: Any) -> str:
    """What the parser complains of, told by the kind of its event."""
    kind = type(event).__name__
    if kind == "MissingArgs":
        missing = ", ".join(entry.arg.display_name().upper() for entry in event.missing_arguments)
        return f"{command} needs {missing}"
    if kind == "UnrecognizedArgs":
        return f"{command} does not know what to do with {event.tokens[0]!r}"
    name = event.argument.display_name() if getattr(event, "argument", None) else command
    if kind == "BadValue":
        return f"{name} needs a value" if event.offending_value is None else f"{name} takes no value"
    if kind == "InvalidChoice":
        return f"{name}: {event.value!r} is none of {', '.join(event.choices)}; {nearest(event.value, event.choices)}"
    if kind == "InstantiationFailure":
        return f"{name}: {ill_typed(event)}"
    return f"{command} was asked wrongly"


def ill_typed(event: Any) -> str:
    """Which value will not do, and what would."""
    found = re.search(r"\['(.*?)'\]", event.message)
    metavar = str(event.argument.lowered.metavar) if event.argument else ""
    wanted = next((text for name, text in KINDS.items() if re.search(rf"\b{name}\b", metavar)), None)
    if found and wanted:
        return f"{found[1]!r} is not {wanted}"
    return str(event.message).strip().splitlines()[0]
