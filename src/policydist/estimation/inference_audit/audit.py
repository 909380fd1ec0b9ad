"""`audit`: which of two distributions did a model learn from, and how much does it give away?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policydist.errors import UsageError, nearest
from policydist.estimation.inference_audit.attacks import Attack, KLTest, LossTest, PerPointTest, ThresholdTest
from policydist.estimation.inference_audit.evidence import joined
from policydist.estimation.inference_audit.game import Game, Pool, Progress, Score, Seen, TrainFn, show_game
from policydist.estimation.inference_audit.leak import Shift
from policydist.estimation.inference_audit.populations import Half, Sampler
from policydist.estimation.inference_audit.report import AuditReport, result
from policydist.estimation.inference_audit.whitebox import LDAAttack, MetaClassifier, RegressionAttack
from policydist.runs.seeds import derive

ATTACKS: dict[str, type[Any]] = {
    kind.name: kind
    for kind in (LossTest, ThresholdTest, PerPointTest, KLTest, LDAAttack, MetaClassifier, RegressionAttack)
}
DEFAULT: tuple[str | Attack, ...] = ("loss", "threshold", "per_point")


@dataclass(frozen=True)
class Size:
    """How much is trained: ``2 n_victims + 2 n_adversary repetitions`` models a pair of distributions.

    n_train: rows of every training set. n_test: rows of each of the two test sets. n_victims, n_adversary: models a
    distribution. repetitions: adversaries with fresh models each. confidence: of the intervals.
    """

    n_train: int = 1000
    n_test: int = 1000
    n_victims: int = 100
    n_adversary: int = 50
    repetitions: int = 5
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("n_train", 2), ("n_test", 1), ("n_victims", 2), ("n_adversary", 2), ("repetitions", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 < self.confidence < 1:
            raise UsageError(f"confidence is {self.confidence}; it must lie between 0 and 1")


def audit(
    train_fn: TrainFn,
    sampler_a: Sampler,
    sampler_b: Sampler,
    attacks: Sequence[str | Attack] = DEFAULT,
    *,
    shift: Shift | None = None,
    names: tuple[str, str] | None = None,
    n_train: int = 1000,
    n_test: int = 1000,
    n_victims: int = 100,
    n_adversary: int = 50,
    repetitions: int = 5,
    confidence: float = 0.95,
    score: Score | None = None,
    seed: int = 0,
    n_jobs: int | None = None,
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> AuditReport:
    """Play the distribution inference game of arXiv 2109.06024 with a training procedure and two distributions.

    ``n_victims`` models a distribution are trained on the victim's data. An adversary trains ``n_adversary`` models a
    distribution on data of its own, fits every attack on them, and guesses for each victim which distribution it
    comes from; this is repeated ``repetitions`` times with fresh adversary models. Everything is reproducible from
    ``seed``, whatever the number of processes.

    Args:
        train_fn: an unfitted scikit-learn classifier, or a function ``(X, y, seed)`` that returns a fitted classifier
            or torch module (with processes, it must be importable or picklable by cloudpickle).
        sampler_a, sampler_b: ``sampler(n, half, rng)`` returns n rows ``(X, y)`` for the half "victim", "adversary" or
            "test"; halves must not share rows. See `Population` for finite data.
        attacks: names ("loss", "threshold", "per_point", "kl"; white-box: "lda", "meta", "regression") or objects
            with settings, such as ``MetaClassifier(epochs=1000)``.
        shift: how the distributions differ (`Ratios`, `Degrees`, `Density`), for n_leaked; None leaves that out.
        names: of the two distributions, for the verdict; by default taken from ``shift``.
        n_train, n_test: rows of each training set and of each of the two test sets.
        score: a function ``(model, X, y)`` used instead of accuracy by loss and threshold test, e.g. a policy's return
            or log-likelihood; higher must mean better for the loss test.
        n_jobs: processes; all cores by default.
        folder: finished trainings are kept here, and an interrupted audit goes on from them.
        progress: called with (models trained, models in all).

    Raises:
        UsageError: unknown attacks; samplers that return too few rows, NaN, infinite values, one class, or rows
            shared by victim and adversary; a white-box attack on models without weights or of several architectures.
        PolicydistError: a training failed or diverged.
    """
    chosen = [make_attack(attack) for attack in attacks]
    size = Size(n_train, n_test, n_victims, n_adversary, repetitions, confidence, seed)
    samplers = {"a": sampler_a, "b": sampler_b}
    pools = both_sides(samplers, size, lambda name: ("a", "b"))
    game = Game(train_fn, samplers, n_train, n_test, needs(chosen), score, seed)
    seen = show_game(game, pools, n_jobs, folder, progress)
    return judge_pair(seen, "a", "b", chosen, size, shift, names or default_names(shift))


def both_sides(names: Iterable[str], size: Size, tests: Callable[[str], tuple[str, ...]]) -> list[Pool]:
    """Victims and adversary models of every distribution; ``tests`` says through which test sets each is seen."""
    counts: dict[Half, int] = {"victim": size.n_victims, "adversary": size.n_adversary * size.repetitions}
    return [Pool(side, name, count, tests(name)) for side, count in counts.items() for name in names]


def make_attack(attack: str | Attack) -> Attack:
    """An attack by name, with its default settings; an object is returned as it is. Raises UsageError."""
    if not isinstance(attack, str):
        return attack
    if attack not in ATTACKS:
        raise UsageError(f"no attack is called {attack!r}; {nearest(attack, ATTACKS)}")
    made: Attack = ATTACKS[attack]()
    return made


def needs(attacks: Sequence[Attack]) -> frozenset[Any]:
    """What the attacks look at. Raises UsageError for no attack, or the same one twice."""
    names = [attack.name for attack in attacks]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"give at least one attack, each once; got {names}")
    return frozenset(attack.need for attack in attacks)


def default_names(shift: Shift | None) -> tuple[str, str]:
    """Words for the two distributions."""
    first, second = getattr(shift, "a", None), getattr(shift, "b", None)
    if isinstance(first, float | int) and isinstance(second, float | int):
        return f"a population with share {first:g}", f"one with share {second:g} of the property"
    return "distribution a", "distribution b"


def judge_pair(
    seen: Mapping[tuple[Any, str], Seen],
    a: str,
    b: str,
    attacks: Sequence[Attack],
    size: Size,
    shift: Shift | None,
    names: tuple[str, str],
) -> AuditReport:
    """Fit every attack on each adversary's models of a and b, guess the victims, summarise."""
    victims = joined([seen["victim", name].through(a, b) for name in (a, b)])
    labels = np.repeat([0, 1], size.n_victims)
    guesses, results = {}, []
    for attack in attacks:
        rounds, own = [], []
        for repetition in range(1 if attack.name == "loss" else size.repetitions):
            rows = slice(repetition * size.n_adversary, (repetition + 1) * size.n_adversary)
            first, second = (seen["adversary", name].through(a, b, rows) for name in (a, b))
            fitted = attack.fit(first, second, derive(size.seed, "attack", attack.name, repetition) % 2**31)
            rounds.append(fitted.predict(victims))
            own.append(fitted.adversary_accuracy)
        guesses[attack.name] = np.stack(rounds)
        results.append(result(attack.name, guesses[attack.name], labels, own, shift, size.confidence))
    return AuditReport(
        names, shift, size.n_train, size.n_victims, size.n_adversary, size.confidence, size.seed, tuple(results),
        guesses, labels,
    )  # fmt: skip
