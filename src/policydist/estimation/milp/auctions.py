"""Generator of combinatorial auctions with arbitrary relationships between items.

Source: the "arbitrary" scheme of Leyton-Brown et al. (2000), as in the released generator of arXiv 1906.01629.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policydist.errors import UsageError
from policydist.estimation.milp.instance import MILP, Floats, matrix

Bundle = tuple[int, ...]


@dataclass(frozen=True)
class Market:
    """What all bidders share, and the scheme's constants."""

    value: Floats
    """Common value of each item, U[1, 100]."""
    compatibility: Floats
    """Symmetric U[0, 1] before each row was divided by its sum."""
    max_value: float = 100.0
    value_deviation: float = 0.5
    add_item: float = 0.7
    additivity: float = 0.2
    substitutes: int = 5
    budget: float = 1.5
    resale: float = 0.5

    def price(self, bundle: Bundle, private: Floats) -> float:
        """Σ private values + |bundle|^(1 + additivity)."""
        return float(private[list(bundle)].sum() + len(bundle) ** (1 + self.additivity))

    def grow(self, bundle: list[int], interest: Floats, rng: np.random.Generator) -> None:
        """Add one item, drawn ∝ (not in the bundle) · interest · mean compatibility with the bundle."""
        odds = interest * self.compatibility[bundle].mean(axis=0)
        odds[bundle] = 0.0
        bundle.append(_draw(odds, rng))


def auction(rng: np.random.Generator, items: int = 100, bids: int = 500) -> MILP:
    """Winner determination: max Σ price · x, every item sold at most once; dummy items bind the bids of one bidder.

    Raises:
        UsageError: for fewer than one item or bid.
    """
    if items < 1 or bids < 1:
        raise UsageError(f"ca: {items} items and {bids} bids: both must be at least 1")
    compatibility = np.triu(rng.random((items, items)), 1)
    compatibility = compatibility + compatibility.T
    market = Market(1 + 99 * rng.random(items), compatibility / np.maximum(compatibility.sum(axis=1), 1e-12))
    offers: list[tuple[Bundle, float]] = []
    dummies = 0
    while len(offers) < bids:
        made = bidder(market, bids - len(offers), rng)
        dummy: Bundle = (items + dummies,) if len(made) > 2 else ()
        dummies += len(dummy)
        offers += [(bundle + dummy, price) for bundle, price in made.items()]
    return _winner_determination(offers, items + dummies)


def bidder(market: Market, room: int, rng: np.random.Generator) -> dict[Bundle, float]:
    """The bids (sorted bundle to price) of one new bidder, at most ``room``; none if the first price is negative."""
    interest = rng.random(len(market.value))
    private = market.value + market.max_value * market.value_deviation * (2 * interest - 1)
    first = [_draw(interest, rng)]
    while rng.random() < market.add_item and len(first) < len(interest):
        market.grow(first, interest, rng)
    bundle = tuple(sorted(first))
    price = market.price(bundle, private)
    if price < 0:
        return {}
    made = {bundle: price}
    worth = float(market.value[list(bundle)].sum())
    others = []
    for item in bundle:
        grown = [item]
        while len(grown) < len(bundle):
            market.grow(grown, interest, rng)
        substitute = tuple(sorted(grown))
        others.append((market.price(substitute, private), substitute))
    for asked, substitute in sorted(others, key=lambda other: -other[0]):
        if len(made) > market.substitutes or len(made) >= room:
            break
        enough = float(market.value[list(substitute)].sum()) >= market.resale * worth
        if 0 <= asked <= market.budget * price and enough and substitute not in made:
            made[substitute] = asked
    return made


def _draw(odds: Floats, rng: np.random.Generator) -> int:
    """An index with probability ∝ ``odds``."""
    edges = np.cumsum(odds)
    return int(min(np.searchsorted(edges, rng.random() * edges[-1], side="right"), np.flatnonzero(odds)[-1]))


def _winner_determination(offers: list[tuple[Bundle, float]], items: int) -> MILP:
    """One row an item that somebody bids on."""
    column: NDArray[np.int64] = np.repeat(np.arange(len(offers)), [len(bundle) for bundle, _ in offers])
    item = np.array([one for bundle, _ in offers for one in bundle], dtype=np.int64)
    wanted, row = np.unique(item, return_inverse=True)
    n, m = len(offers), len(wanted)
    return MILP(
        "ca", "max", np.array([price for _, price in offers]), matrix((row, column, np.ones(len(row))), m, n),
        np.full(m, -np.inf), np.ones(m), np.zeros(n), np.ones(n), np.full(n, "B"),
    )  # fmt: skip
