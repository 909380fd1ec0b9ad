"""What a distribution-valued design is compared with: quantile RD on pooled data, and RD on unit means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from policydist.estimation.rd.estimate import estimate_jump
from policydist.estimation.rd.kernels import Kernel
from policydist.estimation.rd.polynomial import fit_side


@dataclass(frozen=True)
class ScalarJump:
    """A jump of a scalar outcome with its residual-based standard error."""

    estimate: float
    standard_error: float


def mean_rd(
    x: Float[np.ndarray, " units"],
    means: Float[np.ndarray, " units"],
    bandwidth: float,
    *,
    cutoff: float = 0.0,
    order: int = 2,
    kernel: Kernel = "triangular",
    unit_weight: Float[np.ndarray, " units"] | None = None,
) -> ScalarJump:
    """Sharp RD on one number a unit: the difference of two one-sided local polynomial intercepts.

    On unit means it equals the q-average of the distributional effect up to the error of the grid.
    """
    jump = estimate_jump(
        np.asarray(x, dtype=np.float64) - cutoff,
        np.asarray(means, dtype=np.float64)[:, None],
        np.array([float(bandwidth)]),
        order=order,
        kernel=kernel,
        shape="free",
        column_weight=np.ones(1),
        unit_weight=unit_weight,
    )
    return ScalarJump(float(jump.difference[0]), float(np.sqrt(np.sum(jump.influence**2))))


def quantile_rd(
    x: Float[np.ndarray, " units"],
    samples: Sequence[np.ndarray],
    quantiles: Float[np.ndarray, " quantiles"],
    bandwidth: float,
    *,
    cutoff: float = 0.0,
    order: int = 1,
    kernel: Kernel = "triangular",
    unit_weight: Float[np.ndarray, " units"] | None = None,
) -> Float[np.ndarray, " quantiles"]:
    """Quantile RD: smooth the distribution function of the pooled data on each side, invert, subtract.

    F_s(z) = sum_i w_s,i F_i(z) with the local polynomial weights w and each unit's empirical F_i (units count
    equally), clipped to [0, 1] and rearranged to be monotone (the form of Frandsen, Frölich and Melly, 2012). Its
    target is the jump of the quantiles of the *mixture* of units, not of their average quantile function: where units
    differ among themselves the two differ, whatever the sample size.
    """
    centred = np.asarray(x, dtype=np.float64) - cutoff
    sizes = np.array([len(sample) for sample in samples])
    pooled = np.concatenate([np.asarray(sample, dtype=np.float64) for sample in samples])
    owner = np.repeat(np.arange(len(samples)), sizes)
    curves = []
    for side in ("plus", "minus"):
        fit = fit_side(
            centred, np.zeros((len(centred), 1)), np.array([float(bandwidth)]),
            order=order, kernel=kernel, side="plus" if side == "plus" else "minus", unit_weight=unit_weight,
        )  # fmt: skip
        share = (fit.weights[:, 0] / sizes)[owner]
        kept = np.flatnonzero(share)
        rank = kept[np.argsort(pooled[kept], kind="stable")]
        cumulative = np.sort(np.clip(np.cumsum(share[rank]), 0.0, 1.0))
        at = np.searchsorted(cumulative, quantiles - 1e-12)
        curves.append(pooled[rank][np.minimum(at, len(rank) - 1)])
    return curves[0] - curves[1]
