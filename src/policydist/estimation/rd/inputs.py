"""Checks and conversions of what users hand in; every refusal names the thing and the mend."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from policydist.errors import nearest
from policydist.estimation.rd.polynomial import side_mask
from policydist.estimation.rd.quantiles import quantile_matrix

if TYPE_CHECKING:
    import pandas as pd

DECILES = tuple(k / 10 for k in range(1, 10))


@dataclass(frozen=True)
class LongTable:
    """A long-format table turned into units."""

    labels: np.ndarray
    x: np.ndarray
    samples: list[np.ndarray]
    weights: list[np.ndarray] | None
    treatment: np.ndarray | None
    unit_weight: np.ndarray | None


def check_quantiles(quantiles: Any) -> Float[np.ndarray, " quantiles"]:
    """The grid as a strictly increasing array inside (0, 1); None gives the nine deciles."""
    grid = np.asarray(DECILES if quantiles is None else quantiles, dtype=np.float64)
    if grid.ndim != 1 or grid.size == 0:
        raise ValueError("quantiles must be a non-empty one-dimensional list of numbers between 0 and 1")
    if not (np.all(np.isfinite(grid)) and np.all(grid > 0) and np.all(grid < 1)):
        raise ValueError("quantiles must lie strictly between 0 and 1")
    if np.any(np.diff(grid) <= 0):
        raise ValueError("quantiles must be strictly increasing")
    return grid


def running_variable(X: Any, cutoff: float) -> Float[np.ndarray, " units"]:
    """X minus the cutoff as a vector. Raises ValueError for NaN, constants, several columns and empty sides."""
    values = np.asarray(X)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(
            f"X must hold one running variable, with shape (n_units,) or (n_units, 1); got shape {values.shape}. "
            "For a long table with one row an observation use fit_frame"
        )
    x = finite(values, "X, the running variable,")
    if not np.isfinite(cutoff):
        raise ValueError(f"cutoff must be a finite number, got {cutoff!r}")
    if len(x) and np.all(x == x[0]):
        raise ValueError(f"X, the running variable, is constant at {x[0]:g}; there is nothing to compare at a cutoff")
    x = x - cutoff
    for side, where in (("plus", "at or above"), ("minus", "below")):
        if not side_mask(x, "plus" if side == "plus" else "minus").any():
            raise ValueError(
                f"no unit lies {where} the cutoff {cutoff:g}: X runs from {x.min() + cutoff:g} to {x.max() + cutoff:g}"
                if len(x)
                else "X is empty"
            )
    return x


def finite(values: Any, name: str) -> np.ndarray:
    """``values`` as float64. Raises ValueError naming the first NaN or infinite position."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numeric: {error}") from None
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = int(bad[0][0]) if array.ndim == 1 else tuple(int(k) for k in bad[0])
        raise ValueError(f"{name} holds {len(bad)} NaN or infinite values, the first at position {place}; remove them")
    return array


def outcome_quantiles(
    outcomes: Any,
    grid: Float[np.ndarray, " quantiles"],
    n_units: int,
    *,
    grid_given: bool,
    observation_weight: Sequence[Any] | None = None,
) -> Float[np.ndarray, "units quantiles"]:
    """The quantile matrix from a precomputed one (2-D array) or from samples (a sequence of 1-D arrays)."""
    if (isinstance(outcomes, np.ndarray) and outcomes.ndim == 2) or hasattr(outcomes, "columns"):
        return _precomputed(outcomes, grid, n_units, grid_given, observation_weight)
    if isinstance(outcomes, np.ndarray) and outcomes.ndim != 1:
        raise ValueError(f"outcomes must be a quantile matrix or a list of samples, got an array of {outcomes.ndim}-D")
    if len(outcomes) != n_units:
        raise ValueError(f"outcomes has {len(outcomes)} units but X has {n_units}")
    samples = [_sample(sample, i) for i, sample in enumerate(outcomes)]
    weights = None
    if observation_weight is not None:
        if len(observation_weight) != n_units:
            raise ValueError(f"observation_weight has {len(observation_weight)} units but X has {n_units}")
        weights = [
            _weight(weight, len(sample), i)
            for i, (weight, sample) in enumerate(zip(observation_weight, samples, strict=True))
        ]
    _warn_small_units(np.array([len(sample) for sample in samples]), grid)
    return quantile_matrix(samples, grid, weights)


def treatment_status(treatment: Any, fuzzy: bool, n_units: int) -> np.ndarray | None:
    """Zeros and ones for a fuzzy design, None for a sharp one; refuses a mismatch of the two."""
    if not fuzzy:
        if treatment is not None:
            raise ValueError("treatment is used by fuzzy designs only: set fuzzy=True or leave treatment out")
        return None
    if treatment is None:
        raise ValueError("a fuzzy design needs treatment, one 0 or 1 a unit")
    status = finite(np.asarray(treatment).reshape(-1), "treatment")
    if len(status) != n_units:
        raise ValueError(f"treatment has {len(status)} entries but X has {n_units} units")
    if not np.all((status == 0) | (status == 1)):
        raise ValueError("treatment must be 0 or 1 for every unit")
    return status


def unit_weights(unit_weight: Any, n_units: int) -> np.ndarray | None:
    """Non-negative weights, one a unit, not all zero."""
    if unit_weight is None:
        return None
    weight = finite(np.asarray(unit_weight).reshape(-1), "unit_weight")
    if len(weight) != n_units:
        raise ValueError(f"unit_weight has {len(weight)} entries but X has {n_units} units")
    if np.any(weight < 0) or not np.any(weight > 0):
        raise ValueError("unit_weight must be non-negative with at least one positive entry")
    return weight


def split_long_table(
    frame: pd.DataFrame,
    *,
    unit: str,
    running: str,
    outcome: str,
    weight: str | None,
    treatment: str | None,
    unit_weight: str | None,
) -> LongTable:
    """One sample a unit from a table with one row an observation.

    The running variable, the treatment and the unit weight must not vary inside a unit. Units come in order of first
    appearance.
    """
    import pandas as pd

    columns = [name for name in (unit, running, outcome, weight, treatment, unit_weight) if name is not None]
    for name in columns:
        if name not in frame.columns:
            raise ValueError(f"the table has no column {name!r}; {nearest(str(name), map(str, frame.columns))}")
    codes, labels = pd.factorize(frame[unit])
    if np.any(codes < 0):
        raise ValueError(f"column {unit!r} holds missing values; every observation must belong to a unit")
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(labels)))

    def per_unit(name: str) -> np.ndarray:
        values = finite(frame[name], f"column {name!r}")[order]
        first = values[starts]
        differs = np.flatnonzero(values != first[codes[order]])
        if len(differs):
            label = labels[codes[order][differs[0]]]
            raise ValueError(f"column {name!r} varies inside unit {label!r}; it must be one value a unit")
        return first

    def ragged(name: str) -> list[np.ndarray]:
        return np.split(finite(frame[name], f"column {name!r}")[order], starts[1:])

    return LongTable(
        labels=np.asarray(labels),
        x=per_unit(running),
        samples=ragged(outcome),
        weights=None if weight is None else ragged(weight),
        treatment=None if treatment is None else per_unit(treatment),
        unit_weight=None if unit_weight is None else per_unit(unit_weight),
    )


def _precomputed(
    outcomes: Any, grid: np.ndarray, n_units: int, grid_given: bool, observation_weight: Sequence[Any] | None
) -> np.ndarray:
    if observation_weight is not None:
        raise ValueError("observation_weight applies to samples; outcomes is a precomputed quantile matrix")
    if not grid_given:
        raise ValueError(
            "a 2-D array of outcomes is read as a quantile matrix, so set quantiles to the levels of its columns; "
            "for raw samples pass a list with one array a unit, such as list(outcomes)"
        )
    matrix = finite(outcomes, "outcomes")
    if matrix.shape != (n_units, len(grid)):
        raise ValueError(
            f"a 2-D array of outcomes is read as a quantile matrix of shape ({n_units}, {len(grid)}) (units, quantiles)"
            f"; got {matrix.shape}. For raw samples pass a list with one array a unit, such as list(outcomes)"
        )
    falling = np.flatnonzero((np.diff(matrix, axis=1) < 0).any(axis=1))
    if len(falling):
        raise ValueError(
            f"row {falling[0]} of the quantile matrix decreases in q, which no quantile function does; "
            "for raw samples pass a list with one array a unit, such as list(outcomes)"
        )
    return matrix


def _sample(sample: Any, position: int) -> np.ndarray:
    values = finite(sample, f"the sample of unit {position}")
    if values.ndim == 0:
        values = values.reshape(1)
    if values.ndim != 1:
        raise ValueError(f"the sample of unit {position} must be one-dimensional, got shape {values.shape}")
    if len(values) == 0:
        raise ValueError(f"unit {position} has no observation; drop the unit")
    return values


def _weight(weight: Any, length: int, position: int) -> np.ndarray:
    values = finite(weight, f"the observation weights of unit {position}")
    if values.shape != (length,):
        raise ValueError(f"unit {position} has {length} observations but observation weights of shape {values.shape}")
    if np.any(values < 0) or not np.any(values > 0):
        raise ValueError(f"the observation weights of unit {position} must be non-negative and not all zero")
    return values


def _warn_small_units(sizes: np.ndarray, grid: np.ndarray) -> None:
    """Quantile noise must vanish faster than 1/sqrt(n h); beyond the extreme order statistics it cannot."""
    single = int(np.sum(sizes == 1))
    tail = min(grid[0], 1.0 - grid[-1]) + 1e-12
    small = int(np.sum(sizes * tail < 1.0))
    if single:
        warnings.warn(
            f"{single} of {len(sizes)} units have one observation: all their quantiles are that value",
            UserWarning,
            stacklevel=4,
        )
    elif small:
        warnings.warn(
            f"{small} of {len(sizes)} units have fewer than {int(np.ceil(1 / tail - 1e-9))} observations, too few for "
            f"the quantiles {grid[0]:g} and {grid[-1]:g}: their extreme quantiles are biased towards the middle",
            UserWarning,
            stacklevel=4,
        )
