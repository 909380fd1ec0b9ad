"""Generators of set cover and capacitated facility location.

Source: the released generators of arXiv 1906.01629 (section 4), on which arXiv 2406.06954 builds.
"""

from __future__ import annotations

import numpy as np

from policydist.errors import UsageError
from policydist.estimation.milp.instance import MILP, matrix


def set_cover(
    rng: np.random.Generator, rows: int = 500, columns: int = 1000, density: float = 0.05, max_cost: int = 100
) -> MILP:
    """Balas-Ho set cover: min Σ c_j x_j, every row covered; c_j uniform on 1..``max_cost``.

    ⌊rows · columns · density⌋ entries: column sizes are counts of random picks of columns, the first two picks of every
    column forced; laid end to end, the first ``rows`` slots are a permutation of the rows, so that every row is covered,
    and what is left of a column is filled without repetition.

    Raises:
        UsageError: if the density leaves fewer than two entries a column or one a row, or asks for too many.
    """
    entries = int(rows * columns * density)
    if entries < max(rows, 2 * columns) or density > 1:
        raise UsageError(
            f"sc: density {density} gives {entries} entries; {rows} rows and {columns} columns need at least "
            f"{max(rows, 2 * columns)}, and at most density 1"
        )
    picks = rng.integers(columns, size=entries)
    picks[: 2 * columns] = np.repeat(np.arange(columns), 2)
    # More picks of one column than there are rows could not be placed.
    counts = np.minimum(np.bincount(picks, minlength=columns), rows)
    ends = np.cumsum(counts)
    chosen = np.empty(ends[-1], dtype=np.int64)
    forced = min(rows, len(chosen))
    chosen[:forced] = rng.permutation(rows)[:forced]
    for end, count in zip(ends.tolist(), counts.tolist(), strict=True):
        start = max(end - count, forced)
        if start < end:
            taken = chosen[end - count : start]
            free = np.setdiff1d(np.arange(rows), taken, assume_unique=True) if taken.size else rows
            chosen[start:end] = rng.choice(free, size=end - start, replace=False)
    where = (chosen, np.repeat(np.arange(columns), counts), np.ones(len(chosen)))
    cost = rng.integers(1, max_cost + 1, size=columns).astype(float)
    return MILP(
        "sc", "min", cost, matrix(where, rows, columns), np.ones(rows), np.full(rows, np.inf),
        np.zeros(columns), np.ones(columns), np.full(columns, "B"),
    )  # fmt: skip


def facility_location(
    rng: np.random.Generator, customers: int = 100, facilities: int = 100, ratio: float = 5.0
) -> MILP:
    """Capacitated facility location: min Σ t_ij x_ij + Σ f_j y_j, shares x continuous, openings y binary.

    Rows: every customer served, Σ_i d_i x_ij ≤ s_j y_j, Σ_j s_j y_j ≥ Σ d, x_ij ≤ y_j. Coordinates U[0, 1]², demands
    U{5..35}, capacities U{10..160} scaled to ``ratio`` times the total demand, fixed cost U{100..110} √s + U{0..90},
    transport 10 · distance · demand. Everything is drawn from ``rng`` (the released script draws from a global one).

    Raises:
        UsageError: for no customer, no facility, or a ratio below 1, which leaves demand unserved.
    """
    if min(customers, facilities) < 1 or ratio < 1:
        raise UsageError(f"cflp: {customers} customers, {facilities} facilities, ratio {ratio}: all must be at least 1")
    demand = rng.integers(5, 36, size=customers).astype(float)
    raw = rng.integers(10, 161, size=facilities).astype(float)
    fixed = np.floor(rng.integers(100, 111, size=facilities) * np.sqrt(raw) + rng.integers(0, 91, size=facilities))
    # Rounded up: rounding down could leave less capacity than demand at ratio 1.
    capacity = np.ceil(raw * ratio * demand.sum() / raw.sum())
    here, there = rng.random((customers, 2)), rng.random((facilities, 2))
    transport = 10 * np.linalg.norm(here[:, None] - there[None], axis=2) * demand[:, None]
    i, j = (part.ravel() for part in np.indices((customers, facilities)))
    x, y = i * facilities + j, customers * facilities + np.arange(facilities)
    total, link = customers + facilities, customers + facilities + 1
    entries = (
        np.concatenate(
            [i, customers + j, customers + np.arange(facilities), np.full(facilities, total), link + x, link + x]
        ),
        np.concatenate([x, x, y, y, x, y[j]]),
        np.concatenate([-np.ones(x.size), demand[i], -capacity, -capacity, np.ones(x.size), -np.ones(x.size)]),
    )
    right = np.concatenate([-np.ones(customers), np.zeros(facilities), [-demand.sum()], np.zeros(x.size)])
    n = x.size + facilities
    names = [f"x{a}_{b}" for a, b in zip(i.tolist(), j.tolist(), strict=True)] + [f"y{b}" for b in range(facilities)]
    return MILP(
        "cflp", "min", np.concatenate([transport.ravel(), fixed]), matrix(entries, len(right), n),
        np.full(len(right), -np.inf), right, np.zeros(n), np.ones(n), np.repeat(["C", "B"], [x.size, facilities]),
        names=tuple(names),
    )  # fmt: skip
