"""The network: embeddings and numbers into a trunk, parallel expert networks in one batched product, a selector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Stack(nn.Module):
    """L independent ReLU networks of one shape, evaluated together: weights are [L, in, out]."""

    def __init__(self, count: int, sizes: Sequence[int], generator: torch.Generator, end_relu: bool = False) -> None:
        super().__init__()
        self.end_relu = end_relu
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            gain = 2.0 if end_relu or i < len(sizes) - 2 else 1.0
            weight = torch.randn(count, fan_in, fan_out, generator=generator) * math.sqrt(gain / max(fan_in, 1))
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(count, 1, fan_out)))

    def forward(self, x: Float[Tensor, "n D"]) -> Float[Tensor, "n L P"]:
        """Every network's output for every row."""
        h = x.unsqueeze(0)
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h.expand(len(weight), -1, -1), weight)
            if i < last or self.end_relu:
                h = torch.relu(h)
        return h.transpose(0, 1)


class Trunk(nn.Module):
    """Numbers and category embeddings side by side, through shared layers if ``hidden`` names any."""

    def __init__(
        self, numbers: int, categories: Sequence[int], dim: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.embeddings = nn.ParameterList(
            nn.Parameter(0.1 * torch.randn(count, dim, generator=generator)) for count in categories
        )
        width = numbers + dim * len(categories)
        self.layers = Stack(1, [width, *hidden], generator, end_relu=True) if hidden else None
        self.width = hidden[-1] if hidden else width

    def forward(self, x: Float[Tensor, "n d"], codes: Int[Tensor, "n c"]) -> Float[Tensor, "n D"]:
        """The common representation."""
        parts = [nn.functional.embedding(codes[:, i], table) for i, table in enumerate(self.embeddings)]
        e = torch.cat([x, *parts], dim=1) if parts else x
        return e if self.layers is None else self.layers(e).squeeze(1)

    @torch.no_grad()
    def average_unseen(self, counts: Sequence[Sequence[int]]) -> None:
        """Give code 0 the mean embedding of the known levels, where no training row had it."""
        for table, count in zip(self.embeddings, counts, strict=True):
            share = torch.tensor(count, dtype=table.dtype, device=table.device)
            if share[0] == 0:
                table[0] = share @ table / share.sum()


class LifetimeNetwork(nn.Module):
    """Raw outputs of L experts, and the selector's log-probabilities over them (uniform without a selector)."""

    def __init__(
        self, trunk: Trunk, experts: Stack, selector: Stack | None = None, selector_trunk: Trunk | None = None
    ) -> None:
        super().__init__()
        self.trunk, self.experts = trunk, experts
        self.selector, self.selector_trunk = selector, selector_trunk

    def forward(
        self, x: Float[Tensor, "n d"], codes: Int[Tensor, "n c"]
    ) -> tuple[Float[Tensor, "n L P"], Float[Tensor, "n L"]]:
        """Raw outputs and ln alpha."""
        e = self.trunk(x, codes)
        raw = self.experts(e)
        if self.selector is None:
            return raw, raw.new_full(raw.shape[:2], -math.log(raw.shape[1]))
        seen = e if self.selector_trunk is None else self.selector_trunk(x, codes)
        return raw, torch.log_softmax(self.selector(seen).squeeze(1), -1)

    def average_unseen(self, counts: Sequence[Sequence[int]]) -> None:
        """See :meth:`Trunk.average_unseen`."""
        for trunk in (self.trunk, self.selector_trunk):
            if trunk is not None:
                trunk.average_unseen(counts)
