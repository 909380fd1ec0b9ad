"""Made-up customers in four segments: mostly zero, then small, medium and large spenders."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from policydist.runs.seeds import numpy_generator

Floats = NDArray[np.float64]

P_POSITIVE = np.array([0.05, 0.6, 0.9, 0.95])
LOG_MEAN = np.array([1.0, 1.5, 3.0, 4.5])
LOG_SPREAD = np.array([0.4, 0.3, 0.3, 0.4])


def segments(rows: int, clarity: float = 4.0, seed: int = 0) -> tuple[Floats, Floats]:
    """Features (rows, 8), standard normal, and outcomes (rows,).

    The segment is ``argmax(clarity (1.5 x0, 1.5 x1, 1.5 x2 - 0.5, 1.2 x3 - 1) + Gumbel noise)``: with a large
    ``clarity`` the features tell it, with a small one they do not. Given the segment z, y is positive with
    probability ``P_POSITIVE[z]`` and then log-normal around ``LOG_MEAN[z] + 0.2 x4`` with spread ``LOG_SPREAD[z]``.
    """
    rng = numpy_generator(seed, "optdist", "segments", clarity)
    x = rng.standard_normal((rows, 8))
    scores = np.stack([1.5 * x[:, 0], 1.5 * x[:, 1], 1.5 * x[:, 2] - 0.5, 1.2 * x[:, 3] - 1.0], axis=1)
    z = np.argmax(clarity * scores + rng.gumbel(size=scores.shape), axis=1)
    size = np.exp(LOG_MEAN[z] + 0.2 * x[:, 4] + LOG_SPREAD[z] * rng.standard_normal(rows))
    return x, np.where(rng.random(rows) < P_POSITIVE[z], size, 0.0)
