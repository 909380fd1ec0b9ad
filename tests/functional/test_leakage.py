"""Bounds of what n samples tell, their inverses, and the exact accuracy: identities, limits, brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from policydist.functional import leakage as lk

SHARE = st.floats(0.02, 0.98)
QUICK = settings(deadline=None, max_examples=40)


def brute_accuracy(a0: float, a1: float, n: int) -> float:
    """Best accuracy over all sequences of n draws, without using that counts suffice."""
    better = 0.0
    for draws in itertools.product((0, 1), repeat=n):
        p0, p1 = (math.prod(a if x else 1 - a for x in draws) for a in (a0, a1))
        better += 0.5 * max(p0, p1)
    return better


@QUICK
@given(SHARE, SHARE, st.integers(1, 50))
def test_the_bound_and_its_inverse_round_trip(a0: float, a1: float, n: int) -> None:
    bound = lk.ratio_bound(a0, a1, n)
    if abs(a0 - a1) > 1e-3 and 1 - bound > 1e-9:
        assert float(lk.n_leaked_ratio(bound, a0, a1)) == pytest.approx(n, rel=1e-4)


@QUICK
@given(SHARE, SHARE, st.integers(0, 60))
def test_the_bound_lies_above_the_exact_accuracy(a0: float, a1: float, n: int) -> None:
    assert float(lk.ratio_bound(a0, a1, n)) >= lk.exact_accuracy(a0, a1, n) - 1e-12


@pytest.mark.parametrize(("a0", "a1"), [(0.5, 0.2), (0.9, 0.7), (0.0, 0.3), (0.5, 1.0)])
def test_the_exact_accuracy_is_that_of_the_best_test(a0: float, a1: float) -> None:
    for n in (0, 1, 2, 3, 7):
        assert lk.exact_accuracy(a0, a1, n) == pytest.approx(brute_accuracy(a0, a1, n), abs=1e-12)
    k = np.arange(201)
    expected = 0.5 + 0.25 * np.abs(binom.pmf(k, 200, a0) - binom.pmf(k, 200, a1)).sum()
    assert lk.exact_accuracy(a0, a1, 200) == pytest.approx(expected, abs=1e-9)


def test_known_values_and_limits() -> None:
    assert float(lk.ratio_bound(0.5, 0.6, 1)) == pytest.approx(0.7041, abs=5e-5)
    assert lk.exact_accuracy(0.5, 0.6, 1) == pytest.approx(0.55)
    for bound in (lk.ratio_bound(0.3, 0.8, 0), lk.ratio_bound(0.4, 0.4, 100), lk.density_bound(5, 1.0)):
        assert float(bound) == 0.5
    assert lk.exact_accuracy(0.4, 0.4, 30) == pytest.approx(0.5)
    assert float(lk.ratio_bound(0.3, 0.4, 5000)) == pytest.approx(1.0)
    assert lk.exact_accuracy(0.3, 0.4, 5000) == pytest.approx(1.0)
    assert float(lk.ratio_bound(0.0, 1.0, 1)) == 1.0


@QUICK
@given(SHARE, SHARE, st.integers(1, 30), st.floats(0.5, 0.999))
def test_swapping_and_mirroring_change_nothing(a0: float, a1: float, n: int, accuracy: float) -> None:
    for b0, b1 in ((a1, a0), (1 - a0, 1 - a1)):
        torch.testing.assert_close(lk.ratio_bound(a0, a1, n), lk.ratio_bound(b0, b1, n), rtol=1e-6, atol=1e-7)
    assert float(lk.n_leaked_ratio(accuracy, a0, a1)) == float(lk.n_leaked_ratio(accuracy, a1, a0))


def test_n_leaked_rises_with_accuracy_and_is_even_about_chance() -> None:
    accuracy = torch.linspace(0.5, 0.9999, 40, dtype=torch.float64)
    leaked = lk.n_leaked_ratio(accuracy, 0.5, 0.2)
    assert float(leaked[0]) == 0.0
    assert bool((leaked.diff() > 0).all())
    torch.testing.assert_close(lk.n_leaked_ratio(1 - accuracy, 0.5, 0.2), leaked, rtol=1e-9, atol=1e-12)


def test_edges_follow_the_formula_or_the_code() -> None:
    assert float(lk.n_leaked_ratio(0.7, 0.3, 0.3)) == math.inf
    assert float(lk.n_leaked_ratio(0.5, 0.3, 0.3)) == 0.0
    assert float(lk.n_leaked_ratio(1.0, 0.3, 0.4)) == math.inf
    assert float(lk.n_leaked_ratio(0.9, 0.0, 1.0)) == 0.0
    assert float(lk.n_leaked_ratio(0.7, 0.3, 0.3, edges="code")) == 0.0
    assert float(lk.n_leaked_ratio(0.7, 0.0, 0.0, edges="code")) == math.inf
    assert float(lk.n_leaked_ratio(0.9, 0.0, 1.0, edges="code")) == math.inf
    assert float(lk.n_leaked_ratio(0.8, 0.5, 0.2, edges="code")) == float(lk.n_leaked_ratio(0.8, 0.5, 0.2))


@QUICK
@given(SHARE, SHARE, st.integers(1, 300))
def test_the_exact_inverse_is_the_smallest_n_and_never_below_the_bound(a0: float, a1: float, n: int) -> None:
    if abs(a0 - a1) < 0.02:
        return
    accuracy = lk.exact_accuracy(a0, a1, n)
    if accuracy > 1 - 1e-9:
        return
    found = lk.n_leaked_exact(accuracy, a0, a1)
    assert found <= n
    assert lk.exact_accuracy(a0, a1, int(found)) >= accuracy - 1e-11
    assert found == 0 or lk.exact_accuracy(a0, a1, int(found) - 1) < accuracy
    assert found >= float(lk.n_leaked_ratio(accuracy, a0, a1)) - 1e-6
    assert lk.n_leaked_exact(1 - accuracy, a0, a1) == pytest.approx(found, abs=1)


def test_exact_inverse_at_the_ends() -> None:
    assert lk.n_leaked_exact(0.5, 0.5, 0.2) == 0.0
    assert lk.n_leaked_exact(1.0, 0.5, 0.2) == math.inf
    assert lk.n_leaked_exact(0.9, 0.0, 1.0) == 1.0
    assert lk.n_leaked_exact(0.6, 0.3, 0.3) == math.inf


@pytest.mark.parametrize("pair", [((50, 1.9), (80, 1.4)), ((50, 1.4), (80, 1.9)), ((60, 2.0), (60, 1.5))])
def test_zipf_ratio_is_the_smallest_density_ratio(pair) -> None:
    def law(size: int, s: float) -> torch.Tensor:
        weight = torch.arange(1, 101, dtype=torch.float64) ** -s
        weight[size:] = 0
        return weight / weight.sum()

    p, q = (law(*parameters) for parameters in pair)
    forward, backward = ((x[y > 0] / y[y > 0]).min() for x, y in ((q, p), (p, q)))
    assert lk.zipf_ratio(*pair) == pytest.approx(max(float(forward), float(backward)), rel=1e-12)
    assert lk.zipf_ratio(*pair) == lk.zipf_ratio(pair[1], pair[0])
    coefficient = lk.bhattacharyya(p, q)
    assert float(coefficient) >= math.sqrt(lk.zipf_ratio(*pair))
    tight = lk.density_bound(3.0, coefficient**2)
    assert float(0.5 + 0.5 * lk.total_variation(p, q)) <= float(lk.density_bound(1.0, coefficient**2))
    assert float(tight) <= float(lk.density_bound(3.0, lk.zipf_ratio(*pair)))


def test_zipf_limits() -> None:
    assert lk.zipf_ratio((70, 1.8), (70, 1.8)) == 1.0
    assert float(lk.n_leaked_density(0.7, 1.0)) == math.inf
    h = [sum(k**-s for k in range(1, 41)) for s in (2.0, 1.5)]
    assert lk.zipf_ratio((40, 2.0), (40, 1.5)) == pytest.approx(h[0] / h[1])
    assert 0 < lk.zipf_ratio(lk.ARXIV_DEGREES[13], lk.ARXIV_DEGREES[10]) < 1
    for bad in ((0, 1.0), (2.5, 1.0), (3, math.nan)):
        with pytest.raises(ValueError, match="must be"):
            lk.zipf_ratio(bad, (5, 1.0))  # type: ignore[arg-type]


def test_a_sample_share_as_regression_leaks_its_sample_size() -> None:
    alpha = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(lk.n_leaked_regression(alpha, alpha * (1 - alpha) / 37), torch.full((3,), 37.0).double())
    rng = np.random.default_rng(0)
    mse = np.mean((rng.binomial(25, 0.3, 100_000) / 25 - 0.3) ** 2)
    assert float(lk.n_leaked_regression(0.3, mse)) == pytest.approx(25, rel=0.03)
    assert math.isnan(float(lk.n_leaked_regression(0.0, 0.1)))
    assert float(lk.n_leaked_regression(0.5, 0.0)) == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: lk.ratio_bound(1.2, 0.5, 1),
        lambda: lk.ratio_bound(0.2, 0.5, -1),
        lambda: lk.n_leaked_ratio(1.1, 0.2, 0.5),
        lambda: lk.n_leaked_ratio(math.nan, 0.2, 0.5),
        lambda: lk.n_leaked_regression(0.5, -1.0),
        lambda: lk.exact_accuracy(0.2, 0.5, -1),
        lambda: lk.bhattacharyya(torch.tensor([0.5, 0.6]), torch.tensor([0.5, 0.5])),
    ],
)
def test_what_is_out_of_range_is_refused(call) -> None:
    with pytest.raises(ValueError, match="must"):
        call()
