"""The predicted law of every row: one zero-inflated log-normal distribution, or a mixture of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logsumexp, ndtr, ndtri

from policydist.functional.lifetime import SIGMA_FLOOR, ziln_mean, ziln_nll

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LifetimeLaw:
    """Laws of n rows over y >= 0.

    ``raw`` [n, K, 3] are the raw outputs of the K components in use and ``weight`` [n, K] their probabilities: K = 1
    for one head and for OptDist's hard choice. ``alpha`` [n, L] are the selector's probabilities and ``expert`` [n] the
    most probable expert.
    """

    raw: Floats
    weight: Floats
    alpha: Floats
    expert: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def _location(self) -> Floats:
        return np.asarray(self.raw[..., 1])

    @property
    def _scale(self) -> Floats:
        return np.maximum(np.logaddexp(0.0, self.raw[..., 2]), SIGMA_FLOOR)

    @property
    def p_zero(self) -> Floats:
        """P(y = 0), shape (n,)."""
        return np.asarray((self.weight * expit(-self.raw[..., 0])).sum(axis=1))

    @property
    def mean(self) -> Floats:
        """E[y], shape (n,), never cut except at 1e300."""
        return np.asarray((self.weight * ziln_mean(torch.as_tensor(self.raw)).numpy()).sum(axis=1))

    def log_prob(self, y: ArrayLike) -> Floats:
        """ln P(0) where y is zero, log-density elsewhere; y of shape (n,)."""
        outcome = torch.as_tensor(np.asarray(y, dtype=np.float64)).unsqueeze(1)
        with np.errstate(divide="ignore"):
            terms = np.log(self.weight) - ziln_nll(torch.as_tensor(self.raw), outcome).numpy()
        return np.asarray(logsumexp(terms, axis=1))

    def cdf(self, y: ArrayLike) -> Floats:
        """P(Y <= y) for y of shape (n,) or a number; 0 below zero."""
        value = np.broadcast_to(np.asarray(y, dtype=np.float64), (len(self),))[:, None]
        with np.errstate(divide="ignore"):
            z = (np.log(np.maximum(value, 0.0)) - self._location) / self._scale
        positive = expit(self.raw[..., 0])
        inside = (self.weight * (1.0 - positive + positive * ndtr(z))).sum(axis=1)
        return np.where(value[:, 0] < 0, 0.0, inside)

    def quantile(self, levels: ArrayLike) -> Floats:
        """Quantiles, shape (n, number of levels); 0 up to the level P(y = 0).

        Raises:
            ValueError: a level does not lie strictly between 0 and 1.
        """
        asked = np.atleast_1d(np.asarray(levels, dtype=np.float64))
        if not ((asked > 0) & (asked < 1)).all():
            raise ValueError("levels must lie strictly between 0 and 1")
        return np.stack([self._quantile(float(level)) for level in asked], axis=1)

    def _quantile(self, level: float) -> Floats:
        zero = self.p_zero
        with np.errstate(divide="ignore", invalid="ignore"):
            given_positive = np.clip((level - zero) / (1.0 - zero), 0.0, 1.0)[:, None]
        beyond = level > zero
        # The quantile of a mixture lies between the smallest and the largest of its components'.
        ends = self._location + self._scale * ndtri(np.where(beyond[:, None], given_positive, 0.5))
        low, high = ends.min(axis=1), ends.max(axis=1)
        for _ in range(60 if self.raw.shape[1] > 1 else 0):
            middle = 0.5 * (low + high)
            below = self.cdf(np.exp(middle)) < level
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.where(beyond, np.exp(high), 0.0)

    def sample(self, count: int, rng: np.random.Generator) -> Floats:
        """Draws, shape (count, n)."""
        edges = np.cumsum(self.weight, axis=1)
        pick = np.minimum((rng.random((count, len(self), 1)) > edges).sum(axis=-1), edges.shape[1] - 1)
        rows = np.arange(len(self))
        sizes = np.exp(self._location[rows, pick] + self._scale[rows, pick] * rng.standard_normal(pick.shape))
        return np.where(rng.random(pick.shape) < expit(self.raw[rows, pick, 0]), sizes, 0.0)

    def to_frame(self, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> pd.DataFrame:
        """Mean, P(zero), quantiles, expert and the selector's probability of it, one row each."""
        quantiles = self.quantile(levels)
        columns = {f"q{level:g}": quantiles[:, i] for i, level in enumerate(levels)}
        chosen = self.alpha[np.arange(len(self)), self.expert]
        return pd.DataFrame(
            {"mean": self.mean, "p_zero": self.p_zero, **columns, "expert": self.expert, "expert_probability": chosen}
        )
