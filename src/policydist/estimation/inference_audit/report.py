"""What an audit found: accuracies with intervals, samples leaked, a verdict in plain words, a table and a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int
from scipy.stats import norm

from policydist.errors import UsageError, nearest
from policydist.estimation.inference_audit.leak import Shift

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WORDS = {
    "loss": "loss test", "threshold": "threshold test", "per_point": "per-point threshold test", "kl": "KL attack",
    "lda": "linear discriminant on the weights", "meta": "meta-classifier on the weights",
    "regression": "regression on the weights",
}  # fmt: skip


def wilson(share: float, n: int, confidence: float) -> tuple[float, float]:
    """Wilson interval of a share of n trials; the share may be a mean over repetitions, so n·share need not be whole."""
    z = float(norm.ppf(0.5 + confidence / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    width = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if share == 0 else middle - width), (1.0 if share == 1 else middle + width)


@dataclass(frozen=True)
class AttackResult:
    """One attack on all victims.

    Attributes:
        accuracy: share of victims whose distribution was guessed, averaged over the repetitions.
        low, high: Wilson interval over the victims.
        repetition_sd, repetition_low, repetition_high: spread of the accuracy over repetitions of the adversary
            (0 and the accuracy itself for an attack that is not trained).
        adversary_accuracy: on the adversary's own models, where it was chosen; optimistic, and NaN without training.
        below_chance: accuracy under ½; as telling as 1 − accuracy, but the rule points the wrong way.
        n_leaked, n_leaked_low, n_leaked_high: samples, at the accuracy and at the interval's ends. Where every victim
            was guessed (or none) the first is taken at the nearer interval end and ``at_least`` is true.
        n_leaked_exact, n_leaked_exact_low, n_leaked_exact_high: the same from the exact accuracy of the best test;
            NaN where that is not known.
    """

    attack: str
    accuracy: float
    low: float
    high: float
    repetition_sd: float
    repetition_low: float
    repetition_high: float
    adversary_accuracy: float
    below_chance: bool
    n_leaked: float
    n_leaked_low: float
    n_leaked_high: float
    n_leaked_exact: float
    n_leaked_exact_low: float
    n_leaked_exact_high: float
    at_least: bool


def result(
    attack: str,
    predictions: Int[np.ndarray, "r m"],
    labels: Int[np.ndarray, " m"],
    adversary: list[float | None],
    shift: Shift | None,
    confidence: float,
) -> AttackResult:
    """Summarise the guesses of every repetition."""
    shares = (predictions == labels).mean(axis=1)
    accuracy = float(shares.mean())
    low, high = wilson(accuracy, len(labels), confidence)
    certain = accuracy in (0.0, 1.0)
    point = accuracy if not certain else (low if accuracy == 1.0 else high)
    own = [value for value in adversary if value is not None]
    span, exact = (math.nan,) * 2, (math.nan,) * 2
    middle, middle_exact = math.nan, math.nan
    if shift is not None:
        span = _span(shift.n_leaked(low), shift.n_leaked(high), low, high)
        exact = _span(shift.n_leaked_exact(low), shift.n_leaked_exact(high), low, high)
        middle, middle_exact = shift.n_leaked(point), shift.n_leaked_exact(point)
    return AttackResult(
        attack, accuracy, low, high, float(shares.std(ddof=1)) if len(shares) > 1 else 0.0, float(shares.min()),
        float(shares.max()), float(np.mean(own)) if own else math.nan, accuracy < 0.5, middle, *span, middle_exact,
        *exact, certain,
    )  # fmt: skip


def _span(at_low: float, at_high: float, low: float, high: float) -> tuple[float, float]:
    """n_leaked falls to 0 at chance and rises again below it, so an interval around chance starts at 0."""
    return (0.0 if low <= 0.5 <= high else min(at_low, at_high)), max(at_low, at_high)


@dataclass(frozen=True)
class AuditReport:
    """The audit of one pair of distributions.

    ``results`` has one `AttackResult` an attack; ``predictions[attack]`` (repetitions, victims) holds the guesses and
    ``labels`` what was right.
    """

    names: tuple[str, str]
    shift: Shift | None
    n_train: int
    n_victims: int
    n_adversary: int
    confidence: float
    seed: int
    results: tuple[AttackResult, ...]
    predictions: Mapping[str, np.ndarray]
    labels: np.ndarray

    def __getitem__(self, attack: str) -> AttackResult:
        for found in self.results:
            if found.attack == attack:
                return found
        raise UsageError(f"no attack {attack!r} in this report; {nearest(attack, [r.attack for r in self.results])}")

    @property
    def strongest(self) -> AttackResult:
        """The attack farthest from chance."""
        return max(self.results, key=lambda found: abs(found.accuracy - 0.5))

    def leaks(self) -> bool:
        """Whether some attack is away from chance, with the intervals widened for the number of attacks."""
        level = 1 - (1 - self.confidence) / len(self.results)
        spans = (wilson(found.accuracy, len(self.labels), level) for found in self.results)
        return any(low > 0.5 or high < 0.5 for low, high in spans)

    def verdict(self) -> str:
        """The finding in plain words, a few sentences of Markdown."""
        return verdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row an attack."""
        import pandas as pd

        frame = pd.DataFrame([asdict(found) for found in self.results])
        bound = math.nan if self.shift is None else self.shift.bound(self.n_train)
        return frame.assign(bound_n_train=bound)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; infinite numbers become the text "inf", unknown ones None."""
        return {
            "distributions": list(self.names), "shift": None if self.shift is None else self.shift.describe(),
            "n_train": self.n_train, "victims": len(self.labels), "adversary_models": 2 * self.n_adversary,
            "confidence": self.confidence, "seed": self.seed, "leaks": self.leaks(),
            "attacks": [{name: plain(value) for name, value in asdict(found).items()} for found in self.results],
            "verdict": self.verdict(),
        }  # fmt: skip

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def summary(self) -> str:
        """A fixed-width table and the verdict."""
        head = f"{'attack':<12}{'accuracy':>9}{'interval':>17}{'adversary':>11}{'n_leaked':>10}{'interval':>16}{'exact':>7}"
        lines = [head, "-" * len(head)]
        for r in self.results:
            own = "" if math.isnan(r.adversary_accuracy) else f"{r.adversary_accuracy:.3f}"
            least = "≥" if r.at_least else ""
            lines.append(
                f"{r.attack:<12}{r.accuracy:>9.3f}{f'[{r.low:.3f}, {r.high:.3f}]':>17}{own:>11}"
                f"{least + number(r.n_leaked):>10}{f'[{number(r.n_leaked_low)}, {number(r.n_leaked_high)}]':>16}"
                f"{least + number(r.n_leaked_exact):>7}"
            )
        return "\n".join([*lines, "", self.verdict()])

    def plot(self) -> Figure:
        """Accuracy of every attack, and how many samples would reach it."""
        from policydist.estimation.inference_audit.figures import plot_audit

        return plot_audit(self)


def number(value: float) -> str:
    """Three digits, ∞, or a dash for what is not known."""
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def plain(value: Any) -> Any:
    """A number that JSON knows."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else "inf"
    return value


def verdict(report: AuditReport) -> str:
    """See `AuditReport.verdict`."""
    best, total = report.strongest, len(report.labels)
    level = f"{100 * report.confidence:g} %"
    what = f"{report.names[0]} or {report.names[1]}"
    tried = ", ".join(WORDS.get(found.attack, found.attack) for found in report.results)
    if not report.leaks():
        return (
            f"**No leak was found.** Nobody could tell from a trained model whether its data came from {what}: the best "
            f"of the attacks tried ({tried}) was right for {100 * best.accuracy:.0f} of 100 models, {level} interval "
            f"{100 * best.low:.0f} to {100 * best.high:.0f}, where guessing gives 50. {total} models were attacked. A "
            "stronger attack, or more models, may still find one."
        )
    text = [
        f"**The models leak.** Given one trained model, an adversary tells whether its data came from {what} for "
        f"{100 * best.accuracy:.0f} of 100 models ({level} interval {100 * best.low:.0f} to {100 * best.high:.0f}; "
        f"guessing gives 50), by the {WORDS.get(best.attack, best.attack)}. {total} models were attacked."
    ]
    if best.below_chance:
        text.append("The guesses are wrong more often than right, which is as telling: turn them round.")
    if report.shift is not None:
        least = "at least " if best.at_least else ""
        exact = ""
        if not math.isnan(best.n_leaked_exact):
            exact = f" (the best possible use of samples would need {number(best.n_leaked_exact)})"
        text.append(
            f"To know as much without the model, the adversary would have to be handed {least}{number(best.n_leaked)} "
            f"records of the training distribution{exact}; the models were trained on {report.n_train}. This is a "
            "lower estimate from a loose bound, and it counts knowledge about the distribution: it does not say that "
            "any single record can be recovered."
        )
    return " ".join(text)
