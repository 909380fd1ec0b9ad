"""Integer laws as tensor functions: normalisation, references in high precision, gradients, tails."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from policydist.functional import integer_bits as bits
from policydist.functional import integer_counts as counts
from policydist.functional import integers as ints

LOCATION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "dalap": ints.dalap_log_prob,
    "discretized_laplace": ints.discretized_laplace_log_prob,
    "discretized_normal": ints.discretized_normal_log_prob,
    "danorm": ints.danorm_log_prob,
}
FAST = settings(max_examples=12, deadline=None)
locations = st.floats(-20, 20)
spreads = st.floats(0.05, 8.0)


def double(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v, dtype=torch.float64) for v in values)


def window(centre: float, half: int = 400) -> Tensor:
    return torch.arange(math.floor(centre) - half, math.floor(centre) + half + 1)


def reference(name: str, n: int, mu: float, scale: float) -> float:
    """The same law in 80 digits, from its definition."""
    with mp.workdps(80):
        m, s, d = mp.mpf(mu), mp.mpf(scale), abs(mp.mpf(n) - mp.mpf(mu))
        if name == "dalap":
            f = m - mp.floor(m)
            return float(-d / s - mp.log((mp.exp(-f / s) + mp.exp(-(1 - f) / s)) / (1 - mp.exp(-1 / s))))
        if name == "danorm":
            near = range(int(mp.floor(m)) - int(40 * s) - 5, int(mp.floor(m)) + int(40 * s) + 6)
            return float(-((d / s) ** 2) / 2 - mp.log(mp.fsum(mp.exp(-(((k - m) / s) ** 2) / 2) for k in near)))
        if name == "discretized_normal":
            upper = mp.erfc((d - 0.5) / s / mp.sqrt(2)) - mp.erfc((d + 0.5) / s / mp.sqrt(2))
            return float(mp.log(upper / 2))
        if d >= 0.5:
            return float(-(d - 0.5) / s - mp.log(2) + mp.log(1 - mp.exp(-1 / s)))
        return float(mp.log(1 - mp.exp(-(0.5 - d) / s) / 2 - mp.exp(-(0.5 + d) / s) / 2))


@pytest.mark.parametrize("name", LOCATION)
@FAST
@given(mu=locations, scale=spreads)
def test_location_laws_sum_to_one(name: str, mu: float, scale: float) -> None:
    m, s = double(mu, scale)
    assert torch.exp(LOCATION[name](window(mu), m, s)).sum().item() == pytest.approx(1.0, abs=2e-8)


@pytest.mark.parametrize("name", LOCATION)
@FAST
@given(mu=locations, scale=spreads, n=st.integers(-40, 40), shift=st.integers(-1000, 1000))
def test_shift_and_reflection(name: str, mu: float, scale: float, n: int, shift: int) -> None:
    law, (m, s), k = LOCATION[name], double(mu, scale), torch.tensor(n)
    here = law(k, m, s).item()
    assert law(k + shift, m + shift, s).item() == pytest.approx(here, rel=1e-9, abs=1e-9)
    assert law(-k, -m, s).item() == pytest.approx(here, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 3e-6)])
@pytest.mark.parametrize("name", LOCATION)
def test_location_laws_match_high_precision(name: str, dtype: torch.dtype, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    widest = 0.7 if name == "danorm" else 6.0  # the reference of Danorm sums every integer
    for _ in range(40):
        scale = float(torch.tensor(10 ** rng.uniform(-1.5, widest), dtype=dtype))
        mu = float(torch.tensor(rng.normal() * 10, dtype=dtype))
        n = round(mu + rng.choice([-60, -3, -0.3, 0, 0.3, 3, 60]) * scale)
        got = LOCATION[name](torch.tensor(n), torch.tensor(mu, dtype=dtype), torch.tensor(scale, dtype=dtype)).item()
        assert got == pytest.approx(reference(name, n, mu, scale), rel=tolerance, abs=tolerance), (n, mu, scale)


@pytest.mark.parametrize("name", LOCATION)
def test_far_tails_stay_finite_in_float32(name: str) -> None:
    """A difference of CDFs is log 0 beyond a dozen scales; 10^9 scales away the stable form still has a slope."""
    mu = torch.tensor([0.3, 0.3, -2.0], requires_grad=True)
    scale = torch.tensor([0.01, 2.0, 1e4], requires_grad=True)
    n = torch.tensor([10**7, -(2 * 10**9), 10**13])
    logs = LOCATION[name](n, mu, scale)
    logs.sum().backward()
    for value in (logs, mu.grad, scale.grad):
        assert value is not None
        assert torch.isfinite(value).all()
    assert (logs < -1e6).all()


def test_a_wide_discretized_normal_does_not_cancel_in_float32() -> None:
    """At scale 10^6 the two values of log Φ differ in the seventh digit: their difference is noise in float32."""
    got = ints.discretized_normal_log_prob(torch.tensor(3), torch.tensor(0.0), torch.tensor(1e6)).item()
    assert got == pytest.approx(reference("discretized_normal", 3, 0.0, 1e6), rel=1e-6)


def test_float32_tells_neighbouring_large_integers_apart() -> None:
    n = torch.tensor([2**24, 2**24 + 1])
    logs = ints.dalap_log_prob(n, torch.tensor(float(2**24)), torch.tensor(0.5))
    assert (logs[0] - logs[1]).item() == pytest.approx(2.0)


@pytest.mark.parametrize("n", [-3, 0, 7])
@pytest.mark.parametrize("mu", [-2, 0, 5])
def test_dalap_at_an_integer_centre_is_the_discrete_laplace_law(n: int, mu: int) -> None:
    """Fails with c = ⌈μ⌉ − μ, which is 0 here instead of 1."""
    gamma = 0.6
    m, s = double(float(mu), -1 / math.log(gamma))
    expected = math.log((1 - gamma) / (1 + gamma)) + abs(n - mu) * math.log(gamma)
    assert ints.dalap_log_prob(torch.tensor(n), m, s).item() == pytest.approx(expected, abs=1e-12)
    for side in (-1e-9, 1e-9):
        assert ints.dalap_log_prob(torch.tensor(n), m + side, s).item() == pytest.approx(expected, abs=1e-7)


@FAST
@given(mu=locations, scale=st.floats(0.1, 8.0))
def test_dalap_moments_and_entropy(mu: float, scale: float) -> None:
    m, s = double(mu, scale)
    n = window(mu)
    logs = ints.dalap_log_prob(n, m, s)
    p = torch.exp(logs)
    mean, variance = ints.dalap_moments(m, s)
    assert mean.item() == pytest.approx((p * n).sum().item(), abs=1e-9)
    assert variance.item() == pytest.approx((p * (n - mean) ** 2).sum().item(), rel=1e-8)
    assert ints.dalap_entropy(m, s).item() == pytest.approx(-(p * logs).sum().item(), rel=1e-8, abs=1e-12)


def test_dalap_special_values() -> None:
    gamma = 0.6
    s = -1 / math.log(gamma)
    (mean, _), (half, _), (_, variance) = (ints.dalap_moments(*double(m, s)) for m in (3.3, 2.5, 4.0))
    assert mean.item() == pytest.approx(3.29638, abs=5e-6)
    assert half.item() == pytest.approx(2.5, abs=1e-12)
    assert variance.item() == pytest.approx(2 * gamma / (1 - gamma) ** 2)


def test_dalap_limits() -> None:
    sharp = double(1e-3)[0]
    for mu, n, expected in [(2.2, 2, 1.0), (2.5, 2, 0.5), (2.5, 3, 0.5), (2.8, 3, 1.0)]:
        p = torch.exp(ints.dalap_log_prob(torch.tensor(n), double(mu)[0], sharp)).item()
        assert p == pytest.approx(expected, abs=1e-9)
    n, previous = torch.arange(-6000, 6001), 1.0
    for b in (1.0, 10.0, 100.0):
        m, s = double(0.3, b)
        gap = torch.exp(ints.dalap_log_prob(n, m, s)) - torch.exp(ints.discretized_laplace_log_prob(n, m, s))
        variation = 0.5 * gap.abs().sum().item()
        assert variation < previous / 5
        previous = variation


@FAST
@given(mu=locations, scale=spreads, lo=st.integers(-25, 25), span=st.integers(0, 30))
def test_dalap_mass_in_all_three_positions_of_the_centre(mu: float, scale: float, lo: int, span: int) -> None:
    (m, s), hi = double(mu, scale), lo + span
    expected = torch.logsumexp(ints.dalap_log_prob(torch.arange(lo, hi + 1), m, s), 0).item()
    got = ints.dalap_log_mass(torch.tensor(lo), torch.tensor(hi), m, s).item()
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)
    above = torch.logsumexp(ints.dalap_log_prob(torch.arange(lo, lo + 900), m, s), 0).item()
    assert ints.dalap_log_mass(torch.tensor(lo), None, m, s).item() == pytest.approx(above, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("rounded", [True, False])
@pytest.mark.parametrize("scale", [0.05, 0.4, 0.99, 1.01, 4.0])
def test_gaussian_moments(rounded: bool, scale: float) -> None:
    m, s = double(2.3, scale)
    n = window(2.3)
    p = torch.exp((ints.discretized_normal_log_prob if rounded else ints.danorm_log_prob)(n, m, s))
    mean, variance = ints.gaussian_moments(m, s, rounded)
    brute = (p * n).sum()
    assert mean.item() == pytest.approx(brute.item(), abs=1e-7)
    assert variance.item() == pytest.approx((p * (n - brute) ** 2).sum().item(), abs=2e-6)


@FAST
@given(mu=locations, scale=spreads)
def test_discretized_laplace_moments(mu: float, scale: float) -> None:
    m, s = double(mu, scale)
    p, n = torch.exp(ints.discretized_laplace_log_prob(window(mu), m, s)), window(mu)
    mean, variance = ints.discretized_laplace_moments(m, s)
    assert mean.item() == pytest.approx((p * n).sum().item(), abs=1e-8)
    assert variance.item() == pytest.approx((p * (n - mean) ** 2).sum().item(), rel=1e-6, abs=1e-8)


def test_dalap_gradient_formula() -> None:
    """Fails if f is detached: Z depends on μ through its fractional part."""
    mu, scale = (t.requires_grad_() for t in double(3.3, 1.7))
    n = torch.tensor(6)
    (got,) = torch.autograd.grad(ints.dalap_log_prob(n, mu, scale), mu)
    log_gamma, f = -1 / 1.7, 3.3 - 3.0
    weight = 1 / (1 + math.exp((1 - 2 * f) * log_gamma))
    assert got.item() == pytest.approx(-log_gamma - log_gamma * (2 * weight - 1), abs=1e-12)


@pytest.mark.parametrize("n", [-30, 2, 3, 4, 40])
@pytest.mark.parametrize("scale", [0.2, 0.9, 30.0])
@pytest.mark.parametrize("name", LOCATION)
def test_location_gradients_match_differences(name: str, n: int, scale: float) -> None:
    m, s = (t.requires_grad_() for t in double(3.3, scale))
    assert torch.autograd.gradcheck(lambda a, b: LOCATION[name](torch.tensor(n), a, b), (m, s), eps=1e-6, atol=1e-4)


def test_mass_gradients_are_finite_at_the_ends() -> None:
    m, s = (t.requires_grad_() for t in double(3.3, 0.8))
    for lo, hi in [(-5, 2), (5, 9), (3, 3), (None, 4), (4, None)]:
        ends = [None if end is None else torch.tensor(end) for end in (lo, hi)]
        grads = torch.autograd.grad(ints.dalap_log_mass(*ends, m, s), (m, s))
        assert all(torch.isfinite(g) for g in grads)


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_count_laws_match_high_precision(dtype: torch.dtype, tolerance: float) -> None:
    """The textbook formula misses the float32 bound by five orders of magnitude at n = 10^6."""
    rng = np.random.default_rng(1)
    with mp.workdps(50):
        for _ in range(50):
            m = torch.tensor(10 ** rng.uniform(-2, 6), dtype=dtype)
            r = torch.tensor(10 ** rng.uniform(-2, 7), dtype=dtype)
            n = int(m.item() * rng.choice([0, 0.5, 1, 1.01, 3])) + int(rng.integers(0, 3))
            rate, size = mp.mpf(m.item()), mp.mpf(r.item())
            poisson = float(n * mp.log(rate) - rate - mp.loggamma(n + 1))
            binomial = mp.loggamma(n + size) - mp.loggamma(n + 1) - mp.loggamma(size)
            binomial += size * mp.log(size / (size + rate)) + n * mp.log(rate / (size + rate))
            k = torch.tensor(n)
            assert counts.poisson_log_prob(k, m).item() == pytest.approx(poisson, rel=tolerance, abs=tolerance)
            got = counts.negative_binomial_log_prob(k, m, r).item()
            assert got == pytest.approx(float(binomial), rel=tolerance, abs=tolerance)


def test_poisson_matches_the_library_and_sums_to_one() -> None:
    n = torch.arange(400)
    for rate in (0.01, 1.0, 37.5):
        logs = counts.poisson_log_prob(n, double(rate)[0])
        np.testing.assert_allclose(logs.numpy(), stats.poisson.logpmf(n.numpy(), rate), rtol=1e-10, atol=1e-12)
        assert torch.exp(logs).sum().item() == pytest.approx(1.0, abs=1e-12)


def test_negative_binomial_limits() -> None:
    n = torch.arange(60)
    (m, large, one) = double(4.0, 1e12, 1.0)
    poisson = counts.poisson_log_prob(n, m)
    torch.testing.assert_close(counts.negative_binomial_log_prob(n, m, large), poisson, rtol=1e-8, atol=1e-8)
    geometric = n * math.log(4 / 5) + math.log(1 / 5)
    torch.testing.assert_close(counts.negative_binomial_log_prob(n, m, one), geometric.double(), rtol=1e-6, atol=1e-6)


@FAST
@given(q=st.floats(0.05, 0.95), beta=st.floats(0.7, 3.0))
def test_discrete_weibull_sums_to_one_and_matches_its_definition(q: float, beta: float) -> None:
    eta, b = double((-math.log(q)) ** (-1 / beta), beta)
    n = torch.arange(20_000)
    logs = counts.discrete_weibull_log_prob(n, eta, b)
    assert torch.exp(logs).sum().item() == pytest.approx(1.0, abs=1e-9)
    for k in (0, 1, 2):
        assert math.exp(logs[k]) == pytest.approx(q ** (k**beta) - q ** ((k + 1) ** beta), rel=1e-8, abs=1e-15)
    p = torch.exp(logs)
    mean, second = counts.discrete_weibull_moment(eta, b, 1), counts.discrete_weibull_moment(eta, b, 2)
    assert mean.item() == pytest.approx((p * n).sum().item(), rel=1e-7)
    assert (2 * second - mean).item() == pytest.approx((p * n.double() ** 2).sum().item(), rel=1e-6)


def test_discrete_weibull_with_shape_one_is_geometric() -> None:
    n = torch.arange(50)
    logs = counts.discrete_weibull_log_prob(n, *double(-1 / math.log(0.7), 1.0))
    torch.testing.assert_close(logs, n * math.log(0.7) + math.log(0.3) + torch.zeros(50, dtype=torch.float64))


def test_discrete_weibull_extremes_stay_finite_in_float32() -> None:
    scale = torch.tensor([1e3, 1e3, 0.1, 1e-3, 1e5], requires_grad=True)
    shape = torch.tensor([30.0, 0.05, 8.0, 5.0, 2.0], requires_grad=True)
    logs = counts.discrete_weibull_log_prob(torch.tensor([1, 10**6, 50, 10**6, 10**7]), scale, shape)
    logs.sum().backward()
    assert torch.isfinite(logs).all()
    for grad in (scale.grad, shape.grad):
        assert grad is not None
        assert torch.isfinite(grad).all()


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 500])
def test_count_gradients_match_differences(n: int) -> None:
    k = torch.tensor(n)
    m, r = (t.requires_grad_() for t in double(9.7, 2.3))
    assert torch.autograd.gradcheck(lambda a: counts.poisson_log_prob(k, a), (m,), eps=1e-5)
    assert torch.autograd.gradcheck(lambda a, b: counts.negative_binomial_log_prob(k, a, b), (m, r), eps=1e-5)
    assert torch.autograd.gradcheck(lambda a, b: counts.discrete_weibull_log_prob(k, a, b / 4), (m, r), eps=1e-5)


# --- bits -----------------------------------------------------------------------------------------------------------

logit_lists = st.lists(st.floats(-8, 8), min_size=2, max_size=7)


@pytest.mark.parametrize("signed", ["none", "signmag", "twos"])
@FAST
@given(values=logit_lists)
def test_bits_sum_to_one_over_their_range(signed: bits.Signed, values: list[float]) -> None:
    """Two unmerged zeros would leave the sign-magnitude sum below one."""
    logits = torch.tensor(values, dtype=torch.float64)
    lo, hi = bits.bit_range(len(values), signed)
    n = torch.arange(lo, hi + 1)
    p = torch.exp(bits.bitwise_log_prob(n, logits, signed))
    assert p.sum().item() == pytest.approx(1.0, abs=1e-10)
    mean, variance = bits.bitwise_moments(logits, signed)
    assert mean.item() == pytest.approx((p * n).sum().item(), abs=1e-8)
    assert variance.item() == pytest.approx((p * (n - mean) ** 2).sum().item(), abs=1e-7)


@pytest.mark.parametrize("signed", ["none", "signmag", "twos"])
@FAST
@given(values=logit_lists, ends=st.tuples(st.integers(-130, 130), st.integers(-130, 130)))
def test_bit_mass_of_a_range(signed: bits.Signed, values: list[float], ends: tuple[int, int]) -> None:
    logits = torch.tensor(values, dtype=torch.float64)
    lowest, highest = bits.bit_range(len(values), signed)
    lo, hi = max(min(ends), lowest), min(max(ends), highest)
    got = bits.bitwise_log_mass(torch.tensor(lo), torch.tensor(hi), logits, signed).item()
    if lo > hi:
        assert got == -math.inf
        return
    expected = torch.logsumexp(bits.bitwise_log_prob(torch.arange(lo, hi + 1), logits, signed), 0).item()
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_bits_identities() -> None:
    logits = torch.tensor([0.3, -1.2, 2.0, 0.0], dtype=torch.float64)
    at_zero = bits.bits_log_prob(torch.tensor(0), logits)
    n = torch.arange(16)
    logs, pattern = bits.bits_log_prob(n, logits), bits.to_bits(n, 4).double()
    torch.testing.assert_close(logs, at_zero + pattern @ logits)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits.expand(16, 4), pattern, reduction="none").sum(-1)
    torch.testing.assert_close(logs, -bce)
    point = torch.where(bits.to_bits(torch.tensor(11), 4) == 1, 50.0, -50.0)
    assert torch.exp(bits.bits_log_prob(torch.tensor(11), point)).item() == pytest.approx(1.0, abs=1e-12)


def test_sign_magnitude_zero_has_no_sign_term() -> None:
    logits = torch.tensor([0.4, -0.7, 3.0], dtype=torch.float64)
    expected = torch.log(1 - torch.sigmoid(logits[:2])).sum()
    torch.testing.assert_close(bits.bitwise_log_prob(torch.tensor(0), logits, "signmag"), expected)


@pytest.mark.parametrize("signed", ["none", "signmag", "twos"])
def test_bit_gradients_match_differences(signed: bits.Signed) -> None:
    logits = torch.tensor([0.3, -1.2, 2.0, 0.1], dtype=torch.float64, requires_grad=True)
    lo, hi = bits.bit_range(4, signed)
    ends = torch.tensor(lo + 1), torch.tensor(hi - 2)
    assert torch.autograd.gradcheck(lambda x: bits.bitwise_log_prob(torch.tensor([lo, 0, hi]), x, signed), (logits,))
    assert torch.autograd.gradcheck(lambda x: bits.bitwise_log_mass(*ends, x, signed), (logits,))


@FAST
@given(a=st.floats(-50, -1e-12))
def test_log1mexp(a: float) -> None:
    with mp.workdps(40):
        expected = float(mp.log(1 - mp.exp(mp.mpf(a))))
    assert ints.log1mexp(double(a)[0]).item() == pytest.approx(expected, rel=1e-13)
