"""Divergences, entropy and temperature tilting, by enumeration over a small vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import quick

from policydist.errors import UsageError
from policydist.functional import (
    categorical_kl,
    entropy_from_logits,
    generalized_jsd,
    kl_estimate,
    sampled_entropy,
    tilt_logratio,
    tilted_logprobs,
)

seeds = st.integers(0, 10**6)


def logits_of(seed, *shape):
    return 2 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def probabilities(logits, temperature=1.0):
    """Softmax as a plain loop."""
    weights = [math.exp(x / temperature) for x in logits.tolist()]
    return torch.tensor([w / math.fsum(weights) for w in weights], dtype=torch.float64)


def loop_kl(p, q):
    return math.fsum(x * math.log(x / y) for x, y in zip(p.tolist(), q.tolist(), strict=True) if x > 0)


@quick
@given(seeds)
def test_kl_estimators_have_the_right_expectation_and_gradient(seed):
    logits, reference = logits_of(seed, 2, 6)
    logits.requires_grad_()
    p = logits.softmax(-1)
    log_p, log_q = logits.log_softmax(-1), reference.log_softmax(-1)
    exact = categorical_kl(logits, reference)
    assert exact.item() == pytest.approx(loop_kl(p, reference.softmax(-1)))
    for kind in ("k1", "k3"):
        assert (p * kl_estimate(log_p, log_q, kind)).sum().item() == pytest.approx(exact.item())
    assert (kl_estimate(log_p, log_q, "k3") >= 0).all()
    (wanted,) = torch.autograd.grad(exact, logits, retain_graph=True)
    (got,) = torch.autograd.grad((p.detach() * kl_estimate(log_p, log_q, "k2")).sum(), logits)
    torch.testing.assert_close(got, wanted)


def test_kl_estimator_values_and_clamps():
    log_p, log_q = torch.tensor([-1.0, -30.0]), torch.tensor([-2.0, 0.0])
    assert kl_estimate(log_p, log_q, "k1").tolist() == [1.0, -30.0]
    assert kl_estimate(log_p, log_q, "k2").tolist() == [0.5, 450.0]
    assert kl_estimate(log_p, log_q, "k3")[0].item() == pytest.approx(math.exp(-1) + 1 - 1)
    verl = kl_estimate(log_p, log_q, "k3", exponent_clamp=20, value_clamp=10)
    assert verl.tolist() == pytest.approx([math.exp(-1), 10.0])
    unclipped = kl_estimate(log_p, log_q, "k3", exponent_clamp=20)[1].item()
    assert unclipped == pytest.approx(math.exp(20) - 21, rel=1e-5)
    with pytest.raises(UsageError, match="kind"):
        kl_estimate(log_p, log_q, "k4")
    with pytest.raises(UsageError, match="exponent_clamp"):
        kl_estimate(log_p, log_q, "k1", exponent_clamp=20)


@quick
@given(seeds, st.sampled_from([0.1, 0.5, 0.8]))
def test_generalised_jsd_matches_its_definition(seed, beta):
    first, second = logits_of(seed, 2, 5)
    p, q = probabilities(first), probabilities(second)
    m = beta * p + (1 - beta) * q
    wanted = beta * loop_kl(p, m) + (1 - beta) * loop_kl(q, m)
    assert generalized_jsd(first, second, beta).item() == pytest.approx(wanted)
    torch.testing.assert_close(generalized_jsd(first, second, beta), generalized_jsd(second, first, 1 - beta))
    assert 0 <= generalized_jsd(first, second).item() <= math.log(2)


def test_generalised_jsd_ends():
    first, second = logits_of(1, 2, 5)
    assert generalized_jsd(first, second, 0).item() == pytest.approx(categorical_kl(first, second).item())
    assert generalized_jsd(first, second, 1).item() == pytest.approx(categorical_kl(second, first).item())
    small = 1e-6
    assert generalized_jsd(first, second, small).item() / small == pytest.approx(
        categorical_kl(first, second).item(), rel=1e-4
    )
    with pytest.raises(UsageError, match="beta"):
        generalized_jsd(first, second, 1.5)


def test_excluded_symbols_cost_nothing_and_give_finite_gradients():
    first = torch.tensor([0.3, -0.2, -torch.inf, -torch.inf], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([0.1, 0.5, 0.4, -torch.inf], dtype=torch.float64)
    short = entropy_from_logits(first[:2])
    values = [entropy_from_logits(first), categorical_kl(first, second), generalized_jsd(first, second)]
    assert values[0].item() == pytest.approx(short.item())
    assert categorical_kl(second, first).item() == math.inf
    for value in values:
        (gradient,) = torch.autograd.grad(value, first)
        assert torch.isfinite(gradient).all()
        assert (gradient[2:] == 0).all()
        assert gradient[0] != 0


@quick
@given(seeds)
def test_entropy_matches_loops(seed):
    logits = logits_of(seed, 3, 7)
    wanted = [-math.fsum(x * math.log(x) for x in probabilities(row).tolist()) for row in logits]
    assert entropy_from_logits(logits).tolist() == pytest.approx(wanted)
    torch.testing.assert_close(entropy_from_logits(logits + 1e3), entropy_from_logits(logits), rtol=1e-9, atol=1e-9)


def test_entropy_ends_and_gradient():
    assert entropy_from_logits(torch.zeros(9)).item() == pytest.approx(math.log(9))
    assert entropy_from_logits(torch.tensor([1e4, 0.0, -1e4])).item() == 0
    logits, other = logits_of(0, 2, 4).requires_grad_(), logits_of(1, 2, 4)
    assert torch.autograd.gradcheck(entropy_from_logits, logits)
    assert torch.autograd.gradcheck(lambda x: generalized_jsd(x, other, 0.3), logits)


def test_sampled_entropy_is_the_mean_over_valid_tokens():
    logprobs = torch.tensor([[-1.0, -2.0], [-6.0, torch.nan]])
    mask = torch.tensor([[True, True], [True, False]])
    assert sampled_entropy(logprobs, mask).item() == 3.0
    assert sampled_entropy(logprobs, torch.zeros_like(mask)) == 0


@quick
@given(seeds, st.sampled_from([0.5, 0.8, 1.2, 2.0]))
def test_tilting_matches_loops(seed, temperature):
    logits = logits_of(seed, 5)
    symbols = torch.arange(5)
    every = logits.expand(5, 5)
    p, tilted = probabilities(logits), probabilities(logits, temperature)
    torch.testing.assert_close(tilted_logprobs(every, symbols, temperature).exp(), tilted)
    rho = tilt_logratio(every, symbols, temperature).exp()
    torch.testing.assert_close(rho, tilted / p)
    assert (p * rho).sum().item() == pytest.approx(1)  # DCPO identity 5
    torch.testing.assert_close(tilt_logratio(every + 1e3, symbols, temperature).exp(), rho)
    assert (tilt_logratio(every, symbols, 1.0) == 0).all()  # DCPO identity 1


@quick
@given(seeds, st.sampled_from([0.5, 2.0]))
def test_reweighted_gradient_is_the_gradient_under_the_tilted_policy(seed, temperature):
    """DCPO identity 2, AEPO identity 3: sum_a pi rho R grad log pi = sum_a pi^T R (e_a - pi); pi^T - pi for R = 1."""
    logits = logits_of(seed, 6).requires_grad_()
    rewards = (logits_of(seed + 1, 6) > 0).double()
    symbols = torch.arange(6)
    every = logits.expand(6, 6)
    p, tilted = probabilities(logits), probabilities(logits, temperature)
    rho = tilt_logratio(every, symbols, temperature).exp().detach()
    log_pi = tilted_logprobs(every, symbols)
    for weight in (rewards, torch.ones(6, dtype=torch.float64)):
        (got,) = torch.autograd.grad((p * rho * weight * log_pi).sum(), logits, retain_graph=True)
        torch.testing.assert_close(got, tilted * weight - (tilted * weight).sum() * p)
    torch.testing.assert_close(got, tilted - p)
    (ascent,) = torch.autograd.grad((tilted * logits.log_softmax(-1)).sum(), logits)  # -CE(pi^T, pi)
    torch.testing.assert_close(got, ascent)


@quick
@given(seeds, st.sampled_from([0.5, 0.8, 1.0, 1.2, 2.0]))
def test_entropy_moves_with_the_temperature(seed, temperature):
    """DCPO identity 3, AEPO identity 4: dH along pi^T - pi has the sign of T - 1, and is 0 at the uniform policy."""
    logits = logits_of(seed, 6).requires_grad_()
    step = (logits / temperature).softmax(-1).detach() - logits.softmax(-1).detach()
    (slope,) = torch.autograd.grad(entropy_from_logits(logits), logits)
    change = (slope * step).sum().item()
    if temperature == 1:
        assert change == 0
    else:
        assert change * (temperature - 1) > 0


def test_tilting_uses_single_precision_at_least_and_refuses_bad_temperatures():
    logits = torch.tensor([[1.0, 2.5, 0.25]], dtype=torch.bfloat16)
    got = tilted_logprobs(logits, torch.tensor([1]), 2.0)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(math.log(probabilities(logits[0].double(), 2.0)[1]), rel=1e-6)
    with pytest.raises(UsageError, match="temperature is 0"):
        tilted_logprobs(logits, torch.tensor([1]), 0.0)


def test_full_sequence_products_are_not_what_is_used():
    # The trap: along a sequence the product of the ratios leaves the scale of a single token's ratio.
    logits = logits_of(5, 1, 50, 8)
    tokens = logits.argmin(-1)
    log_rho = tilt_logratio(logits, tokens, 2.0)
    assert log_rho.shape == tokens.shape
    each = [
        math.log(probabilities(row, 2.0)[i] / probabilities(row)[i])
        for row, i in zip(logits[0], tokens[0], strict=True)
    ]
    assert log_rho[0].tolist() == pytest.approx(each)
    assert log_rho.sum() > 50 > log_rho.max()
