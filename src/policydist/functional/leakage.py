"""How many samples of its training distribution a model gives away: accuracy bounds and their inverses.

An adversary guesses which of two training distributions P_0, P_1 a model comes from, with equal priors, and is right
with probability ω. An adversary who is handed n samples instead of the model is right with probability at most
bound(n). **n_leaked** is the n at which the bound reaches ω: what the model gives away, counted in samples
(arXiv 2109.06024, section 3). The bounds are loose, so n_leaked is a *lower* estimate; `n_leaked_exact` inverts the
exact accuracy where that is known.

With the Bhattacharyya coefficient BC = Σ√(p_0 p_1):

    ω ≤ ½ + ½ TV(P_0ⁿ, P_1ⁿ) ≤ ½ + ½ √(1 − BC²ⁿ),      BC ≥ √r for r = inf p_1/p_0.

Accuracies lie in [0, 1]. A guesser that is wrong with probability ω knows as much as one that is right with it, so ω
and 1 − ω give the same n_leaked: report the sign. All arithmetic is float64; arguments broadcast.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Edges = Literal["limit", "code"]
Number = float | Tensor

ARXIV_DEGREES: dict[int, tuple[int, float]] = {
    9: (86, 1.843366), 10: (133, 1.881514), 11: (214, 1.929022), 12: (257, 1.927125), 13: (253, 1.918591),
    14: (267, 1.914586), 15: (265, 1.903623), 16: (263, 1.886148), 17: (263, 1.876854),
}  # fmt: skip
"""Zipf laws (N, s) that the authors fitted to ogbn-arxiv subsampled to a mean degree: {mean degree: (N, s)}."""


def bhattacharyya(p: Float[Tensor, "*#s k"], q: Float[Tensor, "*#s k"]) -> Float[Tensor, "*s"]:
    """BC = Σ_k √(p_k q_k) in [0, 1] of two distributions on the last axis (each must sum to 1)."""
    p, q = _probabilities(p, "p"), _probabilities(q, "q")
    return (p * q).sqrt().sum(-1).clamp(max=1.0)


def total_variation(p: Float[Tensor, "*#s k"], q: Float[Tensor, "*#s k"]) -> Float[Tensor, "*s"]:
    """TV = ½ Σ_k |p_k − q_k| in [0, 1] of two distributions on the last axis (each must sum to 1)."""
    return 0.5 * (_probabilities(p, "p") - _probabilities(q, "q")).abs().sum(-1)


def density_bound(n: Number, r: Number) -> Float[Tensor, "*s"]:
    """½ + ½√(1 − rⁿ): accuracy of any test with n ≥ 0 samples when p_1 ≥ r p_0 everywhere (or p_0 ≥ r p_1).

    r in [0, 1]; BC² may stand in for r, and gives the tighter bound. Raises ValueError outside the ranges.
    """
    count, density = _double(n), _unit(r, "r")
    _require(bool((count >= 0).all()), "n, a number of samples, must not be negative")
    return 0.5 + 0.5 * (1.0 - density**count).clamp(min=0.0).sqrt()


def ratio_density(a0: Number, a1: Number) -> Float[Tensor, "*s"]:
    """r = max(lo/hi, (1−hi)/(1−lo)), lo = min(α_0, α_1), hi = max: the density bound of two shares of a property.

    Everything else is taken to be equal given the property. Equal shares give 1, shares 0 and 1 give 0.
    """
    first, second = torch.broadcast_tensors(_unit(a0, "a0"), _unit(a1, "a1"))
    lo, hi = torch.minimum(first, second), torch.maximum(first, second)
    one = torch.ones_like(lo)
    have = torch.where(hi > 0, lo / torch.where(hi > 0, hi, one), one)
    lack = torch.where(lo < 1, (1 - hi) / torch.where(lo < 1, 1 - lo, one), one)
    return torch.maximum(have, lack)


def ratio_bound(a0: Number, a1: Number, n: Number) -> Float[Tensor, "*s"]:
    """½ + ½ min(√(1 − (lo/hi)ⁿ), √(1 − ((1−hi)/(1−lo))ⁿ)): the most that n samples tell about two shares."""
    return density_bound(n, ratio_density(a0, a1))


def n_leaked_density(accuracy: Number, r: Number) -> Float[Tensor, "*s"]:
    """ln(1 − (2ω−1)²) / ln r: the n at which `density_bound` reaches ω, in samples.

    Limits: 0 at ω = ½; ∞ for ω in {0, 1}, and for r = 1 with ω ≠ ½, because no number of samples explains it.
    r = 0 gives 0 for ω strictly between 0 and 1: any part of one sample would do.
    """
    share, density = torch.broadcast_tensors(_unit(accuracy, "accuracy"), _unit(r, "r"))
    advantage = (2 * share - 1).abs()
    value = torch.log1p(-advantage.square()) / torch.log(density)
    value = torch.where(density == 1, torch.full_like(value, math.inf), value)
    value = torch.where(advantage == 1, torch.full_like(value, math.inf), value)
    return torch.where(advantage == 0, torch.zeros_like(value), value)


def n_leaked_ratio(accuracy: Number, a0: Number, a1: Number, edges: Edges = "limit") -> Float[Tensor, "*s"]:
    """n_leaked for shares α_0 and α_1 of a property (section 3.2): `n_leaked_density` with `ratio_density`.

    ``edges="code"`` follows the released code where the formula has no value: α_0 = α_1 = 0 → ∞, otherwise
    α_0 = α_1 → 0, and |α_0 − α_1| = 1 → ∞, whatever ω.
    """
    r = ratio_density(a0, a1)
    value = n_leaked_density(accuracy, r)
    if edges == "limit":
        return value
    first, second, r, value = torch.broadcast_tensors(_unit(a0, "a0"), _unit(a1, "a1"), r, value)
    value = torch.where(first == second, torch.zeros_like(value), value)
    return torch.where((torch.maximum(first, second) == 0) | (r == 0), torch.full_like(value, math.inf), value)


def n_leaked_regression(alpha: Number, mse: Number) -> Float[Tensor, "*s"]:
    """α(1−α)/MSE: samples whose share estimates α with this mean squared error (Cramér–Rao, section 3.3).

    NaN at α = 0 and 1, where the bound says nothing; ∞ for an error of 0.
    """
    share, error = torch.broadcast_tensors(_unit(alpha, "alpha"), _double(mse))
    _require(bool((error >= 0).all()), "mse must not be negative")
    inner = (share > 0) & (share < 1)
    return torch.where(inner, share * (1 - share) / error, torch.full_like(error, math.nan))


def zipf_ratio(law0: tuple[int, float], law1: tuple[int, float]) -> float:
    """r of two Zipf laws (N, s), P(k) ∝ k^(−s) for k in 1..N, for degrees of graphs (section 3.2).

    With N_0 ≤ N_1: r = H(N_0,s_0)/H(N_1,s_1) · (N_0^(s_0−s_1) if s_1 > s_0 else 1), H(N,s) = Σ_{k≤N} k^(−s).
    For N_0 = N_1 both directions of the ratio are finite and the larger is taken.
    Raises ValueError unless N ≥ 1 is a whole number and s is finite.
    """
    for size, exponent in (law0, law1):
        _require(size >= 1 and size == int(size), f"N, the largest degree, must be a whole number from 1, got {size}")
        _require(math.isfinite(exponent), f"s, the exponent, must be finite, got {exponent}")
    first, second = sorted((law0, law1))
    r = _one_way(first, second)
    return max(r, _one_way(second, first)) if first[0] == second[0] else r


def _one_way(first: tuple[int, float], second: tuple[int, float]) -> float:
    """inf p_second/p_first over the support of the first law; the ratio is monotone in k, so an end has it."""
    (n0, s0), (n1, s1) = first, second
    at_one = _harmonic(n0, s0) / _harmonic(n1, s1)
    return float(at_one * (n0 ** (s0 - s1) if s1 > s0 else 1.0))


def _harmonic(size: int, exponent: float) -> float:
    return float((torch.arange(1, int(size) + 1, dtype=torch.float64) ** -exponent).sum())


def exact_accuracy(a0: float, a1: float, n: int) -> float:
    """½ + ¼ Σ_k |Bin(n,α_0)(k) − Bin(n,α_1)(k)|: accuracy of the best test given n samples; their count suffices."""
    _unit(a0, "a0"), _unit(a1, "a1")
    _require(n >= 0, "n, a number of samples, must not be negative")
    return 0.5 + 0.5 * float(total_variation(_binomial(n, a0), _binomial(n, a1)))


def n_leaked_exact(accuracy: float, a0: float, a1: float, limit: int = 2**20) -> float:
    """The smallest whole n with `exact_accuracy` ≥ max(ω, 1−ω); never below n_leaked, because the bound is loose.

    ∞ where none up to ``limit`` has it (ω = 1 with overlapping distributions, or equal shares).
    """
    wanted = 0.5 + abs(float(_unit(accuracy, "accuracy")) - 0.5)

    def short(n: int) -> bool:
        return exact_accuracy(a0, a1, n) < wanted - 1e-12  # so that a round trip survives the rounding of the sum

    if not short(0):
        return 0.0
    high = 1
    while short(high):
        if high >= limit or a0 == a1 or wanted == 1.0:
            return math.inf
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if short(middle) else (low, middle)
    return float(high)


def _binomial(n: int, alpha: float) -> Float[Tensor, "k"]:
    k = torch.arange(n + 1, dtype=torch.float64)
    count = torch.tensor(float(n), dtype=torch.float64)
    choose = torch.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    share = torch.tensor(alpha, dtype=torch.float64)
    weight = torch.exp(choose + torch.xlogy(k, share) + torch.xlogy(count - k, 1 - share))
    return weight / weight.sum()


def _double(value: Number) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


def _unit(value: Number, name: str) -> Tensor:
    number = _double(value)
    _require(bool(((number >= 0) & (number <= 1)).all()), f"{name} must lie in [0, 1], got {value}")
    return number


def _probabilities(value: Tensor, name: str) -> Tensor:
    number = _double(value)
    proper = bool((number >= 0).all()) and torch.allclose(number.sum(-1), torch.ones_like(number.sum(-1)))
    _require(proper, f"{name} must be probabilities that sum to 1 on the last axis")
    return number


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise ValueError(text)
