"""One mixed-integer linear program as sparse arrays, and its MPS text.

Axis letters: m rows, n variables. Everything is float64; infinite bounds are ``inf`` with their sign.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from policydist.errors import UsageError

Floats = NDArray[np.float64]
Sense = Literal["min", "max"]
KINDS = ("C", "B", "I")
"""Continuous, binary, general integer."""


@dataclass(frozen=True, eq=False)
class MILP:
    """``min`` or ``max`` c·x subject to row_lower ≤ A x ≤ row_upper, lower ≤ x ≤ upper, x_j whole where kind_j is B or I.

    Raises:
        UsageError: for shapes that do not fit, NaN, an unknown kind, or a lower bound above its upper one.
    """

    name: str
    sense: Sense
    cost: Floats
    """Objective coefficients c, ``[n]``."""
    rows: sparse.csr_array
    """Coefficients A, ``[m, n]``, indices sorted, no stored zeros."""
    row_lower: Floats
    row_upper: Floats
    lower: Floats
    upper: Floats
    kind: NDArray[np.str_]
    """``C``, ``B`` or ``I`` for every variable, ``[n]``."""
    offset: float = 0.0
    """Constant added to the objective."""
    names: tuple[str, ...] = field(default=(), repr=False)
    """Names of the variables; x0, x1, … if empty."""

    def __post_init__(self) -> None:
        n, m = self.cost.shape[0], self.row_lower.shape[0]
        shapes = (self.rows.shape, self.row_upper.shape, self.lower.shape, self.upper.shape, self.kind.shape)
        if shapes != ((m, n), (m,), (n,), (n,), (n,)) or len(self.names) not in (0, n):
            raise UsageError(f"instance {self.name}: arrays for {m} rows and {n} variables do not fit together")
        for what, array in (("objective", self.cost), ("coefficients", self.rows.data)):
            if not np.isfinite(array).all():
                raise UsageError(f"instance {self.name}: {what} must be finite numbers")
        for what, low, high in (("row", self.row_lower, self.row_upper), ("variable", self.lower, self.upper)):
            bad = np.flatnonzero(~(low <= high))
            if bad.size:
                raise UsageError(
                    f"instance {self.name}: {what} {bad[0]} has bounds [{low[bad[0]]:g}, {high[bad[0]]:g}]"
                )
        if not np.isin(self.kind, KINDS).all():
            raise UsageError(f"instance {self.name}: kinds of variables are C, B and I")

    @property
    def n_variables(self) -> int:
        return int(self.cost.shape[0])

    @property
    def n_rows(self) -> int:
        return int(self.row_lower.shape[0])

    @property
    def whole(self) -> NDArray[np.bool_]:
        """Which variables must be whole, ``[n]``."""
        return np.asarray(self.kind != "C")

    def objective(self, x: Floats) -> float:
        """Objective value of the point ``x``, ``[n]``."""
        return float(self.cost @ x) + self.offset

    def feasible(self, x: Floats, tolerance: float = 1e-6) -> bool:
        """Whether ``x`` satisfies rows, bounds and wholeness up to an absolute ``tolerance``."""
        activity = self.rows @ x
        inside = [
            activity >= self.row_lower - tolerance, activity <= self.row_upper + tolerance,
            x >= self.lower - tolerance, x <= self.upper + tolerance,
            np.abs(x - np.round(x))[self.whole] <= tolerance,
        ]  # fmt: skip
        return all(bool(part.all()) for part in inside)

    def to_mps(self) -> str:
        """The instance as free-format MPS. The same instance always gives the same bytes; numbers read back exactly."""
        return _mps(self)

    def digest(self) -> str:
        """SHA-256 of the MPS text."""
        return hashlib.sha256(self.to_mps().encode()).hexdigest()


def matrix(entries: tuple[NDArray[np.int64], NDArray[np.int64], Floats], m: int, n: int) -> sparse.csr_array:
    """The m by n coefficient matrix with the given (row, column, value) entries, in canonical form."""
    row, column, value = entries
    rows = sparse.csr_array((value, (row, column)), shape=(m, n))
    rows.sum_duplicates()
    rows.eliminate_zeros()
    rows.sort_indices()
    return rows


def _numbers(values: Floats) -> list[str]:
    """Shortest texts that read back exactly; each different number is formatted once."""
    distinct, where = np.unique(values, return_inverse=True)
    texts = np.array([f"{value:.17g}" if float(f"{value:.12g}") != value else f"{value:.12g}" for value in distinct])
    return texts[where].tolist() if values.size else []


def _mps(milp: MILP) -> str:
    n = milp.n_variables
    names = milp.names or tuple(f"x{j}" for j in range(n))
    lines = [f"NAME {milp.name}", "OBJSENSE", f"    {milp.sense.upper()}", "ROWS", " N obj"]
    low, high = np.isfinite(milp.row_lower), np.isfinite(milp.row_upper)
    equal = low & high & (milp.row_lower == milp.row_upper)
    letter = np.where(equal, "E", np.where(high, "L", np.where(low, "G", "N")))
    lines += [f" {mark} r{i}" for i, mark in enumerate(letter.tolist())]
    lines.append("COLUMNS")
    lines += _columns(milp, names)
    lines.append("RHS")
    right = np.where(high, milp.row_upper, np.where(low, milp.row_lower, 0.0))
    lines += [f" rhs r{i} {text}" for i, text in enumerate(_numbers(right)) if text not in ("0", "-0")]
    if milp.offset:
        lines.append(f" rhs obj {-milp.offset:.17g}")
    ranged = np.flatnonzero(low & high & ~equal)
    if ranged.size:
        lines.append("RANGES")
        lines += [f" rng r{i} {milp.row_upper[i] - milp.row_lower[i]:.17g}" for i in ranged]
    lines.append("BOUNDS")
    lines += _bounds(milp, names)
    return "\n".join([*lines, "ENDATA", ""])


def _columns(milp: MILP, names: tuple[str, ...]) -> list[str]:
    """The COLUMNS section; runs of whole variables stand between markers."""
    columns = milp.rows.tocsc()
    columns.sort_indices()
    start, row = columns.indptr.tolist(), columns.indices.tolist()
    text, cost, whole = _numbers(columns.data), _numbers(milp.cost), milp.whole.tolist()
    lines, marked, count = [], False, 0
    for j, name in enumerate(names):
        if whole[j] != marked:
            lines.append(f" M{count} 'MARKER' '{'INTORG' if whole[j] else 'INTEND'}'")
            marked, count = whole[j], count + 1
        # Also a zero cost is written: a column without any entry would otherwise be lost.
        lines.append(f" {name} obj {cost[j]}")
        lines += [f" {name} r{row[k]} {text[k]}" for k in range(start[j], start[j + 1])]
    if marked:
        lines.append(f" M{count} 'MARKER' 'INTEND'")
    return lines


def _bounds(milp: MILP, names: tuple[str, ...]) -> list[str]:
    lines = []
    lower, upper = milp.lower.tolist(), milp.upper.tolist()
    for name, kind, low, high in zip(names, milp.kind.tolist(), lower, upper, strict=True):
        if kind == "B" and (low, high) == (0.0, 1.0):
            lines.append(f" BV bnd {name}")
            continue
        if low == high:
            lines.append(f" FX bnd {name} {low:.17g}")
            continue
        lines.append(f" MI bnd {name}" if low == -np.inf else f" LO bnd {name} {low:.17g}")
        lines.append(f" PL bnd {name}" if high == np.inf else f" UP bnd {name} {high:.17g}")
    return lines
