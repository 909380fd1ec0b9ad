"""What an adversary sees of models: numbers only, no model and no label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from policydist.errors import UsageError

Layers = tuple[tuple[Float[np.ndarray, "m out in"], Float[np.ndarray, "m out"]], ...]


@dataclass(frozen=True)
class Evidence:
    """m models seen through two test sets, S_0 from the first distribution and S_1 from the second.

    scores: accuracy (or the user's score) on S_0 and S_1, (m, 2).
    chances: probability given to each row's own label, one (m, rows) array a test set; None if not asked for.
    layers: weights and biases of every layer; None if not asked for.
    """

    scores: Float[np.ndarray, "m 2"] | None = None
    chances: tuple[Float[np.ndarray, "m p0"], Float[np.ndarray, "m p1"]] | None = None
    layers: Layers | None = None

    def __len__(self) -> int:
        parts = (self.scores, self.chances and self.chances[0], self.layers and self.layers[0][0])
        return len(next(part for part in parts if part is not None))

    def of(self, rows: np.ndarray | slice) -> Evidence:
        """Some of the models."""
        return Evidence(
            None if self.scores is None else self.scores[rows],
            None if self.chances is None else (self.chances[0][rows], self.chances[1][rows]),
            None if self.layers is None else tuple((w[rows], b[rows]) for w, b in self.layers),
        )

    def flat_weights(self) -> Float[np.ndarray, "m weights"]:
        """All weights and biases of each model in one row."""
        assert self.layers is not None
        return np.concatenate([part.reshape(len(part), -1) for layer in self.layers for part in layer], axis=1)


def joined(parts: Sequence[Evidence]) -> Evidence:
    """The models of all parts, in order."""
    scores = [part.scores for part in parts if part.scores is not None]
    chances = [part.chances for part in parts if part.chances is not None]
    layers = [part.layers for part in parts if part.layers is not None]
    return Evidence(
        np.concatenate(scores) if scores else None,
        (np.concatenate([c[0] for c in chances]), np.concatenate([c[1] for c in chances])) if chances else None,
        stacked(layers) if layers else None,
    )


def stacked(parts: Sequence[Layers]) -> Layers:
    """Layers of several batches of models in one batch. Raises UsageError unless all have one architecture."""
    shapes = {tuple(w.shape[1:] for w, _ in layers) for layers in parts}
    if len(shapes) > 1:
        first, second = sorted(shapes, key=str)[:2]
        raise UsageError(
            f"white-box attacks need victims of one architecture; found layers {first} and {second} "
            "(one-hot columns, or classes, that are missing from some draws?)"
        )
    count = len(next(iter(shapes)))
    return tuple(
        (np.concatenate([layers[k][0] for layers in parts]), np.concatenate([layers[k][1] for layers in parts]))
        for k in range(count)
    )
