"""Threshold search against brute force, each attack by hand, what the weight readers do and do not see."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.errors import UsageError
from policydist.estimation.inference_audit.attacks import (
    KLTest,
    PerPointTest,
    ThresholdTest,
    cross_entropies,
    loss_test,
)
from policydist.estimation.inference_audit.evidence import Evidence, joined
from policydist.estimation.inference_audit.invariant import WeightEncoder
from policydist.estimation.inference_audit.thresholds import best_splits
from policydist.estimation.inference_audit.whitebox import LDAAttack, MetaClassifier, RegressionAttack, Scaling

SCORES = st.lists(st.integers(0, 8).map(lambda k: k / 8), min_size=1, max_size=7)


def brute(a: np.ndarray, b: np.ndarray) -> float:
    """Best balanced accuracy over every midpoint and both rules."""
    values = np.unique(np.concatenate([a, b]))
    best = 0.5
    for t in (values[1:] + values[:-1]) / 2:
        up = 0.5 * (np.mean(a < t) + np.mean(b >= t))
        best = max(best, up, 1 - up)
    return best


@settings(deadline=None, max_examples=60)
@given(SCORES, SCORES)
def test_the_split_is_the_best_of_all_midpoints(first, second) -> None:
    a, b = np.array(first), np.array(second)
    found = best_splits(a[:, None], b[:, None])
    assert found.accuracy[0] == pytest.approx(brute(a, b))
    reached = 0.5 * (np.mean(found.predict(a[:, None]) == 0) + np.mean(found.predict(b[:, None]) == 1))
    assert reached == pytest.approx(found.accuracy[0])
    squeezed = best_splits(np.exp(a)[:, None] ** 3, np.exp(b)[:, None] ** 3)
    assert squeezed.accuracy[0] == pytest.approx(found.accuracy[0])
    np.testing.assert_array_equal(squeezed.predict(np.exp(a)[:, None] ** 3), found.predict(a[:, None]))


def test_columns_are_split_independently_and_ties_go_up() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((9, 5)), rng.random((7, 5)) + 0.3
    together = best_splits(a, b)
    for column in range(5):
        alone = best_splits(a[:, [column]], b[:, [column]])
        assert alone.at[0] == together.at[column]
        assert alone.upward[0] == together.upward[column]
    tie = best_splits(np.array([[0.0], [2.0]]), np.array([[1.0], [1.0]]))  # 0 | 1 1 | 2: both cuts reach 3/4
    assert (tie.at[0], bool(tie.upward[0]), tie.accuracy[0]) == (0.5, True, 0.75)
    constant = best_splits(np.ones((3, 1)), np.ones((3, 1)))
    assert constant.accuracy[0] == 0.5
    assert constant.predict(np.ones((2, 1))).tolist() == [[1], [1]]


def test_a_coarse_scan_misses_what_midpoints_find() -> None:
    a, b = np.array([[0.500], [0.501]]), np.array([[0.5025], [0.503]])
    assert best_splits(a, b).accuracy[0] == 1.0
    assert best_splits(a, b, step=0.002).accuracy[0] == 1.0
    assert best_splits(a, b, step=0.01).accuracy[0] < 1.0


def test_loss_test_by_hand() -> None:
    assert loss_test(np.array([[0.9, 0.8], [0.7, 0.8], [0.5, 0.5]])).tolist() == [0, 1, 1]


def test_the_threshold_test_takes_the_test_set_that_suits_the_adversary() -> None:
    a = Evidence(scores=np.array([[0.1, 0.5], [0.2, 0.9], [0.3, 0.1]]))
    b = Evidence(scores=np.array([[0.4, 0.4], [0.5, 0.6], [0.6, 0.7]]))
    fitted = ThresholdTest().fit(a, b, 0)
    assert fitted.test_set == 0  # the released botnet script would take the other one
    assert fitted.adversary_accuracy == 1.0
    assert fitted.predict(Evidence(scores=np.array([[0.34, 0.0], [0.36, 0.0]]))).tolist() == [0, 1]


def per_point_case(points: int = 64, telling: int = 4, models: int = 80, seed: int = 0) -> tuple[Evidence, Evidence]:
    rng = np.random.default_rng(seed)
    shift = np.zeros(points)
    shift[:telling] = 0.4

    def side(extra: np.ndarray) -> np.ndarray:
        return np.clip(0.3 + extra + 0.1 * rng.standard_normal((models, points)), 0.01, 0.99).astype(np.float32)

    return (
        Evidence(chances=(side(np.zeros(points)), side(np.zeros(points)))),
        Evidence(chances=(side(shift), side(np.zeros(points)))),
    )


@pytest.mark.parametrize("attack", [PerPointTest(), KLTest()])
def test_probabilities_at_single_points_tell_models_apart(attack) -> None:
    fitted = attack.fit(*per_point_case(seed=0), 0)
    victims0, victims1 = per_point_case(seed=1)
    assert fitted.predict(victims0).mean() < 0.1
    assert fitted.predict(victims1).mean() > 0.9


def test_the_per_point_test_chooses_few_points_and_the_right_set_on_the_adversary() -> None:
    fitted = PerPointTest().fit(*per_point_case(), 0)
    assert fitted.test_set == 0
    assert len(fitted.points) < 64
    best = PerPointTest(fractions=(0.0625,)).fit(*per_point_case(), 0)
    assert set(best.points.tolist()) == {0, 1, 2, 3}


def test_cross_entropy_ranks_as_kl_does() -> None:
    p, q = np.array([[0.2, 0.9]]), np.array([[0.3, 0.8], [0.5, 0.5]])
    kl = (p[:, None] * np.log(p[:, None] / q) + (1 - p[:, None]) * np.log((1 - p[:, None]) / (1 - q))).mean(-1)
    difference = cross_entropies(p, q) - kl
    assert difference[0, 0] == pytest.approx(difference[0, 1])


def layers_of(models: int, shift: float, seed: int, sizes=(5, 4, 3, 1)) -> Evidence:
    rng = np.random.default_rng(seed)
    made = []
    for wide, narrow in itertools.pairwise(sizes):
        made.append(
            (rng.standard_normal((models, narrow, wide)) + shift, rng.standard_normal((models, narrow)) + shift)
        )
    return Evidence(layers=tuple(made))


def renumbered(evidence: Evidence, seed: int = 0) -> Evidence:
    """Hidden neurons of every model in another order: rows of a layer with the columns of the next."""
    rng = np.random.default_rng(seed)
    layers = [(w.copy(), b.copy()) for w, b in evidence.layers]
    for k in range(len(layers) - 1):
        order = rng.permutation(layers[k][0].shape[1])
        layers[k] = (layers[k][0][:, order], layers[k][1][:, order])
        layers[k + 1] = (layers[k + 1][0][:, :, order], layers[k + 1][1])
    return Evidence(layers=tuple(layers))


def test_only_the_invariant_encoder_ignores_the_numbering_of_hidden_neurons() -> None:
    models = layers_of(6, 0.0, 0)
    scaling = Scaling.of(models.layers, enabled=True)
    shapes = [w.shape[1:] for w, _ in models.layers]
    for invariant in (True, False):
        torch.manual_seed(0)
        encoder = WeightEncoder(shapes, invariant=invariant).double().eval()
        plain, other = (
            encoder([(w.double(), b.double()) for w, b in scaling(m.layers)]) for m in (models, renumbered(models))
        )
        assert torch.allclose(plain, other, atol=1e-6) == invariant  # the released arrangement is not
        assert plain.std() > 1e-4
    again = Scaling.of(renumbered(models).layers, enabled=True)
    for ours, theirs in zip(scaling.parts, again.parts, strict=True):
        np.testing.assert_allclose(ours[0], theirs[0])


def test_the_encoder_sees_every_layer() -> None:
    models = layers_of(3, 0.0, 0)
    torch.manual_seed(0)
    encoder = WeightEncoder([w.shape[1:] for w, _ in models.layers]).double().eval()
    batch = [(torch.tensor(w, requires_grad=True), torch.tensor(b, requires_grad=True)) for w, b in models.layers]
    encoder(batch).sum().backward()
    assert all(part.grad.abs().max() > 0 for layer in batch for part in layer)


@pytest.mark.parametrize("attack", [MetaClassifier(epochs=60), MetaClassifier(invariant=False, epochs=60)])
def test_the_meta_classifier_learns_a_shift_of_weights(attack) -> None:
    fitted = attack.fit(layers_of(40, 0.0, 0), layers_of(40, 0.7, 1), 0)
    assert fitted.predict(layers_of(50, 0.0, 2)).mean() < 0.15
    assert fitted.predict(layers_of(50, 0.7, 3)).mean() > 0.85
    same = attack.fit(layers_of(40, 0.0, 0), layers_of(40, 0.7, 1), 0)
    victims = layers_of(50, 0.7, 3)
    np.testing.assert_array_equal(fitted.values(victims), same.values(victims))


def test_regression_estimates_between_the_shares_it_was_trained_on() -> None:
    fitted = RegressionAttack(epochs=150).fit(layers_of(60, 0.0, 0), layers_of(60, 1.0, 1), 0)
    assert fitted.middle == 0.5
    means = [float(fitted.values(layers_of(60, shift, 5)).mean()) for shift in (0.0, 0.5, 1.0)]
    assert means[0] < 0.25 < means[1] < 0.75 < means[2]


def test_lda_is_the_likelihood_ratio_of_two_normals() -> None:
    spread = np.array([[1.0, 0.8], [0.8, 1.0]])

    def models(mean, n, seed):
        rng = np.random.default_rng(seed)
        weights = rng.multivariate_normal(mean, spread, size=n)
        return Evidence(layers=((weights[:, None, :], rng.standard_normal((n, 1))),))

    fitted = LDAAttack().fit(models((0, 0), 4000, 1), models((1, 0), 4000, 2), 0)
    direction = np.linalg.solve(spread, [1.0, 0.0])
    np.testing.assert_allclose(fitted.direction[:2] / fitted.direction[0], direction / direction[0], atol=0.05)
    assert abs(fitted.direction[2]) < 0.1 * abs(fitted.direction[0])


def test_lda_refuses_networks_and_evidence_joins_in_order() -> None:
    with pytest.raises(UsageError, match="linear victims; use meta"):
        LDAAttack().fit(layers_of(5, 0, 0), layers_of(5, 0, 1), 0)
    parts = [layers_of(2, 0, 0), layers_of(3, 1, 1)]
    np.testing.assert_array_equal(joined(parts).flat_weights()[2:], parts[1].flat_weights())
    with pytest.raises(UsageError, match="one architecture"):
        joined([layers_of(2, 0, 0), layers_of(2, 0, 0, sizes=(5, 6, 1))])
