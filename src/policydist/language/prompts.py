"""Where prompts come from: a tokenised task, or the contexts of a small world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.language.types import Prompts


def counts(samples: int | Int[Tensor, " Q"], prompts: int) -> Int[Tensor, " Q"]:
    """Responses wanted per prompt, from one number or one a prompt."""
    return torch.full((prompts,), samples) if isinstance(samples, int) else samples


def row_sources(source: object, column: str | None = None) -> list[str]:
    """Which source each row of a prompt source belongs to.

    For text, or a host's data set, the rows' ``column``, by default ``source`` if they have it and else ``difficulty``; for a
    small world what it was made with.

    Raises:
        UsageError: rows without such a column, or with it empty.
    """
    if isinstance(source, ContextPrompts) and source.sources is not None:
        return list(source.sources)
    rows = getattr(source, "rows", ())
    names = [column] if column else ["source", "difficulty"]
    chosen = next((name for name in names if any(row.get(name) is not None for row in rows)), None)
    if chosen is None:
        raise UsageError(
            f"the rows have no column {' or '.join(names)} to tell sources apart: add one or name yours "
            "(knob column), or mix tasks (task.name=mix:arithmetic,chain,logic)"
        )
    found = [row.get(chosen) for row in rows]
    for number, name in enumerate(found):
        if name is None or not str(name).strip():
            raise UsageError(f"row {number} has no {chosen}; either all rows of a task name their source or none")
    return [str(name) for name in found]


class ContextPrompts:
    """Prompts of a tabular or linear policy: prompt q is the number q; ``sources`` [contexts] names each one's source."""

    def __init__(self, contexts: int, sources: Sequence[str] | None = None) -> None:
        if sources is not None and len(sources) != contexts:
            raise UsageError(f"{len(sources)} sources for {contexts} contexts; give one each")
        self.contexts = contexts
        self.sources = sources

    def __len__(self) -> int:
        return self.contexts

    def take(self, rows: Int[Tensor, " Q"], samples: int | Int[Tensor, " Q"]) -> Prompts:
        ids = rows.unsqueeze(1)
        return Prompts(ids, torch.ones_like(ids, dtype=torch.bool), counts(samples, len(rows)), rows)


class TextPrompts:
    """A task's rows, tokenised once and padded on the left when taken."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any, max_prompt_tokens: int) -> None:
        from policydist.language.judges import encode_prompts

        if not rows:
            raise UsageError("the task has no rows to train on; check its file and its columns")
        self.rows, self.tokenizer = rows, tokenizer
        self.ids: Int[Tensor, "R P"]
        self.mask: Bool[Tensor, "R P"]
        self.ids, self.mask = encode_prompts(rows, tokenizer, max_prompt_tokens)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Int[Tensor, " Q"], samples: int | Int[Tensor, " Q"]) -> Prompts:
        ids, mask = self.ids[rows], self.mask[rows]
        width = int(mask.sum(1).max())
        items = tuple(self.rows[i] for i in rows.tolist())
        return Prompts(ids[:, -width:], mask[:, -width:], counts(samples, len(rows)), rows, items)
