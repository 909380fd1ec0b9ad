"""Simulated designs with a known effect: the paper's DGP1 and DGP2, and a spread design with a closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float
from scipy.stats import exponnorm, norm

from policydist.errors import nearest
from policydist.runs.seeds import numpy_generator

if TYPE_CHECKING:
    import pandas as pd

Design = Literal["dgp1", "dgp2", "spread"]
DESIGNS = ("dgp1", "dgp2", "spread")


@dataclass(frozen=True)
class SimulatedDesign:
    """``samples`` has one row of n_i outcomes a unit; `list(design.samples)` is what `R3D.fit` takes."""

    name: str
    x: Float[np.ndarray, " units"]
    samples: Float[np.ndarray, "units observations"]
    shift: float
    rate_shift: float

    def effect(self, quantiles: Float[np.ndarray, " quantiles"]) -> Float[np.ndarray, " quantiles"]:
        """The true jump tau(q) of the average quantile function at the cutoff 0."""
        return self.average_curve(quantiles, treated=True) - self.average_curve(quantiles, treated=False)

    def average_curve(
        self, quantiles: Float[np.ndarray, " quantiles"], *, treated: bool
    ) -> Float[np.ndarray, " quantiles"]:
        """The average quantile function at the cutoff, with or without treatment."""
        shift = self.shift if treated else 0.0
        if self.name == "spread":
            return 1.0 + (2.0 if treated else 1.0) * norm.ppf(quantiles)
        if self.name == "dgp1":
            return 5.0 + shift + _mean_absolute_normal(1.0, 1.0) * norm.ppf(quantiles)
        nodes, weights = np.polynomial.legendre.leggauss(24)
        rates = 1.0 + 0.5 * nodes + (self.rate_shift if treated else 0.0)
        curves = exponnorm.ppf(quantiles[None, :], 2.0 / rates[:, None], loc=shift, scale=1.0)
        return 0.5 * weights @ curves


def simulate(
    design: Design,
    n_units: int,
    n_observations: int,
    *,
    seed: int,
    shift: float = 2.0,
    rate_shift: float = 0.5,
) -> SimulatedDesign:
    """n_units distributions with n_observations draws each; X ~ U(-1, 1), D = 1{X >= 0}.

    - "dgp1" (arXiv 2504.03992, eq. 17): mu_i ~ N(5 + 5 X_i + D shift, 1), sigma_i ~ |N(1 + X_i, 1)|,
      Y_i = N(mu_i, sigma_i^2); tau(q) = shift.
    - "dgp2" (eq. 18): mu_i = U(-5, 5) + 2 X_i, lambda_i ~ U(0.5, 1.5), Y_i = N(mu_i + D shift, 1) +
      2 Exp(lambda_i + D rate_shift). The paper does not print its rate shift; 0.5 is this library's choice.
    - "spread" (own): location 1 + X_i + 2 eps_i, scale 1 + D, normal outcomes; tau(q) = Phi^-1(q), while quantile RD
      on the pooled data tends to (sqrt 8 - sqrt 5) Phi^-1(q).
    """
    if design not in DESIGNS:
        raise ValueError(f"unknown design {design!r}; {nearest(str(design), DESIGNS)}")
    if n_units < 1 or n_observations < 1:
        raise ValueError("n_units and n_observations must be at least 1")
    if rate_shift <= -0.5:
        raise ValueError("rate_shift must exceed -0.5, or an exponential rate would not be positive")
    rng = numpy_generator(seed, "r3d", design)
    x = rng.uniform(-1.0, 1.0, n_units)
    treated = (x >= 0).astype(np.float64)
    noise = rng.standard_normal((n_units, n_observations))
    if design == "dgp1":
        location = rng.normal(5.0 + 5.0 * x + treated * shift, 1.0)
        samples = location[:, None] + np.abs(rng.normal(1.0 + x, 1.0))[:, None] * noise
    elif design == "dgp2":
        location = rng.uniform(-5.0, 5.0, n_units) + 2.0 * x + treated * shift
        rate = rng.uniform(0.5, 1.5, n_units) + treated * rate_shift
        samples = location[:, None] + noise + 2.0 * rng.exponential(1.0 / rate[:, None], noise.shape)
    else:
        location = 1.0 + x + 2.0 * rng.standard_normal(n_units)
        samples = location[:, None] + (1.0 + treated)[:, None] * noise
    return SimulatedDesign(design, x, samples, shift, rate_shift)


def simulated_table(
    design: Design, seed: int, unit: str = "unit", running: str = "running", outcome: str = "outcome"
) -> pd.DataFrame:
    """`simulate` with 1,000 units of 60 observations, as a table with one row an observation."""
    import pandas as pd

    drawn = simulate(design, 1000, 60, seed=seed)
    units, size = drawn.samples.shape
    return pd.DataFrame(
        {
            unit: np.repeat(np.arange(units), size),
            running: np.repeat(drawn.x, size),
            outcome: drawn.samples.ravel(),
        }
    )


def _mean_absolute_normal(mean: float, sd: float) -> float:
    """E|N(mean, sd^2)|."""
    ratio = mean / sd
    return float(2.0 * sd * norm.pdf(ratio) + mean * (1.0 - 2.0 * norm.cdf(-ratio)))
