"""Customer lifetime value: the zero-inflated log-normal law, noisy selection among experts, alignment, ranking.

Source: arXiv 2408.08585 (OptDist: selection and alignment) and arXiv 1912.07753 (the law and the normalised Gini).
Letters: n customers, L experts. The three raw outputs of a head are (l, m, r): P(y > 0) = sigmoid(l), and given
y > 0, ln y ~ Normal(m, softplus(r)). All logarithms are natural.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from policydist.errors import UsageError
from policydist.functional.divergences import categorical_kl

SIGMA_FLOOR = math.sqrt(1e-7)
"""Smallest sigma in the loss, as in the authors' code of arXiv 1912.07753; the mean has no floor there nor here."""

LARGEST_MEAN = 1e300
"""Means are cut here, because exp(m + sigma^2/2) overflows long before the loss does."""

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def ziln_nll(raw: Float[Tensor, "*#s 3"], y: Shaped[Tensor, "*#s"]) -> Float[Tensor, "*s"]:
    """-log p(y) of the zero-inflated log-normal law, in nats (arXiv 1912.07753, section 3).

    ``BCE(l, 1{y>0}) + 1{y>0} [ln y + ln sigma + ln(2 pi)/2 + (ln y - m)^2 / (2 sigma^2)]`` with
    ``sigma = max(softplus(r), 1e-3.5)``. At y = 0 this is a probability, elsewhere a density in units of 1/y; y must
    not be negative. The shapes of ``raw`` without its last axis and of ``y`` broadcast.
    """
    logit, centre, spread = raw.unbind(-1)
    positive = y > 0
    log_y = torch.log(torch.where(positive, y, torch.ones_like(y)).to(raw.dtype))
    sigma = F.softplus(spread).clamp(min=SIGMA_FLOOR)
    density = log_y + sigma.log() + _HALF_LOG_2PI + 0.5 * ((log_y - centre) / sigma).square()
    cross_entropy = F.softplus(torch.where(positive, -logit, logit))
    return cross_entropy + torch.where(positive, density, torch.zeros_like(density))


def ziln_mean(raw: Float[Tensor, "*s 3"]) -> Float[Tensor, "*s"]:
    """E[y] = sigmoid(l) exp(m + softplus(r)^2 / 2), in the units of y; cut at 1e300 (float32: its largest number)."""
    logit, centre, spread = raw.unbind(-1)
    largest = min(LARGEST_MEAN, torch.finfo(raw.dtype).max)
    return torch.exp(F.logsigmoid(logit) + centre + 0.5 * F.softplus(spread).square()).clamp(max=largest)


def gumbel_noise(uniform: Float[Tensor, "*s"]) -> Float[Tensor, "*s"]:
    """Standard Gumbel draws -ln(-ln u) from uniform ones; u is kept off 0 and 1, so that the result is finite."""
    eps = torch.finfo(uniform.dtype).eps
    return -torch.log(-torch.log(uniform.clamp(torch.finfo(uniform.dtype).tiny, 1.0 - eps)))


def gumbel_log_softmax(
    log_alpha: Float[Tensor, "*s L"], tau: float, noise: Float[Tensor, "*s L"] | None = None
) -> Float[Tensor, "*s L"]:
    """ln pi with pi = softmax((ln alpha + g) / tau) over the last axis (arXiv 2408.08585, distribution selection).

    ``noise`` is g, drawn from the global generator if absent. For tau to 0, pi becomes one-hot at a draw from alpha;
    for tau to infinity, uniform.

    Raises:
        UsageError: tau is not positive.
    """
    if not tau > 0:
        raise UsageError(f"tau is {tau}; the temperature of the selection must be positive")
    g = gumbel_noise(torch.rand_like(log_alpha)) if noise is None else noise
    return torch.log_softmax((log_alpha + g) / tau, -1)


def gumbel_softmax(
    log_alpha: Float[Tensor, "*s L"], tau: float, noise: Float[Tensor, "*s L"] | None = None
) -> Float[Tensor, "*s L"]:
    """pi of :func:`gumbel_log_softmax`: soft selection weights that sum to one."""
    return gumbel_log_softmax(log_alpha, tau, noise).exp()


def pseudo_labels(losses: Float[Tensor, "*s L"]) -> tuple[Int[Tensor, "*s"], Float[Tensor, "*s L"]]:
    """Which expert explains each sample: ``(argmin_i loss_i, log_softmax(-loss))`` (arXiv 2408.08585, alignment).

    The first expert wins ties. Neither carries a gradient: otherwise the selector's loss would move the experts.
    """
    fixed = losses.detach()
    return fixed.argmin(-1), torch.log_softmax(-fixed, -1)


def focal_cross_entropy(
    log_q: Float[Tensor, "*s L"], label: Int[Tensor, "*s"], gamma: float = 2.0
) -> Float[Tensor, "*s"]:
    """-(1 - q_k)^gamma ln q_k at the hard label k (arXiv 1708.02002, eq. 4); gamma = 0 is the cross-entropy.

    Raises:
        UsageError: gamma is negative.
    """
    if gamma < 0:
        raise UsageError(f"gamma is {gamma}; the exponent of the focal loss must not be negative")
    log_k = log_q.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    # Off zero, where a power below one has an infinite slope (a selector with one expert has q = 1).
    rest = (-torch.expm1(log_k)).clamp(min=torch.finfo(log_q.dtype).tiny)
    return -rest.pow(gamma) * log_k


def alignment_kl(log_q: Float[Tensor, "*s L"], log_soft: Float[Tensor, "*s L"]) -> Float[Tensor, "*s"]:
    """KL(q || omega) = sum_i q_i (ln q_i - ln omega_i) to the soft labels; in nats, 0 iff q = omega."""
    return categorical_kl(log_q, log_soft)


def gini(
    value: Float[Tensor, "n"], by: Float[Tensor, "n"], weight: Float[Tensor, "n"] | None = None
) -> Float[Tensor, ""]:
    """2 mean(gain curve) - 1, the curve being the share of ``value`` held by the rows first in ``by``, descending.

    Without weights as in the released code of arXiv 1912.07753, except that rows tied in ``by`` share their value
    evenly, so that the result does not depend on the order of rows. A weight of two counts like two rows, up to a
    term of order 1/n.

    Raises:
        UsageError: a value is negative, or their weighted sum is not positive.
    """
    w = torch.ones_like(value) if weight is None else weight / weight.mean()
    if bool((value < 0).any()) or not float((value * w).sum()) > 0:
        raise UsageError("a Gini coefficient needs values of at least zero with a positive sum")
    _, tie = torch.unique(-by, return_inverse=True)
    held = torch.zeros(int(tie.max()) + 1, dtype=value.dtype, device=value.device)
    held, weights = held.index_add(0, tie, value * w), held.index_add(0, tie, w)
    share = held / held.sum()
    middle = torch.cumsum(share, 0) - 0.5 * share
    return 2.0 * (weights * middle).sum() / weights.sum() + 1.0 / len(value) - 1.0


def norm_gini(
    y: Float[Tensor, "n"], predicted: Float[Tensor, "n"], weight: Float[Tensor, "n"] | None = None
) -> Float[Tensor, ""]:
    """gini(y by predicted) / gini(y by y): 1 for a perfect ranking, about 0 for a random one, negative for worse.

    Only the order of the predictions matters. Raises as :func:`gini`.
    """
    return gini(y, predicted, weight) / gini(y, y, weight)
