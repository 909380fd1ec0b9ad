"""Kernels, local polynomials, projection and quantiles of the distribution-valued discontinuity design."""

from __future__ import annotations

from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.optimize import LinearConstraint, minimize

from policydist.estimation.rd.kernels import KERNELS, boundary_constants, evaluate
from policydist.estimation.rd.polynomial import fit_side
from policydist.estimation.rd.projection import grid_weights, project_isotonic, rearrange
from policydist.estimation.rd.quantiles import gini, quantile_matrix, weighted_quantiles

numbers = st.floats(-50, 50, allow_nan=False).map(lambda v: round(v, 6))


@pytest.mark.parametrize(
    ("kernel", "bias", "variance"),
    [("triangular", -0.1, 4.8), ("epanechnikov", -11 / 95, 4.49798), ("uniform", -1 / 6, 4.0)],
)
def test_published_boundary_constants(kernel, bias, variance):
    for side in ("plus", "minus"):
        constants = boundary_constants(1, kernel, side)
        assert constants.bias == pytest.approx(bias, abs=1e-10)
        assert constants.variance == pytest.approx(variance, abs=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_boundary_constants_match_quadrature_and_even_orders_change_sign(kernel, order):
    def moment(j, power):
        return quad(lambda u: u**j * evaluate(np.array([u]), kernel)[0] ** power, 0, 1)[0]

    gram, square = (
        np.array([[moment(a + b, power) for a in range(order + 1)] for b in range(order + 1)]) for power in (1, 2)
    )
    inverse = np.linalg.inv(gram)
    plus = boundary_constants(order, kernel, "plus")
    assert plus.bias == pytest.approx(inverse[0] @ [moment(order + 1 + a, 1) for a in range(order + 1)], rel=1e-6)
    assert plus.variance == pytest.approx(inverse[0] @ square @ inverse[0], rel=1e-6)
    minus = boundary_constants(order, kernel, "minus")
    assert minus.bias == pytest.approx(plus.bias * (-1) ** (order + 1), rel=1e-8)
    assert minus.variance == pytest.approx(plus.variance, rel=1e-8)


@pytest.mark.parametrize("side", ["plus", "minus"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_intercept_weights_sum_to_one_and_kill_powers(kernel, side):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, 120)
    y = rng.normal(size=(120, 3))
    for h in (np.array([0.5]), np.array([0.3, 0.5, 0.9])):
        fit = fit_side(x, y, h, order=2, kernel=kernel, side=side)
        w = np.broadcast_to(fit.weights, y.shape)
        np.testing.assert_allclose(w.sum(0), 1.0, atol=1e-10)
        for j in (1, 2):
            np.testing.assert_allclose((w * x[:, None] ** j).sum(0), 0.0, atol=1e-10)
        np.testing.assert_allclose((w * y).sum(0), fit.intercept, atol=1e-10)
        assert np.all(w[(x < 0) if side == "plus" else (x >= 0)] == 0)


def test_many_bandwidths_equal_one_at_a_time_and_weighted_least_squares():
    rng = np.random.default_rng(1)
    x, y, omega = rng.uniform(-1, 1, 80), rng.normal(size=(80, 3)), rng.uniform(0.2, 3, 80)
    h = np.array([0.4, 0.6, 1.3])
    many = fit_side(x, y, h, order=2, kernel="epanechnikov", side="minus", unit_weight=omega)
    for k in range(3):
        one = fit_side(x, y, h[k : k + 1], order=2, kernel="epanechnikov", side="minus", unit_weight=omega)
        np.testing.assert_allclose(one.alpha[:, k], many.alpha[:, k], rtol=1e-9)
        np.testing.assert_allclose(one.fitted[:, k], many.fitted[:, k], atol=1e-10)
        u = x / h[k]
        root = np.sqrt(np.where(x < 0, evaluate(u, "epanechnikov") * omega, 0))
        design = np.vander(u, 3, increasing=True)
        expected = np.linalg.lstsq(design * root[:, None], y[:, k] * root, rcond=None)[0]
        np.testing.assert_allclose(many.alpha[:, k], expected, rtol=1e-8)


def test_coefficients_are_scaled_derivatives():
    x = np.linspace(-1, 1, 61)
    y = (3 + 2 * x - 5 * x**2)[:, None]
    fit = fit_side(x, y, np.array([0.7]), order=2, kernel="triangular", side="plus")
    for j, derivative in enumerate((3.0, 2.0, -10.0)):
        assert factorial(j) * fit.alpha[j, 0] / 0.7**j == pytest.approx(derivative, abs=1e-8)


def test_infinite_bandwidth_and_uniform_kernel_is_one_sided_ols():
    rng = np.random.default_rng(2)
    x, y = rng.uniform(-3, 3, 50), rng.normal(size=(50, 2))
    fit = fit_side(x, y, np.array([1e9]), order=2, kernel="uniform", side="plus")
    rows = x >= 0
    expected = np.linalg.lstsq(np.vander(x[rows], 3, increasing=True), y[rows], rcond=None)[0]
    np.testing.assert_allclose(fit.intercept, expected[0], atol=1e-9)
    np.testing.assert_allclose(fit.alpha[1] / 1e9, expected[1], atol=1e-8)


def test_singular_windows_are_refused():
    x = np.repeat([-0.4, -0.2, 0.2, 0.4], 10)
    with pytest.raises(ValueError, match="singular at bandwidth"):
        fit_side(x, x[:, None], np.array([1.0]), order=2, kernel="triangular", side="plus")
    with pytest.raises(ValueError, match="plus side"):
        fit_side(x, x[:, None], np.array([0.1]), order=1, kernel="triangular", side="plus")


@settings(max_examples=60, deadline=None)
@given(arrays(float, st.integers(2, 6), elements=numbers), st.data())
def test_isotonic_projection_is_the_quadratic_programme(curve, data):
    weights = data.draw(arrays(float, len(curve), elements=st.floats(0.1, 5)))
    projected = project_isotonic(curve[None], weights)[0]
    assert np.all(np.diff(projected) >= -1e-12)
    assert weights @ projected == pytest.approx(weights @ curve, abs=1e-7)
    np.testing.assert_allclose(project_isotonic(projected[None], weights)[0], projected, atol=1e-12)
    # Optimality: the projection of y on a cone satisfies <y - p, p> = 0 and <y - p, z> <= 0 for z in the cone.
    gap = weights * (curve - projected)
    assert gap @ projected == pytest.approx(0.0, abs=1e-5)
    assert np.all(np.cumsum(gap[::-1])[::-1] <= 1e-6)


def test_isotonic_projection_against_a_solver():
    rng = np.random.default_rng(3)
    for m in (3, 5, 6):
        y, w = rng.normal(size=m), rng.uniform(0.5, 2, m)
        rise = LinearConstraint(np.diff(np.eye(m), axis=0), 0, np.inf)
        best = minimize(lambda z: w @ (z - y) ** 2, np.sort(y), constraints=[rise], method="SLSQP", tol=1e-12).x  # noqa: B023
        np.testing.assert_allclose(project_isotonic(y[None], w)[0], best, atol=1e-5)


def test_sorting_is_not_the_projection():
    curve = np.array([3.0, 1.0, 2.0])
    np.testing.assert_allclose(project_isotonic(curve[None], np.ones(3))[0], 2.0)
    np.testing.assert_allclose(rearrange(curve), [1, 2, 3])


def test_grid_weights_are_equal_on_a_uniform_grid_and_follow_spacing_otherwise():
    np.testing.assert_allclose(grid_weights(np.arange(1, 10) / 10), 0.1)
    np.testing.assert_allclose(grid_weights(np.array([0.1, 0.2, 0.5])), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(grid_weights(np.array([0.5])), 1.0)


@settings(max_examples=60, deadline=None)
@given(arrays(float, st.integers(1, 25), elements=numbers), st.floats(0.1, 100))
def test_quantiles_are_type_7_and_equal_weights_change_nothing(sample, weight):
    q = np.array([0.01, 0.1, 0.35, 0.5, 0.77, 0.99])
    expected = np.quantile(sample, q)
    np.testing.assert_allclose(quantile_matrix([sample], q)[0], expected, atol=1e-9)
    weighted = weighted_quantiles(sample, np.full(len(sample), weight), q)
    np.testing.assert_allclose(weighted, expected, atol=1e-6)
    assert np.all(np.diff(weighted) >= -1e-9)


def test_weighted_quantiles_estimate_the_weighted_distribution():
    rng = np.random.default_rng(4)
    z = rng.uniform(0, 1, 40_000)
    # Density 2z on [0, 1] has the quantile function sqrt(q).
    q = np.array([0.1, 0.5, 0.9])
    np.testing.assert_allclose(weighted_quantiles(z, z, q), np.sqrt(q), atol=0.01)
    padded = weighted_quantiles(np.append(z, 1e9), np.append(z, 0.0), q)
    np.testing.assert_allclose(padded, weighted_quantiles(z, 7 * z, q), atol=1e-12)
    far = weighted_quantiles(z + 1e9, z, q)
    np.testing.assert_allclose(far - 1e9, weighted_quantiles(z, z, q), atol=1e-6)
    with pytest.raises(ValueError, match="positive weight"):
        weighted_quantiles(z, np.zeros_like(z), q)


def test_average_quantile_function_minimises_summed_wasserstein_distance():
    rng = np.random.default_rng(5)
    curves = np.sort(rng.normal(size=(12, 50)), axis=1)

    def cost(candidate):
        return np.mean((curves - candidate) ** 2)

    centre = curves.mean(0)
    for _ in range(50):
        assert cost(np.sort(centre + 0.1 * rng.normal(size=50))) > cost(centre)


def test_gini_of_known_distributions():
    q = (np.arange(20_000) + 0.5) / 20_000
    assert gini(q, q) == pytest.approx(1 / 3, abs=1e-4)  # uniform on [0, 1]
    assert gini(q, -np.log1p(-q)) == pytest.approx(0.5, abs=1e-3)  # exponential
    assert gini(np.array([0.3, 0.6]), np.full(2, 4.0)) == pytest.approx(0.0, abs=1e-12)
    both = gini(q, np.stack([q, 5 * q, -q]))
    np.testing.assert_allclose(both[:2], 1 / 3, atol=1e-4)
    assert np.isnan(both[2])
