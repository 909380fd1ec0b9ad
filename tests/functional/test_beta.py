"""BNPO: its identities, the reference values of its claim, and its traps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import batches, mean, members, quick, std
from scipy import stats
from scipy.integrate import quad

from policydist.errors import UsageError
from policydist.functional import (
    beta_moments,
    bnpo_advantage,
    bnpo_params,
    bnpo_variance,
    bnpo_weight,
    decomposed_advantage,
    dr_grpo_advantage,
    grpo_advantage,
    rloo_advantage,
)

PAIRS = [(0.5, 2.0), (2.0, 2.0), (1.0, 4.0), (5.0, 3.0)]


def loop_bnpo(rewards, group):
    """The definition with scipy's Beta density; returns advantages and (a, b, alpha, beta)."""
    parts = list(members(group).values())
    p = [mean([rewards[i].item() for i in part]) for part in parts]
    mu = mean(p)
    v = std(p, 1) ** 2
    if len(p) == 1:
        a, b = 0.0, -1.0
    elif v <= 1e-12 or mu * (1 - mu) == 0:
        a, b = 0.0, 0.0
    else:
        c = mu * (1 - mu) / v - 1
        a, b = c * mu, c * (1 - mu)
    alpha, beta = max(1.0, 1 + a / 3), max(1.0, 1 + b / 3)
    result = torch.zeros_like(rewards)
    for rate, part in zip(p, parts, strict=True):
        density = stats.beta.pdf(rate, alpha, beta)
        weight = min(1e6, 1 / density) if density > 0 else 1e6
        for i in part:
            result[i] = weight * (rewards[i].item() - rate)
    return result, (a, b, alpha, beta)


def constant_weight(rewards, group, alpha, beta):
    """The advantage under given Beta parameters."""
    parts = members(group).values()
    p = torch.tensor([mean([rewards[i].item() for i in part]) for part in parts], dtype=torch.float64)
    weight = bnpo_weight(p, alpha, beta)
    result = torch.zeros_like(rewards)
    for w, rate, part in zip(weight, p, parts, strict=True):
        result[part] = w * (rewards[part] - rate)
    return result


@quick
@given(batches())
def test_matches_the_definition(batch):
    rewards, group = batch
    got, info = bnpo_advantage(rewards, group)
    wanted, fitted = loop_bnpo(rewards, group)
    torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
    assert [float(x) for x in (info.a, info.b, info.alpha, info.beta)] == pytest.approx(fitted, rel=1e-9, abs=1e-9)


@quick
@given(batches())
def test_uniform_normaliser_is_reinforce_with_prompt_baseline(batch):  # identity 1
    rewards, group = batch
    assert (bnpo_weight(torch.linspace(0, 1, 11), 1.0, 1.0) == 1).all()
    got = constant_weight(rewards, group, 1.0, 1.0)
    torch.testing.assert_close(got, dr_grpo_advantage(rewards, group))
    for part in members(group).values():
        if len(part) > 1:
            m = len(part)
            torch.testing.assert_close(got[part] * m / (m - 1), rloo_advantage(rewards, group)[part])


@quick
@given(batches())
def test_arcsine_normaliser_is_grpo_with_population_deviation(batch):  # identity 2
    rewards, group = batch
    got = constant_weight(rewards, group, 1.5, 1.5)
    torch.testing.assert_close(got, math.pi / 8 * grpo_advantage(rewards, group, eps=1e-300, ddof=0))
    for part in members(group).values():
        if len(part) > 1:
            factor = math.pi / 8 * math.sqrt(len(part) / (len(part) - 1))
            torch.testing.assert_close(got[part], factor * grpo_advantage(rewards, group, eps=1e-300)[part])


@quick
@given(batches())
def test_sums_to_zero_and_pure_groups_are_exactly_zero(batch):  # identity 3
    rewards, group = batch
    advantage, _ = bnpo_advantage(rewards.float(), group)
    assert torch.isfinite(advantage).all()
    for part in members(group).values():
        scale = advantage[part].abs().max().item()
        assert advantage[part].sum().item() == pytest.approx(0, abs=1e-5 * (1 + scale))
        if len({rewards[i].item() for i in part}) == 1:
            assert (advantage[part] == 0).all()


@quick
@given(batches(smallest=2))
def test_swapping_success_and_failure(batch):  # identity 4
    rewards, group = batch
    one, info = bnpo_advantage(rewards, group)
    two, swapped = bnpo_advantage(1 - rewards, group)
    torch.testing.assert_close(one, -two, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close((info.alpha, info.beta), (swapped.beta, swapped.alpha))
    if len(info.p) > 1:
        torch.testing.assert_close((info.a, info.b), (swapped.b, swapped.a))


@quick
@given(batches())
def test_affine_rewards(batch):  # identity 5
    rewards, group = batch
    torch.testing.assert_close(
        bnpo_advantage(2 * rewards - 1, group, r_min=-1, r_max=1)[0], bnpo_advantage(rewards, group)[0]
    )


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_variance_is_the_integral(a, b):  # identity 6
    for alpha, beta in [(1.0, 1.0), (1.5, 1.5), (1 + a / 3, 1 + b / 3), (1.1, 1.2)]:
        wanted, _ = quad(
            lambda p, alpha=alpha, beta=beta: (
                stats.beta.pdf(p, a, b) * p * (1 - p) / stats.beta.pdf(p, alpha, beta) ** 2
            ),
            0,
            1,
        )
        assert bnpo_variance(alpha, beta, a, b).item() == pytest.approx(wanted, rel=1e-6)
    assert bnpo_variance(1.5, 1.5, a, b).item() == pytest.approx((math.pi / 8) ** 2)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_variance_is_least_at_the_formula_and_infinite_outside(a, b):
    best = bnpo_variance(1 + a / 3, 1 + b / 3, a, b)
    alpha = torch.linspace(0.5, (a + 3) / 2 + 0.5, 41, dtype=torch.float64)
    beta = torch.linspace(0.5, (b + 3) / 2 + 0.5, 41, dtype=torch.float64)
    grid = bnpo_variance(alpha[:, None], beta[None, :], a, b)
    assert grid.min() >= best
    finite = (alpha[:, None] < (a + 3) / 2) & (beta[None, :] < (b + 3) / 2)
    assert torch.equal(torch.isfinite(grid), finite)
    row, column = divmod(int(grid.argmin()), 41)
    assert abs(alpha[row] - (1 + a / 3)) <= alpha[1] - alpha[0]
    assert abs(beta[column] - (1 + b / 3)) <= beta[1] - beta[0]


def test_variance_reference_values():
    reference = {
        (1, 4): (0.13333, 0.15421, 0.07443),
        (2, 2): (0.2, 0.15421, 0.15145),
        (5, 3): (0.20833, 0.15421, 0.11232),
    }
    for (a, b), wanted in reference.items():
        got = [bnpo_variance(x, y, a, b).item() for x, y in [(1, 1), (1.5, 1.5), (1 + a / 3, 1 + b / 3)]]
        assert got == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(UsageError, match="alpha is 0"):
        bnpo_variance(0.0, 1.0, 2.0, 2.0)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_moments_recover_the_beta(a, b):  # identity 7
    # Two points one deviation either side of the mean have exactly the Beta's mean and population variance.
    mu, sigma = a / (a + b), math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
    p = torch.tensor([mu - sigma, mu + sigma], dtype=torch.float64)
    assert [x.item() for x in beta_moments(p, ddof=0)] == pytest.approx([a, b])


@quick
@given(batches(), st.randoms(use_true_random=False))
def test_order_of_rows_does_not_matter(batch, random):  # identity 8
    rewards, group = batch
    order = list(range(len(rewards)))
    random.shuffle(order)
    torch.testing.assert_close(
        bnpo_advantage(rewards[order], group[order])[0], bnpo_advantage(rewards, group)[0][order]
    )


def test_weight_divides_by_the_density_and_is_capped():
    p = torch.tensor([0.0, 0.2, 0.5, 1.0], dtype=torch.float64)
    got = bnpo_weight(p, 2.0, 5.0)
    assert got[[0, 3]].tolist() == [1e6, 1e6]
    assert got[1:3].tolist() == pytest.approx([1 / stats.beta.pdf(x, 2, 5) for x in (0.2, 0.5)])
    # With alpha = 1 the density at 0 is positive: 1/beta, not 0.
    assert bnpo_weight(p, 1.0, 5.0)[0].item() == pytest.approx(1 / 5)
    assert bnpo_weight(p, 2.0, 5.0, cap=0.5).max() == 0.5


def test_close_success_rates_shrink_the_advantage():
    rewards = torch.zeros(2000)
    rewards[:501] = 1
    rewards[1000:1500] = 1
    group = torch.arange(2000) // 1000
    advantage, info = bnpo_advantage(rewards, group)
    assert info.alpha > 1e4
    wanted = 1 / stats.beta.pdf(info.p.double().numpy(), info.alpha.item(), info.beta.item())
    assert info.weight.tolist() == pytest.approx(wanted, rel=1e-3)
    assert advantage.abs().max() < 0.01


def test_degenerate_batches_are_neutral():
    group = torch.tensor([0, 0, 1, 1])
    for rewards, wanted in [
        ([1, 0, 0, 1], [0.5, -0.5, -0.5, 0.5]),
        ([1, 1, 1, 1], [0.0] * 4),
        ([0, 0, 0, 0], [0.0] * 4),
    ]:
        advantage, info = bnpo_advantage(torch.tensor(rewards), group)
        assert advantage.tolist() == wanted
        assert (info.alpha.item(), info.beta.item()) == (1, 1)
    advantage, info = bnpo_advantage(torch.tensor([1.0, 0, 0, 0]), torch.tensor([3, 3, 3, 3]))
    assert advantage.tolist() == [0.75, -0.25, -0.25, -0.25]
    assert (info.a.item(), info.b.item()) == (0, -1)


def test_overdispersion_is_clamped_not_followed():
    # Rates 0 and 1 with Bessel: v = 1/2 exceeds mu (1 - mu) = 1/4, so c < 0.
    a, b = beta_moments(torch.tensor([0.0, 1.0]))
    assert (a.item(), b.item()) == (-0.25, -0.25)
    assert [x.item() for x in bnpo_params(a, b)] == [1, 1]


def test_bessel_in_the_variance_of_the_prompt_means():
    # The trap: without Bessel (or fitted on single rewards) the parameters are others.
    p = torch.tensor([0.25, 0.5, 0.75, 0.5], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0], dtype=torch.float64)
    _, info = bnpo_advantage(rewards, torch.arange(16) // 4)
    c = 0.25 / (0.125 / 3) - 1
    assert info.a.item() == pytest.approx(0.5 * c)
    assert info.a.item() != pytest.approx(beta_moments(p, ddof=0)[0].item(), rel=0.1)
    assert info.a.item() != pytest.approx(beta_moments(rewards)[0].item(), rel=0.1)


def test_group_of_one():
    rewards, group = torch.tensor([1.0, 1, 0, 1, 1, 0, 1, 0]), torch.tensor([9, 1, 1, 2, 2, 2, 3, 3])
    advantage, info = bnpo_advantage(rewards, group)
    assert advantage[0] == 0
    assert info.p[-1] == 1
    raw, raw_info = bnpo_advantage(rewards, group, singleton="raw")
    assert raw_info.p[-1] == 0
    assert raw[0] == raw_info.weight[-1]
    with pytest.raises(UsageError, match="singleton"):
        bnpo_advantage(rewards, group, singleton="none")


def test_rewards_outside_the_range_are_refused():
    with pytest.raises(UsageError, match="from -1 to 1, outside"):
        bnpo_advantage(torch.tensor([-1.0, 1.0]), torch.tensor([0, 0]))
    with pytest.raises(UsageError, match="r_max"):
        bnpo_advantage(torch.tensor([1.0, 1.0]), torch.tensor([0, 0]), r_min=1, r_max=1)


@quick
@given(batches(), st.integers(0, 99))
def test_decomposition_is_the_mean_of_separate_normalisations(batch, seed):
    first, group = batch
    second = torch.randint(0, 2, first.shape, generator=torch.Generator().manual_seed(seed)).double()
    first[0] = second[0] = 1
    got, info = decomposed_advantage({"accuracy": first, "format": second}, group)
    parts = [bnpo_advantage(x, group) for x in (first, second)]
    torch.testing.assert_close(got, (parts[0][0] + parts[1][0]) / 2)
    torch.testing.assert_close(info["format"].alpha, parts[1][1].alpha)


def test_a_component_that_is_switched_off_does_not_halve_the_rest():
    rewards, group = torch.tensor([1.0, 0, 1, 1, 0, 0, 1, 0]), torch.tensor([0, 0, 1, 1, 1, 2, 2, 2])
    alone, _ = bnpo_advantage(rewards, group)
    both = {"accuracy": rewards, "format": torch.zeros(8)}
    got, info = decomposed_advantage(both, group)
    assert torch.equal(got, alone)
    assert list(info) == ["accuracy"]
    assert torch.equal(decomposed_advantage(both, group, count_inactive=True)[0], alone / 2)
    nothing, _ = decomposed_advantage({"accuracy": torch.zeros(8)}, group)
    assert (nothing == 0).all()
    with pytest.raises(UsageError, match="at least one"):
        decomposed_advantage({}, group)
