"""Rows from JSONL and Parquet files and from datasets of the Hugging Face Hub, checked one by one as they come in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policydist.errors import UsageError, nearest
from policydist.language.images import COLUMNS, MARK, located
from policydist.language.tasks.base import Row


@dataclass(frozen=True)
class Columns:
    """Which columns hold the prompt and the answer, and for which grader (see `load_task`): some need no answer."""

    prompt: str = "prompt"
    answer: str = "answer"
    grader: str = "auto"

    def row(self, record: Mapping[str, Any], where: str) -> Row:
        """The record with its prompt and answer under the names that graders use; other columns stay.

        Demonstrations come as ``prompt`` and ``completion`` or as chat ``messages`` (`demonstration`); without an answer of
        its own such a row takes the completion for the answer. A row with a ``context`` and a ``question`` instead of a
        prompt is asked both, one after the other.

        Raises:
            UsageError: naming ``where`` for a missing column, a null or empty prompt, context or question, or a null answer.
        """
        record = demonstration(with_context(record, self, where), self, where)
        row = dict(record)
        wanted = {"prompt": self.prompt, "answer": self.answer}
        for name, column in wanted.items():
            if name == "prompt" or self.needs_answer(record):
                if column not in record:
                    have = ", ".join(map(str, record)) or "none"
                    raise UsageError(f"{where}: no column {column!r}; there are: {have}. Set {name}_column")
                if record[column] is None:
                    raise UsageError(f"{where}: column {column!r} is null")
        for column in wanted.values():
            row.pop(column, None)
        row |= {name: record[column] for name, column in wanted.items() if column in record}
        row["prompt"] = check_prompt(row["prompt"], where)
        return row

    def needs_answer(self, record: Mapping[str, Any]) -> bool:
        """Rubrics, expressions with a target and a user's own function do without an answer."""
        if self.grader == "auto":
            return not ("rubric" in record or {"numbers", "target"} <= record.keys())
        return ":" not in self.grader and self.grader not in ("rubric", "expression")


def with_context(record: Mapping[str, Any], columns: Columns, where: str) -> Mapping[str, Any]:
    """The record with its context and question as the prompt, if it has these and no prompt of its own.

    Raises:
        UsageError: naming ``where`` if one of them is no text or an empty one.
    """
    names = ("context", "question")
    given = columns.prompt in record or record.get("messages") is not None
    if given or not all(name in record for name in names):
        return record
    parts = [record[name] for name in names]
    for name, part in zip(names, parts, strict=True):
        if not isinstance(part, str) or not part.strip():
            raise UsageError(
                f"{where}: column {name!r} is {'empty' if isinstance(part, str) else _kind(part)}; it must be a text"
            )
    return {columns.prompt: "\n\n".join(map(str, parts)), **record}


def demonstration(record: Mapping[str, Any], columns: Columns, where: str) -> Mapping[str, Any]:
    """The record with a ``completion`` that is a text, if it demonstrates anything.

    Of ``messages`` the last turn of the assistant is the completion, what precedes it the prompt, and what follows it is
    left out. A ``completion`` may itself be a list of one message of the assistant.

    Raises:
        UsageError: naming ``where`` for messages that are not messages, without a turn of the assistant, or with nothing
            before it.
    """
    found = dict(record)
    if columns.prompt not in record and record.get("messages") is not None:
        turns = check_prompt(record["messages"], where)
        if isinstance(turns, str):
            raise UsageError(f"{where}: messages is a text; it must be a list of chat messages")
        last = max((n for n, turn in enumerate(turns) if turn["role"] == "assistant"), default=-1)
        if last < 1:
            raise UsageError(f"{where}: the messages need a turn of the assistant with something before it")
        del found["messages"]
        found |= {columns.prompt: turns[:last], "completion": turns[last]["content"]}
    elif isinstance(completion := record.get("completion"), list):
        turns = check_prompt(completion, where)
        if len(turns) != 1 or turns[0]["role"] != "assistant":  # type: ignore[index]
            raise UsageError(f"{where}: a completion in messages must be one message of the assistant")
        found["completion"] = turns[0]["content"]  # type: ignore[index]
    # An answer column that was asked for by name and is not there is an error, not a reason to take the completion.
    unnamed = columns.answer == Columns.answer and columns.answer not in found
    if isinstance(found.get("completion"), str) and unnamed and columns.needs_answer(found):
        found[columns.answer] = found["completion"]
    return found


def check_prompt(prompt: Any, where: str) -> str | list[dict[str, str]]:
    """A prompt that is a text, or a list of chat messages with a role and a text (or parts: texts and images) each.

    Raises:
        UsageError: naming ``where`` and what is wrong.
    """
    if isinstance(prompt, str):
        if not prompt.strip():
            raise UsageError(f"{where}: the prompt is empty")
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise UsageError(f"{where}: the prompt is {_kind(prompt)}; it must be a text or a list of chat messages")
    prompt = [_flat(message) for message in prompt]
    for number, message in enumerate(prompt, 1):
        texts = isinstance(message, Mapping) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not texts:
            raise UsageError(f"{where}: chat message {number} needs a role and a content, both texts")
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def _flat(message: Any) -> Any:
    """A message whose content comes in parts as one with a text, in which an image's part is a mark."""
    parts = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
        return message
    found = [MARK if part.get("type") == "image" else part.get("text") for part in parts]
    return {**message, "content": "".join(found)} if all(isinstance(text, str) for text in found) else message


def read_jsonl(path: Path, columns: Columns) -> list[Row]:
    """The rows of a JSONL file: one JSON object a line; blank lines are skipped.

    Raises:
        UsageError: naming the file and the line.
    """
    rows: list[Row] = []
    content = _content(path)
    for number, line in enumerate(content.split(b"\n"), 1):
        where = f"{path}:{number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            record = json.loads(text) if text else None
        except UnicodeDecodeError as error:
            raise UsageError(f"{where}: not UTF-8 text ({error.reason} at byte {error.start})") from error
        except json.JSONDecodeError as error:
            raise UsageError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
        except (RecursionError, ValueError) as error:
            raise UsageError(f"{where}: JSON that is nested too deeply or holds a number that is too long") from error
        if not text:
            continue
        if not isinstance(record, dict):
            raise UsageError(f"{where}: a row must be a JSON object, not {_kind(record)}")
        rows.append(located(columns.row(record, where), path.parent, where))
    return _filled(rows, str(path))


def read_parquet(path: Path, columns: Columns) -> list[Row]:
    """The rows of a Parquet file; rows are counted from 1 in messages.

    Raises:
        UsageError: naming the file and the row.
    """
    import pyarrow
    import pyarrow.parquet

    _check_readable(path)
    try:
        records = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path}: not a readable Parquet file: {_first_line(error)}") from error
    return _numbered(records, columns, str(path), path.parent)


HUB_OPTIONS = ("revision", "cache_dir", "data_dir", "data_files")
"""Options of a hub task that go to `datasets.load_dataset`; the rest are the grader's."""


def read_hub(spec: str, columns: Columns, options: Mapping[str, Any]) -> tuple[list[Row], list[Row] | None]:
    """Training rows, and test rows if the dataset has them, of ``<name>[:config][@split[,split]]``.

    ``name`` is a dataset of the Hub or a local directory of data files. Without ``@split`` the split ``train`` is for
    training, and ``test`` or else ``validation`` for testing. Code from a dataset repository is never run.

    Raises:
        UsageError: when the dataset, its configuration or a split is not found, or the Hub cannot be reached.
    """
    import datasets

    address, _, wanted = spec.partition("@")
    name, _, config = address.partition(":")
    if not name:
        raise UsageError(f"hub:{spec}: write hub:<name>[:config][@split]")
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().exists():
        raise UsageError(f"hub:{spec}: no such directory: {name}")
    local = Path(name).expanduser()
    try:
        loaded = datasets.load_dataset(str(local) if local.exists() else name, config or None, **options)
    except Exception as error:  # the library raises its own, the Hub client's, the network's and plain ValueErrors
        raise UsageError(
            f"hub:{spec}: could not load the dataset: {type(error).__name__}: {_first_line(error)}. "
            "Check the name and the network, or use jsonl:<file> or parquet:<file>"
        ) from error
    names = [part for part in wanted.split(",") if part] or _default_splits(loaded, spec)
    if len(names) > 2:
        raise UsageError(f"hub:{spec}: at most two splits can be named, for training and for testing")
    for split in names:
        if split not in loaded:
            raise UsageError(f"hub:{spec}: no split {split!r}: {nearest(split, map(str, loaded))}")
    parts = [_numbered(_undecoded(loaded[split]), columns, f"hub:{address}@{split}") for split in names]
    return parts[0], parts[1] if len(parts) == 2 else None


def _default_splits(loaded: Mapping[str, Any], spec: str) -> list[str]:
    if "train" not in loaded:
        raise UsageError(f"hub:{spec}: no split 'train'; name one with @split: {', '.join(map(str, loaded))}")
    return ["train", *[split for split in ("test", "validation") if split in loaded][:1]]


def _numbered(
    records: Iterable[Mapping[str, Any]], columns: Columns, source: str, folder: Path | None = None
) -> list[Row]:
    named = ((record, f"{source} row {number}") for number, record in enumerate(records, 1))
    return _filled([located(columns.row(record, where), folder, where) for record, where in named], source)


def _undecoded(data: Any) -> Any:
    """A Hub data set whose images stay the files that they are: thousands of them fit into memory so."""
    import datasets

    for name in COLUMNS:
        held = data.features.get(name)
        if isinstance(held, datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
        elif isinstance(getattr(held, "feature", None), datasets.Image):
            data = data.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return data


def _filled(rows: list[Row], source: str) -> list[Row]:
    if not rows:
        raise UsageError(f"{source}: the dataset is empty")
    return rows


def _content(path: Path) -> bytes:
    _check_readable(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _check_readable(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"{path}: no such file{_neighbours(path)}")
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name a file in it")
    try:
        path.open("rb").close()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _neighbours(path: Path) -> str:
    """An offer of files with a similar name in the same directory."""
    names: Sequence[str] = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    offer = nearest(path.name, names)
    return f"; {offer}" if offer.startswith("did you mean") else ""


def _kind(value: Any) -> str:
    return "null" if value is None else f"a {type(value).__name__}" if value else f"an empty {type(value).__name__}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0][:200]
