"""Distribution inference audits (Suri and Evans, arXiv 2109.06024): the public names, and the audit as one command.

Given a training procedure and two distributions that differ in a property (half women or a fifth), how well can an
adversary tell from a trained model which one it learnt from, and how many samples would have told as much?
"""

from __future__ import annotations

import ast
import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from policydist.errors import UsageError, nearest
from policydist.estimation.frames import read_frame, write_figure, write_frame
from policydist.estimation.inference_audit.attacks import (
    Attack,
    KLTest,
    LossTest,
    PerPointTest,
    ThresholdTest,
    loss_test,
)
from policydist.estimation.inference_audit.audit import ATTACKS, audit, make_attack
from policydist.estimation.inference_audit.grid import GridReport, SharesReport, audit_shares, estimate_shares
from policydist.estimation.inference_audit.invariant import WeightEncoder
from policydist.estimation.inference_audit.leak import Degrees, Density, Ratios
from policydist.estimation.inference_audit.populations import Population, Sampler, TwoGroup
from policydist.estimation.inference_audit.report import AttackResult, AuditReport
from policydist.estimation.inference_audit.thresholds import best_splits
from policydist.estimation.inference_audit.torch_mlp import TorchMLPClassifier
from policydist.estimation.inference_audit.whitebox import LDAAttack, MetaClassifier, RegressionAttack
from policydist.estimation.methods import Progress
from policydist.runs.directory import Run, write_whole

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ATTACKS",
    "DIFFERENCES",
    "Attack",
    "AttackResult",
    "AuditReport",
    "Config",
    "Degrees",
    "Density",
    "GridReport",
    "KLTest",
    "LDAAttack",
    "LossTest",
    "MetaClassifier",
    "PerPointTest",
    "Population",
    "Ratios",
    "RegressionAttack",
    "Sampler",
    "SharesReport",
    "ThresholdTest",
    "TorchMLPClassifier",
    "TwoGroup",
    "WeightEncoder",
    "audit",
    "audit_shares",
    "best_splits",
    "estimate_shares",
    "loss_test",
    "train",
]

DIFFERENCES: tuple[str, ...] = (
    "Which test set the threshold test uses: the released census script takes the one with the larger accuracy on the "
    "adversary's models, the botnet script the smaller; here the larger.",
    "Thresholds: the released code scans in fixed steps and misses splits between closer scores; here every midpoint "
    "is tried (ThresholdTest(step=...) scans).",
    "Meta-classifier: the released network feeds each layer the flattened codes of the layer before and so is not "
    "invariant to renumbered hidden neurons; here it is (MetaClassifier(invariant=False) is the released one).",
    "n_leaked where the formula has no value (equal shares, shares 0 and 1): here the limits of the formula "
    "(n_leaked_ratio(edges='code') follows the code).",
    "n_leaked at accuracy 1: the released code gives infinity; a report here gives the value at the interval's lower "
    "end and says 'at least', and n_leaked_exact stands beside it.",
)


@dataclass(frozen=True)
class Config:
    """A table with one row a person; the audit trains victims on two populations that differ in a property's share."""

    property: str = "group"
    """Column of the property whose share the adversary wants to know; it is not a feature."""
    property_value: str | None = None
    """The value of the column that counts as having the property; null for a column of zeros and ones."""
    label: str = "label"
    """Column that the victims predict."""
    ratio_a: float = 0.5
    """Share of rows with the property in the first distribution."""
    ratio_b: float = 0.2
    """The same in the second."""
    victim: str = "sklearn.linear_model.LogisticRegression"
    """Dotted path of any scikit-learn classifier."""
    victim_settings: tuple[str, ...] = ()
    """Its parameters, as name=value, e.g. max_iter=500."""
    standardize: bool = True
    """Put a StandardScaler before the victim."""
    keep_property: bool = False
    """Let the victims see the property as a feature."""
    attacks: tuple[str, ...] = ("loss", "threshold", "per_point")
    """loss, threshold, per_point, kl; white-box: lda (linear victims), meta, regression."""
    n_train: int = 500
    """Rows of each training set."""
    n_test: int = 500
    """Rows of each of the adversary's two test sets."""
    n_victims: int = 100
    """Victims of each distribution."""
    n_adversary: int = 50
    """Models that the adversary trains of each distribution, in each repetition."""
    repetitions: int = 5
    """Adversaries with fresh models."""
    confidence: float = 0.95
    """Of the intervals."""
    jobs: int | None = None
    """Processes; null: all cores. It changes no number."""
    models: str | None = None
    """Folder that keeps finished trainings, so that an interrupted audit goes on; null keeps none."""
    seed: int = 0
    """Of the split, the draws, the trainings and the attacks, and of the embedded data."""

    def __post_init__(self) -> None:
        Ratios(self.ratio_a, self.ratio_b)
        for attack in self.attacks:
            make_attack(attack)
        if not self.attacks:
            raise UsageError(f"attacks is empty; give one or more of {', '.join(ATTACKS)}")


def train(config: Config, data: Path | None, run: Run, progress: Progress) -> dict[str, float]:
    """Runs the audit and writes verdict.md, report.json, attacks.csv, audit.png and summary.txt.

    Raises:
        UsageError: unreadable data, absent columns, too few rows for the draws, a victim that is no classifier.
    """
    victim = make_victim(config)
    population = Population.from_frame(
        _frame(config, data), label=config.label, property=config.property,
        value=config.property_value, keep_property=config.keep_property, seed=config.seed,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        report = audit(
            victim, population.sampler(config.ratio_a), population.sampler(config.ratio_b), config.attacks,
            shift=Ratios(config.ratio_a, config.ratio_b), names=_names(config), n_train=config.n_train,
            n_test=config.n_test, n_victims=config.n_victims, n_adversary=config.n_adversary,
            repetitions=config.repetitions, confidence=config.confidence, seed=config.seed, n_jobs=config.jobs,
            folder=config.models, progress=lambda done, total: progress(done, total, {"models": float(done)}),
        )  # fmt: skip
    notes = [f"Note: {entry.message}" for entry in caught if "trainings warned" in str(entry.message)]
    write_whole(run.path / "report.json", report.to_json())
    write_whole(run.path / "verdict.md", "\n\n".join([report.verdict(), *notes]) + "\n")
    write_frame(run.path / "attacks.csv", report.to_frame())
    write_figure(run.path / "audit.png", report.plot())
    write_whole(run.path / "summary.txt", "\n".join([report.summary(), *notes]) + "\n")
    best = report.strongest
    numbers = {f"accuracy/{found.attack}": found.accuracy for found in report.results}
    return numbers | {
        "accuracy_low": best.low, "accuracy_high": best.high, "n_leaked": best.n_leaked,
        "n_leaked_exact": best.n_leaked_exact, "leaks": float(report.leaks()),
    }  # fmt: skip


def make_victim(config: Config) -> Any:
    """The classifier that the config names, behind a scaler if asked for. Raises UsageError."""
    from sklearn.base import is_classifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    place, _, name = config.victim.rpartition(".")
    try:
        module = importlib.import_module(place)
    except (ImportError, ValueError):
        raise UsageError(f"victim {config.victim!r}: no module {place!r}; give module.Class") from None
    if not isinstance(getattr(module, name, None), type):
        raise UsageError(f"victim {config.victim!r}: no such class; {nearest(name, dir(module))}")
    kind = getattr(module, name)
    try:
        model = kind(**dict(_setting(word) for word in config.victim_settings))
    except TypeError as problem:
        raise UsageError(f"victim {config.victim}: {problem}; see victim_settings") from None
    if not is_classifier(model):
        raise UsageError(f"victim {config.victim} is not a scikit-learn classifier")
    return make_pipeline(StandardScaler(), model) if config.standardize else model


def _setting(word: str) -> tuple[str, Any]:
    name, equals, text = word.partition("=")
    if not equals:
        raise UsageError(f"victim_settings holds {word!r}; write name=value")
    try:
        return name, ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return name, text


def _frame(config: Config, data: Path | None) -> pd.DataFrame:
    if data is None:
        made = TwoGroup(config.seed).frame(20_000, seed=config.seed)
        return made.rename(columns={"label": config.label, "group": config.property})
    return read_frame(data)


def _names(config: Config) -> tuple[str, str]:
    what = config.property if config.property_value is None else f"{config.property} = {config.property_value}"
    return f"a population with {config.ratio_a:.0%} {what}", f"one with {config.ratio_b:.0%}"
