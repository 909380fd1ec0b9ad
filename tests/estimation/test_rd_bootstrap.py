"""Multiplier bootstrap, bands and tests; baselines and simulated designs."""

from __future__ import annotations

import numpy as np
import pytest

from policydist.estimation.rd import bootstrap as boot
from policydist.estimation.rd.baselines import mean_rd, quantile_rd
from policydist.estimation.rd.estimate import estimate_jump
from policydist.estimation.rd.projection import grid_weights
from policydist.estimation.rd.quantiles import gini, quantile_matrix
from policydist.estimation.rd.simulation import simulate

DECILES = np.arange(1, 10) / 10


def jump_of(seed: int = 0, n: int = 120, h: float = 0.6, shape: str = "isotonic"):
    design = simulate("spread", n, 30, seed=seed)
    matrix = quantile_matrix(list(design.samples), DECILES)
    jump = estimate_jump(
        design.x, matrix, np.array([h]), order=2, kernel="triangular", shape=shape, column_weight=grid_weights(DECILES)
    )
    return design.x, matrix, jump


def draws_of(x, jump, **arguments):
    settings = {"n_draws": 400, "rng": np.random.default_rng(0)} | arguments
    return boot.multiplier_draws(jump.influence, jump.influence, x >= 0, **settings)


def test_draws_are_linear_in_the_multipliers():
    x, _, jump = jump_of()
    xi = np.random.default_rng(1).normal(size=(7, len(x)))
    base = draws_of(x, jump, multipliers=xi)
    np.testing.assert_allclose(draws_of(x, jump, multipliers=-xi).effect, -base.effect)
    np.testing.assert_allclose(draws_of(x, jump, multipliers=3 * xi).plus, 3 * base.plus, rtol=1e-12)
    assert np.all(draws_of(x, jump, multipliers=0 * xi).effect == 0)
    np.testing.assert_allclose(base.effect, base.plus - base.minus)
    by_hand = xi @ (jump.plus.weights * jump.residuals) - xi @ (jump.minus.weights * jump.residuals)
    np.testing.assert_allclose(base.effect, by_hand, atol=1e-12)


def test_draw_covariance_is_that_of_shared_multipliers():
    """One multiplier a unit for all q: covariance psi' psi. Independent multipliers per q would leave a diagonal."""
    x, _, jump = jump_of()
    draws = draws_of(x, jump, n_draws=60_000).effect
    expected = jump.influence.T @ jump.influence
    np.testing.assert_allclose(np.cov(draws.T), expected, atol=0.03 * expected.max())
    np.testing.assert_allclose((draws**2).mean(0), (jump.influence**2).sum(0), rtol=0.03)
    assert np.corrcoef(draws[:, 0], draws[:, 1])[0, 1] > 0.8


def test_chunks_do_not_change_the_stream(monkeypatch):
    x, _, jump = jump_of()
    whole = draws_of(x, jump, n_draws=50).effect
    monkeypatch.setattr(boot, "CHUNK_NUMBERS", 300)
    np.testing.assert_allclose(draws_of(x, jump, n_draws=50).effect, whole, rtol=1e-10, atol=1e-14)


def test_residuals_keep_units_with_negative_weight():
    """About half of the weights in the window are negative for p >= 1; dropping those units loses variance."""
    x, matrix, jump = jump_of(shape="free")
    weights = (jump.plus.weights + jump.minus.weights)[:, 0]
    negative = weights < 0
    assert negative.mean() > 0.2
    assert np.all(jump.residuals[negative] != 0)
    outside = np.abs(x) > 0.6
    assert np.all(jump.residuals[outside] == 0)
    fitted = jump.plus.fitted + jump.minus.fitted
    np.testing.assert_allclose(jump.residuals[~outside], (matrix - fitted)[~outside])


def test_frechet_residuals_use_projected_fits():
    x = np.linspace(-1, 1, 40)
    matrix = np.stack([x, -x], axis=1)  # the fitted curve falls in q wherever x > 0
    arguments = {"order": 1, "kernel": "uniform", "column_weight": np.ones(2)}
    free = estimate_jump(x, matrix, np.array([2.0]), shape="rearranged", **arguments)
    projected = estimate_jump(x, matrix, np.array([2.0]), shape="isotonic", **arguments)
    np.testing.assert_allclose(free.residuals, 0, atol=1e-12)
    right = x > 0
    np.testing.assert_allclose(projected.residuals[right], matrix[right], atol=1e-12)  # projected to the mean 0
    np.testing.assert_allclose(projected.residuals[~right], 0, atol=1e-12)


@pytest.mark.parametrize(("confidence", "rank"), [(0.95, 950), (0.9, 900), (0.999, 999), (0.9999, 999)])
def test_critical_value_is_an_order_statistic(confidence, rank):
    values = np.random.default_rng(0).permutation(np.arange(1.0, 1000.0))
    assert boot.critical_value(values, confidence) == rank


def test_uniform_band_has_constant_width_and_holds_the_pointwise_one():
    x, _, jump = jump_of()
    band = boot.uniform_band(jump.difference, draws_of(x, jump), 0.95)
    np.testing.assert_allclose(band.upper - band.lower, 2 * band.critical)
    assert np.all(band.pointwise_upper <= band.upper + 1e-12)
    assert np.ptp(band.pointwise_upper - band.pointwise_lower) > 0


def test_p_values_are_uniform_under_the_null_and_small_under_alternatives():
    x, _, jump = jump_of()
    draws = draws_of(x, jump, n_draws=4000)
    every = np.ones(9, dtype=bool)
    p = [boot.nullity(tau, draws, every, 0.95)[2] for tau in draws.effect[:300]]
    assert np.mean(p) == pytest.approx(0.5, abs=0.07)
    assert np.mean(np.array(p) <= 0.1) == pytest.approx(0.1, abs=0.06)
    se = np.sqrt((jump.influence**2).sum(0)).max()
    flat = np.full(9, 8 * se)
    assert boot.nullity(flat, draws, every, 0.95)[2] == 0
    assert boot.homogeneity(flat, draws, every, 0.95)[2] == 1
    assert boot.homogeneity(np.linspace(-8, 8, 9) * se, draws, every, 0.95)[2] == 0
    few = np.arange(9) < 3
    assert boot.homogeneity(np.r_[1, 1, 1, np.full(6, 99.0)], draws, few, 0.95)[0] == pytest.approx(0)


def test_gini_test_is_centred():
    """With a large true difference the uncentred comparison of the released code gives a p-value near one half."""
    rng = np.random.default_rng(0)
    base = 10 + DECILES
    noise = 0.01 * np.sort(rng.normal(size=(500, 9)), axis=1)
    draws = boot.Draws(noise, noise, np.zeros_like(noise))
    wide, narrow = base + 8 * (DECILES - 0.5), base
    statistic, critical, p, _ = boot.gini_difference(DECILES, wide, narrow, draws, 0.95)
    difference = float(gini(DECILES, wide) - gini(DECILES, narrow))
    assert statistic == pytest.approx(difference)
    assert p == 0
    assert critical < statistic
    resampled = gini(DECILES, wide + noise) - gini(DECILES, narrow)
    assert np.mean(np.abs(resampled) >= statistic) > 0.2
    with pytest.raises(ValueError, match="positive mean"):
        boot.gini_difference(DECILES, -base, base, draws, 0.95)


def test_mean_rd_equals_the_average_of_the_effect():
    x, matrix, jump = jump_of(shape="free")
    scalar = mean_rd(x, matrix.mean(1), 0.6)
    assert scalar.estimate == pytest.approx(jump.difference.mean(), abs=1e-12)
    assert scalar.standard_error == pytest.approx(np.sqrt((jump.influence.mean(1) ** 2).sum()))
    fine = np.linspace(0.002, 0.998, 500)
    design = simulate("dgp2", 300, 60, seed=3)
    q = quantile_matrix(list(design.samples), fine)
    curve = estimate_jump(
        design.x, q, np.array([0.7]), order=2, kernel="triangular", shape="isotonic", column_weight=grid_weights(fine)
    )
    assert curve.difference.mean() == pytest.approx(mean_rd(design.x, design.samples.mean(1), 0.7).estimate, abs=0.02)


def test_quantile_rd_estimates_the_mixture_and_weighs_units_equally():
    factors = []
    for seed in range(8):
        design = simulate("spread", 4000, 10, seed=seed)
        pooled = quantile_rd(design.x, list(design.samples), DECILES, 0.5)
        factors.append(np.polyfit(design.effect(DECILES), pooled, 1)[0])
    assert np.mean(factors) == pytest.approx(np.sqrt(8) - np.sqrt(5), abs=0.12)  # standard error 0.035
    repeated = [np.repeat(s, 1 + 4 * (i % 2)) for i, s in enumerate(design.samples)]
    np.testing.assert_allclose(quantile_rd(design.x, repeated, DECILES, 0.5), pooled, atol=0.01)
    moved = quantile_rd(design.x + 3, list(design.samples), DECILES, 0.5, cutoff=3)
    np.testing.assert_allclose(moved, pooled, atol=1e-9)


def test_quantile_rd_is_right_where_units_do_not_differ():
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, 1500)
    samples = list(rng.normal(size=(1500, 30)) * np.where(x >= 0, 2.0, 1.0)[:, None])
    truth = quantile_rd(x, samples, DECILES, 0.8)
    np.testing.assert_allclose(truth, simulate("spread", 1, 1, seed=0).effect(DECILES), atol=0.12)


@pytest.mark.parametrize("name", ["dgp1", "dgp2", "spread"])
def test_simulated_designs_have_the_stated_average_curves(name):
    """Between-unit randomness included: averaging many units at the cutoff gives the closed form."""
    design = simulate(name, 3000, 150, seed=5)
    curves = quantile_matrix(list(design.samples), DECILES)
    for treated in (False, True):
        rows = (design.x >= 0) == treated
        slope = np.vander(design.x[rows], 4, increasing=True)
        at_cutoff = np.linalg.lstsq(slope, curves[rows], rcond=None)[0][0]
        truth = design.average_curve(DECILES, treated=treated)
        np.testing.assert_allclose(at_cutoff, truth, atol=1.2)  # four standard errors of the units' locations
        np.testing.assert_allclose(at_cutoff - at_cutoff[4], truth - truth[4], atol=0.7)  # these cancel here
    medians = np.median(design.samples, axis=1)
    near = np.abs(design.x) < 0.05
    assert np.std(medians[near]) > 0.5  # units differ even at the same x


def test_dgp2_average_curve_by_brute_force():
    rng = np.random.default_rng(0)
    design = simulate("dgp2", 1, 1, seed=0, shift=2.0, rate_shift=0.5)
    for treated in (False, True):
        rates = 0.5 + (np.arange(200) + 0.5) / 200 + 0.5 * treated
        draws = 2 * treated + rng.normal(size=(200, 5000)) + 2 * rng.exponential(1 / rates[:, None], (200, 5000))
        expected = np.quantile(draws, DECILES, axis=1).mean(1)
        np.testing.assert_allclose(design.average_curve(DECILES, treated=treated), expected, atol=0.03)


def test_simulation_is_seeded_and_checks_its_arguments():
    one, two = (simulate("dgp1", 5, 4, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.samples, two.samples)
    np.testing.assert_allclose(one.effect(DECILES), 2.0, atol=1e-12)
    with pytest.raises(ValueError, match="dgp1"):
        simulate("dgp3", 5, 5, seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        simulate("dgp1", 0, 5, seed=0)
    with pytest.raises(ValueError, match="rate_shift"):
        simulate("dgp2", 5, 5, seed=0, rate_shift=-0.5)
