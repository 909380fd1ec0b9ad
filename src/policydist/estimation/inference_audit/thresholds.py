"""The best single split of scores: which threshold, on which side, tells two groups of models apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Splits:
    """One split a column: predict distribution 1 where score ≥ ``at`` (``upward``), or where score ≤ ``at``."""

    at: Float[np.ndarray, " P"]
    upward: Bool[np.ndarray, " P"]
    accuracy: Float[np.ndarray, " P"]

    def predict(self, scores: Float[np.ndarray, "m P"]) -> Int[np.ndarray, "m P"]:
        """0 or 1 for every model and column."""
        return np.where(self.upward, scores >= self.at, scores <= self.at).astype(np.int64)


def best_splits(
    scores0: Float[np.ndarray, "k0 P"], scores1: Float[np.ndarray, "k1 P"], step: float | None = None
) -> Splits:
    """For every column the split with the largest accuracy ½(P(predict 0 | 0) + P(predict 1 | 1)).

    Candidates are the midpoints between neighbouring distinct scores, which is exhaustive; both rules are tried at
    each, the first best in ascending order is kept and ``≥`` wins a tie. A constant column predicts 1 everywhere.
    ``step`` scans from the smallest to the largest score in steps instead, as the released code does; it misses
    splits between scores that are closer than the step.
    """
    if step is not None:
        return _scan(scores0, scores1, step)
    values = np.concatenate([scores0, scores1]).astype(np.float64)
    weight0 = np.repeat([0.5 / len(scores0), 0.0], [len(scores0), len(scores1)])
    order = np.argsort(values, axis=0, kind="stable")
    values = np.take_along_axis(values, order, axis=0)
    below0 = np.cumsum(weight0[order], axis=0)[:-1]
    below1 = np.cumsum((0.5 / len(scores1) * (weight0 == 0))[order], axis=0)[:-1]
    upward = below0 + (0.5 - below1)
    accuracy = np.stack([upward, 1.0 - upward], axis=1)  # (cuts, rules, P)
    accuracy[np.broadcast_to((values[1:] <= values[:-1])[:, None], accuracy.shape)] = -1.0
    flat = accuracy.reshape(-1, accuracy.shape[-1])
    # Sums of 1/k differ in the last digits between cuts that are equally good; the first of those is meant.
    pick = np.argmax(flat >= flat.max(axis=0) - 1e-12, axis=0)
    cut, rule = np.divmod(pick, 2)
    column = np.arange(values.shape[1])
    at = 0.5 * (values[cut, column] + values[cut + 1, column])
    best = flat[pick, column]
    constant = best < 0
    return Splits(np.where(constant, values[0], at), (rule == 0) | constant, np.where(constant, 0.5, best))


def _scan(scores0: np.ndarray, scores1: np.ndarray, step: float) -> Splits:
    found = []
    for a, b in zip(scores0.T, scores1.T, strict=True):
        low, high = min(a.min(), b.min()), max(a.max(), b.max())
        grid = np.arange(low, high + step / 2, step)
        above = 0.5 * ((a[:, None] < grid).mean(0) + (b[:, None] >= grid).mean(0))
        under = 0.5 * ((a[:, None] > grid).mean(0) + (b[:, None] <= grid).mean(0))
        both = np.stack([above, under], axis=1).ravel()
        pick = int(np.argmax(both))
        found.append((grid[pick // 2], pick % 2 == 0, both[pick]))
    at, upward, accuracy = zip(*found, strict=True)
    return Splits(np.array(at), np.array(upward), np.array(accuracy))
