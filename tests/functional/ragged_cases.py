"""Batches of ragged groups with arbitrary, unsorted ids, and their statistics as plain loops in double precision."""

from __future__ import annotations

import math

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

quick = settings(deadline=None, max_examples=20)  # deadlines measure how busy the machine is

IDS = [-7, -1, 0, 3, 4, 50, 10**12]


@st.composite
def batches(draw: st.DrawFn, binary: bool = True, smallest: int = 1) -> tuple[Tensor, Tensor]:
    """Rewards [N] (0/1, or multiples of 0.1 in [-2, 2]) in double precision, and group ids [N]."""
    size = draw(st.integers(smallest, 14))
    ids = draw(st.lists(st.sampled_from(IDS), min_size=size, max_size=size))
    value = st.integers(0, 1) if binary else st.integers(-20, 20).map(lambda tenths: tenths / 10)
    rewards = draw(st.lists(value, min_size=size, max_size=size))
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(ids)


def members(group: Tensor) -> dict[int, list[int]]:
    """Rows of each id, ids ascending."""
    found: dict[int, list[int]] = {}
    for row, name in enumerate(group.tolist()):
        found.setdefault(name, []).append(row)
    return dict(sorted(found.items()))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def std(values: list[float], ddof: int = 1) -> float:
    if len(values) <= ddof or min(values) == max(values):
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - ddof))
