"""R3D: regression discontinuity with distribution-valued outcomes (Van Dijcke, arXiv 2504.03992).

Take each unit's quantile function first, smooth it over the running variable on both sides of the cutoff, project the
two curves onto non-decreasing functions last: tau(q) is the jump of the average quantile function.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from policydist.errors import nearest
from policydist.estimation.frames import read_frame, refusals, write_figure, write_frame
from policydist.estimation.methods import Progress
from policydist.estimation.rd import bootstrap as boot
from policydist.estimation.rd import inputs
from policydist.estimation.rd.bandwidth import BandwidthChoice, PilotMethod, select_bandwidth, smallest_bandwidth
from policydist.estimation.rd.display import draw, summary_text
from policydist.estimation.rd.estimate import MIN_FIRST_STAGE, estimate_jump, fuzzy_ratio
from policydist.estimation.rd.kernels import Kernel, check_kernel
from policydist.estimation.rd.projection import grid_weights
from policydist.estimation.rd.simulation import Design, simulated_table
from policydist.runs.directory import Run, write_whole
from policydist.runs.seeds import numpy_generator

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class R3D(BaseEstimator):
    """Jump of the average quantile function at a cutoff, with uniform bands and tests.

    Parameters
    ----------
    cutoff : where treatment changes; units with X >= cutoff are on the plus side.
    kind : "frechet" (one bandwidth, isotonic projection of each side's curve: local Fréchet regression; recommended)
        or "simple" (own bandwidth for every quantile, rearrangement).
    fuzzy : True divides by the jump in treatment take-up; `fit` then needs ``treatment``.
    order : polynomial order p of the estimate (2 in the paper).
    bandwidth_order : order s for which the bandwidth is optimal; p > s is the paper's bias correction.
    bandwidth : None ("imse" for "frechet", "mse" for "simple"), "imse", "mse", a number, or for "simple" one number
        a quantile, in units of X.
    treatment_bandwidth : bandwidth of the take-up regression; None selects it, or repeats a numeric ``bandwidth``.
    bandwidth_method : "paper_repaired" or "package" (parity with the released R code, see `select_bandwidth`).
    coverage_shrinkage : multiply selected bandwidths by n^(-s/((2s+3)(s+3))), for coverage instead of squared error.
    kernel : "triangular", "epanechnikov" or "uniform".
    quantiles : levels in (0, 1); None for the nine deciles.
    confidence : coverage of the bands, 0.95 by default.
    n_draws : bootstrap draws.
    random_state : seed of the multipliers.

    Attributes
    ----------
    tau_, standard_errors_ : effect and pointwise standard error, (M,).
    m_plus_, m_minus_ : average quantile functions at the cutoff, monotone in q, (M,).
    alpha_plus_, alpha_minus_ : polynomial coefficients in (X - cutoff)/h, (p+1, M).
    w_plus_, w_minus_ : intercept weights of the units, (n, 1) or (n, M).
    residuals_, influence_ : (n, M); one bootstrap draw is a normal vector times ``influence_``.
    bandwidth_ : number ("frechet") or (M,); ``treatment_bandwidth_``, ``bandwidth_details_`` (None when given).
    average_effect_, average_effect_se_ : mean of tau over the grid.
    first_stage_, first_stage_se_ : jump in take-up (1 and 0 in a sharp design).
    quantile_matrix_, quantiles_, n_units_, n_window_ : data used; (left, right) units in the widest window.
    """

    def __init__(
        self,
        *,
        cutoff: float = 0.0,
        kind: Literal["frechet", "simple"] = "frechet",
        fuzzy: bool = False,
        order: int = 2,
        bandwidth_order: int = 1,
        bandwidth: Literal["mse", "imse"] | float | ArrayLike | None = None,
        treatment_bandwidth: float | None = None,
        bandwidth_method: PilotMethod = "paper_repaired",
        coverage_shrinkage: bool = False,
        kernel: Kernel = "triangular",
        quantiles: ArrayLike | None = None,
        confidence: float = 0.95,
        n_draws: int = 5000,
        random_state: int = 0,
    ) -> None:
        self.cutoff = cutoff
        self.kind = kind
        self.fuzzy = fuzzy
        self.order = order
        self.bandwidth_order = bandwidth_order
        self.bandwidth = bandwidth
        self.treatment_bandwidth = treatment_bandwidth
        self.bandwidth_method = bandwidth_method
        self.coverage_shrinkage = coverage_shrinkage
        self.kernel = kernel
        self.quantiles = quantiles
        self.confidence = confidence
        self.n_draws = n_draws
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        outcomes: Any,
        treatment: ArrayLike | None = None,
        unit_weight: ArrayLike | None = None,
        observation_weight: Sequence[ArrayLike] | None = None,
    ) -> Self:
        """Estimate the effect.

        X is the running variable, one value a unit, in any order. ``outcomes`` is a list with one 1-D sample a unit,
        or a 2-D array (units, quantiles) of precomputed quantiles. ``treatment`` (0/1 a unit) is for fuzzy designs,
        ``unit_weight`` weighs units, ``observation_weight`` (one array a unit) weighs observations inside units.

        Raises ValueError for NaN or infinite values, a constant X, an empty side of the cutoff, a bandwidth with too
        few units, and inputs of unequal length. Warns where units are too small for the extreme quantiles.
        """
        self._check_parameters()
        grid = inputs.check_quantiles(self.quantiles)
        x = inputs.running_variable(X, self.cutoff)
        matrix = inputs.outcome_quantiles(
            outcomes, grid, len(x), grid_given=self.quantiles is not None, observation_weight=observation_weight
        )
        status = inputs.treatment_status(treatment, self.fuzzy, len(x))
        weight = inputs.unit_weights(unit_weight, len(x))
        self.n_features_in_, self.n_units_ = 1, len(x)
        self.quantiles_, self.quantile_matrix_ = grid, matrix
        self._estimate(x, matrix, status, weight)
        return self

    def fit_frame(
        self,
        frame: pd.DataFrame,
        *,
        unit: str,
        running: str,
        outcome: str,
        weight: str | None = None,
        treatment: str | None = None,
        unit_weight: str | None = None,
    ) -> Self:
        """`fit` on a long table with one row an observation; the arguments name its columns.

        ``weight`` weighs observations inside their unit (survey weights), ``unit_weight`` weighs units. The running
        variable, treatment and unit weight must not vary inside a unit. Unit labels are kept in ``units_``.
        """
        table = inputs.split_long_table(
            frame, unit=unit, running=running, outcome=outcome,
            weight=weight, treatment=treatment, unit_weight=unit_weight,
        )  # fmt: skip
        self.fit(table.x, table.samples, table.treatment, table.unit_weight, table.weights)
        self.units_ = table.labels
        return self

    def bootstrap(
        self, n_draws: int | None = None, confidence: float | None = None, multipliers: np.ndarray | None = None
    ) -> boot.Band:
        """Multiplier bootstrap: stores the draws in ``draws_`` and returns (and stores in ``band_``) the bands.

        ``multipliers`` (B, n_units) replaces the random normal ones. Raises ValueError for fewer than 2 draws.
        """
        check_is_fitted(self, "tau_")
        level = _check_confidence(self.confidence if confidence is None else confidence)
        count = self.n_draws if n_draws is None else n_draws
        if multipliers is not None:
            multipliers = inputs.finite(multipliers, "multipliers")
            if multipliers.ndim != 2 or multipliers.shape[1] != self.n_units_:
                raise ValueError(f"multipliers must have shape (draws, {self.n_units_}), got {multipliers.shape}")
            count = len(multipliers)
        if count < 2:
            raise ValueError(f"n_draws must be at least 2, got {count}")
        self._refuse_undefined()
        self.draws_ = boot.multiplier_draws(
            self.influence_, self._reduced_influence, self._plus_side,
            n_draws=count, rng=numpy_generator(self.random_state, "r3d", "multipliers"), multipliers=multipliers,
        )  # fmt: skip
        self.band_ = boot.uniform_band(self.tau_, self.draws_, level)
        return self.band_

    def test(
        self,
        hypothesis: boot.Hypothesis = "nullity",
        interval: tuple[float, float] | None = None,
        confidence: float | None = None,
    ) -> boot.TestResult:
        """Test of no effect ("nullity"), of an equal effect at all quantiles ("homogeneity"), or of equal Gini.

        ``interval`` restricts the first two to grid points inside it (at least two). The Gini test uses the whole
        grid and the two curves themselves, which in a fuzzy design means the effect of *crossing the cutoff*.
        """
        if hypothesis not in ("nullity", "homogeneity", "gini"):
            known = ("nullity", "homogeneity", "gini")
            raise ValueError(f"unknown hypothesis {hypothesis!r}; {nearest(str(hypothesis), known)}")
        self._ensure_draws()
        level = _check_confidence(self.confidence if confidence is None else confidence)
        keep = self._grid_points(hypothesis, interval)
        if hypothesis == "gini":
            outcome = boot.gini_difference(self.quantiles_, self.m_plus_, self.m_minus_, self.draws_, level)
        else:
            function = boot.nullity if hypothesis == "nullity" else boot.homogeneity
            outcome = function(self.tau_, self.draws_, keep, level)
        statistic, critical, p_value, detail = outcome
        scope = (float(self.quantiles_[keep][0]), float(self.quantiles_[keep][-1]))
        return boot.TestResult(hypothesis, statistic, critical, p_value, scope, level, detail)

    def to_frame(self) -> pd.DataFrame:
        """One row a quantile: effect, standard error, uniform and pointwise bands, both curves, bandwidth."""
        import pandas as pd

        self._ensure_draws()
        return pd.DataFrame(
            {
                "quantile": self.quantiles_,
                "effect": self.tau_,
                "standard_error": self.standard_errors_,
                "lower": self.band_.lower,
                "upper": self.band_.upper,
                "pointwise_lower": self.band_.pointwise_lower,
                "pointwise_upper": self.band_.pointwise_upper,
                "curve_left": self.m_minus_,
                "curve_right": self.m_plus_,
                "bandwidth": np.broadcast_to(self.bandwidth_, self.tau_.shape),
            }
        )

    def summary(self) -> str:
        """The table as text: design, bandwidth, effects with uniform band, nullity and homogeneity tests."""
        frame = self.to_frame()
        columns = ["quantile", "effect", "standard_error", "lower", "upper", "curve_left", "curve_right"]
        tests = [self.test("nullity")]
        if len(self.quantiles_) > 1:
            tests.append(self.test("homogeneity"))
        return summary_text(self._headline(), frame[columns].to_numpy(), self.band_, tests, len(self.draws_.effect))

    def plot(self, what: Literal["effect", "curves"] = "effect", ax: Axes | None = None) -> Axes:
        """Draw the effect with its bands, or ("curves") the two average quantile functions. Returns the axes."""
        if what not in ("effect", "curves"):
            raise ValueError(f"what must be 'effect' or 'curves', got {what!r}")
        self._ensure_draws()
        return draw(what, self.quantiles_, self.tau_, self.m_minus_, self.m_plus_, self.band_, ax)

    def _check_parameters(self) -> None:
        if self.kind not in ("frechet", "simple"):
            raise ValueError(f"kind must be 'frechet' or 'simple', got {self.kind!r}")
        check_kernel(self.kernel)
        _check_confidence(self.confidence)
        if not (isinstance(self.order, int | np.integer) and self.order >= 0):
            raise ValueError(f"order must be a non-negative integer, got {self.order!r}")
        if not (isinstance(self.bandwidth_order, int | np.integer) and self.bandwidth_order >= 1):
            raise ValueError(f"bandwidth_order must be a positive integer, got {self.bandwidth_order!r}")
        if self.bandwidth_method not in ("paper_repaired", "package"):
            raise ValueError(f"bandwidth_method must be 'paper_repaired' or 'package', got {self.bandwidth_method!r}")
        if isinstance(self.bandwidth, str) and self.bandwidth not in ("mse", "imse"):
            raise ValueError(f"bandwidth must be 'mse', 'imse' or a number, got {self.bandwidth!r}")
        if self.kind == "frechet" and isinstance(self.bandwidth, str) and self.bandwidth == "mse":
            raise ValueError(
                "kind='frechet' needs one bandwidth for all quantiles: use bandwidth='imse', or kind='simple'"
            )

    def _estimate(
        self, x: np.ndarray, matrix: np.ndarray, status: np.ndarray | None, weight: np.ndarray | None
    ) -> None:
        column_weight = grid_weights(self.quantiles_)
        bandwidth, self.bandwidth_details_ = self._outcome_bandwidth(x, matrix, weight, column_weight)
        shape: Literal["isotonic", "rearranged"] = "isotonic" if self.kind == "frechet" else "rearranged"
        common: dict[str, Any] = {"order": self.order, "kernel": self.kernel, "unit_weight": weight}
        jump = estimate_jump(x, matrix, bandwidth, shape=shape, column_weight=column_weight, **common)
        self.alpha_plus_, self.alpha_minus_ = jump.plus.alpha, jump.minus.alpha
        self.w_plus_, self.w_minus_ = jump.plus.weights, jump.minus.weights
        self.m_plus_, self.m_minus_, self.residuals_ = jump.m_plus, jump.m_minus, jump.residuals
        self.tau_, self.influence_ = jump.difference, jump.influence
        self.first_stage_, self.first_stage_se_, self.treatment_bandwidth_ = 1.0, 0.0, None
        self._reduced_influence, self._plus_side = jump.influence, x >= 0
        if status is not None:
            h_treat = self._take_up_bandwidth(x, status, weight, bandwidth)
            take_up = estimate_jump(x, status[:, None], h_treat, shape="free", column_weight=np.ones(1), **common)
            self.treatment_bandwidth_ = float(h_treat[0])
            self.first_stage_ = float(take_up.difference[0])
            self.first_stage_se_ = float(np.sqrt(np.sum(take_up.influence**2)))
            self.tau_, self.influence_ = fuzzy_ratio(jump, take_up)
            if abs(self.first_stage_) < MIN_FIRST_STAGE:
                warnings.warn(
                    "treatment take-up does not jump at the cutoff: the effect is undefined (NaN)", stacklevel=3
                )
        self.bandwidth_ = float(bandwidth[0]) if len(bandwidth) == 1 else bandwidth
        self.n_window_ = (int(jump.minus.window.any(axis=1).sum()), int(jump.plus.window.any(axis=1).sum()))
        self.standard_errors_ = np.sqrt(np.sum(self.influence_**2, axis=0))
        self.average_effect_ = float(self.tau_.mean())
        self.average_effect_se_ = float(np.sqrt(np.sum(self.influence_.mean(axis=1) ** 2)))
        for stale in ("draws_", "band_", "units_"):
            self.__dict__.pop(stale, None)

    def _outcome_bandwidth(
        self, x: np.ndarray, matrix: np.ndarray, weight: np.ndarray | None, column_weight: np.ndarray
    ) -> tuple[np.ndarray, BandwidthChoice | None]:
        if self.bandwidth is None or isinstance(self.bandwidth, str):
            rule = self.bandwidth or ("imse" if self.kind == "frechet" else "mse")
            choice = self._select(x, matrix, weight, rule, column_weight, "the outcome")
            return choice.bandwidth, choice
        given = np.atleast_1d(inputs.finite(self.bandwidth, "bandwidth"))
        allowed = (1,) if self.kind == "frechet" else (1, len(self.quantiles_))
        if given.ndim != 1 or len(given) not in allowed:
            raise ValueError(
                f"bandwidth must be one number{'' if self.kind == 'frechet' else ' or one a quantile'} for "
                f"kind={self.kind!r}; got {given.size}"
            )
        self._check_wide_enough(given, x, weight, "bandwidth")
        return given, None

    def _take_up_bandwidth(
        self, x: np.ndarray, status: np.ndarray, weight: np.ndarray | None, outcome_bandwidth: np.ndarray
    ) -> np.ndarray:
        if self.treatment_bandwidth is not None:
            given = np.atleast_1d(inputs.finite(self.treatment_bandwidth, "treatment_bandwidth"))
            if given.shape != (1,):
                raise ValueError("treatment_bandwidth must be one number")
            self._check_wide_enough(given, x, weight, "treatment_bandwidth")
            return given
        if self.bandwidth_details_ is None and len(outcome_bandwidth) == 1:
            return outcome_bandwidth
        return self._select(x, status[:, None], weight, "mse", np.ones(1), "treatment take-up").bandwidth

    def _select(
        self, x: np.ndarray, outcomes: np.ndarray, weight: np.ndarray | None, rule: Any, column_weight: np.ndarray,
        what: str,
    ) -> BandwidthChoice:  # fmt: skip
        if self.order < self.bandwidth_order:
            raise ValueError(f"order ({self.order}) must be at least bandwidth_order ({self.bandwidth_order})")
        choice = select_bandwidth(
            x, outcomes, criterion=rule, order=self.order, bandwidth_order=self.bandwidth_order, kernel=self.kernel,
            method=self.bandwidth_method, unit_weight=weight, column_weight=column_weight,
            coverage_shrinkage=self.coverage_shrinkage,
        )  # fmt: skip
        if choice.widened:
            warnings.warn(
                f"the selected bandwidth for {what} held too few units and was raised to {choice.floor:.4g}",
                stacklevel=5,
            )
        return choice

    def _check_wide_enough(self, given: np.ndarray, x: np.ndarray, weight: np.ndarray | None, name: str) -> None:
        floor = smallest_bandwidth(x, self.order, np.ones(len(x)) if weight is None else weight)
        if np.min(given) < floor:
            raise ValueError(
                f"{name} {np.min(given):.4g} is too small: an order-{self.order} fit needs {self.order + 2} distinct "
                f"values of the running variable on each side, which {floor:.4g} would reach"
            )

    def _refuse_undefined(self) -> None:
        if not np.all(np.isfinite(self.tau_)):
            raise ValueError("the effect is undefined because treatment take-up does not jump at the cutoff")

    def _ensure_draws(self) -> None:
        check_is_fitted(self, "tau_")
        if not hasattr(self, "draws_"):
            self.bootstrap()

    def _grid_points(self, hypothesis: str, interval: tuple[float, float] | None) -> np.ndarray:
        if interval is None:
            keep = np.ones(len(self.quantiles_), dtype=bool)
        elif hypothesis == "gini":
            raise ValueError("the Gini test uses the whole quantile grid; leave interval out")
        else:
            keep = (self.quantiles_ >= interval[0] - 1e-12) & (self.quantiles_ <= interval[1] + 1e-12)
        if keep.sum() < 2 and not (hypothesis == "nullity" and interval is None):
            raise ValueError(f"the {hypothesis} test needs at least two quantiles in the interval, found {keep.sum()}")
        return keep

    def _headline(self) -> list[tuple[str, str]]:
        h = np.atleast_1d(self.bandwidth_)
        width = f"{h[0]:.4g}" if len(h) == 1 else f"{h.min():.4g} to {h.max():.4g} by quantile"
        source = "given" if self.bandwidth_details_ is None else self.bandwidth_method
        rows = [
            ("Estimator", "local Fréchet" if self.kind == "frechet" else "local polynomial, rearranged"),
            ("Design", f"{'fuzzy' if self.fuzzy else 'sharp'}, cutoff {self.cutoff:g}"),
            ("Units (left, right in window)", f"{self.n_units_} ({self.n_window_[0]}, {self.n_window_[1]})"),
            ("Bandwidth", f"{width} ({source})"),
            ("Kernel, order", f"{self.kernel}, {self.order}"),
            ("Average effect", f"{self.average_effect_:.4g} (se {self.average_effect_se_:.3g})"),
        ]
        if self.fuzzy:
            jump = f"{self.first_stage_:.4g} (se {self.first_stage_se_:.3g})"
            rows.append(("Jump in take-up", f"{jump}, bandwidth {self.treatment_bandwidth_:.4g}"))
        rows.append(("Bootstrap draws", str(len(self.draws_.effect))))
        return rows


def _check_confidence(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, such as 0.95; got {confidence!r}")
    return float(confidence)


@dataclass(frozen=True)
class Config:
    """A table with one row an observation; its columns are named here. Parameters of the fit are those of `R3D`."""

    unit: str = "unit"
    """Column that says to which unit an observation belongs."""
    running: str = "running"
    """Column of the running variable, one value a unit."""
    outcome: str = "outcome"
    """Column of the outcomes."""
    weight: str | None = None
    """Column of weights of the observations inside their unit."""
    treatment: str | None = None
    """Column of treatment taken up (0 or 1), one value a unit; naming it makes the design fuzzy."""
    unit_weight: str | None = None
    """Column of weights of the units, one value a unit."""
    cutoff: float = 0.0
    """Units at or above it are on the plus side."""
    kind: Literal["frechet", "simple"] = "frechet"
    """One bandwidth and an isotonic projection, or a bandwidth for every quantile and rearrangement."""
    order: int = 2
    """Polynomial order of the estimate."""
    bandwidth_order: int = 1
    """Polynomial order for which the bandwidth is optimal."""
    bandwidth: Literal["mse", "imse"] | float | None = None
    """A rule, or a number in units of the running variable; null: imse for frechet, mse for simple."""
    treatment_bandwidth: float | None = None
    """Of the take-up regression; null selects it, or repeats a number given as bandwidth."""
    bandwidth_method: PilotMethod = "paper_repaired"
    """package: the released R code's rule."""
    coverage_shrinkage: bool = False
    """Shrink selected bandwidths, for coverage instead of squared error."""
    kernel: Kernel = "triangular"
    """triangular, epanechnikov or uniform."""
    quantiles: tuple[float, ...] | None = None
    """Levels in (0, 1); null: the nine deciles."""
    confidence: float = 0.95
    """Coverage of the bands."""
    n_draws: int = 5000
    """Bootstrap draws."""
    simulated: Design = "dgp1"
    """The design that is simulated if no data is given: 1,000 units with 60 observations each."""
    seed: int = 0
    """Of the bootstrap, and of simulated data."""

    def __post_init__(self) -> None:
        if self.n_draws < 2:
            raise ValueError(f"n_draws must be at least 2, got {self.n_draws}")

    def estimator(self) -> R3D:
        """The `R3D` that these knobs describe."""
        return R3D(
            cutoff=self.cutoff, kind=self.kind, fuzzy=self.treatment is not None, order=self.order,
            bandwidth_order=self.bandwidth_order, bandwidth=self.bandwidth,
            treatment_bandwidth=self.treatment_bandwidth, bandwidth_method=self.bandwidth_method,
            coverage_shrinkage=self.coverage_shrinkage, kernel=self.kernel, quantiles=self.quantiles,
            confidence=self.confidence, n_draws=self.n_draws, random_state=self.seed,
        )  # fmt: skip

    def columns(self) -> dict[str, str | None]:
        """The arguments of `R3D.fit_frame` that name columns."""
        names = ("unit", "running", "outcome", "weight", "treatment", "unit_weight")
        return {name: getattr(self, name) for name in names}


def train(config: Config, data: Path | None, run: Run, progress: Progress) -> dict[str, float]:
    """Estimates the effect and writes estimates.csv, effect.png, curves.png and summary.txt.

    Raises:
        UsageError: the data cannot be read, lacks a column, or is such that there is no estimate.
    """
    columns = config.columns()
    if data is None:
        frame = simulated_table(config.simulated, config.seed, config.unit, config.running, config.outcome)
    else:
        frame = read_frame(data, [name for name in columns.values() if name is not None])
    model = config.estimator()
    with refusals():
        model.fit_frame(frame, **columns)  # type: ignore[arg-type]
        numbers = {"average_effect": model.average_effect_, "units": float(model.n_units_)}
        progress(1, 2, numbers)
        model.bootstrap()
        homogeneity = model.test("homogeneity").p_value if len(model.quantiles_) > 1 else float("nan")
        numbers |= {"nullity_p": model.test("nullity").p_value, "homogeneity_p": homogeneity}
        summary, table = model.summary(), model.to_frame()
    write_frame(run.path / "estimates.csv", table)
    for what in ("effect", "curves"):
        write_figure(run.path / f"{what}.png", model.plot(what).figure)
    write_whole(run.path / "summary.txt", summary + "\n")
    progress(2, 2, numbers)
    more = {"average_effect_se": model.average_effect_se_, "observations": float(len(frame))}
    if config.treatment is not None:
        more["first_stage"] = model.first_stage_
    return numbers | more | {"bandwidth": float(np.mean(model.bandwidth_))}
