"""The integer laws as torch.distributions, the heads, and IntegerRegressor as a scikit-learn estimator."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.base import clone
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.estimation.methods.integer_dists import (
    HEADS,
    Bitwise,
    Dalap,
    Danorm,
    DiscreteWeibull,
    DiscretizedLaplace,
    DiscretizedNormal,
    IntegerDistribution,
    IntegerMixture,
    IntegerRegressor,
    NegativeBinomialInt,
    PoissonInt,
    Truncated,
    integer_nll,
    make_head,
)

MU = torch.tensor([3.3, -2.0], dtype=torch.float64)
SPREAD = torch.tensor([0.7, 2.5], dtype=torch.float64)
RATE = torch.tensor([0.8, 6.3], dtype=torch.float64)
LOGITS = torch.tensor([[0.3, -1.2, 2.0, 0.4], [-0.5, 0.1, 0.9, -1.0]], dtype=torch.float64)
MIX = torch.tensor([[0.1, 0.7, -0.4], [1.0, 0.0, 0.2]], dtype=torch.float64)
CENTRES = torch.tensor([[-6.2, 0.5, 4.1], [3.0, 3.0, 9.9]], dtype=torch.float64)

LAWS: dict[str, Callable[[], IntegerDistribution]] = {
    "dalap": lambda: Dalap(MU, SPREAD),
    "discretized_laplace": lambda: DiscretizedLaplace(MU, SPREAD),
    "discretized_normal": lambda: DiscretizedNormal(MU, SPREAD),
    "danorm": lambda: Danorm(MU, SPREAD),
    "poisson": lambda: PoissonInt(RATE),
    "negative_binomial": lambda: NegativeBinomialInt(RATE, SPREAD),
    "discrete_weibull": lambda: DiscreteWeibull(RATE, torch.tensor([0.9, 1.8], dtype=torch.float64)),
    "bits": lambda: Bitwise(LOGITS),
    "signed_bits": lambda: Bitwise(LOGITS, "signmag"),
    "twos_complement": lambda: Bitwise(LOGITS, "twos"),
    "mixture": lambda: IntegerMixture(MIX, Dalap(CENTRES, torch.tensor(0.8, dtype=torch.float64).expand(2, 3))),
    "truncated": lambda: Truncated(Dalap(MU, SPREAD), 0, 9),
    "half_open": lambda: Truncated(DiscretizedNormal(MU, SPREAD), 1, None),
    "zero_truncated_poisson": lambda: Truncated(PoissonInt(RATE), 1, None),
    "truncated_mixture": lambda: Truncated(LAWS["mixture"](), -4, 6),
}


def table(law: IntegerDistribution) -> tuple[Tensor, Tensor]:
    """All integers that matter (n, 1) and their probabilities (n, batch)."""
    lo, hi = law._bounds()
    n = torch.arange(-300 if lo is None else lo, (400 if hi is None else hi) + 1).unsqueeze(-1)
    return n, torch.exp(law.log_prob(n))


@pytest.mark.parametrize("name", LAWS)
def test_a_law_agrees_with_its_own_probabilities(name: str) -> None:
    law = LAWS[name]()
    n, p = table(law)
    torch.testing.assert_close(p.sum(0), torch.ones(2, dtype=torch.float64), atol=1e-7, rtol=0)
    mean = (p * n).sum(0)
    torch.testing.assert_close(law.mean.double(), mean, atol=2e-5, rtol=0)
    torch.testing.assert_close(law.variance.double(), (p * (n - mean) ** 2).sum(0), atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(law.cdf(n).double(), p.cumsum(0), atol=1e-7, rtol=0)
    if name not in ("mixture", "truncated_mixture"):  # there the mode is the best component's
        torch.testing.assert_close(law.log_prob(law.mode), torch.log(p.max(0).values))


@pytest.mark.parametrize("name", LAWS)
def test_samples_follow_the_pmf(name: str) -> None:
    """Chi-square of 4 000 draws against the probabilities, cells of expected count below five pooled."""
    torch.manual_seed(3)
    law, draws = LAWS[name](), 4000
    n, p = table(law)
    sample = law.sample((draws,))
    assert sample.dtype == torch.int64
    for column in range(2):
        expected = p[:, column].numpy() * draws
        seen = np.array([(sample[:, column] == int(k)).sum().item() for k in n[:, 0]])
        assert seen.sum() == draws
        big = expected >= 5
        e, o = np.append(expected[big], expected[~big].sum()), np.append(seen[big], seen[~big].sum())
        statistic = ((o - e) ** 2 / np.maximum(e, 1e-9))[e > 1].sum()
        assert stats.chi2.sf(statistic, max(1, (e > 1).sum() - 1)) > 1e-4


@pytest.mark.parametrize("name", LAWS)
def test_quantiles_invert_the_cdf(name: str) -> None:
    law = LAWS[name]()
    for level in (1e-4, 0.3, 0.5, 0.97):
        n = law.icdf(torch.tensor(level, dtype=torch.float64))
        assert (law.cdf(n) >= level).all()
        lo = law._bounds()[0]
        assert ((law.cdf(n - 1) < level) | (n == (lo if lo is not None else n + 1))).all()


@pytest.mark.parametrize("name", LAWS)
def test_shapes_and_support_follow_torch(name: str) -> None:
    law = LAWS[name]()
    wide = law.expand((5, 2))
    assert law.batch_shape == (2,)
    assert law.event_shape == ()
    assert wide.batch_shape == (5, 2)
    value = wide.sample((3,))
    assert value.shape == (3, 5, 2)
    assert bool(law.support.check(value).all())
    torch.testing.assert_close(wide.log_prob(value), law.log_prob(value))
    for bad in (torch.tensor(0.5), torch.tensor(float("nan"))):
        with pytest.raises(ValueError, match="whole numbers"):
            law.log_prob(bad)


@pytest.mark.parametrize("name", ["poisson", "bits", "signed_bits", "truncated", "discrete_weibull"])
def test_integers_beyond_the_range_raise(name: str) -> None:
    """Silently clipped or wrapped targets (−1 or 2^B as bits) would be given probability."""
    law = LAWS[name]()
    lo, hi = law._bounds()
    assert lo is not None
    for bad in [lo - 1] + ([] if hi is None else [hi + 1]):
        with pytest.raises(ValueError, match=f"got the value {bad}"):
            law.log_prob(torch.tensor(bad))


def test_parameters_are_validated() -> None:
    with pytest.raises(ValueError, match="scale"):
        Dalap(0.0, -1.0)
    with pytest.raises(ValueError, match="rate"):
        PoissonInt(torch.tensor(float("nan")))
    with pytest.raises(ValueError, match="strictly between"):
        Dalap.from_gamma(0.0, 1.0)
    with pytest.raises(ValueError, match="last axis"):
        Bitwise(torch.zeros(63))
    with pytest.raises(ValueError, match="signed"):
        Bitwise(torch.zeros(3), "ones")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no integer"):
        Truncated(PoissonInt(1.0), -5, -1)


def test_alternative_parameters() -> None:
    assert Dalap.from_gamma(0.3, 0.6).gamma.item() == pytest.approx(0.6)
    law = DiscreteWeibull.from_q(0.7, 1.3)
    assert law.q.item() == pytest.approx(0.7)
    assert law.log_mass(1, None).exp().item() == pytest.approx(0.7)


@pytest.mark.parametrize("name", ["dalap", "bits", "signed_bits", "truncated"])
def test_entropy_is_the_expected_surprise(name: str) -> None:
    law = LAWS[name]()
    _, p = table(law)
    entropy = -torch.special.xlogy(p, p).sum(0)
    torch.testing.assert_close(law.entropy(), entropy)
    torch.manual_seed(0)
    surprise = -law.log_prob(law.sample((4000,))).mean(0)
    torch.testing.assert_close(surprise, entropy, atol=0.08, rtol=0)


@pytest.mark.parametrize("name", ["dalap", "discretized_laplace", "discretized_normal", "danorm"])
@pytest.mark.parametrize("bounds", [(-40, -30), (1, 5), (30, 40)])
def test_truncation_is_conditioning_wherever_the_centre_lies(name: str, bounds: tuple[int, int]) -> None:
    base = LAWS[name]()
    n = torch.arange(bounds[0], bounds[1] + 1).unsqueeze(-1)
    logs = base.log_prob(n)
    torch.testing.assert_close(Truncated(base, *bounds).log_prob(n), logs - logs.logsumexp(0), atol=1e-8, rtol=1e-8)


def test_mixtures_of_one_and_permuted_mixtures() -> None:
    n = torch.arange(-9, 12).unsqueeze(-1)
    single = IntegerMixture(torch.zeros(2, 1), Dalap(MU.unsqueeze(-1), SPREAD.unsqueeze(-1)))
    torch.testing.assert_close(single.log_prob(n), Dalap(MU, SPREAD).log_prob(n))
    order = torch.tensor([2, 0, 1])
    scale = torch.tensor(0.8, dtype=torch.float64).expand(2, 3)
    shuffled = IntegerMixture(MIX[:, order], Dalap(CENTRES[:, order], scale))
    torch.testing.assert_close(shuffled.log_prob(n), LAWS["mixture"]().log_prob(n))


# --- heads ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("components", [1, 3])
def test_heads_train_a_network_of_ones_own(name: str, components: int) -> None:
    y = np.array([0, 3, 5, 40])
    head = make_head(name, components).fitted(y)
    raw = head.starting_bias(y, torch.Generator().manual_seed(0)).expand(4, -1).clone().requires_grad_()
    loss = integer_nll(head, raw, torch.tensor(y))
    loss.backward()
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
    nats = integer_nll(head, raw, torch.tensor(y), reduction="none", base=np.e)
    assert loss.item() == pytest.approx(nats.mean().item() / np.log(2), rel=1e-5)
    assert head.distribution(raw).batch_shape == (4,)


def test_head_requests_that_make_no_sense() -> None:
    with pytest.raises(UsageError, match="did you mean dalap"):
        make_head("dalapp")
    with pytest.raises(UsageError, match="bitwise"):
        make_head("dalap", bits=4)
    with pytest.raises(UsageError, match="location"):
        make_head("poisson", spread_start="unit")
    with pytest.raises(UsageError, match="no integer"):
        make_head("dalap", lower=3, upper=2)
    with pytest.raises(UsageError, match="raw outputs"):
        make_head("dalap").distribution(torch.zeros(3))
    with pytest.raises(ValueError, match="got the value 16"):
        integer_nll(make_head("bitwise", bits=4, signed="none"), torch.zeros(1, 4), torch.tensor([16]))


def test_the_location_starts_on_data_far_from_zero() -> None:
    """Unscaled outputs start at 0 and would need thousands of steps to reach 10^6."""
    y = np.random.default_rng(0).integers(990_000, 1_010_000, 200)
    head = make_head("dalap").fitted(y)
    law = head.distribution(head.starting_bias(y, torch.Generator()))
    assert law.mean.item() == pytest.approx(np.median(y), rel=1e-5)
    assert head.scale == np.median(y) + 1


# --- the estimator ----------------------------------------------------------------------------------------------------


def counts(seed: int = 0, n: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, 2))
    return x, rng.poisson(np.exp(1.0 + 0.8 * x[:, 0]))


def quick(head: str = "dalap", **options: Any) -> IntegerRegressor:
    return IntegerRegressor(
        head, hidden=(8,), batch_size=64, max_steps=40, learning_rate=0.03, random_state=0, **options
    )


@pytest.mark.parametrize("head", HEADS)
def test_every_head_learns(head: str) -> None:
    x, y = counts()
    model = quick(head).fit(x, y)
    blind = quick(head).fit(np.random.default_rng(1).permutation(x), y)
    assert model.score(x, y) > blind.score(x, y) + 0.1
    assert model.predict(x).shape == (200,)
    law = model.predict_distribution(x)
    mean_log2 = law.log_prob(torch.as_tensor(y)).mean().item() / np.log(2)
    assert model.score(x, y) == pytest.approx(mean_log2, rel=1e-9)


def test_predictions_and_quantiles() -> None:
    x, y = counts()
    model = quick("discretized_normal", lower=0, upper=200).fit(x, y)
    law = model.predict_distribution(x[:5])
    np.testing.assert_allclose(model.predict(x[:5]), law.mean.numpy(), rtol=1e-6)
    mode, median = model.predict(x[:5], "mode"), model.predict(x[:5], "median")
    assert (mode == np.round(mode)).all()
    quantiles = model.predict_quantiles(x, [0.05, 0.5, 0.95])
    np.testing.assert_array_equal(quantiles[:5, 1], median)
    inside = (y >= quantiles[:, 0]) & (y <= quantiles[:, 2])
    assert 0.85 < inside.mean() <= 1.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        model.predict_quantiles(x, [0.0])
    with pytest.raises(ValueError, match="statistic"):
        model.predict(x, "best")  # type: ignore[arg-type]


def test_pandas_weights_clone_and_pickle() -> None:
    x, y = counts()
    frame, target = pd.DataFrame(x, columns=["price", "age"]), pd.Series(y)
    model = quick().fit(frame, target)
    assert list(model.feature_names_in_) == ["price", "age"]
    np.testing.assert_array_equal(model.predict(frame), quick().fit(x, y).predict(x))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict(frame), model.predict(frame))
    assert clone(model).get_params() == model.get_params()
    weights = (np.arange(200) < 100).astype(float)
    np.testing.assert_array_equal(quick().fit(x, y, weights).predict(x), quick().fit(x[:100], y[:100]).predict(x))
    zeros_and_nines, nine_fold = np.repeat([0, 9], 200), np.repeat([1.0, 9.0], 200)
    heavy = quick("poisson").fit(np.zeros((400, 1)), zeros_and_nines, nine_fold)
    assert heavy.predict(np.zeros((1, 1)))[0] == pytest.approx(8.1, abs=0.6)


@pytest.mark.parametrize(
    ("y", "head", "options", "message"),
    [
        ([1.0, np.nan, 2.0], "dalap", {}, "NaN"),
        ([1.0, np.inf, 2.0], "dalap", {}, "infinity"),
        ([1.0, 2.5, 3.0], "dalap", {}, r"y\[1\] is 2.5"),
        ([1, -4, 3], "poisson", {}, r"y\[1\] is -4: use a two-sided head"),
        ([1, -4, 3], "negative_binomial", {}, "two-sided"),
        ([1, 20, 3], "bitwise", {"bits": 4}, r"covers \[0, 15\], but y\[1\] is 20: raise bits"),
        ([1, 20, 3], "dalap", {"upper": 10}, "widen lower/upper"),
        ([1, 2, 3], "dalap", {"components": 0}, "components"),
        ([1, 2, 3], "dalapp", {}, "head"),
    ],
)
def test_bad_targets_and_options(y: list[float], head: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quick(head, **options).fit(np.arange(6.0).reshape(3, 2), y)


def test_scoring_beyond_the_range_and_bad_features() -> None:
    x, y = counts(n=60)
    model = quick("bitwise", bits=6).fit(x, y)
    with pytest.raises(ValueError, match="raise bits"):
        model.score(x, np.full(60, 64))
    with pytest.raises(ValueError, match="NaN"):
        quick().fit(np.full((60, 2), np.nan), y)
    with pytest.raises(ValueError, match="at least one non-zero"):
        quick().fit(x, y, np.zeros(60))


def test_divergence_names_the_step_and_the_mend() -> None:
    x, y = counts(n=60)
    with pytest.raises(PolicydistError, match=r"step \d+: lower learning_rate"):
        IntegerRegressor("poisson", learning_rate=2e37, max_steps=50, random_state=0).fit(x, y)


class Rounding(IntegerRegressor):
    """Rounds its targets, so that scikit-learn's checks with real-valued targets can run at all."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Rounding:
        if y is not None:
            values = np.asarray(y)
            y = np.round(values) if values.dtype.kind == "f" and np.isfinite(values).all() else y
        return super().fit(X, y, sample_weight)


REAL_TARGETS = "fits real-valued targets; the estimator rejects them by design (run on the rounding subclass instead)"
REAL_TARGET_CHECKS = {
    "check_n_features_in_after_fitting",
    "check_regressors_train",
    "check_regressor_data_not_an_array",
    "check_regressors_no_decision_function",
    "check_fit_idempotent",
    "check_fit_check_is_fitted",
    "check_n_features_in",
}
EXEMPT = {
    "check_sample_weight_equivalence_on_dense_data": "minibatches are drawn by row, so a weight of two and a row given "
    "twice see different random draws; they agree in expectation only",
}


def _checks(model: IntegerRegressor, skip: set[str], only: set[str] | None = None) -> list[Any]:
    pairs = estimator_checks_generator(model, legacy=True)
    named = [(estimator, check, getattr(check, "func", check).__name__) for estimator, check in pairs]
    return [
        pytest.param(estimator, check, id=f"{name}-{i}")
        for i, (estimator, check, name) in enumerate(named)
        if name not in skip and (only is None or name in only)
    ]


SMALL = {"hidden": (4,), "max_steps": 3}


@pytest.mark.parametrize(
    ("estimator", "check"),
    _checks(IntegerRegressor(**SMALL), REAL_TARGET_CHECKS | set(EXEMPT) | {"check_array_api_input"})
    + _checks(Rounding(**SMALL), set(EXEMPT), only=REAL_TARGET_CHECKS),
)
def test_scikit_learn_checks(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
