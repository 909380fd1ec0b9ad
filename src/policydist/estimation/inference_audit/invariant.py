"""A network that reads the weights of another network, and does not care how its hidden neurons are numbered.

Renumbering hidden neurons (rows of one layer with the columns of the next) leaves what a network computes unchanged,
so a reader of weights should not see it. The paper's network (section 5.2.1, after Ganju et al. 2018) sums a code over
the neurons of each layer, but the released code feeds each layer the *flattened* codes of the previous one, which
undoes the invariance from the second layer on. ``WeightEncoder(invariant=True)`` pools them neuron by neuron along the
weights instead; ``invariant=False`` is the released code's arrangement.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

WeightBatch = Sequence[tuple[Float[Tensor, "B out in"], Float[Tensor, "B out"]]]


class WeightEncoder(nn.Module):
    """One number for each network of a batch with equal architecture.

    With row w_k and bias b_k of neuron k, and codes h of the layer before:

        invariant:  h¹_k = φ_1([w_k, b_k]),   hⁱ_k = φ_i([Σ_j ψ_i([w_kj, hⁱ⁻¹_j]), b_k])
        released:   hⁱ_k = φ_i([w_k, b_k, hⁱ⁻¹_1, …, hⁱ⁻¹_m])

    and the output is ρ([Σ_k h¹_k, Σ_k h²_k, …]), ρ linear. Inputs of the first layer are the same features in every
    network, so its rows are read as they are. φ: linear, ReLU, linear, ReLU, dropout.

    Args:
        shapes: (out, in) of every layer.
        hidden, code: widths inside φ and of a neuron's code (64 and 8 in the paper's code).
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        *,
        invariant: bool = True,
        hidden: int = 64,
        code: int = 8,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.invariant = invariant
        inputs = [shapes[0][1] + 1]
        for (before, _), (_, wide) in pairwise(shapes):
            inputs.append(code + 1 if invariant else wide + 1 + before * code)
        self.phi = nn.ModuleList(
            nn.Sequential(nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, code), nn.ReLU(), nn.Dropout(dropout))
            for size in inputs
        )
        later = len(shapes) - 1 if invariant else 0
        self.psi = nn.ModuleList(
            nn.Sequential(nn.Linear(1 + code, hidden), nn.ReLU(), nn.Linear(hidden, code)) for _ in range(later)
        )
        self.rho = nn.Linear(code * len(shapes), 1)

    def forward(self, batch: WeightBatch) -> Float[Tensor, "B"]:
        codes: Tensor | None = None
        pooled = []
        for number, (weights, bias) in enumerate(batch):
            codes = self.phi[number](self._reading(number, weights, bias, codes))
            pooled.append(codes.sum(1))
        return self.rho(torch.cat(pooled, -1)).squeeze(-1)

    def _reading(self, number: int, weights: Tensor, bias: Tensor, codes: Tensor | None) -> Tensor:
        """What φ sees of each neuron, (B, out, inputs)."""
        if codes is None:
            return torch.cat([weights, bias[..., None]], -1)
        if not self.invariant:
            flat = codes.flatten(1)[:, None].expand(-1, weights.shape[1], -1)
            return torch.cat([weights, bias[..., None], flat], -1)
        before = codes[:, None].expand(-1, weights.shape[1], -1, -1)
        message = self.psi[number - 1](torch.cat([weights[..., None], before], -1)).sum(2)
        return torch.cat([message, bias[..., None]], -1)
