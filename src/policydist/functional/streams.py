"""Uniform numbers by name: the same (seed, position) gives the same numbers, however a batch is cut or moved."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STEP = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def keyed_uniforms(seeds: Int[Tensor, " R"], positions: Int[Tensor, " R"], count: int) -> Float[Tensor, "R count"]:
    """``count`` independent uniforms in [0, 1) for every pair of a seed and a position, float64.

    A generator's stream depends on what was drawn before, hence on batch sizes and on the number of processes; here a
    number depends on its name alone. SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) started from a hash of the pair.
    """
    start = _mix(_mix(seeds.long()) + positions.long() * _STEP)
    steps = torch.arange(1, count + 1, device=seeds.device)
    drawn = _mix(start[:, None] + steps * _STEP)
    return _shifted(drawn, 11).double() * 2.0**-53


def _mix(x: Int[Tensor, " *n"]) -> Int[Tensor, " *n"]:
    """SplitMix64's output function; int64 arithmetic wraps as unsigned arithmetic does."""
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Int[Tensor, " *n"], by: int) -> Int[Tensor, " *n"]:
    """A logical right shift: torch's own copies the sign into the gap."""
    return (x >> by) & ((1 << (64 - by)) - 1)
