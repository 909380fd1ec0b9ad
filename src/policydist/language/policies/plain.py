"""Padded scoring and decoding for architectures whose attention does not follow a plan (ALiBi, recurrent states, …).

Slower than packing and the in-place cache, with equal results: the reference that those are tested against.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from policydist.language.policies.packing import Pack
from policydist.language.types import Prompts, Rollouts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Sight:
    """What a pass over Q prompts takes beside their tokens: ``inputs`` such as pixels and, for a model with positions of its own
    kind, these (``positions`` [3, Q, P]) and how far (``shift`` [Q]) later tokens' positions are from their numbers."""

    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    positions: Int[Tensor, "3 Q P"] | None = None
    shift: Int[Tensor, " Q"] | None = None


def inputs_of(model: Any) -> frozenset[str]:
    """The names of what the model's forward pass takes. An adapter's wrapper takes anything: what counts is the model in it."""
    base = getattr(model, "get_base_model", None)
    return frozenset(inspect.signature((base() if base else model).forward).parameters)


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
    unread = min(len(prompt) for prompt in prompts) - 1
    last, wide = ids.shape[1] - unread, rollouts.response_ids.shape[1]
    before = [
        torch.arange(len(prompt) - 1, len(prompt) - 1 + n, device=device) - unread + place * last
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
        rows=tuple(rows),
        mask=mask,
        last=last,
    )


class PlainDecoder:
    """A `generation.Decoder` on the model's own cache: left-padded prompts, computed once each."""

    def __init__(
        self, model: PreTrainedModel, prompts: Prompts, owner: Int[Tensor, " M"], sight: Sight | None = None
    ) -> None:
        self.model, self.owner, self.sight = model, owner, sight or Sight()
        self.ids, self.mask = prompts.ids, prompts.mask.long()
        self.takes = inputs_of(model)
        self.state: Any = None

    def first(self) -> Tensor:
        """One pass over the prompts, then a cache row for every response."""
        logits = self._step(self.ids, self.sight.positions, self.sight.inputs)
        self.shift = None if self.sight.shift is None else self.sight.shift[:, None]
        self.keep(self.owner)
        return logits[self.owner]

    def next(self, ids: Tensor) -> Tensor:
        """One token for every row."""
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        positions = None if self.shift is None else self.mask.sum(1, keepdim=True) - 1 + self.shift
        return self._step(ids[:, None], None if positions is None else positions.expand(3, -1, -1), {})

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows, each as often as it is named, where the model's cache can."""
        self.mask = self.mask[rows]
        self.shift = None if self.shift is None else self.shift[rows]
        self.state.batch_select_indices(rows)

    def _step(self, ids: Tensor, positions: Tensor | None, inputs: Mapping[str, Tensor]) -> Tensor:
        extra: dict[str, Any] = dict(inputs)
        if "position_ids" in self.takes:
            own = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            extra["position_ids"] = own if positions is None else positions
        if self.state is not None:
            # transformers 5.24 renamed the argument.
            extra["cache" if "cache" in self.takes else "past_key_values"] = self.state
        out = self.model(input_ids=ids, attention_mask=self.mask, use_cache=True, **extra)
        self.state = out.cache if hasattr(out, "cache") else out.past_key_values
        logits: Tensor = out.logits[:, -1]
        return logits
