"""Padded scoring and decoding for architectures whose attention does not follow a plan (ALiBi, recurrent states, …).

Slower than packing and the in-place cache, with equal results: the reference that those are tested against.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from policydist.language.policies.packing import Pack
from policydist.language.types import Prompts, Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plain_pack(rollouts: Rollouts, max_tokens: int) -> Iterator[Pack]:
    """Sequences of similar length in ordinary batches of about ``max_tokens``, padded on the right."""
    lengths = rollouts.lengths.cpu().numpy()
    totals = rollouts.prompt_mask.sum(1).cpu().numpy() + lengths
    order = [row for row in np.argsort(-totals, kind="stable").tolist() if lengths[row]]
    start = 0
    while start < len(order):
        count = max(1, max_tokens // int(totals[order[start]]))
        yield _padded(rollouts, order[start : start + count])
        start += count


def _padded(rollouts: Rollouts, rows: list[int]) -> Pack:
    device = rollouts.response_ids.device
    prompts = [rollouts.prompt_ids[row][rollouts.prompt_mask[row]] for row in rows]
    lengths = [int(n) for n in rollouts.lengths[rows]]
    responses = [rollouts.response_ids[row, :n] for row, n in zip(rows, lengths, strict=True)]
    sequences = [torch.cat([prompt, response]) for prompt, response in zip(prompts, responses, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in sequences], batch_first=True)
    width, wide = ids.shape[1], rollouts.response_ids.shape[1]
    before = [
        torch.arange(len(prompt) - 1, len(prompt) - 1 + n, device=device) + place * width
        for place, (prompt, n) in enumerate(zip(prompts, lengths, strict=True))
    ]
    keep = torch.cat(before)
    return Pack(
        ids=ids,
        positions=None,
        plan=None,
        keep=keep,
        source=torch.arange(len(keep), device=device),
        target=torch.cat(responses),
        place=torch.cat([torch.arange(n, device=device) + row * wide for row, n in zip(rows, lengths, strict=True)]),
        mask=mask,
    )


class PlainDecoder:
    """A `generation.Decoder` on the model's own cache: left-padded prompts, one row for every response from the
    start."""

    def __init__(self, model: PreTrainedModel, prompts: Prompts, owner: Int[Tensor, " M"]) -> None:
        self.model = model
        width = int(prompts.mask.sum(1).max())
        self.ids = prompts.ids[owner, -width:]
        self.mask = prompts.mask[owner, -width:].long()
        self.takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.state: Any = None

    def first(self) -> Tensor:
        """The prompts, once for every response."""
        return self._step(self.ids)

    def next(self, ids: Tensor) -> Tensor:
        """One token for every row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        return self._step(ids[:, None])

    def keep(self, rows: Tensor) -> None:
        """Drop finished rows, where the model's cache can."""
        self.mask = self.mask[rows]
        self.state.batch_select_indices(rows)

    def _step(self, ids: Tensor) -> Tensor:
        extra: dict[str, Any] = {}
        if self.takes_positions:
            extra["position_ids"] = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        if self.state is not None:
            extra[self._cache_name()] = self.state
        out = self.model(input_ids=ids, attention_mask=self.mask, use_cache=True, **extra)
        self.state = out.cache if hasattr(out, "cache") else out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits

    def _cache_name(self) -> str:
        # transformers 5.24 renamed the argument.
        return "cache" if "cache" in inspect.signature(self.model.forward).parameters else "past_key_values"
