"""Intervals and tests against SciPy, closed forms and simulations of known coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats as sps
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.claims import statistics as s


def mean_of_first(sample):
    return sample[0].mean(axis=-1)


def test_bootstrap_agrees_with_scipy():
    x = np.random.default_rng(3).gamma(2.0, size=40)
    ours = s.percentile_interval(s.bootstrap([x[None]], mean_of_first), 0.95)
    theirs = sps.bootstrap((x,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert ours == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_bootstrap_is_fixed_and_keeps_pairs_together():
    shared = np.random.default_rng(0).normal(scale=100, size=30)
    pair = np.stack([shared + 1, shared])
    replicates = s.bootstrap([pair], lambda sample: sample[0].mean(-1) - sample[1].mean(-1))
    assert np.allclose(replicates, 1.0)
    again = s.bootstrap([pair], lambda sample: sample[0].mean(-1))
    assert np.array_equal(again, s.bootstrap([pair], lambda sample: sample[0].mean(-1)))


def test_bootstrap_coverage_on_gaussian_data():
    rng, hits, trials = np.random.default_rng(11), 0, 400
    for _ in range(trials):
        low, high = s.percentile_interval(s.bootstrap([rng.normal(size=(1, 40))], mean_of_first, resamples=800), 0.95)
        hits += low < 0 < high
    low, high = s.wilson(hits, trials, 0.999)
    assert low < 0.945 < high
    assert hits / trials > 0.9


def test_stratified_bootstrap_resamples_inside_strata():
    parts = [np.zeros((1, 10)), np.full((1, 10), 10.0)]
    assert np.allclose(
        s.bootstrap(parts, mean_of_first, resamples=200), 5.0
    )  # pooled resampling would scatter around 5


def test_nested_bootstrap_is_wider_than_treating_inner_draws_as_units():
    rng = np.random.default_rng(5)
    outer = rng.normal(size=(12, 1)) + 0.1 * rng.normal(size=(12, 50))
    nested = s.percentile_interval(s.bootstrap([outer[None]], mean_of_first), 0.95)
    naive = s.percentile_interval(s.bootstrap([outer.reshape(1, -1)], mean_of_first), 0.95)
    assert nested[1] - nested[0] > 4 * (naive[1] - naive[0])
    assert s.evaluate([outer[None]], mean_of_first) == pytest.approx(outer.mean())


def test_chunks_do_not_change_the_statistic():
    x = np.arange(5000.0)[None]  # more than one chunk
    replicates = s.bootstrap([x], mean_of_first, resamples=1500)
    assert replicates.shape == (1500,)
    assert abs(replicates.mean() - x.mean()) < 3


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.floats(-1, 1))
@settings(max_examples=40, deadline=None)
def test_sign_flip_against_enumeration_and_scipy(values, center):
    x = np.array(values) - center
    means = [np.mean(x * np.array(signs)) for signs in itertools.product([1, -1], repeat=x.size)]
    slack = 1e-12 * np.abs(x).sum()
    assert s.sign_flip(values, center) == pytest.approx(np.mean([m >= x.mean() - slack for m in means]))
    assert s.sign_flip(values, center, "less") == pytest.approx(s.sign_flip(-np.array(values), -center))


def test_sign_flip_matches_scipy_permutation_test():
    x = np.array([0.3, 1.2, -0.4, 0.9, 0.1, 2.0])
    other = sps.permutation_test(
        (x, np.zeros(6)), lambda a, b: np.mean(a - b), permutation_type="samples", alternative="greater"
    )
    assert s.sign_flip(x) == pytest.approx(other.pvalue)
    assert s.sign_flip(np.ones(5)) == 1 / 32
    assert s.sign_flip(np.ones(5), side="two-sided") == 2 / 32


def test_sign_flip_rejects_many_units():
    with pytest.raises(ValueError, match="1 to 16"):
        s.sign_flip(np.ones(17))


def test_wilson_closed_form():
    z, n, p = 1.959963984540054, 20, 0.9
    centre, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n),
    )
    assert s.wilson(18, 20, 0.95) == pytest.approx((centre - half, centre + half))


def test_interquartile_mean_ignores_tails():
    assert s.interquartile_mean([1e9, 1.0, 2.0, 3.0, 4.0, -1e9, 2.5, 2.5]) == pytest.approx(
        np.mean([2.0, 2.5, 2.5, 3.0])
    )
    assert s.aggregate(np.array([[1.0, 2.0, 9.0]]), "median") == pytest.approx([2.0])


def test_shifted_geometric_mean():
    assert s.shifted_geometric_mean([0, 90], 10) == pytest.approx(math.sqrt(10 * 100) - 10)
    with pytest.raises(ValueError, match="above -1"):
        s.shifted_geometric_mean([-1.0], 1.0)


def test_correlation_and_slope_match_scipy():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, 30).astype(float), rng.normal(size=30)
    assert s.correlation(x, y, ranks=True) == pytest.approx(sps.spearmanr(x, y).statistic)
    assert s.correlation(x, y, ranks=False) == pytest.approx(sps.pearsonr(x, y).statistic)
    assert s.correlation(np.ones(4), np.arange(4.0), ranks=True) == 0
    assert s.slope(x, y) == pytest.approx(sps.linregress(x, y).slope)


def test_probability_of_improvement_counts_ties_half():
    assert s.probability_of_improvement([1.0, 0.0, -1.0, 2.0]) == pytest.approx(0.625)


def test_levels():
    assert s.simultaneous_level(1) == 0.95
    assert s.simultaneous_level(5) == pytest.approx(0.99)
    assert s.equivalence_level(0.95) == pytest.approx(0.90)


def test_benjamini_hochberg():
    p = {"a": 0.001, "b": 0.04, "c": 0.06, "d": 0.9}  # thresholds at 10 %: .025 .05 .075 .1
    assert s.benjamini_hochberg(p) == ["a", "b", "c"]
    assert s.benjamini_hochberg({}) == []


def test_power_of_the_number_of_units():
    n = s.units_needed(1.0, 0.5)
    assert n == 32
    assert s.power(1.0, 0.5, n) == pytest.approx(0.80, abs=0.01)
    with pytest.raises(ValueError):
        s.units_needed(1.0, 0.0)


def test_bootstrap_p():
    replicates = np.linspace(-1, 9, 1001)
    assert s.bootstrap_p(replicates, 0.0) == pytest.approx(102 / 1002)
    assert s.bootstrap_p(replicates, 100.0, "less") == pytest.approx(1 / 1002)
