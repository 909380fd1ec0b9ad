"""Padding-free layout of prompts and responses for scoring.

All tokens of a pass lie in one flat row: first every *distinct* prompt once, then the responses (without their last
token, which predicts nothing that is scored). Everything that works token by token (embeddings, projections, MLPs,
norms) thus runs on real tokens only and once per prompt. Attention alone needs sequences: their tokens are gathered
into buckets of similar length, attended causally (padding is on the right, where causality hides it), and scattered
back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from policydist.language.policies.attention import Call, causal
from policydist.language.types import Rollouts

Array = np.ndarray[Any, Any]

SLACK = 0.8
"""A bucket takes sequences down to this fraction of its longest one."""


class _Gather(torch.autograd.Function):
    """Rows of ``x`` by number. ``x`` is in two parts, rows used several times (``many`` [P, G] lists the uses, padded
    where ``valid`` is false) and rows used once (``once``), so that the backward pass is a gather too: scattered
    addition is slow."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, many: Tensor, valid: Tensor | None, once: Tensor) -> Tensor:
        ctx.save_for_backward(many, once, valid)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        many, once, valid = ctx.saved_tensors
        grad = grad.contiguous()
        first, width = many.shape
        out = grad.new_empty(first + len(once), grad.shape[1])
        uses = grad.index_select(0, many.flatten()).view(first, width, grad.shape[1])
        if valid is not None:
            uses = uses * valid[..., None]
        torch.sum(uses, 1, out=out[:first])
        torch.index_select(grad, 0, once, out=out[first:])
        return out, None, None, None, None


class _Pick(torch.autograd.Function):
    """Rows ``where`` of ``x``, each at most once; ``inverse`` names for every row of ``x`` its place in the result or
    -1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, where: Tensor, inverse: Tensor, unused: Tensor) -> Tensor:
        ctx.save_for_backward(inverse, unused)
        return x.index_select(0, where)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        inverse, unused = ctx.saved_tensors
        out = grad.contiguous().index_select(0, inverse)
        return out.index_fill_(0, unused, 0.0), None, None, None


@dataclass(frozen=True)
class Packed:
    """The layout of one pass; an attention `Plan`.

    ``slots``: every bucket's [rows, length] of flat token numbers, one after the other; ``shapes``: the buckets' sizes.
    """

    shapes: tuple[tuple[int, int], ...]
    slots: Int[Tensor, " S"]
    where: Int[Tensor, " L"]
    inverse: Int[Tensor, " S"]
    unused: Int[Tensor, " U"]
    many: Int[Tensor, "P G"]
    valid: Tensor | None
    once: Int[Tensor, " R"]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """Causal attention within each sequence; see `attention.Plan`."""
        heads, length = query.shape[1:3]
        gathered = [self._gather(tensor) for tensor in (query, key, value)]
        outs, start = [], 0
        for rows, width in self.shapes:
            stop = start + rows * width
            q, k, v = (x[start:stop].view(rows, width, *x.shape[1:]).transpose(1, 2) for x in gathered)
            outs.append(causal(q, k, v, call).transpose(1, 2).reshape(rows * width, -1))
            start = stop
        flat = outs[0] if len(outs) == 1 else torch.cat(outs)
        picked: Tensor = _Pick.apply(flat, self.where, self.inverse, self.unused)
        return picked.view(1, length, heads, -1)

    def _gather(self, tensor: Tensor) -> Tensor:
        heads, length, size = tensor.shape[1:]
        flat = tensor[0].transpose(0, 1).reshape(length, heads * size)
        uses = (self.slots, self.many, self.valid, self.once)
        gathered: Tensor = _Gather.apply(flat, *uses)
        return gathered.view(-1, heads, size)


@dataclass(frozen=True)
class Pack:
    """One pass: its tokens, their positions, the layout, and which predictions to read.

    ``keep`` [K] flat positions whose next-token distribution is needed; ``source`` [R] the row of ``keep`` that
    predicts response token r, ``target`` [R] its id, ``place`` [R] its place in the flattened [N, T] result. Without
    a plan the tokens are an ordinary right-padded batch with ``mask``, and the model gives logits of the last ``last``
    columns only (0: of all), which ``keep`` counts in. ``rows``: the rollouts whose prompts these are (without a plan:
    whose tokens); ``owner`` [L] the prompt of each token; ``inputs`` what the model takes besides.
    """

    ids: Int[Tensor, " L"] | Int[Tensor, "B W"]
    positions: Int[Tensor, " L"] | Int[Tensor, "3 L"] | None
    plan: Packed | None
    keep: Int[Tensor, " K"]
    source: Int[Tensor, " R"]
    target: Int[Tensor, " R"]
    place: Int[Tensor, " R"]
    rows: tuple[int, ...]
    owner: Int[Tensor, " L"] | None = None
    mask: Int[Tensor, "B W"] | None = None
    last: int = 0
    inputs: Mapping[str, Tensor] = field(default_factory=dict)


def pack(rollouts: Rollouts, max_tokens: int, seen: Sequence[Hashable] = ()) -> Iterator[Pack]:
    """Lay rollouts out in passes of about ``max_tokens`` flat tokens; the responses to one prompt stay together
    unless they alone exceed it. Responses without tokens are left out. ``seen``: what each row's prompt shows besides
    its tokens; prompts are the same only if that is too."""
    prompt_ids, prompt_mask = _numpy(rollouts.prompt_ids), _numpy(rollouts.prompt_mask)
    response_ids, lengths = _numpy(rollouts.response_ids), _numpy(rollouts.lengths)
    texts = [ids[mask].tobytes() for ids, mask in zip(prompt_ids, prompt_mask, strict=True)]
    keys: list[Hashable] = list(zip(texts, seen, strict=True)) if seen else list(texts)
    groups: dict[Hashable, list[int]] = {}
    for row in np.argsort(-lengths, kind="stable").tolist():
        if lengths[row]:
            groups.setdefault(keys[row], []).append(row)
    device = rollouts.response_ids.device
    for chunk in _chunks(list(groups.values()), prompt_mask.sum(1), lengths, max_tokens):
        firsts = [rows[0] for rows in chunk]
        yield _pack_chunk([prompt_ids[row][prompt_mask[row]] for row in firsts], chunk, response_ids, lengths, device)


def _numpy(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _chunks(groups: list[list[int]], prompts: Array, lengths: Array, max_tokens: int) -> Iterator[list[list[int]]]:
    """Consecutive prompt groups up to the budget; a group larger than it is split."""
    chunk: list[list[int]] = []
    used = 0
    for rows in groups:
        part: list[int] = []
        room = int(prompts[rows[0]])
        for row in rows:
            cost = int(lengths[row])
            if (chunk or part) and used + room + cost > max_tokens:
                if part:
                    chunk.append(part)
                yield chunk
                chunk, part, used, room = [], [], 0, int(prompts[row])
            part.append(row)
            room += cost
        chunk.append(part)
        used += room
    if chunk:
        yield chunk


def _starts(lengths: Array) -> Array:
    return np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)


def _ramps(lengths: Array) -> Array:
    """0 … n-1 for every length n, joined."""
    ramps: Array = np.arange(int(lengths.sum())) - np.repeat(_starts(lengths), lengths)
    return ramps


def _pack_chunk(
    prompts: list[Array], groups: list[list[int]], response_ids: Array, lengths: Array, device: torch.device
) -> Pack:
    rows = np.array([row for group in groups for row in group])
    owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    before = np.array([len(prompt) for prompt in prompts])
    scored = lengths[rows]
    after = scored - 1
    prompt_start, total_prompt = _starts(before), int(before.sum())
    response_start = total_prompt + _starts(after)
    steps, row_of = _ramps(after), np.repeat(np.arange(len(rows)), after)
    ids = np.concatenate([*prompts, response_ids[rows[row_of], steps]])
    positions = np.concatenate([_ramps(before), before[owner[row_of]] + steps])

    step, row = _ramps(scored), np.repeat(np.arange(len(rows)), scored)
    last_prompt = prompt_start + before - 1
    source_token = np.where(step == 0, last_prompt[owner[row]], response_start[row] + step - 1)
    keep, source = np.unique(source_token, return_inverse=True)

    def move(array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Pack(
        ids=move(ids),
        positions=move(positions),
        plan=_layout(prompt_start, before, response_start, after, owner, device),
        keep=move(keep),
        source=move(source),
        target=move(response_ids[rows[row], step]),
        place=move(rows[row] * response_ids.shape[1] + step),
        rows=tuple(group[0] for group in groups),
        owner=move(np.concatenate([np.repeat(np.arange(len(prompts)), before), owner[row_of]])),
    )


def pack_prompts(lengths: Int[Tensor, " Q"]) -> tuple[Packed, Int[Tensor, " L"]]:
    """The layout of Q prompts in one flat row, and the positions of its tokens."""
    before = _numpy(lengths)
    nothing = np.zeros_like(before)
    layout = _layout(_starts(before), before, nothing, nothing, np.arange(len(before)), lengths.device)
    return layout, torch.from_numpy(_ramps(before)).to(lengths.device)


def buckets(lengths: Array) -> list[Array]:
    """Row numbers in buckets of similar length, longest first: none shorter than `SLACK` times its bucket's longest."""
    order = np.argsort(-lengths, kind="stable")
    found, start = [], 0
    for place in range(1, len(order) + 1):
        if place == len(order) or lengths[order[place]] < SLACK * lengths[order[start]]:
            found.append(order[start:place])
            start = place
    return found


def _layout(
    prompt_start: Array, before: Array, response_start: Array, after: Array, owner: Array, device: torch.device
) -> Packed:
    """Sequence i is prompt ``owner[i]`` followed by ``after[i]`` tokens of its own from ``response_start[i]`` on."""
    totals = before[owner] + after
    shapes, slots = [], []
    first_slot = np.zeros(len(owner), dtype=np.int64)
    used = 0
    for rows in buckets(totals):
        width = int(totals[rows[0]])
        column = np.arange(width)[None, :]
        own = column - before[owner[rows]][:, None]
        token = np.where(own < 0, prompt_start[owner[rows]][:, None] + column, response_start[rows][:, None] + own)
        slots.append(np.where(column < totals[rows][:, None], token, 0).reshape(-1))
        first_slot[rows] = used + np.arange(len(rows)) * width
        shapes.append((len(rows), width))
        used += len(rows) * width

    uses = np.bincount(owner, minlength=len(before))
    users = np.zeros((len(before), int(uses.max())), dtype=np.int64)
    by_owner = np.argsort(owner, kind="stable")
    users[owner[by_owner], _ramps(uses)] = by_owner
    prompt_of = np.repeat(np.arange(len(before)), before)
    valid = np.arange(users.shape[1])[None, :] < uses[prompt_of][:, None]
    many = np.where(valid, first_slot[users[prompt_of]] + _ramps(before)[:, None], 0)
    once = np.repeat(first_slot + before[owner], after) + _ramps(after)
    where = np.concatenate([many[:, 0], once])
    inverse = np.full(used, -1, dtype=np.int64)
    inverse[where] = np.arange(len(where))

    def move(array: Array) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Packed(
        shapes=tuple(shapes),
        slots=move(np.concatenate(slots)),
        where=move(where),
        inverse=move(np.maximum(inverse, 0)),
        unused=move((inverse < 0).nonzero()[0]),
        many=move(many),
        valid=None if valid.all() else move(valid),
        once=move(once),
    )
