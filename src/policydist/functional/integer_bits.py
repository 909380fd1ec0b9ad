"""Integers as products of independent bits (the Bitwise head of arXiv 2602.10751), unsigned and signed.

``logits[..., b]`` is the logit of bit b, least significant first, so n = Σ_b bit_b 2^b. Signed layouts, which the
paper's text available to us does not specify, are reconstructions: ``signmag`` carries one more logit at the end (the
sign; set means negative) and merges the two zeros; ``twos`` reads the last bit as −2^(B−1).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn.functional import logsigmoid

from policydist.functional.integers import logsum

Signed = Literal["none", "signmag", "twos"]


def bit_range(n_logits: int, signed: Signed) -> tuple[int, int]:
    """Smallest and largest integer that ``n_logits`` logits can name; at most 62 magnitude bits fit int64."""
    if signed == "none":
        return 0, 2**n_logits - 1
    top = 2 ** (n_logits - 1)
    return (-top + 1, top - 1) if signed == "signmag" else (-top, top - 1)


def to_bits(n: Int[Tensor, "*s"], count: int) -> Int[Tensor, "*s {count}"]:
    """The ``count`` lowest bits of n (two's complement for n < 0), least significant first."""
    return (n.unsqueeze(-1) >> torch.arange(count, device=n.device)) & 1


def bits_log_prob(n: Shaped[Tensor, "*#s"], logits: Float[Tensor, "*#s B"]) -> Float[Tensor, "*s"]:
    """Σ_b [n_b log σ(θ_b) + (1−n_b) log σ(−θ_b)] for 0 ≤ n < 2^B: minus the summed BCE-with-logits."""
    bits = to_bits(n.long(), logits.shape[-1]).to(logits.dtype)
    return logsigmoid((2.0 * bits - 1.0) * logits).sum(-1)


def bitwise_log_prob(
    n: Shaped[Tensor, "*#s"], logits: Float[Tensor, "*#s B"], signed: Signed = "none"
) -> Float[Tensor, "*s"]:
    """log p(n); the caller checks that n lies in :func:`bit_range`. At n = 0 ``signmag`` has no sign term."""
    if signed != "signmag":
        return bits_log_prob(n, logits)
    value = n.long()
    magnitude = bits_log_prob(value.abs(), logits[..., :-1])
    sign = logsigmoid(torch.where(value < 0, logits[..., -1], -logits[..., -1]))
    return magnitude + torch.where(value == 0, torch.zeros_like(sign), sign)


def bits_log_mass(
    lo: Shaped[Tensor, "*#s"], hi: Shaped[Tensor, "*#s"], logits: Float[Tensor, "*#s B"]
) -> Float[Tensor, "*s"]:
    """log P(lo ≤ N ≤ hi) over B unsigned bits, −inf if the range is empty: a digit recursion, O(B), sums only.

    From the top bit down four states are kept: whether the prefix still equals lo's, and whether it equals hi's.
    """
    count = logits.shape[-1]
    low, high = torch.clamp(lo.long(), min=0), torch.clamp(hi.long(), max=2**count - 1)
    empty = low > high
    low_bits = to_bits(torch.where(empty, torch.zeros_like(low), low), count).bool()
    high_bits = to_bits(torch.where(empty, torch.zeros_like(high), high), count).bool()
    off, on = logsigmoid(-logits), logsigmoid(logits)
    never = torch.full_like(off[..., 0] + low_bits[..., 0].to(off.dtype), -torch.inf)
    both, at_low, at_high, free = torch.zeros_like(never), never, never, never
    for b in range(count - 1, -1, -1):
        zero, one, lb, hb = off[..., b], on[..., b], low_bits[..., b], high_bits[..., b]
        same = torch.where(lb, one, zero)
        split = hb & ~lb
        free = logsum(
            free,  # the two values of this bit sum to one
            torch.where(lb, never, at_low + one),
            torch.where(hb, at_high + zero, never),
        )
        at_low_next = logsum(torch.where(split, both + zero, never), at_low + same)
        at_high = logsum(torch.where(split, both + one, never), at_high + torch.where(hb, one, zero))
        both = torch.where(lb == hb, both + same, never)
        at_low = at_low_next
    return torch.where(empty, never, logsum(both, at_low, at_high, free))


def bitwise_log_mass(
    lo: Shaped[Tensor, "*#s"], hi: Shaped[Tensor, "*#s"], logits: Float[Tensor, "*#s B"], signed: Signed = "none"
) -> Float[Tensor, "*s"]:
    """log P(lo ≤ N ≤ hi) for the three layouts; see :func:`bits_log_mass`."""
    lo, hi = lo.long(), hi.long()
    if signed == "none":
        return bits_log_mass(lo, hi, logits)
    if signed == "twos":  # adding 2^(B−1) turns the order into the unsigned one and flips the top bit
        shift = 2 ** (logits.shape[-1] - 1)
        return bits_log_mass(lo + shift, hi + shift, torch.cat([logits[..., :-1], -logits[..., -1:]], -1))
    magnitude, sign = logits[..., :-1], logits[..., -1]
    positive = bits_log_mass(torch.clamp(lo, min=1), hi, magnitude) + logsigmoid(-sign)
    negative = bits_log_mass(torch.clamp(-hi, min=1), -lo, magnitude) + logsigmoid(sign)
    at_zero = torch.where((lo <= 0) & (hi >= 0), logsigmoid(-magnitude).sum(-1), torch.full_like(sign, -torch.inf))
    return logsum(positive, negative, at_zero)


def bitwise_moments(
    logits: Float[Tensor, "*s B"], signed: Signed = "none"
) -> tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]:
    """Mean Σ 2^b σ(θ_b) and variance Σ 4^b σ(1−σ) of the magnitude, then the sign.

    Sign-magnitude: N = S·M with E S = 1 − 2σ(θ_sign) independent of M, so E N = E S · E M, E N² = E M².
    """
    probs = torch.sigmoid(logits)
    n_bits = logits.shape[-1] - (signed == "signmag")
    powers = 2.0 ** torch.arange(n_bits, dtype=logits.dtype, device=logits.device)
    if signed == "twos":
        powers = torch.cat([powers[:-1], -powers[-1:]])
    bits = probs[..., :n_bits]
    mean, variance = (bits * powers).sum(-1), (bits * (1.0 - bits) * powers.square()).sum(-1)
    if signed != "signmag":
        return mean, variance
    signed_mean = (1.0 - 2.0 * probs[..., -1]) * mean
    return signed_mean, variance + mean.square() - signed_mean.square()
