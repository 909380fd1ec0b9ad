"""Black-box attacks: they see scores or probabilities of a model, never its weights (arXiv 2109.06024, section 5.1).

An attack is fitted on the adversary's own models and then asked about others: ``fit(models0, models1, seed)`` gives an
object with ``predict(evidence)`` (0 or 1 a model) and ``adversary_accuracy``. Whatever an attack chooses (threshold,
test set, points) is chosen there, so victims cannot influence it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
from jaxtyping import Float, Int

from policydist.estimation.inference_audit.evidence import Evidence
from policydist.estimation.inference_audit.thresholds import Splits, best_splits

Need = Literal["scores", "chances", "layers"]


class Fitted(Protocol):
    """A fitted attack."""

    adversary_accuracy: float | None

    def predict(self, models: Evidence) -> Int[np.ndarray, " m"]: ...


class Attack(Protocol):
    """An attack and its settings."""

    name: ClassVar[str]
    need: ClassVar[Need]

    def fit(self, models0: Evidence, models1: Evidence, seed: int) -> Fitted: ...


@dataclass(frozen=True)
class LossTest:
    """0 if the model scores better on S_0 than on S_1, else 1 (ties → 1). Nothing is trained (section 5.1.1)."""

    name: ClassVar[str] = "loss"
    need: ClassVar[Need] = "scores"
    adversary_accuracy: float | None = None

    def fit(self, models0: Evidence, models1: Evidence, seed: int) -> LossTest:
        return self

    def predict(self, models: Evidence) -> Int[np.ndarray, " m"]:
        assert models.scores is not None
        return loss_test(models.scores)


def loss_test(scores: Float[np.ndarray, "m 2"]) -> Int[np.ndarray, " m"]:
    """1{score on S_0 ≤ score on S_1}."""
    return (scores[:, 0] <= scores[:, 1]).astype(np.int64)


@dataclass(frozen=True)
class ThresholdTest:
    """A threshold on the score, learnt on the adversary's models, on the test set that suits them better (5.1.2).

    ``step`` scans scores in steps of this size (in score units) as the released code does; None tries every midpoint.
    """

    name: ClassVar[str] = "threshold"
    need: ClassVar[Need] = "scores"
    step: float | None = None

    def fit(self, models0: Evidence, models1: Evidence, seed: int) -> FittedThreshold:
        assert models0.scores is not None
        assert models1.scores is not None
        splits = best_splits(models0.scores, models1.scores, self.step)
        # The larger adversary accuracy; the released botnet script takes the smaller, its census script the larger.
        return FittedThreshold(splits, int(np.argmax(splits.accuracy)))


@dataclass(frozen=True)
class FittedThreshold:
    """One threshold for each test set, and which of the two is used."""

    splits: Splits
    test_set: int

    @property
    def adversary_accuracy(self) -> float:
        return float(self.splits.accuracy[self.test_set])

    def predict(self, models: Evidence) -> Int[np.ndarray, " m"]:
        assert models.scores is not None
        return self.splits.predict(models.scores)[:, self.test_set]


@dataclass(frozen=True)
class PerPointTest:
    """A threshold on the model's probability at every single test point; the points vote (mean ≥ ½ → 1).

    Points are ordered by how far the adversary's two groups of models lie apart on them; which share of the best
    points votes, and of which test set, is chosen on the adversary's models.
    """

    name: ClassVar[str] = "per_point"
    need: ClassVar[Need] = "chances"
    fractions: tuple[float, ...] = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)

    def fit(self, models0: Evidence, models1: Evidence, seed: int) -> FittedPerPoint:
        assert models0.chances is not None
        assert models1.chances is not None
        candidates = []
        for test_set, (a, b) in enumerate(zip(models0.chances, models1.chances, strict=True)):
            order = np.argsort(-np.abs(a.mean(axis=0) - b.mean(axis=0)), kind="stable")
            splits = best_splits(a, b)
            votes0, votes1 = splits.predict(a)[:, order], splits.predict(b)[:, order]
            for fraction in self.fractions:
                points = order[: max(1, round(fraction * len(order)))]
                wrong0 = votes0[:, : len(points)].mean(axis=1) >= 0.5
                right1 = votes1[:, : len(points)].mean(axis=1) >= 0.5
                accuracy = 0.5 * (np.mean(~wrong0) + np.mean(right1))
                candidates.append(FittedPerPoint(splits, test_set, points, float(accuracy)))
        return max(candidates, key=lambda one: one.adversary_accuracy)  # max keeps the first of equals


@dataclass(frozen=True)
class FittedPerPoint:
    """Thresholds of every point of one test set, and the points that vote."""

    splits: Splits
    test_set: int
    points: Int[np.ndarray, " k"]
    adversary_accuracy: float

    def predict(self, models: Evidence) -> Int[np.ndarray, " m"]:
        assert models.chances is not None
        votes = self.splits.predict(models.chances[self.test_set])[:, self.points]
        return (votes.mean(axis=1) >= 0.5).astype(np.int64)


@dataclass(frozen=True)
class KLTest:
    """Pairs of adversary models vote for the distribution whose model predicts more like the victim.

    For every pair (i from 0, j from 1): 1 if KL(victim ‖ j) < KL(victim ‖ i), averaged over the points of both test
    sets; mean vote ≥ ½ → 1. From the follow-up arXiv 2212.07591.
    """

    name: ClassVar[str] = "kl"
    need: ClassVar[Need] = "chances"

    def fit(self, models0: Evidence, models1: Evidence, seed: int) -> FittedKL:
        return FittedKL(_both(models0), _both(models1))


@dataclass(frozen=True)
class FittedKL:
    """The adversary's predictions. There is no adversary accuracy: a model would vote for itself."""

    chances0: Float[np.ndarray, "k0 P"]
    chances1: Float[np.ndarray, "k1 P"]
    adversary_accuracy: float | None = None

    def predict(self, models: Evidence) -> Int[np.ndarray, " m"]:
        victims = _both(models)
        distance0, distance1 = cross_entropies(victims, self.chances0), cross_entropies(victims, self.chances1)
        votes = (distance1[:, None, :] < distance0[:, :, None]).mean(axis=(1, 2))
        return (votes >= 0.5).astype(np.int64)


def cross_entropies(p: Float[np.ndarray, "m P"], q: Float[np.ndarray, "k P"]) -> Float[np.ndarray, "m k"]:
    """−Σ_points (p ln q + (1−p) ln(1−q)) / P: KL(p‖q) up to a term of the victim alone, which no comparison sees."""
    p, q = p.astype(np.float64), np.clip(q.astype(np.float64), 1e-6, 1 - 1e-6)
    return -(p @ np.log(q).T + (1 - p) @ np.log1p(-q).T) / p.shape[1]


def _both(models: Evidence) -> np.ndarray:
    assert models.chances is not None
    return np.concatenate(models.chances, axis=1)
