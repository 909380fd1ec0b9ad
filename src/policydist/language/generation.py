"""Decoding: draw tokens from given uniforms, one column of the batch at a time, on a cache that shrinks with the batch.

The loop knows nothing about models. A `Decoder` gives the logits of the first token of every response and then, token
by token, of the next; `decode` draws, writes down, and retires finished responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.functional import tilted_logprobs
from policydist.language.types import Generation, Sampling

RETIRE = 0.8
"""The batch is compacted once at most this fraction of its rows is unfinished."""


class Decoder(Protocol):
    """A model in the middle of decoding M responses."""

    def first(self) -> Float[Tensor, "M V"]:
        """Logits of every response's first token."""
        ...

    def next(self, ids: Int[Tensor, " M"]) -> Float[Tensor, "M V"]:
        """Append one token to every response; the logits of the one after it."""
        ...

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Go on with these responses alone."""
        ...


def cut(logits: Float[Tensor, "M V"], sampling: Sampling) -> Float[Tensor, "M V"]:
    """Logits at the sampling temperature with everything outside the ``top_k`` / ``top_p`` head at minus infinity.

    ``top_k`` first; ``top_p`` keeps the fewest most probable tokens whose probability, of what ``top_k`` left,
    reaches it.
    """
    logits = logits.float()
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    size = logits.shape[-1]
    if 0 < sampling.top_k < size:
        head = logits.topk(sampling.top_k, dim=-1)
        logits = torch.full_like(logits, float("-inf")).scatter(-1, head.indices, head.values)
    if sampling.top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        mass = ordered.softmax(-1)
        ordered = ordered.masked_fill(mass.cumsum(-1) - mass >= sampling.top_p, float("-inf"))
        logits = torch.empty_like(logits).scatter(-1, order, ordered)
    return logits


def draw(
    logits: Float[Tensor, "M V"], uniforms: Float[Tensor, " M"], sampling: Sampling
) -> tuple[Int[Tensor, " M"], Float[Tensor, " M"]]:
    """Token ids by inverse CDF at ``uniforms`` in [0, 1), and their log-probabilities under the distribution drawn
    from.

    The token is the first, in vocabulary order, whose cumulative probability exceeds the uniform; float32. At
    temperature 0 the most probable token is certain, so its log-probability is 0.
    """
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
        return ids, torch.zeros_like(ids, dtype=torch.float32)
    logprobs = cut(logits, sampling).log_softmax(-1)
    cumulative = logprobs.exp().cumsum(-1)
    total = cumulative[:, -1]
    # The sum is one only up to rounding; staying below it can never select a token of probability zero at the end.
    target = torch.minimum(uniforms.float() * total, torch.nextafter(total, torch.zeros_like(total)))
    ids = torch.searchsorted(cumulative, target[:, None], right=True)
    return ids[:, 0], logprobs.gather(1, ids)[:, 0]


@torch.no_grad()
def decode(
    decoder: Decoder, uniforms: Float[Tensor, "N L"], sampling: Sampling, ends: Sequence[int], pad: int
) -> Generation:
    """Sample N responses of at most ``sampling.max_new_tokens`` tokens; each stops at the first token in ``ends``.

    The result is as wide as the longest response.
    """
    count, width = len(uniforms), sampling.max_new_tokens
    device = uniforms.device
    ids = torch.full((width, count), pad, device=device)
    logprobs = torch.zeros((width, count), device=device)
    mask = torch.zeros((width, count), dtype=torch.bool, device=device)
    tilted = None if sampling.tilt is None else torch.zeros((width, count), device=device)
    columns = uniforms[:, :width].T.contiguous()
    stops = torch.tensor(list(ends), device=device)
    rows = torch.arange(count, device=device)
    going = torch.ones(count, dtype=torch.bool, device=device)
    logits = decoder.first() if count else torch.empty(0, 1)
    step = 0
    while len(rows):
        tokens, chances = draw(logits, columns[step, rows], sampling)
        live = rows[going]
        ids[step, live], logprobs[step, live], mask[step, live] = tokens[going], chances[going], True
        if tilted is not None and sampling.tilt is not None:
            tilted[step, live] = tilted_logprobs(logits, tokens, sampling.tilt)[going].float()
        going &= ~torch.isin(tokens, stops)
        step += 1
        alive = int(going.sum())
        if step == width or not alive:
            break
        if alive <= RETIRE * len(rows):
            kept = going.nonzero()[:, 0]
            decoder.keep(kept)
            rows, tokens, going = rows[kept], tokens[kept], going[kept]
        logits = decoder.next(tokens)
    found = (ids, mask, logprobs) if tilted is None else (ids, mask, logprobs, tilted)
    return Generation(*(tensor[:step].T.contiguous() for tensor in found))
