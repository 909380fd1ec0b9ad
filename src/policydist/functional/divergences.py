"""Divergences between next-token distributions: exact from logits, and estimated from sampled tokens.

V vocabulary. All in nats. Conventions of the estimators: those of verl and TRL.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from policydist.errors import UsageError


def kl_estimate(
    logprobs: Float[Tensor, "*N"],
    ref_logprobs: Float[Tensor, "*N"],
    kind: Literal["k1", "k2", "k3"] = "k3",
    *,
    exponent_clamp: float | None = None,
    value_clamp: float | None = None,
) -> Float[Tensor, "*N"]:
    """Single-sample estimates of KL(pi || ref) at tokens drawn from pi (Schulman 2020), with ``d = log pi - log ref``.

    k1 = d, unbiased; k2 = d^2 / 2, whose *gradient* is that of the KL; k3 = exp(-d) + d - 1, unbiased in value and
    never negative. verl's "low_var_kl" is k3 with ``exponent_clamp=20`` and ``value_clamp=10``.

    Raises:
        UsageError: unknown kind, or ``exponent_clamp`` with a kind that has no exponent.
    """
    if exponent_clamp is not None and kind != "k3":
        raise UsageError(f"exponent_clamp belongs to kind 'k3', not {kind!r}")
    difference = logprobs - ref_logprobs
    if kind == "k1":
        value = difference
    elif kind == "k2":
        value = difference.square() / 2
    elif kind == "k3":
        inverse = -difference
        if exponent_clamp is not None:
            inverse = inverse.clamp(-exponent_clamp, exponent_clamp)
        value = torch.expm1(inverse) - inverse
    else:
        raise UsageError(f"kind is {kind!r}; it must be 'k1', 'k2' or 'k3'")
    return value if value_clamp is None else value.clamp(-value_clamp, value_clamp)


def categorical_kl(p_logits: Float[Tensor, "... V"], q_logits: Float[Tensor, "... V"]) -> Float[Tensor, "..."]:
    """``KL(p || q) = sum_v p (log p - log q)``; a logit of -inf in p is a symbol that p excludes."""
    return _kl(p_logits.log_softmax(-1), q_logits.log_softmax(-1))


def generalized_jsd(
    p_logits: Float[Tensor, "... V"], q_logits: Float[Tensor, "... V"], beta: float = 0.5
) -> Float[Tensor, "..."]:
    """``beta KL(p || m) + (1 - beta) KL(q || m)`` with ``m = beta p + (1 - beta) q`` (GKD, arXiv 2306.13649, eq. 1).

    In distillation p is the teacher and q the student. Symmetric at 1/2 and then at most log 2. The expression tends
    to 0 at both ends, where GKD means its rescaled limits: ``beta=0`` gives KL(p || q), ``beta=1`` gives KL(q || p).

    Raises:
        UsageError: beta outside [0, 1].
    """
    if not 0 <= beta <= 1:
        raise UsageError(f"beta is {beta}; it must lie in [0, 1]")
    log_p, log_q = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    if beta == 0:
        return _kl(log_p, log_q)
    if beta == 1:
        return _kl(log_q, log_p)
    absent = (log_p == -torch.inf) & (log_q == -torch.inf)  # logaddexp has no gradient there, and `_kl` reads no value
    log_m = torch.logaddexp(
        log_p.masked_fill(absent, 0.0) + math.log(beta), log_q.masked_fill(absent, 0.0) + math.log1p(-beta)
    )
    return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    excluded = log_p == -torch.inf  # 0 log 0 = 0, in value and gradient
    return (log_p.exp() * (log_p - log_q).masked_fill(excluded, 0.0)).sum(-1)
