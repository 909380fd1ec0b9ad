"""Decoding with our own key-value cache: prompts computed once each, responses written in place, finished rows
dropped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from policydist.language.policies.attention import Call, Plan, dense
from policydist.language.policies.packing import Packed, pack_prompts
from policydist.language.policies.plain import Sight
from policydist.language.types import Prompts

Run = Callable[[Tensor, Tensor, Plan, Tensor | int, Mapping[str, Tensor]], Tensor]
"""``run(ids, positions, plan, logits_to_keep, further inputs)``: logits."""

BLOCK = 32
"""Columns by which the cache grows: short responses never pay for the longest one allowed."""


@dataclass
class Prefill:
    """The attention `Plan` of the prompt pass: packed prompts, their keys and values [K, L, D] kept layer by layer."""

    packed: Packed
    layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """Attend as packed rows do, and remember."""
        self.layers[call.layer] = (key[0], value[0])
        return self.packed.attend(query, key, value, call)


@dataclass
class Cache:
    """The attention `Plan` of the token passes. Prompts end at column P for every row, so all rows write the same
    column.

    ``keys[layer]``, ``values[layer]``: [M, K, columns, D]; ``mask`` [M, 1, 1, P + L]: additive, hides the padding on
    the prompts' left (None where no prompt is padded); ``column``: where the next token goes.
    """

    keys: dict[int, Tensor]
    values: dict[int, Tensor]
    mask: Tensor | None
    column: int

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        rows, heads, _, size = query.shape
        keys, values = self.keys[call.layer], self.values[call.layer]
        keys[:, :, self.column], values[:, :, self.column] = key[:, :, 0], value[:, :, 0]
        stop = self.column + 1
        start = 0 if call.window is None else max(0, stop - call.window)
        keys, values = keys[:, :, start:stop], values[:, :, start:stop]
        mask = None if self.mask is None else self.mask[..., start:stop]
        if call.softcap is not None:
            return dense(query, keys, values, mask, call.scale, call.softcap).transpose(1, 2)
        # The query heads that share a key head stand in for query positions: nothing is repeated.
        shared = query.view(rows, keys.shape[1], -1, size)
        if mask is not None:
            mask = mask.expand(rows, 1, shared.shape[2], -1)
        out = torch.nn.functional.scaled_dot_product_attention(shared, keys, values, attn_mask=mask, scale=call.scale)
        return out.reshape(rows, 1, heads, -1)

    def advance(self) -> None:
        """Move on to the next column, making room if there is none."""
        self.column += 1
        for store in (self.keys, self.values):
            for layer, tensor in store.items():
                if tensor.shape[2] == self.column:
                    store[layer] = torch.cat([tensor, torch.empty_like(tensor[:, :, :BLOCK])], 2)

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Drop all other rows."""
        for store in (self.keys, self.values):
            for layer, tensor in store.items():
                store[layer] = tensor.index_select(0, rows)
        if self.mask is not None:
            self.mask = self.mask.index_select(0, rows)


def spread(prefill: Prefill, lengths: Int[Tensor, " Q"], owner: Int[Tensor, " M"], room: int) -> Cache:
    """The cache of M responses to the prompts ``owner``: prompts against the right edge of their columns.

    ``lengths``: the prompts' tokens; ``room``: columns that may follow.
    """
    width = int(lengths.max())
    column = torch.arange(width, device=owner.device)
    pads = (width - lengths)[owner]
    starts = (lengths.cumsum(0) - lengths)[owner]
    token = starts[:, None] + (column[None, :] - pads[:, None]).clamp(min=0)

    def place(tensor: Tensor) -> Tensor:
        heads, _, size = tensor.shape
        out = tensor.new_empty(len(owner), heads, width + BLOCK, size)
        out[:, :, :width] = tensor.transpose(0, 1)[token].transpose(1, 2)
        return out

    mask = None
    if bool(pads.any()):
        some = next(iter(prefill.layers.values()))[0]
        hidden = torch.arange(width + room, device=owner.device)[None, :] < pads[:, None]
        mask = torch.zeros(hidden.shape, dtype=some.dtype, device=owner.device)
        mask = mask.masked_fill_(hidden, float("-inf"))[:, None, None, :]
    keys = {layer: place(key) for layer, (key, _) in prefill.layers.items()}
    values = {layer: place(value) for layer, (_, value) in prefill.layers.items()}
    return Cache(keys, values, mask, width)


class CachedDecoder:
    """A `generation.Decoder` around a causal language model whose attention follows a plan."""

    def __init__(
        self, run: Run, prompts: Prompts, owner: Int[Tensor, " M"], room: int, sight: Sight | None = None
    ) -> None:
        self.run, self.owner, self.room, self.sight = run, owner, room, sight or Sight()
        self.mask = prompts.mask
        self.lengths = prompts.mask.sum(1)
        self.ids = prompts.ids[prompts.mask]

    def first(self) -> Tensor:
        """One packed pass over the prompts, then a cache row for every response."""
        packed, positions = pack_prompts(self.lengths)
        prefill = Prefill(packed)
        places = positions[None] if self.sight.positions is None else self.sight.positions[:, self.mask][:, None]
        ends = self.lengths.cumsum(0) - 1
        logits = self.run(self.ids[None], places, prefill, ends, self.sight.inputs)[0]
        self.cache = spread(prefill, self.lengths, self.owner, self.room)
        start = self.lengths if self.sight.shift is None else self.lengths + self.sight.shift
        self.position = start[self.owner]
        return logits[self.owner]

    def next(self, ids: Tensor) -> Tensor:
        """One token for every row."""
        logits = self.run(ids[:, None], self.position[:, None], self.cache, 0, {})[:, -1]
        self.cache.advance()
        self.position = self.position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Drop finished rows."""
        self.cache.keep(rows)
        self.position = self.position[rows]
