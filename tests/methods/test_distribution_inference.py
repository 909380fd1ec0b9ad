"""The public audit: any classifier, no leak where there is none, what a report says, the command's run."""

from __future__ import annotations

import json
import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils import estimator_checks as checks
from torch import nn

from policydist.errors import UsageError
from policydist.estimation.inference_audit.report import result, wilson
from policydist.estimation.methods import distribution_inference as di
from policydist.functional.leakage import n_leaked_exact, n_leaked_ratio
from policydist.runs.directory import Run, read_metrics

mpl.use("Agg")
WORLD = di.TwoGroup(1)
QUICK = {"n_train": 80, "n_test": 100, "n_victims": 8, "n_adversary": 6, "repetitions": 2, "n_jobs": 1}


def quick_line(X, y, seed):
    """A linear victim by least squares: thousands cost a second."""
    weights = np.linalg.lstsq(np.column_stack([X, np.ones(len(X))]), 2 * y - 1, rcond=None)[0]
    return Linear(weights)


class Linear:
    classes_ = np.array([0, 1])

    def __init__(self, weights):
        self.coef_, self.intercept_ = weights[None, :-1], weights[-1:]

    def decision_function(self, X):
        return 3 * (X @ self.coef_[0] + self.intercept_[0])

    def predict(self, X):
        return (self.decision_function(X) > 0).astype(int)


@pytest.fixture(scope="module")
def report() -> di.AuditReport:
    return di.audit(
        quick_line, WORLD.sampler(0.5), WORLD.sampler(0.1), ["loss", "threshold", "per_point", "kl", "lda"],
        shift=di.Ratios(0.5, 0.1), n_train=300, n_test=1000, n_victims=100, n_adversary=40, repetitions=3, n_jobs=1,
    )  # fmt: skip


VICTIMS = [
    LogisticRegression(),
    RandomForestClassifier(n_estimators=5, random_state=0),
    GaussianNB(),
    KNeighborsClassifier(),
    LinearSVC(),  # no predict_proba
    MLPClassifier((4,), max_iter=80, learning_rate_init=0.05),
    make_pipeline(StandardScaler(), LogisticRegression()),
]


@pytest.mark.filterwarnings("ignore:.*trainings warned")
@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: type(victim).__name__)
def test_any_classifier_can_be_audited(victim) -> None:
    found = di.audit(
        victim, WORLD.sampler(0.9), WORLD.sampler(0.0), ["loss", "threshold", "per_point", "kl"],
        shift=di.Ratios(0.9, 0.0), **QUICK,
    )  # fmt: skip
    assert found.strongest.accuracy > 0.7
    assert found["per_point"].n_leaked > 0
    assert found.predictions["threshold"].shape == (2, 16)


@pytest.mark.filterwarnings("ignore:.*trainings warned")
@pytest.mark.parametrize("victim", [VICTIMS[0], VICTIMS[4], VICTIMS[5], VICTIMS[6]], ids=lambda v: type(v).__name__)
def test_weights_of_linear_models_networks_and_pipelines_are_read(victim) -> None:
    attack = "meta" if isinstance(victim, MLPClassifier) else "lda"
    made = di.MetaClassifier(epochs=5) if attack == "meta" else attack
    found = di.audit(victim, WORLD.sampler(0.9), WORLD.sampler(0.0), [made], **QUICK)
    assert 0 <= found[attack].accuracy <= 1


@pytest.mark.parametrize("outputs", [1, 2])
def test_torch_victims(outputs: int) -> None:
    def train(X, y, seed):
        line = quick_line(X, y, seed)
        module = nn.Sequential(nn.Linear(8, outputs), nn.Identity())
        weight = torch.tensor(np.vstack([0 * line.coef_, line.coef_])[-outputs:])
        with torch.no_grad():
            module[0].weight.copy_(weight)
            module[0].bias.copy_(torch.tensor([0.0, line.intercept_[0]][-outputs:]))
        return module

    options = QUICK | {"n_train": 300, "n_victims": 20, "n_adversary": 20}
    every = ["threshold", "per_point", *(["lda"] if outputs == 1 else [])]
    ours = di.audit(train, WORLD.sampler(0.5), WORLD.sampler(0.0), every, **options)
    theirs = di.audit(quick_line, WORLD.sampler(0.5), WORLD.sampler(0.0), every, **options)
    assert ours["threshold"].accuracy == pytest.approx(theirs["threshold"].accuracy, abs=0.05)
    if outputs == 1:
        assert ours["lda"].accuracy == pytest.approx(theirs["lda"].accuracy, abs=0.05)


def test_distant_shares_leak_and_reading_more_tells_more(report: di.AuditReport) -> None:
    assert report.leaks()
    assert report["threshold"].accuracy > 0.85
    assert report["lda"].accuracy > 0.97
    assert report["loss"].repetition_sd == 0.0
    assert report["threshold"].repetition_low <= report["threshold"].accuracy <= report["threshold"].repetition_high
    for attack in ("loss", "threshold", "per_point", "kl", "lda"):
        rounds = report.predictions[attack]
        assert report[attack].accuracy == pytest.approx((rounds == report.labels).mean())


def test_equal_distributions_leak_nothing_to_any_attack() -> None:
    """Choosing threshold, test set and points must not look at victims, or this would rise above chance."""
    same = WORLD.sampler(0.5)
    found = di.audit(
        quick_line, same, same, ["loss", "threshold", "per_point", "kl", "lda"],
        n_train=100, n_test=300, n_victims=150, n_adversary=20, repetitions=3, n_jobs=1, seed=3,
    )  # fmt: skip
    for row in found.results:
        assert abs(row.accuracy - 0.5) < 4 * 0.5 / math.sqrt(300), row.attack
        assert math.isnan(row.n_leaked)
    assert found["threshold"].adversary_accuracy > found["threshold"].accuracy  # chosen on its own models: optimistic
    assert not found.leaks()
    assert "No leak was found" in found.verdict()


def test_everything_follows_from_the_seed() -> None:
    def once(seed: int) -> str:
        return di.audit(
            quick_line, WORLD.sampler(0.5), WORLD.sampler(0.3), ["threshold", "kl"], seed=seed, **QUICK
        ).to_json()

    assert once(0) == once(0) != once(1)


def test_a_score_of_ones_own_replaces_accuracy() -> None:
    """For a policy: return or log-likelihood. Here the victim's bias, which equal accuracy would not show."""

    def constant(X, y, seed):
        return float(y.mean())

    found = di.audit(
        constant, WORLD.sampler(0.0), WORLD.sampler(1.0), ["threshold"], score=lambda model, X, y: model,
        shift=di.Ratios(0.0, 1.0), **QUICK,
    )  # fmt: skip
    assert found["threshold"].accuracy > 0.9
    with pytest.raises(UsageError, match="float has no predict; give audit"):
        di.audit(constant, WORLD.sampler(0.0), WORLD.sampler(1.0), ["loss"], **QUICK)


def test_certain_guesses_are_reported_at_the_intervals_end() -> None:
    labels = np.repeat([0, 1], 200)
    shift = di.Ratios(0.5, 0.2)
    sure = result("threshold", labels[None], labels, [1.0], shift, 0.95)
    assert sure.low == pytest.approx(0.990, abs=5e-4)  # 400 of 400
    assert sure.at_least
    assert sure.n_leaked == pytest.approx(float(n_leaked_ratio(sure.low, 0.5, 0.2)))
    assert sure.n_leaked_exact == n_leaked_exact(sure.low, 0.5, 0.2)
    assert sure.n_leaked_high == math.inf
    wrong = result("threshold", 1 - labels[None], labels, [1.0], shift, 0.95)
    assert wrong.below_chance
    assert wrong.n_leaked == pytest.approx(sure.n_leaked)
    guess = result("threshold", np.tile([0, 1], 200)[None], labels, [0.5], shift, 0.95)
    assert guess.n_leaked == guess.n_leaked_low == 0.0
    assert guess.n_leaked_high > 0


def test_wilson_interval_against_scipy() -> None:
    from scipy.stats import binomtest

    for k, n in ((0, 10), (3, 10), (10, 10), (180, 200)):
        expected = binomtest(k, n).proportion_ci(0.95, method="wilson")
        np.testing.assert_allclose(wilson(k / n, n, 0.95), expected, atol=1e-12)


def test_report_as_table_json_words_and_figure(report: di.AuditReport) -> None:
    frame = report.to_frame().set_index("attack")
    assert frame.loc["threshold", "n_leaked_low"] <= frame.loc["threshold", "n_leaked"]
    assert (frame["n_leaked_exact"] >= frame["n_leaked"]).all()
    assert (frame["accuracy"] <= frame["bound_n_train"]).all()
    data = json.loads(report.to_json())
    assert data["leaks"] is True
    assert len(data["attacks"]) == 5
    words = report.verdict()
    for part in ("The models leak", "share 0.5", "share 0.1", "lower estimate", "200 models were attacked"):
        assert part in words
    assert "threshold" in report.summary()
    assert len(report.plot().axes) == 2
    with pytest.raises(UsageError, match="no attack 'treshold' in this report; did you mean threshold"):
        report["treshold"]


def test_requests_that_make_no_sense() -> None:
    a, b = WORLD.sampler(0.5), WORLD.sampler(0.1)
    for attacks, text in ((["los"], "did you mean loss"), ([], "at least one"), (["loss", "loss"], "each once")):
        with pytest.raises(UsageError, match=text):
            di.audit(quick_line, a, b, attacks, **QUICK)
    for word, value in (("n_victims", 1), ("repetitions", 0), ("confidence", 1.0), ("n_jobs", 0)):
        with pytest.raises(UsageError, match=word):
            di.audit(quick_line, a, b, ["loss"], **QUICK | {word: value})


def test_a_grid_of_shares_shares_its_reference() -> None:
    grid = di.audit_shares(
        quick_line, WORLD.sampler, [0.1, 0.4, 0.8], attacks=["threshold", "lda"],
        n_train=300, n_test=500, n_victims=60, n_adversary=30, repetitions=1, n_jobs=1,
    )  # fmt: skip
    frame = grid.to_frame()
    assert frame["share"].tolist() == [0.1, 0.1, 0.4, 0.4, 0.8, 0.8]
    assert grid.reports[0.1]["lda"].accuracy > grid.reports[0.4]["lda"].accuracy
    assert grid.medians().index.tolist() == ["threshold", "lda"]
    assert len(grid.plot().axes) == 2
    single = di.audit(
        quick_line, WORLD.sampler(0.5), WORLD.sampler(0.1), ["lda"], n_train=300, n_test=500, n_victims=60,
        n_adversary=30, repetitions=1, n_jobs=1,
    )  # fmt: skip
    assert grid.reports[0.1]["lda"].accuracy == pytest.approx(single["lda"].accuracy, abs=0.1)


def test_shares_are_read_off_the_weights() -> None:
    found = di.estimate_shares(
        quick_line, WORLD.sampler, (0.0, 0.5, 1.0), (0.0, 0.25, 0.5, 1.0), di.RegressionAttack(epochs=120),
        n_train=400, n_victims=30, n_adversary=60, n_jobs=1,
    )  # fmt: skip
    frame = found.to_frame().set_index("share")
    assert frame["estimate"].is_monotonic_increasing
    assert frame.loc[0.25, "mse"] < 0.04  # a share that no model of the adversary had
    assert math.isnan(frame.loc[0.0, "n_leaked"])
    row = frame.loc[0.5]
    assert row.mse_low <= row.mse <= row.mse_high
    assert row.n_leaked == pytest.approx(0.25 / row.mse)
    assert row.n_leaked_low <= row.n_leaked <= row.n_leaked_high
    assert found.accuracy(0.0, 1.0) > 0.9
    assert len(found.plot().axes) == 1
    with pytest.raises(UsageError, match="two different shares"):
        found.accuracy(0.5, 0.5)


def test_the_torch_classifier_passes_every_check_of_scikit_learn() -> None:
    """No check is exempt. The array API check is skipped by scikit-learn itself unless SCIPY_ARRAY_API is set."""
    model = di.TorchMLPClassifier((8,), epochs=15, learning_rate=0.03)
    checks.check_estimator(model, on_skip=None)
    X, y, _ = WORLD.draw(400, 0.5, np.random.default_rng(0))
    assert model.fit(X, y).score(X, y) > 0.7
    assert model.loss_curve_[-1] < model.loss_curve_[0]
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)
    with pytest.raises(ValueError, match="at least 1"):
        di.TorchMLPClassifier(epochs=0).fit(X, y)


def test_the_command_writes_its_artefacts(tmp_path) -> None:
    config = di.Config(
        n_train=60, n_test=60, n_victims=6, n_adversary=5, repetitions=2, jobs=1,
        victim="sklearn.naive_bayes.GaussianNB", victim_settings=("var_smoothing=1e-8",),
    )  # fmt: skip
    frame = WORLD.frame(3000).rename(columns={"group": "sex"}).assign(town=np.tile(["a", "b", "c"], 1000))
    frame["sex"] = frame["sex"].map({0: "m", 1: "f"})
    frame.to_csv(tmp_path / "people.csv", index=False)
    steps = []
    for name, data, made in (
        ("own", None, config),
        ("file", tmp_path / "people.csv", di.Config(**{**vars(config), "property": "sex", "property_value": "f"})),
    ):
        run = Run.create(tmp_path / name, made)
        final = di.train(made, data, run, lambda done, total, row: steps.append((done, total)))
        assert steps[-1] == (32, 32)
        assert final["accuracy/threshold"] >= 0
        report = json.loads((run.path / "report.json").read_text())
        assert report["victims"] == 12
        assert (run.path / "verdict.md").read_text().startswith("**")
        assert {"attacks.csv", "audit.png", "summary.txt"} <= {path.name for path in run.path.iterdir()}
        assert read_metrics(run.path) == []
    assert "50% sex = f or one with 20%" in (tmp_path / "file" / "verdict.md").read_text()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"victim": "sklearn.linear_model.LogisticRegresion"}, "did you mean LogisticRegression"),
        ({"victim": "sklearn.nowhere.Thing"}, "no module 'sklearn.nowhere'"),
        ({"victim": "sklearn.linear_model.Ridge"}, "not a scikit-learn classifier"),
        ({"victim_settings": ("depth=3",)}, "unexpected keyword"),
        ({"victim_settings": ("C",)}, "write name=value"),
        ({"ratio_b": 0.5}, "nothing to tell apart"),
        ({"ratio_a": 1.5}, r"lies in \[0, 1\]"),
        ({"attacks": ()}, "attacks is empty"),
        ({"attacks": ("meto",)}, "did you mean meta"),
    ],
)
def test_wrong_settings_are_one_line(settings, text: str) -> None:
    with pytest.raises(UsageError, match=text):
        di.make_victim(di.Config(**settings))
