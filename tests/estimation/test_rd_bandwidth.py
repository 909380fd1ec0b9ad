"""Bandwidth selection: the formula, its rates, the repaired pilot and the parity mode."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest

from policydist.estimation.rd.bandwidth import density_at_cutoff, select_bandwidth, smallest_bandwidth
from policydist.estimation.rd.kernels import KERNELS, boundary_constants
from policydist.estimation.rd.polynomial import fit_side


def quadratic(n: int, seed: int, noise: float = 0.5):
    """Curvature 3 right of the cutoff and -5 left: every quantity of the optimal bandwidth is known."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    mean = np.where(x >= 0, 1.5 * x**2, -2.5 * x**2)
    return x, (mean + noise * rng.normal(size=n))[:, None]


def select(x, y, **changes):
    arguments = {"criterion": "mse", "order": 2, "bandwidth_order": 1, "kernel": "triangular"} | changes
    return select_bandwidth(x, y, **arguments)


@pytest.mark.parametrize("kernel", KERNELS)
def test_plug_in_is_near_the_optimal_bandwidth(kernel):
    """The pilot curvature stays noisy at every n (its window is optimal for the level), so only the centre is close."""
    constants = boundary_constants(1, kernel, "plus")
    bias = constants.bias * (3 - -5) / 2
    variance = 2 * constants.variance * 0.25 / 0.5
    optimum = (variance / (4 * bias**2 * 2000)) ** 0.2
    chosen = [select(*quadratic(2000, seed), kernel=kernel) for seed in range(25)]
    assert np.mean([c.density for c in chosen]) == pytest.approx(0.5, rel=0.03)
    assert np.mean([c.variance_plus for c in chosen]) == pytest.approx(variance / 2, rel=0.05)
    assert np.median([c.bandwidth for c in chosen]) == pytest.approx(optimum, rel=0.35)


@pytest.mark.parametrize("order", [1, 2])
def test_local_pilot_has_the_next_derivative(order):
    """An order-s pilot fit has no (s+1)-th derivative; its highest coefficient would be reported instead."""
    x, _ = quadratic(400, 1)
    y = (7 * x + np.where(x >= 0, 1.5, -2.5) * x ** (order + 1))[:, None]
    choice = select(x, y, order=order + 1, bandwidth_order=order)
    for side, bias, curvature in (("plus", choice.bias_plus, 1.5), ("minus", choice.bias_minus, -2.5)):
        constants = boundary_constants(order, "triangular", side)
        assert bias[0] == pytest.approx(constants.bias * curvature, rel=1e-5)


def test_scaling_outcomes_leaves_and_scaling_x_moves_the_bandwidth():
    x, y = quadratic(500, 3)
    base = select(x, y)
    np.testing.assert_allclose(select(x, -3 * y + 4).bandwidth, base.bandwidth, rtol=1e-8)
    np.testing.assert_allclose(select(10 * x, y).bandwidth, 10 * base.bandwidth, rtol=1e-8)


def test_imse_pools_columns_by_their_weights():
    x, y = quadratic(600, 4)
    both = np.hstack([y, quadratic(600, 5)[1]])
    single = [select(x, both[:, k : k + 1]).bandwidth[0] for k in range(2)]
    np.testing.assert_allclose(select(x, both).bandwidth, single, rtol=1e-9)
    first = select(x, both, criterion="imse", column_weight=np.array([1.0, 0.0])).bandwidth
    assert first == pytest.approx(select(x, both[:, :1], criterion="imse").bandwidth)
    pooled = select(x, both, criterion="imse").bandwidth
    assert pooled.shape == (1,)
    # A direct evaluation of the formula from the recorded pieces.
    choice = select(x, both, criterion="imse", column_weight=np.array([0.2, 0.5]))
    weight = np.array([0.2, 0.5])
    top = weight @ (choice.variance_plus + choice.variance_minus)
    bottom = 4 * weight @ (choice.bias_plus - choice.bias_minus) ** 2
    assert choice.bandwidth[0] == pytest.approx((top / bottom / len(x)) ** 0.2, rel=1e-12)


def test_unit_weights_reach_the_selector():
    x, y = quadratic(800, 6)
    even = select(x, y, unit_weight=np.full(800, 3.0)).bandwidth
    np.testing.assert_allclose(even, select(x, y).bandwidth, rtol=1e-9)
    weight = np.random.default_rng(0).uniform(0, 2, 800)
    weighted = select(x, y, unit_weight=weight)
    assert abs(weighted.bandwidth[0] / even[0] - 1) > 1e-3
    kept = weight > 1
    zeroed = select(x, y, unit_weight=kept.astype(float))
    assert zeroed.density == pytest.approx(density_at_cutoff(x, "triangular", kept.astype(float)))
    package = select(x, y, method="package", unit_weight=weight)
    np.testing.assert_allclose(package.bandwidth, select(x, y, method="package").bandwidth)


def test_package_mode_repeats_the_released_formula_and_differs():
    x, y = quadratic(700, 7)
    y = y + 2 * np.abs(x[:, None])
    choice = select(x, y, method="package", kernel="epanechnikov")
    for side, bias, variance in (
        ("plus", choice.bias_plus, choice.variance_plus),
        ("minus", choice.bias_minus, choice.variance_minus),
    ):
        fit = fit_side(x, y, choice.pilot, order=1, kernel="triangular", side=side)
        assert bias[0] == pytest.approx(fit.alpha[1, 0] / factorial(2))
        positive = fit.weights[:, 0] > 0
        squared = (y - fit.fitted)[positive, 0] ** 2
        expected = np.average(squared, weights=fit.weights[positive, 0]) / choice.density
        assert variance[0] == pytest.approx(expected)
    assert abs(choice.bandwidth[0] / select(x, y, kernel="epanechnikov").bandwidth[0] - 1) > 0.05


def test_coverage_shrinkage_is_the_published_power():
    x, y = quadratic(1000, 8)
    plain, shrunk = select(x, y), select(x, y, coverage_shrinkage=True)
    np.testing.assert_allclose(shrunk.bandwidth, plain.bandwidth * 1000 ** (-1 / (5 * 4)))


def test_vanishing_bias_falls_back_to_the_rule_of_thumb():
    x, _ = quadratic(300, 9)
    choice = select(x, np.zeros((300, 1)))
    assert choice.fallback
    assert choice.bandwidth[0] == pytest.approx(1.06 * np.std(x, ddof=1) * 300 ** (-1 / 3))


def test_guard_keeps_enough_distinct_values_on_both_sides():
    x = np.concatenate([np.linspace(-1, -0.01, 200), np.repeat([0.2, 0.5, 0.6, 0.8, 0.9], 4)])
    assert smallest_bandwidth(x, 2, np.ones(len(x))) == pytest.approx(0.8 * 1.01)
    curved = select(x, (1e4 * np.where(x >= 0, x**2, -(x**2)))[:, None])
    assert curved.widened
    assert curved.bandwidth[0] == pytest.approx(0.8 * 1.01)
    with pytest.raises(ValueError, match="plus side of the cutoff has 3 distinct values"):
        smallest_bandwidth(np.array([-4.0, -3, -2, -1, 1, 2, 3, 3]), 2, np.ones(8))


def test_no_units_near_the_cutoff_is_refused():
    x = np.concatenate([np.linspace(-1.1, -1, 500), np.linspace(1, 1.1, 500)])
    with pytest.raises(ValueError, match="no unit lies within"):
        select(x, x[:, None])
