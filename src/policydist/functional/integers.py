"""Integer-valued distributions with a real location: Dalap, discretised Laplace, discretised normal, Danorm.

Everything is computed in log space, so a float32 log-probability stays finite and accurate far from the location.
Source: arXiv 2602.10751 (the families); formulas re-derived, see ``docs/methods/integer_dists.md`` for what is
reconstructed. Count families live in :mod:`policydist.functional.integer_counts`, products of bits in
:mod:`policydist.functional.integer_bits`.

Shapes broadcast: ``n`` (integer targets, any dtype), the parameters and the result share the shape ``*#s``.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

_LN2 = math.log(2.0)
_HALF_WINDOW = 12  # covers 8σ + 2 for the σ < 1 that are summed directly
_QUADRATURE_NODES, _QUADRATURE_WEIGHTS = np.polynomial.legendre.leggauss(8)


def log1mexp(a: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """log(1 − e^a) for a ≤ 0 without cancellation: log(−expm1 a) near zero, log1p(−e^a) far from it.

    Gradients are finite for a < 0; a = 0 gives −inf.
    """
    near = a > -_LN2
    zero = torch.zeros((), dtype=a.dtype, device=a.device)
    return torch.where(
        near,
        torch.log(-torch.expm1(torch.where(near, a, zero - 1.0))),
        torch.log1p(-torch.exp(torch.where(near, zero - 1.0, a))),
    )


def offset(n: Shaped[Tensor, "*#s"], mu: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """n − μ, subtracted in float64 and returned in μ's dtype: float32 alone loses integers above 2^24."""
    return (n.to(torch.float64) - mu.to(torch.float64)).to(mu.dtype)


# --- Dalap: p(n) ∝ γ^|n−μ|, γ = e^(−1/b) ------------------------------------------------------------------------


def dalap_log_normalizer(mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """log Σ_n γ^|n−μ| = logaddexp(f ln γ, c ln γ) − log(1−γ), with f = μ−⌊μ⌋, c = 1−f and ln γ = −1/scale.

    c is 1 (never 0) at an integer μ, so that the discrete Laplace law of Inusah and Kozubowski is recovered there.
    The gradient with respect to μ runs through f and c; the floor contributes none.
    """
    f = mu - torch.floor(mu).detach()
    return torch.logaddexp(-f / scale, -(1.0 - f) / scale) - log1mexp(-1.0 / scale)


def dalap_log_prob(
    n: Shaped[Tensor, "*#s"], mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log p(n) = −|n−μ|/scale − log Z(μ, scale): natural log, any n ∈ ℤ, scale > 0 (γ = e^(−1/scale))."""
    return -offset(n, mu).abs() / scale - dalap_log_normalizer(mu, scale)


def dalap_log_mass(
    lo: Shaped[Tensor, "*#s"] | None,
    hi: Shaped[Tensor, "*#s"] | None,
    mu: Float[Tensor, "*#s"],
    scale: Float[Tensor, "*#s"],
) -> Float[Tensor, "*s"]:
    """log P(lo ≤ N ≤ hi); ``None`` is an open end. Two geometric series, one at each side of μ; −inf if lo > hi."""
    floor = torch.floor(mu).detach()
    low_top = floor if hi is None else torch.minimum(floor, hi.to(mu.dtype))
    high_bottom = floor + 1.0 if lo is None else torch.maximum(floor + 1.0, lo.to(mu.dtype))
    below = -(mu - low_top) / scale
    above = -(high_bottom - mu) / scale
    if lo is not None:
        below = below + _log_geometric_share(-offset(lo, low_top) + 1.0, scale)
    if hi is not None:
        above = above + _log_geometric_share(offset(hi, high_bottom) + 1.0, scale)
    return logsum(below, above) - log1mexp(-1.0 / scale) - dalap_log_normalizer(mu, scale)


def _log_geometric_share(count: Tensor, scale: Tensor) -> Tensor:
    """log(1 − γ^count): the part of an infinite geometric series held by its first ``count`` terms; −inf below 1."""
    some = count > 0
    share = log1mexp(-torch.where(some, count, torch.ones_like(count)) / scale)
    return torch.where(some, share, torch.full_like(share, -torch.inf))


def logsum(*terms: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """log Σ e^term over the arguments; −inf with zero gradient (not NaN) where every term is −inf."""
    stacked = torch.stack(torch.broadcast_tensors(*terms))
    dead = torch.isneginf(stacked).all(0)
    total = torch.logsumexp(torch.where(dead, torch.zeros_like(stacked), stacked), 0)
    return torch.where(dead, torch.full_like(total, -torch.inf), total)


def dalap_side_weights(
    mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """(P(N ≤ ⌊μ⌋), P(N > ⌊μ⌋)) = (γ^f, γ^c)/(γ^f+γ^c)."""
    f = mu - torch.floor(mu).detach()
    logit = (1.0 - 2.0 * f) / scale
    return torch.sigmoid(logit), torch.sigmoid(-logit)


def dalap_moments(
    mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Mean and variance. With g = γ/(1−γ): mean = ⌊μ⌋ + w_c + g(w_c − w_f), var = g(1+g) + w_f w_c (1+2g)²."""
    below, above = dalap_side_weights(mu, scale)
    g = 1.0 / torch.expm1(1.0 / scale)
    mean = torch.floor(mu).detach() + above + g * (above - below)
    return mean, g * (1.0 + g) + below * above * (1.0 + 2.0 * g).square()


def dalap_entropy(mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """Entropy in nats: log Z + E|n−μ|/scale, with E|n−μ| = w_f(f+g) + w_c(c+g) and g = γ/(1−γ)."""
    f = mu - torch.floor(mu).detach()
    below, above = dalap_side_weights(mu, scale)
    spread = below * f + above * (1.0 - f) + 1.0 / torch.expm1(1.0 / scale)
    return dalap_log_normalizer(mu, scale) + spread / scale


# --- Discretised Laplace: F(n+½) − F(n−½) ------------------------------------------------------------------------


def laplace_log_interval(
    middle: Float[Tensor, "*#s"], width: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log P(|X − middle| ≤ width/2), X ~ Laplace(0, scale); never a difference of two CDFs.

    With near, far = |middle| ∓ width/2: −near/scale − ln 2 + log(1−e^(−width/scale)) if near ≥ 0, else
    log(−½(expm1(near/scale) + expm1(−far/scale))). Middle and width come apart because float32 has no half integers
    above 2^23.
    """
    distance = middle.abs()
    near = distance - 0.5 * width
    outside = near >= 0
    tail = -torch.where(outside, near, torch.zeros_like(near)) / scale - _LN2 + log1mexp(-width / scale)
    inner = torch.where(outside, -torch.ones_like(near), near)
    far = torch.where(outside, torch.ones_like(near), distance + 0.5 * width)
    return torch.where(outside, tail, torch.log(-0.5 * (torch.expm1(inner / scale) + torch.expm1(-far / scale))))


def laplace_log_survival(a: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """log P(X > a), X ~ Laplace(0, scale): −a/scale − ln 2 for a ≥ 0, log1p(−½e^(a/scale)) below."""
    inside = -a.abs() / scale
    return torch.where(a >= 0, inside - _LN2, torch.log1p(-0.5 * torch.exp(inside)))


def discretized_laplace_log_prob(
    n: Shaped[Tensor, "*#s"], mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log(F(n+½) − F(n−½)) for the Laplace(μ, scale) cdf F: the law of a rounded Laplace variable."""
    return laplace_log_interval(offset(n, mu), torch.ones_like(mu), scale)


def discretized_laplace_moments(
    mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Mean and variance of a rounded Laplace variable, closed form.

    With r = round(μ), δ = μ−r, u = γ^(½−δ), v = γ^(½+δ): E[n−r] = (u−v)/(2(1−γ)),
    E[(n−r)²] = (u+v)(1+γ)/(2(1−γ)²).
    """
    r = torch.round(mu).detach()
    delta = mu - r
    up, down = torch.exp(-(0.5 - delta) / scale), torch.exp(-(0.5 + delta) / scale)
    rest = -torch.expm1(-1.0 / scale)
    shift = (up - down) / (2.0 * rest)
    second = (up + down) * (2.0 - rest) / (2.0 * rest.square())
    return r + shift, second - shift.square()


# --- Discretised normal and Danorm --------------------------------------------------------------------------------


def normal_log_interval(
    middle: Float[Tensor, "*#s"], width: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log P(|X − middle| ≤ width/2), X ~ Normal(0, scale).

    Reflected to the right, log Φ(−near) + log1mexp(log Φ(−far) − log Φ(−near)) is stable, the gap taken through erfcx
    so that squares never cancel. A narrow interval (width·height small), where even that cancels, is an 8-node
    Gauss–Legendre sum of the density instead.
    """
    m, w = torch.broadcast_tensors(middle.abs() / scale, width / scale)
    narrow = (w <= 1.0) & (w * m <= 4.0)
    m_wide, w_wide = torch.where(narrow, torch.ones_like(m), m), torch.where(narrow, torch.ones_like(w), w)
    near, far = m_wide - 0.5 * w_wide, m_wide + 0.5 * w_wide
    right = near >= 0
    near_right, near_left = torch.where(right, near, torch.ones_like(near)), torch.where(right, -1.0, near)
    log_near = torch.where(right, _log_right_tail(near_right), torch.special.log_ndtr(-near_left))
    gap = torch.where(
        right,
        -w_wide * m_wide + _log_erfcx(far) - _log_erfcx(near_right),
        _log_right_tail(far) - torch.special.log_ndtr(-near_left),
    )
    wide = log_near + log1mexp(torch.clamp(gap, max=-torch.finfo(gap.dtype).tiny))
    m_thin, w_thin = torch.where(narrow, m, torch.zeros_like(m)), torch.where(narrow, w, torch.ones_like(w))
    return torch.where(narrow, _normal_quadrature(m_thin, w_thin), wide)


def normal_log_survival(a: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """log P(X > a), X ~ Normal(0, scale)."""
    log_tail: Tensor = torch.special.log_ndtr(-a / scale)
    return log_tail


def _log_erfcx(x: Tensor) -> Tensor:
    """log(½ erfcx(x/√2)), so that log Φ(−x) = −x²/2 + this."""
    return torch.log(0.5 * torch.special.erfcx(x / math.sqrt(2.0)))


def _log_right_tail(x: Tensor) -> Tensor:
    """log Φ(−x) for x ≥ 0."""
    return -0.5 * x.square() + _log_erfcx(x)


def _normal_quadrature(middle: Tensor, width: Tensor) -> Tensor:
    """log of the standard normal mass within width/2 of middle, by Gauss–Legendre."""
    nodes = torch.as_tensor(_QUADRATURE_NODES, dtype=middle.dtype, device=middle.device)
    log_weights = torch.log(torch.as_tensor(_QUADRATURE_WEIGHTS, dtype=middle.dtype, device=middle.device))
    step = 0.5 * width.unsqueeze(-1) * nodes
    inner = -middle.unsqueeze(-1) * step - 0.5 * step.square() + log_weights
    return -0.5 * middle.square() - 0.5 * math.log(2 * math.pi) + torch.log(0.5 * width) + torch.logsumexp(inner, -1)


def discretized_normal_log_prob(
    n: Shaped[Tensor, "*#s"], mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log(Φ((n+½−μ)/scale) − Φ((n−½−μ)/scale)): the law of a rounded normal variable; finite at 60 scales and more."""
    return normal_log_interval(offset(n, mu), torch.ones_like(mu), scale)


def danorm_log_normalizer(mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """log Σ_k exp(−(k−μ)²/(2 scale²)): a direct sum of 25 terms below scale 1, log(√(2π)·scale) from there on.

    The theta function behind the sum differs from its first term by less than 2e^(−2π²scale²) in relative terms,
    below 6e−9 at scale 1, so the cost does not grow with the scale.
    """
    small = scale < 1.0
    capped = torch.where(small, scale, torch.ones_like(scale))
    delta = mu - torch.round(mu).detach()
    window = torch.arange(-_HALF_WINDOW, _HALF_WINDOW + 1, dtype=mu.dtype, device=mu.device)
    z = (window - delta.unsqueeze(-1)) / capped.unsqueeze(-1)
    direct = torch.logsumexp(-0.5 * z.square(), -1)
    return torch.where(small, direct, 0.5 * math.log(2 * math.pi) + torch.log(scale))


def danorm_log_prob(
    n: Shaped[Tensor, "*#s"], mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"]
) -> Float[Tensor, "*s"]:
    """log p(n) = −(n−μ)²/(2 scale²) − log Σ_k exp(−(k−μ)²/(2 scale²)): the normal density restricted to ℤ."""
    return -0.5 * (offset(n, mu) / scale).square() - danorm_log_normalizer(mu, scale)


def window_moments(
    log_prob: Float[Tensor, "*s w"], window: Float[Tensor, "w"]
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Mean and variance of a law given by log-probabilities on a window of offsets that holds all of its mass."""
    p = torch.exp(log_prob)
    mean = (p * window).sum(-1)
    return mean, (p * (window - mean.unsqueeze(-1)).square()).sum(-1)


def gaussian_moments(
    mu: Float[Tensor, "*#s"], scale: Float[Tensor, "*#s"], rounded: bool
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Mean and variance of the discretised normal (``rounded``) or of Danorm.

    Summed over 25 integers below scale 1; from there on μ and scale² (+ 1/12 when rounded), exact to about 1e−7.
    """
    mu, scale = torch.broadcast_tensors(mu, scale)
    centre = torch.round(mu).detach()
    window = torch.arange(-_HALF_WINDOW, _HALF_WINDOW + 1, dtype=mu.dtype, device=mu.device)
    small = scale < 1.0
    capped = torch.where(small, scale, torch.ones_like(scale)).unsqueeze(-1)
    law = discretized_normal_log_prob if rounded else danorm_log_prob
    mean, variance = window_moments(law(window, (mu - centre).unsqueeze(-1), capped), window)
    wide = scale.square() + (1.0 / 12.0 if rounded else 0.0)
    return torch.where(small, centre + mean, mu), torch.where(small, variance, wide)
