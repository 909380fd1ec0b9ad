"""Muon in float32: PyTorch's own rounds to bfloat16, which most CPUs only emulate, and is four times slower there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose every update is replaced by the nearest orthogonal matrix (K. Jordan 2024; arXiv 2502.16982, 2.1).

    ``W ← W − lr · sqrt(max(1, rows / columns)) · ortho(g + momentum · m)`` with ``m ← momentum · m + g``. For the
    matrices inside a network only, not for embeddings, biases and norms. A convolution is the matrix of its flat filters.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                gradient = matrix.grad.flatten(1)
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(gradient))
                mean.mul_(group["momentum"]).add_(gradient)
                update = orthogonal(gradient + group["momentum"] * mean)
                stretch = max(1.0, gradient.shape[0] / gradient.shape[1]) ** 0.5
                matrix.sub_(update.view_as(matrix), alpha=group["lr"] * stretch)


def orthogonal(matrix: Float[Tensor, "R C"]) -> Float[Tensor, "R C"]:
    """``U Vᵀ`` of ``matrix = U S Vᵀ``, each singular value to within some 30%, by five Newton–Schulz rounds."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, b * gram + c * gram @ gram, x, beta=a)
    return x.T if tall else x
