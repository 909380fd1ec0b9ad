"""Populations whose share can be set, the halves of the game, what it refuses, and going on after an interruption."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from torch import nn

from policydist.errors import PolicydistError, UsageError
from policydist.estimation.inference_audit.models import accuracy, layers, true_label_chance
from policydist.estimation.inference_audit.populations import HALVES, Population, TwoGroup
from policydist.estimation.methods.distribution_inference import Degrees, Density, Ratios, audit, audit_shares

SMALL = {"n_train": 60, "n_test": 50, "n_victims": 6, "n_adversary": 5, "repetitions": 2, "n_jobs": 1}


@pytest.fixture(scope="module")
def population() -> Population:
    return Population.from_frame(TwoGroup(0).frame(4000), label="label", property="group")


def nearest_mean(X, y, seed):
    """A victim that costs nothing: linear scores from class means."""
    means = np.stack([X[y == k].mean(axis=0) for k in (0, 1)])
    direction = means[1] - means[0]
    return Line(direction, float(-means.mean(axis=0) @ direction))


class Line:
    def __init__(self, direction, offset):
        self.coef_, self.intercept_, self.classes_ = direction[None], np.array([offset]), np.array([0, 1])

    def decision_function(self, X):
        return X @ self.coef_[0] + self.intercept_[0]

    def predict(self, X):
        return (self.decision_function(X) > 0).astype(int)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_draw_has_the_share_and_the_fixed_class_ratio(share: float) -> None:
    frame = TwoGroup(0).frame(6000).assign(row=range(6000))
    population = Population.from_frame(
        frame, label="label", property="group", keep_property=True, class_shares={0: 0.75, 1: 0.25}
    )
    X, y = population.sampler(share)(200, "victim", np.random.default_rng(0))
    assert y.sum() == 50  # the paper's three negatives to a positive, whatever the share
    assert X["group"].mean() == pytest.approx(share, abs=0.011)
    assert len(set(X["row"])) == 200
    np.testing.assert_array_equal(frame.set_index("row").loc[X["row"], "label"], y)


def test_counted_draws_are_distributed_as_the_heuristic_on_rows(population: Population) -> None:
    """The kept share of tries=1 against a plain simulation: thin the larger group out, then draw each label."""
    rng = np.random.default_rng(0)
    y, group = population.y, population.has_property
    half = population.half_of == 0
    one_try = Population(population.X.assign(g=group), y, group, tries=1)
    fast = [one_try.sampler(0.3)(100, "victim", rng)[0]["g"].mean() for _ in range(400)]
    slow = []
    have, lack = np.flatnonzero(half & (group == 1)), np.flatnonzero(half & (group == 0))
    positives = round(100 * y.mean())
    for _ in range(400):
        pool = np.concatenate([rng.choice(have, round(3 / 7 * len(lack)), replace=False), lack])
        rows = [
            rng.choice(pool[y[pool] == label], count, replace=False)
            for label, count in ((1, positives), (0, 100 - positives))
        ]
        slow.append(group[np.concatenate(rows)].mean())
    assert np.mean(fast) == pytest.approx(np.mean(slow), abs=4 * np.std(slow) / 20)
    assert np.std(fast) == pytest.approx(np.std(slow), rel=0.2)


def test_halves_share_no_row_and_keep_the_shares(population: Population) -> None:
    sizes = [np.mean(population.half_of == k) for k in range(3)]
    np.testing.assert_allclose(sizes, [0.5, 0.3, 0.2], atol=0.002)
    for k in range(3):
        mine = population.half_of == k
        assert population.has_property[mine].mean() == pytest.approx(population.has_property.mean(), abs=0.005)
        assert population.y[mine].mean() == pytest.approx(population.y.mean(), abs=0.005)
    seen = [set(population.sampler(0.5)(150, half, np.random.default_rng(1))[0].index) for half in HALVES]
    assert not seen[0] & seen[1]
    assert not (seen[0] | seen[1]) & seen[2]


def test_sharing_rows_between_victim_and_adversary_is_refused(population: Population) -> None:
    def careless(n, half, rng):
        return population.sampler(0.5)(n, "test", rng)

    with pytest.raises(UsageError, match="same rows"):
        audit(nearest_mean, careless, careless, ["loss"], **SMALL | {"n_train": 200})
    coarse = lambda n, half, rng: (rng.integers(0, 3, (n, 2)).astype(float), rng.integers(0, 2, n))  # noqa: E731
    audit(nearest_mean, coarse, coarse, ["loss"], **SMALL)  # equal rows by coincidence say nothing


def test_populations_refuse_what_they_cannot_vary() -> None:
    X, y = np.random.default_rng(0).random((40, 2)), np.tile([0, 1], 20)
    for group, text in (
        (np.ones(40), "same value"),
        (np.arange(40), "must be 0 or 1"),
        (np.ones(39), "39 values"),
    ):
        with pytest.raises(UsageError, match=text):
            Population(X, y, group)
    population = Population(X, y, np.repeat([0, 1], 20))
    with pytest.raises(UsageError, match=r"\[0, 1\], got 1.5"):
        population.sampler(1.5)
    with pytest.raises(UsageError, match="ask for fewer rows"):
        population.sampler(0.5)(30, "test", np.random.default_rng(0))
    with pytest.raises(UsageError, match="sum to 1"):
        Population(X, y, np.repeat([0, 1], 20), class_shares={0: 0.5})
    frame = pd.DataFrame({"x": [1.0, np.nan], "label": [0, 1], "group": [0, 1]})
    with pytest.raises(UsageError, match="column 'x' holds 1 missing"):
        Population.from_frame(frame, label="label", property="group")
    with pytest.raises(UsageError, match="no column 'grup'; did you mean group"):
        Population.from_frame(frame, label="label", property="grup")
    with pytest.raises(UsageError, match="never has the value"):
        Population.from_frame(frame.fillna(0), label="label", property="group", value="7")


def bad(change):
    def sampler(n, half, rng):
        X, y = TwoGroup(0).draw(n, 0.5, rng)[:2]
        return change(X, y)

    return sampler


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda X, y: (X[:40], y[:40]), "returned 40 rows and"),
        (lambda X, y: (np.where(X > 1, np.nan, X), y), "NaN or infinite"),
        (lambda X, y: (np.where(X > 1, np.inf, X), y), "NaN or infinite"),
        (lambda X, y: (X, np.zeros_like(y)), "single class"),
        (lambda X, y: (X, np.where(y == 1, np.nan, 0.0)), "labels that are NaN"),
        (lambda X, y: (np.vstack([X, X]), y), "rows of X and"),
        (lambda X, y: X, "sampler a failed"),
    ],
)
def test_bad_draws_are_one_clear_error(change, text: str) -> None:
    with pytest.raises(UsageError, match=text) as raised:
        audit(nearest_mean, bad(change), TwoGroup(0).sampler(0.2), ["loss"], **SMALL)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("pair", [(0.5, 0.5), (-0.1, 0.5), (0.2, 1.2), (float("nan"), 0.5)])
def test_equal_or_impossible_ratios_are_refused(pair) -> None:
    with pytest.raises(UsageError, match="ratio"):
        Ratios(*pair)
    with pytest.raises(UsageError, match=r"ratio|share"):
        audit_shares(nearest_mean, TwoGroup(0).sampler, [pair[1]], pair[0], ["loss"], **SMALL)


def test_other_shifts_are_checked_and_counted() -> None:
    degrees = Degrees((253, 1.918591), (133, 1.881514))
    assert degrees.n_leaked(degrees.bound(3)) == pytest.approx(3)
    assert np.isnan(degrees.n_leaked_exact(0.9))
    assert Density(0.8).n_leaked(Density(0.8).bound(4)) == pytest.approx(4)
    for make in (lambda: Degrees((10, 1.0), (10, 1.0)), lambda: Degrees((0, 1.0), (10, 1.0)), lambda: Density(1.0)):
        with pytest.raises(UsageError):
            make()


@pytest.mark.slow
def test_processes_and_interruptions_change_no_number(tmp_path) -> None:
    samplers = TwoGroup(0).sampler(0.5), TwoGroup(0).sampler(0.1)
    every = ["threshold", "per_point", "lda"]
    options = SMALL | {"n_victims": 30, "n_adversary": 15}
    whole = audit(nearest_mean, *samplers, every, **options)

    class Stop(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 25:
            raise Stop

    with pytest.raises(Stop):
        audit(nearest_mean, *samplers, every, folder=tmp_path, progress=stop, **options)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    counts = []
    again = audit(
        nearest_mean, *samplers, every, folder=tmp_path, progress=lambda *c: counts.append(c), **options | {"n_jobs": 2}
    )
    assert kept
    assert counts[0][0] > 0
    assert counts[-1] == (120, 120)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items())
    assert again.to_json() == whole.to_json()
    with pytest.raises(UsageError, match="another audit"):
        audit(nearest_mean, *samplers, every, folder=tmp_path, **options | {"seed": 1})


def test_failed_trainings_and_diverged_models_are_named() -> None:
    samplers = TwoGroup(0).sampler(0.5), TwoGroup(0).sampler(0.1)

    def fails(X, y, seed):
        raise RuntimeError("no memory")

    with pytest.raises(PolicydistError, match=r"training model 0 of distribution a .victim. failed: RuntimeError"):
        audit(fails, *samplers, ["loss"], **SMALL)
    with pytest.raises(PolicydistError, match="weights that are NaN"):
        audit(lambda X, y, seed: Line(np.full(8, np.nan), 0.0), *samplers, ["lda"], **SMALL)
    with pytest.raises(PolicydistError, match="score of a model is NaN"):
        audit(nearest_mean, *samplers, ["loss"], score=lambda m, X, y: np.nan, **SMALL)


def test_training_warnings_are_counted_into_one() -> None:
    samplers = TwoGroup(0).sampler(0.5), TwoGroup(0).sampler(0.1)
    with pytest.warns(UserWarning, match="of 32 trainings warned: lbfgs failed to converge") as caught:
        audit(LogisticRegression(max_iter=1), *samplers, ["loss"], **SMALL)
    assert len(caught) == 1


def test_white_box_attacks_name_models_without_weights() -> None:
    samplers = TwoGroup(0).sampler(0.5), TwoGroup(0).sampler(0.1)
    with pytest.raises(UsageError, match=r"GaussianNB has none .*use the attacks loss"):
        audit(GaussianNB(), *samplers, ["meta"], **SMALL)
    with pytest.raises(UsageError, match="BatchNorm1d"):
        layers(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)))
    with pytest.raises(UsageError, match="no linear layer"):
        layers(nn.Sequential(nn.ReLU()))


def test_models_are_read_alike_whatever_they_offer() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 3)), rng.integers(0, 2, 50)
    model = LogisticRegression().fit(X, y)
    chance = model.predict_proba(X)[np.arange(50), y]
    np.testing.assert_allclose(true_label_chance(model, X, y), chance)
    linear = nn.Linear(3, 1).double()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(model.coef_))
        linear.bias.copy_(torch.tensor(model.intercept_))
    np.testing.assert_allclose(true_label_chance(linear, X, y), chance)
    np.testing.assert_allclose(true_label_chance(Line(model.coef_[0], model.intercept_[0]), X, y), chance)
    assert accuracy(linear, X, y) == accuracy(model, X, y) == model.score(X, y)
    for (w, b), (v, c) in zip(layers(linear), layers(model), strict=True):
        np.testing.assert_allclose(w, v)
        np.testing.assert_allclose(b, c)
    words = np.array(["no", "yes"])[y]
    named = LogisticRegression().fit(X, words)
    np.testing.assert_allclose(true_label_chance(named, X, words), chance)
    assert true_label_chance(named, X[:1], np.array(["never"]))[0] == 0.0
    with pytest.raises(UsageError, match="class numbers; encode"):
        true_label_chance(linear, X, words)
