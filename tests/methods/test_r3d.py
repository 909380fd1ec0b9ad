"""The public estimator: identities of the method, designs, inputs, refusals, outputs."""

from __future__ import annotations

import pickle
import time
import tracemalloc

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils import estimator_checks as checks

from policydist.estimation.methods.r3d import R3D
from policydist.estimation.rd.baselines import mean_rd
from policydist.estimation.rd.quantiles import quantile_matrix
from policydist.estimation.rd.simulation import simulate

mpl.use("Agg")
DECILES = np.arange(1, 10) / 10
KINDS = ("frechet", "simple")


@pytest.fixture(scope="module")
def design():
    return simulate("dgp2", 240, 40, seed=0)


@pytest.fixture(scope="module")
def samples(design):
    return list(design.samples)


def rising(n: int, seed: int = 0):
    """Running variable and a matrix of polynomial outcome curves of degree 2 that rise in q, with their jump."""
    x = np.random.default_rng(seed).uniform(-1, 1, n)
    q = DECILES[None, :]
    left = q + (0.5 * q) * x[:, None] + 0.2 * q * x[:, None] ** 2
    right = 3 * q - 2 + (0.3 + q) * x[:, None] - 0.4 * (1 - q) * x[:, None] ** 2
    return x, np.where((x >= 0)[:, None], right, left), 2 * DECILES - 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bandwidth", [None, 0.25, 0.8, 50.0])
@pytest.mark.parametrize("kernel", ["triangular", "epanechnikov", "uniform"])
@pytest.mark.filterwarnings("ignore:the selected bandwidth")
def test_polynomials_up_to_the_order_are_reproduced_exactly(kind, bandwidth, kernel):
    x, matrix, truth = rising(150)
    model = R3D(kind=kind, bandwidth=bandwidth, kernel=kernel, quantiles=DECILES).fit(x, matrix)
    np.testing.assert_allclose(model.tau_, truth, atol=1e-7)
    np.testing.assert_allclose(model.standard_errors_, 0, atol=1e-7)
    underfit = R3D(kind=kind, bandwidth=0.8, order=1, kernel=kernel, quantiles=DECILES).fit(x, matrix)
    assert np.max(np.abs(underfit.tau_ - truth)) > 1e-3


@pytest.mark.filterwarnings("ignore:.*one observation")
@pytest.mark.parametrize("kind", KINDS)
def test_one_observation_a_unit_is_ordinary_rd(kind):
    design = simulate("dgp1", 200, 1, seed=2)
    model = R3D(kind=kind, bandwidth=0.6).fit(design.x, list(design.samples))
    scalar = mean_rd(design.x, design.samples[:, 0], 0.6)
    np.testing.assert_allclose(model.tau_, scalar.estimate, atol=1e-10)
    np.testing.assert_allclose(model.standard_errors_, scalar.standard_error, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_shifts_scales_and_order_of_units(design, samples, kind):
    x = design.x
    base = R3D(kind=kind).fit(x, samples)
    moved = R3D(kind=kind).fit(x, [s + 4.0 * (at >= 0) for s, at in zip(samples, x, strict=True)])
    np.testing.assert_allclose(moved.tau_, base.tau_ + 4.0, atol=1e-9)
    scaled = R3D(kind=kind).fit(x, [2.5 * s for s in samples])
    np.testing.assert_allclose(scaled.tau_, 2.5 * base.tau_, rtol=1e-8)
    np.testing.assert_allclose(scaled.bootstrap(200).critical, 2.5 * base.bootstrap(200).critical, rtol=1e-8)
    affine = R3D(kind=kind, cutoff=7.0).fit(3 * x + 7.0, samples)
    np.testing.assert_allclose(affine.tau_, base.tau_, rtol=1e-6)
    np.testing.assert_allclose(affine.bandwidth_, 3 * np.asarray(base.bandwidth_), rtol=1e-6)
    shuffle = np.random.default_rng(0).permutation(len(x))
    mixed = R3D(kind=kind).fit(x[shuffle], [samples[i] for i in shuffle])
    np.testing.assert_allclose(mixed.tau_, base.tau_, rtol=1e-9)


def test_average_effect_is_mean_rd_on_grid_means(design, samples):
    fine = np.linspace(0.01, 0.99, 99)
    with pytest.warns(UserWarning, match="too few"):
        model = R3D(quantiles=fine, bandwidth=0.5).fit(design.x, samples)
    scalar = mean_rd(design.x, model.quantile_matrix_.mean(1), 0.5)
    assert model.average_effect_ == pytest.approx(scalar.estimate, abs=1e-10)
    assert scalar.estimate == pytest.approx(mean_rd(design.x, design.samples.mean(1), 0.5).estimate, abs=0.06)


def test_perfect_compliance_is_the_sharp_design(design, samples):
    x = design.x
    sharp = R3D(bandwidth=0.6).fit(x, samples)
    fuzzy = R3D(bandwidth=0.6, fuzzy=True).fit(x, samples, treatment=(x >= 0).astype(int))
    np.testing.assert_allclose(fuzzy.tau_, sharp.tau_, atol=1e-10)
    xi = np.random.default_rng(0).normal(size=(20, len(x)))
    fuzzy.bootstrap(multipliers=xi)
    sharp.bootstrap(multipliers=xi)
    np.testing.assert_allclose(fuzzy.draws_.effect, sharp.draws_.effect, atol=1e-9)
    assert fuzzy.first_stage_ == pytest.approx(1.0)


def test_fuzzy_design_recovers_the_effect_and_follows_the_ratio_formula():
    rng = np.random.default_rng(3)
    n = 4000
    x = rng.uniform(-1, 1, n)
    taken = rng.random(n) < np.where(x >= 0, 0.8, 0.2)
    samples = list(rng.normal(size=(n, 10)) + (x + rng.normal(size=n) + 3.0 * taken)[:, None])
    model = R3D(fuzzy=True, bandwidth=0.7).fit(x, samples, treatment=taken)
    assert model.first_stage_ == pytest.approx(0.6, abs=0.12)
    assert np.all(np.abs(model.tau_ - 3.0) < 4 * model.standard_errors_)
    reduced = model.m_plus_ - model.m_minus_
    np.testing.assert_allclose(model.tau_, reduced / model.first_stage_)
    assert np.all(np.abs(model.tau_ - reduced) > 0.5)
    take_up = R3D(quantiles=[0.5], bandwidth=0.7).fit(x, taken[:, None].astype(float))
    assert take_up.tau_[0] == pytest.approx(model.first_stage_)
    xi = rng.normal(size=(6, n))
    top = R3D(bandwidth=0.7).fit(x, samples)
    for fitted in (model, top, take_up):
        fitted.bootstrap(multipliers=xi)
    d = model.first_stage_
    expected = (d * top.draws_.effect - reduced * take_up.draws_.effect) / d**2
    np.testing.assert_allclose(model.draws_.effect, expected, atol=1e-10)
    own = R3D(fuzzy=True, treatment_bandwidth=0.4, bandwidth=0.7).fit(x, samples, treatment=taken)
    assert own.treatment_bandwidth_ == 0.4
    assert own.first_stage_ != model.first_stage_
    chosen = R3D(fuzzy=True).fit(x, samples, treatment=taken)
    assert chosen.treatment_bandwidth_ != chosen.bandwidth_


def test_no_jump_in_take_up_warns_and_refuses_bands(design, samples):
    with pytest.warns(UserWarning, match="does not jump"):
        model = R3D(fuzzy=True, bandwidth=0.6).fit(design.x, samples, treatment=np.zeros(240))
    assert np.all(np.isnan(model.tau_))
    with pytest.raises(ValueError, match="undefined"):
        model.summary()


def test_projection_acts_on_both_curves_and_never_on_the_effect():
    """A falling effect is legitimate; projecting tau itself would flatten it."""
    x, matrix, _ = rising(150)
    spread = matrix + 5 * (x < 0)[:, None] * DECILES
    model = R3D(bandwidth=0.8, quantiles=DECILES).fit(x, spread)
    assert np.all(np.diff(model.tau_) < -0.1)
    assert np.all(np.diff(model.m_plus_) >= 0)


def test_crossing_curves_are_projected_by_frechet_and_sorted_by_simple():
    rng = np.random.default_rng(8)
    x = rng.uniform(-1, 1, 60)
    fine = np.linspace(0.02, 0.98, 49)
    matrix = quantile_matrix(list(rng.normal(size=(60, 20)) * np.exp(rng.normal(size=(60, 1)))), fine)
    arguments = {"bandwidth": 0.3, "quantiles": fine}
    frechet, simple = (R3D(kind=kind, **arguments).fit(x, matrix) for kind in KINDS)
    np.testing.assert_allclose(frechet.alpha_plus_, simple.alpha_plus_)
    raw = frechet.alpha_minus_[0]
    assert np.any(np.diff(raw) < 0)
    assert np.all(np.diff(frechet.m_minus_) >= -1e-12)
    assert frechet.m_minus_.mean() == pytest.approx(raw.mean())
    np.testing.assert_allclose(simple.m_minus_, np.sort(raw))
    assert np.max(np.abs(frechet.m_minus_ - simple.m_minus_)) > 1e-6
    # Where nothing crosses the two estimators agree.
    x, matrix, _ = rising(80)
    noisy = matrix + 0.1 * rng.normal(size=(80, 1))
    both = [R3D(kind=kind, bandwidth=0.7, quantiles=DECILES).fit(x, noisy) for kind in KINDS]
    np.testing.assert_allclose(both[0].tau_, both[1].tau_, atol=1e-10)
    np.testing.assert_allclose(both[0].influence_, both[1].influence_, atol=1e-10)


def test_unequal_grids_project_with_their_spacing():
    x = np.linspace(-1, 1, 80)
    q = np.array([0.1, 0.2, 0.8])
    matrix = np.tile([0.0, 1.0, 2.0], (80, 1))
    matrix[x < 0] = np.stack([0 * x, 0.5 * np.abs(x), 0.5 * np.abs(x)], 1)[x < 0]
    matrix[:, 0] += np.where(x < 0, -np.abs(x), 0)
    model = R3D(bandwidth=1.0, quantiles=q, order=1).fit(x, matrix)
    raw = model.alpha_minus_[0]
    np.testing.assert_allclose(model.m_minus_, raw, atol=1e-9)  # no crossing: untouched


def test_unit_weights_equal_repetition_and_zero_weight_is_absence(design, samples):
    rng = np.random.default_rng(1)
    times = rng.integers(1, 4, len(samples))
    weighted = R3D(bandwidth=0.6).fit(design.x, samples, unit_weight=times)
    repeated = R3D(bandwidth=0.6).fit(
        np.repeat(design.x, times), [s for s, k in zip(samples, times, strict=True) for _ in range(k)]
    )
    np.testing.assert_allclose(weighted.tau_, repeated.tau_, atol=1e-9)
    kept = times > 1
    zeroed = R3D(bandwidth=0.6).fit(design.x, samples, unit_weight=kept.astype(float))
    dropped = R3D(bandwidth=0.6).fit(design.x[kept], [s for s, k in zip(samples, kept, strict=True) if k])
    np.testing.assert_allclose(zeroed.tau_, dropped.tau_, atol=1e-9)
    np.testing.assert_allclose(zeroed.standard_errors_, dropped.standard_errors_, atol=1e-9)


def test_units_count_equally_whatever_their_size(design, samples):
    """Pooling by n_i would change the estimand to a size-weighted one."""
    grown = [np.repeat(s, 1 + 9 * (i % 2)) for i, s in enumerate(samples)]
    one, two = (R3D(bandwidth=0.6, quantiles=[0.5]).fit(design.x, s) for s in (samples, grown))
    np.testing.assert_allclose(one.tau_, two.tau_, atol=0.05)


def test_three_kinds_of_input_agree(design, samples):
    listed = R3D(quantiles=DECILES).fit(design.x, samples)
    matrix = R3D(quantiles=DECILES).fit(design.x[:, None], quantile_matrix(samples, DECILES))
    np.testing.assert_array_equal(matrix.tau_, listed.tau_)
    labels = [f"firm {i}" for i in range(240)]
    frame = pd.DataFrame(
        {
            "firm": np.repeat(labels, 40),
            "score": np.repeat(design.x, 40),
            "wage": design.samples.ravel(),
            "w": 2.0,
            "taken": np.repeat(design.x >= 0, 40),
            "size": np.repeat(np.arange(240) % 3 + 1.0, 40),
        }
    )
    frame = frame.sample(frac=1.0, random_state=0)
    names = {"unit": "firm", "running": "score", "outcome": "wage"}
    long = R3D(quantiles=DECILES).fit_frame(frame, **names)
    np.testing.assert_allclose(long.tau_, listed.tau_, atol=1e-10)
    assert list(long.units_) == list(dict.fromkeys(frame["firm"]))
    even = R3D(quantiles=DECILES).fit_frame(frame, weight="w", **names)
    np.testing.assert_allclose(even.tau_, listed.tau_, atol=1e-8)
    full = R3D(quantiles=DECILES, fuzzy=True).fit_frame(frame, treatment="taken", unit_weight="size", **names)
    direct = R3D(quantiles=DECILES, fuzzy=True).fit(
        design.x, samples, treatment=design.x >= 0, unit_weight=np.arange(240) % 3 + 1.0
    )
    np.testing.assert_allclose(full.tau_, direct.tau_, atol=1e-9)
    with pytest.raises(ValueError, match="did you mean score"):
        R3D().fit_frame(frame, unit="firm", running="scor", outcome="wage")
    with pytest.raises(ValueError, match="'wage' varies inside unit 'firm"):
        R3D().fit_frame(frame, unit="firm", running="wage", outcome="score")
    with pytest.raises(ValueError, match="missing values"):
        R3D().fit_frame(frame.assign(firm=frame["firm"].where(frame["score"] > 0)), **names)


def test_observation_weights_change_the_quantiles(design, samples):
    tilt = [np.where(s > np.median(s), 3.0, 1.0) for s in samples]
    weighted = R3D(bandwidth=0.6).fit(design.x, samples, observation_weight=tilt)
    assert np.all(weighted.m_plus_ > R3D(bandwidth=0.6).fit(design.x, samples).m_plus_)


def broken(change):
    design = simulate("dgp1", 60, 20, seed=0)
    arguments = {"X": design.x, "outcomes": list(design.samples)}
    parameters = change(arguments, design) or {}
    return lambda: R3D(**parameters).fit(**arguments)


BAD = {
    "NaN or infinite values, the first at position 3": lambda a, d: a["X"].__setitem__(3, np.nan),
    "the sample of unit 5 holds 1 NaN": lambda a, d: a["outcomes"][5].__setitem__(0, np.inf),
    "unit 2 has no observation": lambda a, d: a["outcomes"].__setitem__(2, np.array([])),
    "the sample of unit 1 must be numeric": lambda a, d: a["outcomes"].__setitem__(1, ["a"]),
    "is constant at 1": lambda a, d: a.update(X=np.ones(60)),
    "no unit lies below the cutoff": lambda a, d: a.update(X=np.abs(d.x)),
    "no unit lies at or above the cutoff 3": lambda a, d: {"cutoff": 3.0},
    "cutoff must be a finite number": lambda a, d: {"cutoff": np.nan},
    "bandwidth 0.001 is too small.*would reach": lambda a, d: {"bandwidth": 0.001},
    "one number for kind='frechet'": lambda a, d: {"bandwidth": [0.5] * 9},
    "or one a quantile": lambda a, d: {"bandwidth": [0.5] * 4, "kind": "simple"},
    "use bandwidth='imse'": lambda a, d: {"bandwidth": "mse"},
    "'mse', 'imse' or a number": lambda a, d: {"bandwidth": "cct"},
    "bandwidth_method must be": lambda a, d: {"bandwidth_method": "paper"},
    "kind must be": lambda a, d: {"kind": "fréchet"},
    "did you mean triangular": lambda a, d: {"kernel": "triangle"},
    "order must be a non-negative integer": lambda a, d: {"order": 1.5},
    "must be at least bandwidth_order": lambda a, d: {"order": 1, "bandwidth_order": 2},
    "strictly between 0 and 1": lambda a, d: {"quantiles": [0.0, 0.5]},
    "strictly increasing": lambda a, d: {"quantiles": [0.5, 0.5]},
    "confidence must lie": lambda a, d: {"confidence": 95},
    "set fuzzy=True": lambda a, d: a.update(treatment=d.x >= 0),
    "needs treatment": lambda a, d: {"fuzzy": True},
    "0 or 1 for every unit": lambda a, d: a.update(treatment=d.x) or {"fuzzy": True},
    "treatment has 3 entries": lambda a, d: a.update(treatment=[0, 1, 1]) or {"fuzzy": True},
    "unit_weight must be non-negative": lambda a, d: a.update(unit_weight=-np.ones(60)),
    "unit_weight has 2 entries": lambda a, d: a.update(unit_weight=[1, 2]),
    "outcomes has 59 units but X has 60": lambda a, d: a["outcomes"].pop() is None,
    "fit_frame": lambda a, d: a.update(X=np.ones((60, 2))),
    "set quantiles to the levels": lambda a, d: a.update(outcomes=d.samples),
    r"shape \(60, 9\)": lambda a, d: a.update(outcomes=d.samples) or {"quantiles": DECILES},
    "decreases in q": lambda a, d: a.update(outcomes=d.samples[:, :9]) or {"quantiles": DECILES},
    "observation weights of unit 0": lambda a, d: a.update(observation_weight=[np.zeros(20)] * 60),
    "plus side of the cutoff has 2 distinct": lambda a, d: a.update(X=np.where(d.x > 0, np.round(d.x), d.x)),
}


@pytest.mark.parametrize("message", list(BAD))
def test_bad_input_is_refused_in_one_clear_line(message):
    with pytest.raises(ValueError, match=message) as caught:
        broken(BAD[message])()
    assert "\n" not in str(caught.value)


def test_small_units_and_raised_bandwidths_are_warned_about():
    design = simulate("dgp1", 60, 20, seed=0)
    short = [s[: 3 + i % 10] for i, s in enumerate(design.samples)]
    with pytest.warns(UserWarning, match="units have fewer than 10 observations"):
        R3D().fit(design.x, short)
    short[7] = short[7][:1]
    with pytest.warns(UserWarning, match="1 of 60 units have one observation"):
        R3D().fit(design.x, short)
    x, matrix, _ = rising(60)
    with pytest.warns(UserWarning, match="raised to"):
        R3D(quantiles=DECILES).fit(x, matrix)


def test_coverage_of_uniform_and_pointwise_bands():
    """60 replications: a band that ignored half the residuals or drew separate multipliers would fall far short."""
    uniform = pointwise = 0
    for seed in range(60):
        design = simulate("dgp1", 300, 50, seed=seed)
        model = R3D().fit(design.x, list(design.samples))
        band, truth = model.bootstrap(400), design.effect(DECILES)
        uniform += bool(np.all((band.lower <= truth) & (truth <= band.upper)))
        pointwise += bool(np.all((band.pointwise_lower <= truth) & (truth <= band.pointwise_upper)))
    assert 50 <= uniform <= 60
    assert pointwise < uniform


def test_tests_reject_what_is_false_and_take_intervals():
    design = simulate("spread", 600, 60, seed=1)
    model = R3D(n_draws=1000).fit(design.x, list(design.samples))
    assert model.test("nullity").p_value < 0.01
    assert model.test("homogeneity").p_value < 0.01
    middle = model.test("nullity", interval=(0.4, 0.6))
    assert middle.interval == (0.4, 0.6)
    assert middle.p_value > 0.01
    with pytest.raises(ValueError, match="at least two quantiles"):
        model.test("homogeneity", interval=(0.55, 0.58))
    with pytest.raises(ValueError, match="whole quantile grid"):
        model.test("gini", interval=(0.1, 0.5))
    with pytest.raises(ValueError, match="did you mean homogeneity"):
        model.test("homogenity")
    lognormal = R3D(n_draws=1000).fit(design.x, list(np.exp(design.samples / 4)))
    gini = lognormal.test("gini")
    assert gini.p_value < 0.05
    assert "Gini" in gini.detail
    with pytest.raises(ValueError, match="positive mean"):
        R3D(n_draws=50).fit(design.x, list(design.samples - 50)).test("gini")


def test_bootstrap_is_seeded_and_checks_its_arguments(design, samples):
    one, two, other = (R3D(random_state=seed).fit(design.x, samples) for seed in (0, 0, 1))
    assert one.bootstrap(300).critical == two.bootstrap(300).critical != other.bootstrap(300).critical
    assert one.bootstrap(300, confidence=0.5).critical < one.bootstrap(300).critical
    with pytest.raises(ValueError, match="at least 2"):
        one.bootstrap(1)
    with pytest.raises(ValueError, match=r"shape \(draws, 240\)"):
        one.bootstrap(multipliers=np.ones((3, 5)))
    one.fit(design.x, samples)
    assert not hasattr(one, "draws_")


@pytest.mark.parametrize("kind", KINDS)
def test_reports(design, samples, kind):
    model = R3D(kind=kind, fuzzy=True, n_draws=200).fit(design.x, samples, treatment=design.x > 0.02)
    frame = model.to_frame()
    assert list(frame["quantile"]) == pytest.approx(DECILES)
    np.testing.assert_allclose(frame["effect"], model.tau_)
    assert np.all(frame["lower"] < frame["effect"])
    text = model.summary()
    for part in ("fuzzy", "95% uniform band", "nullity", "homogeneity", "Jump in take-up", f"{model.tau_[0]:.4g}"):
        assert part in text
    assert max(map(len, text.splitlines())) <= 80
    assert len(model.plot().lines) == 4
    assert [line.get_label() for line in model.plot("curves").lines] == ["left of the cutoff", "right of the cutoff"]
    with pytest.raises(ValueError, match="what must be"):
        model.plot("tau")


def test_estimator_conventions(design, samples):
    """X is one column and outcomes are distributions, so only the checks without data apply; the rest is below."""
    estimator = R3D(cutoff=0.1, quantiles=DECILES)
    name = "R3D"
    for check in (
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_no_attributes_set_in_init,
        checks.check_parameters_default_constructible,
        checks.check_get_params_invariance,
        checks.check_set_params,
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_valid_tag_types,
    ):
        check(name, R3D())
    with pytest.raises(NotFittedError):
        estimator.summary()
    copy = clone(estimator)
    before = copy.get_params()
    copy.fit(design.x, samples)
    assert copy.get_params() == before
    again = pickle.loads(pickle.dumps(copy))
    np.testing.assert_array_equal(again.bootstrap(100).upper, copy.bootstrap(100).upper)
    saved = [s.copy() for s in samples]
    R3D().fit(design.x, samples)
    np.testing.assert_array_equal(saved, samples)


def test_speed_and_memory_of_the_papers_application():
    """356 units, 20 quantiles, 5,000 draws: well under a second, and no array of draws x units x quantiles."""
    q = np.linspace(0.05, 0.95, 20)
    design = simulate("dgp1", 356, 60, seed=0)
    matrix = quantile_matrix(list(design.samples), q)
    model = R3D(quantiles=q, n_draws=5000)
    tracemalloc.start()
    model.fit(design.x, matrix).bootstrap()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6  # the full product would take 285 MB
    start = time.process_time()
    model.fit(design.x, matrix).bootstrap()
    assert time.process_time() - start < 1.0
