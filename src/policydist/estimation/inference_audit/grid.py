"""Audits over many shares of a property: one reference against each, and shares read off the weights directly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from policydist.errors import UsageError
from policydist.estimation.inference_audit.attacks import Attack
from policydist.estimation.inference_audit.audit import (
    DEFAULT,
    Size,
    both_sides,
    default_names,
    judge_pair,
    make_attack,
    needs,
)
from policydist.estimation.inference_audit.evidence import joined
from policydist.estimation.inference_audit.game import Game, Pool, Progress, Score, TrainFn, show_game
from policydist.estimation.inference_audit.leak import Ratios
from policydist.estimation.inference_audit.populations import Sampler
from policydist.estimation.inference_audit.report import AuditReport
from policydist.estimation.inference_audit.whitebox import RegressionAttack, train_encoder
from policydist.functional.leakage import n_leaked_regression
from policydist.runs.seeds import derive, numpy_generator

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RESAMPLES = 2000


@dataclass(frozen=True)
class GridReport:
    """``reports[share]`` is the `AuditReport` of the reference share against that one."""

    reference: float
    reports: Mapping[float, AuditReport]

    def to_frame(self) -> pd.DataFrame:
        """One row a share and attack. Look at single rows: means over shares hide that some leak ∞ and some 0."""
        import pandas as pd

        frames = [report.to_frame().assign(share=share) for share, report in sorted(self.reports.items())]
        frame = pd.concat(frames, ignore_index=True)
        return frame[["share", *(name for name in frame if name != "share")]]

    def medians(self) -> pd.Series:
        """Median n_leaked of each attack over the shares."""
        return self.to_frame().groupby("attack", sort=False)["n_leaked"].median()

    def plot(self) -> Figure:
        """Accuracy and n_leaked against the share."""
        from policydist.estimation.inference_audit.figures import plot_grid

        return plot_grid(self)


def audit_shares(
    train_fn: TrainFn,
    sampler_at: Callable[[float], Sampler],
    shares: Sequence[float],
    reference: float = 0.5,
    attacks: Sequence[str | Attack] = DEFAULT,
    *,
    score: Score | None = None,
    n_jobs: int | None = None,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    **size: Any,
) -> GridReport:
    """`audit` of a reference share against each of ``shares``; the reference's models are trained once.

    ``sampler_at(share)`` makes a sampler, e.g. ``population.sampler``. ``size`` takes n_train, n_test, n_victims,
    n_adversary, repetitions, confidence and seed as `audit` does. Raises what `audit` raises.
    """
    chosen = [make_attack(attack) for attack in attacks]
    sizes = Size(**size)
    shifts = {share: Ratios(reference, share) for share in shares}
    others = {share: f"{share:g}" for share in shifts}
    mine = f"{reference:g}"
    samplers = {mine: sampler_at(reference)} | {name: sampler_at(share) for share, name in others.items()}
    if len(samplers) < len(shares) + 1 or not shares:
        raise UsageError(f"shares must be there and all different, got {list(shares)}")
    pools = both_sides(samplers, sizes, lambda name: (mine, *others.values()) if name == mine else (mine, name))
    game = Game(train_fn, samplers, sizes.n_train, sizes.n_test, needs(chosen), score, sizes.seed)
    seen = show_game(game, pools, n_jobs, folder, progress)
    return GridReport(
        reference,
        {
            share: judge_pair(seen, mine, name, chosen, sizes, shifts[share], default_names(shifts[share]))
            for share, name in others.items()
        },
    )


@dataclass(frozen=True)
class ShareResult:
    """How well one true share is estimated: ``estimates`` (victims,), their mean squared error with a bootstrap
    interval over victims, and n_leaked = α(1−α)/MSE at the error and the interval's ends (NaN at shares 0 and 1).
    """

    share: float
    estimates: Float[np.ndarray, " m"]
    mse: float
    mse_low: float
    mse_high: float
    n_leaked: float
    n_leaked_low: float
    n_leaked_high: float


@dataclass(frozen=True)
class SharesReport:
    """The regression attack over a grid of shares."""

    results: tuple[ShareResult, ...]

    def accuracy(self, a: float, b: float) -> float:
        """Share of victims of a and b that lie on their own side of the midpoint."""
        low, high = sorted((a, b))
        found = {result.share: result.estimates for result in self.results}
        if low not in found or high not in found or low == high:
            raise UsageError(f"give two different shares of {sorted(found)}, got {a:g} and {b:g}")
        middle = 0.5 * (low + high)
        return float(0.5 * (np.mean(found[low] < middle) + np.mean(found[high] >= middle)))

    def to_frame(self) -> pd.DataFrame:
        """One row a share."""
        import pandas as pd

        frame = pd.DataFrame([asdict(result) for result in self.results])
        return frame.assign(estimate=[result.estimates.mean() for result in self.results]).drop(columns="estimates")

    def plot(self) -> Figure:
        """Estimated against true shares."""
        from policydist.estimation.inference_audit.figures import plot_shares

        return plot_shares(self)


def estimate_shares(
    train_fn: TrainFn,
    sampler_at: Callable[[float], Sampler],
    shares: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    victim_shares: Sequence[float] | None = None,
    network: RegressionAttack | None = None,
    *,
    n_jobs: int | None = None,
    folder: Path | str | None = None,
    progress: Progress | None = None,
    **size: Any,
) -> SharesReport:
    """The regression attack (section 6.4): read the share of the property off a victim's weights.

    One network is trained on the adversary's models of all ``shares``; ``victim_shares`` (default the same) may hold
    shares that it never saw. ``size`` as for `audit_shares` (repetitions is not used). Raises what `audit` raises.
    """
    sizes = Size(**size)
    targets = list(victim_shares if victim_shares is not None else shares)
    if len(set(shares)) < 2 or any(not 0 <= share <= 1 for share in (*shares, *targets)):
        raise UsageError("give at least two different shares, all in [0, 1]")
    samplers = {f"{share:g}": sampler_at(share) for share in sorted({*shares, *targets})}
    pools = [Pool("adversary", f"{share:g}", sizes.n_adversary, ()) for share in sorted(set(shares))]
    pools += [Pool("victim", f"{share:g}", sizes.n_victims, ()) for share in sorted(set(targets))]
    game = Game(train_fn, samplers, sizes.n_train, sizes.n_test, frozenset({"layers"}), None, sizes.seed)
    seen = show_game(game, pools, n_jobs, folder, progress)
    own = [seen["adversary", f"{share:g}"].through("", "") for share in sorted(set(shares))]
    labels = np.repeat(sorted(set(shares)), sizes.n_adversary)
    fitted = train_encoder(network or RegressionAttack(), joined(own), labels, "mse", derive(sizes.seed, "regression"))
    return SharesReport(
        tuple(
            _share_result(share, fitted.values(seen["victim", f"{share:g}"].through("", "")), sizes)
            for share in sorted(set(targets))
        )
    )


def _share_result(share: float, estimates: np.ndarray, size: Size) -> ShareResult:
    errors = (estimates - share) ** 2
    rng = numpy_generator(size.seed, "regression", "bootstrap", share)
    means = errors[rng.integers(len(errors), size=(RESAMPLES, len(errors)))].mean(axis=1)
    tail = (1 - size.confidence) / 2
    low, high = (float(value) for value in np.quantile(means, [tail, 1 - tail]))
    mse = float(errors.mean())
    leaked = [float(n_leaked_regression(share, value)) if value > 0 else math.inf for value in (mse, high, low)]
    return ShareResult(share, estimates, mse, low, high, *leaked)
