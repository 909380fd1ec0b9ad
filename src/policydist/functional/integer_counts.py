"""Distributions over 0, 1, 2, …: Poisson, negative binomial, discrete Weibull, in forms that do not cancel.

The textbook Poisson formula n ln λ − λ − ln n! subtracts numbers of size n ln n: in float32 its error exceeds one
nat at n = 10^6. The saddle-point form (Loader 2000) used here keeps full relative accuracy.
Baselines and heads of arXiv 2602.10751. ``n`` must be a non-negative integer; callers check.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from policydist.functional.integers import log1mexp, offset

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
_MAX_EXPONENT = 80.0  # e^80 ≈ 5.5e34 still fits float32
_DIRECT_TERMS = 128


def deviance_kernel(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """h(x) = (1+x) log(1+x) − x for x ≥ −1: a series near zero, where the closed form cancels; h(−1) = 1."""
    near = x.abs() < 0.1
    safe = torch.where(near, torch.ones_like(x), x)
    at_zero = safe <= -1.0
    closed = torch.where(
        at_zero, torch.ones_like(x), (1.0 + safe) * torch.log1p(torch.where(at_zero, torch.zeros_like(x), safe)) - safe
    )
    t = torch.where(near, x, torch.zeros_like(x))
    series = torch.zeros_like(x)
    for k in range(16, 1, -1):
        series = series * t + (-1.0) ** k / (k * (k - 1))
    return torch.where(near, series * t * t, closed)


def stirling_error(x: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """log Γ(x+1) − (x+½) log x + x − ½ log 2π for x > 0: asymptotic series from 10 on, the definition below."""
    large = x >= 10.0
    big = torch.where(large, x, torch.full_like(x, 10.0))
    inv = 1.0 / big
    inv2 = inv * inv
    series = inv * (1 / 12 - inv2 * (1 / 360 - inv2 * (1 / 1260 - inv2 * (1 / 1680 - inv2 / 1188))))
    small = torch.where(large, torch.ones_like(x), x)
    direct = torch.lgamma(small + 1.0) - (small + 0.5) * torch.log(small) + small - _HALF_LOG_2PI
    return torch.where(large, series, direct)


def poisson_log_prob(n: Shaped[Tensor, "*#s"], rate: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """log(λ^n e^(−λ)/n!) = −λ h((n−λ)/λ) − stirling_error(n) − ½ log 2πn; −λ at n = 0."""
    count = n.to(rate.dtype)
    count, rate = torch.broadcast_tensors(count, rate)
    zero = count == 0
    positive = torch.where(zero, torch.ones_like(count), count)
    x = offset(torch.where(zero, torch.ones_like(count, dtype=torch.float64), n.to(torch.float64)), rate) / rate
    body = -rate * deviance_kernel(x) - stirling_error(positive) - _HALF_LOG_2PI - 0.5 * torch.log(positive)
    return torch.where(zero, -rate, body)


def negative_binomial_log_prob(
    n: Shaped[Tensor, "*#s"], mean: Float[Tensor, "*#s"], size: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log C(n+r−1, n) (r/(r+m))^r (m/(r+m))^n for mean m > 0, size r > 0 (variance m + m²/r).

    Saddle-point form with N = n+r: the two deviances are Np·h((m−n)/N) with p = r/(r+m), and
    Nq·h(r(n−m)/(Nm)) with q = m/(r+m); the Poisson limit r → ∞ is reached without cancellation.
    """
    count, mean, size = torch.broadcast_tensors(n.to(mean.dtype), mean, size)
    zero = count == 0
    k = torch.where(zero, torch.ones_like(count), count)
    total = k + size
    gap = offset(torch.where(zero, torch.ones_like(count, dtype=torch.float64), n.to(torch.float64)), mean)
    success = total * size / (size + mean) * deviance_kernel(-gap / total)
    failure = total * mean / (size + mean) * deviance_kernel(size / total * (gap / mean))
    corrections = stirling_error(total) - stirling_error(size) - stirling_error(k)
    roots = 0.5 * (torch.log(size) - torch.log(total) - torch.log(k)) - _HALF_LOG_2PI
    return torch.where(zero, -size * torch.log1p(mean / size), corrections - success - failure + roots)


def discrete_weibull_log_survival(
    n: Shaped[Tensor, "*#s"], scale: Float[Tensor, "*#s"], shape: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log P(N ≥ n) = −(n/scale)^shape, i.e. n^β ln q with q = exp(−scale^(−β)). Saturates at −e^80."""
    count, scale, shape = torch.broadcast_tensors(n.to(scale.dtype), scale, shape)
    zero = count <= 0
    positive = torch.where(zero, torch.ones_like(count), count)
    power = torch.exp(torch.clamp(shape * (torch.log(positive) - torch.log(scale)), max=_MAX_EXPONENT))
    return torch.where(zero, torch.zeros_like(power), -power)


def discrete_weibull_log_mass(
    lo: Shaped[Tensor, "*#s"], hi: Shaped[Tensor, "*#s"], scale: Float[Tensor, "*#s"], shape: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log P(lo ≤ N ≤ hi) = log S(lo) + log(1 − S(hi+1)/S(lo)), S as above, for 0 ≤ lo ≤ hi.

    ((hi+1)/η)^β − (lo/η)^β is formed as (lo/η)^β expm1(β log((hi+1)/lo)), which does not cancel for large lo.
    """
    low, high, scale, shape = torch.broadcast_tensors(lo.to(scale.dtype), hi.to(scale.dtype), scale, shape)
    zero = low == 0
    base = torch.where(zero, torch.ones_like(low), low)
    ratio = torch.where(zero, torch.full_like(low, math.log(2.0)), torch.log1p((high - low + 1.0) / base))
    growth = shape * ratio
    log_expm1 = growth + log1mexp(-growth)
    log_rise = torch.where(
        zero,
        shape * (torch.log(high + 1.0) - torch.log(scale)),
        shape * (torch.log(base) - torch.log(scale)) + log_expm1,
    )
    tiny = log_rise < -15.0  # there log(1 − e^−x) = log x − x/2 to better than float64 needs
    rise = torch.exp(torch.clamp(log_rise, max=_MAX_EXPONENT))
    closing = torch.where(tiny, log_rise - 0.5 * rise, log1mexp(-torch.where(tiny, torch.ones_like(rise), rise)))
    return discrete_weibull_log_survival(lo, scale, shape) + closing


def discrete_weibull_log_prob(
    n: Shaped[Tensor, "*#s"], scale: Float[Tensor, "*#s"], shape: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log(q^(n^β) − q^((n+1)^β)) of Nakagawa and Osaki, with q = exp(−scale^(−β)), β = shape."""
    return discrete_weibull_log_mass(n, n, scale, shape)


def discrete_weibull_moment(
    scale: Float[Tensor, "*#s"], shape: Float[Tensor, "*#s"], order: int
) -> Float[Tensor, "*s"]:
    """Σ_{n≥1} n^(order−1) P(N ≥ n), order 1 or 2: the first 128 terms, then Euler–Maclaurin with the incomplete gamma.

    E[N] is order 1; E[N²] = 2·(order 2) − E[N]. No closed form exists; the result carries no gradient.
    """
    eta, beta = torch.broadcast_tensors(scale.detach().double(), shape.detach().double())
    n = torch.arange(1, _DIRECT_TERMS + 1, dtype=torch.float64, device=eta.device)
    terms = n ** (order - 1) * torch.exp(discrete_weibull_log_survival(n, eta.unsqueeze(-1), beta.unsqueeze(-1)))
    last = float(_DIRECT_TERMS)
    reach = -discrete_weibull_log_survival(torch.full_like(eta, last), eta, beta)
    a = order / beta
    integral = torch.exp(order * torch.log(eta) + torch.lgamma(a) - torch.log(beta)) * torch.special.gammaincc(a, reach)
    slope = terms[..., -1] * ((order - 1) / last - beta * reach / last)
    total: Tensor = terms.sum(-1) - 0.5 * terms[..., -1] + integral - slope / 12.0
    return total.to(scale.dtype)
