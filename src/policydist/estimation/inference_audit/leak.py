"""How the two distributions differ, and so how an accuracy translates into samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from policydist.errors import UsageError
from policydist.functional import leakage


class Shift(Protocol):
    """What is known about the difference of the two distributions."""

    def describe(self) -> str:
        """A phrase for the verdict."""
        ...

    def bound(self, n: float) -> float:
        """The largest accuracy with n samples."""
        ...

    def n_leaked(self, accuracy: float) -> float:
        """Samples at which the bound reaches the accuracy."""
        ...

    def n_leaked_exact(self, accuracy: float) -> float:
        """Samples at which the exact accuracy reaches it; NaN where it is not known."""
        ...


@dataclass(frozen=True)
class Ratios:
    """Two shares of a property.

    Raises:
        UsageError: shares that are equal or outside [0, 1].
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        for name, value in (("first", self.a), ("second", self.b)):
            if not 0 <= value <= 1:
                raise UsageError(f"the {name} ratio is {value}; a share of the property lies in [0, 1]")
        if self.a == self.b:
            raise UsageError(f"both ratios are {self.a:g}; there is nothing to tell apart: give two different ones")

    def describe(self) -> str:
        return f"share {self.a:g} or {self.b:g} of the property"

    def bound(self, n: float) -> float:
        return float(leakage.ratio_bound(self.a, self.b, n))

    def n_leaked(self, accuracy: float) -> float:
        return float(leakage.n_leaked_ratio(accuracy, self.a, self.b))

    def n_leaked_exact(self, accuracy: float) -> float:
        return leakage.n_leaked_exact(accuracy, self.a, self.b)


@dataclass(frozen=True)
class Degrees:
    """Two degree distributions of graphs, each a Zipf law (largest degree N, exponent s).

    Raises:
        UsageError: equal laws, or values out of range.
    """

    a: tuple[int, float]
    b: tuple[int, float]

    def __post_init__(self) -> None:
        try:
            same = leakage.zipf_ratio(self.a, self.b) == 1
        except ValueError as problem:
            raise UsageError(str(problem)) from None
        if same:
            raise UsageError(f"both degree laws are {self.a}; there is nothing to tell apart")

    def describe(self) -> str:
        return f"degrees ~ Zipf(N={self.a[0]}, s={self.a[1]:g}) or Zipf(N={self.b[0]}, s={self.b[1]:g})"

    def bound(self, n: float) -> float:
        return float(leakage.density_bound(n, leakage.zipf_ratio(self.a, self.b)))

    def n_leaked(self, accuracy: float) -> float:
        return float(leakage.n_leaked_density(accuracy, leakage.zipf_ratio(self.a, self.b)))

    def n_leaked_exact(self, accuracy: float) -> float:
        return math.nan


@dataclass(frozen=True)
class Density:
    """Any two distributions with p_1 ≥ r p_0 everywhere (or the reverse), 0 < r < 1.

    Raises:
        UsageError: r outside (0, 1).
    """

    r: float

    def __post_init__(self) -> None:
        if not 0 < self.r < 1:
            raise UsageError(f"r is {self.r}; the smallest ratio of two different densities lies between 0 and 1")

    def describe(self) -> str:
        return f"densities with ratio at least {self.r:g}"

    def bound(self, n: float) -> float:
        return float(leakage.density_bound(n, self.r))

    def n_leaked(self, accuracy: float) -> float:
        return float(leakage.n_leaked_density(accuracy, self.r))

    def n_leaked_exact(self, accuracy: float) -> float:
        return math.nan
