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


class ContextPrompts:
    """Prompts of a tabular or linear policy: prompt q is the number q."""

    def __init__(self, contexts: int) -> None:
        self.contexts = contexts

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
