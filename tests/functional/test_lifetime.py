"""The zero-inflated log-normal law, selection noise, pseudo-labels, alignment, and the normalised Gini."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.autograd import gradcheck

from policydist.errors import UsageError
from policydist.functional.lifetime import (
    SIGMA_FLOOR,
    alignment_kl,
    focal_cross_entropy,
    gini,
    gumbel_log_softmax,
    gumbel_noise,
    gumbel_softmax,
    norm_gini,
    pseudo_labels,
    ziln_mean,
    ziln_nll,
)

REAL = st.floats(-4, 4)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(REAL, REAL, REAL, st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_the_density_is_scipys(logit: float, centre: float, spread: float, y: float) -> None:
    raw, sigma = tensor(logit, centre, spread), np.logaddexp(0, spread)
    p = 1 / (1 + np.exp(-logit))
    expected = -np.log(p) - stats.lognorm.logpdf(y, sigma, scale=np.exp(centre))
    assert ziln_nll(raw, tensor(y)[0]).item() == pytest.approx(expected, rel=1e-9)
    assert ziln_nll(raw, tensor(0.0)[0]).item() == pytest.approx(-np.log1p(-p), rel=1e-9)
    moments = p * stats.lognorm.mean(sigma, scale=np.exp(centre))
    assert ziln_mean(raw).item() == pytest.approx(moments, rel=1e-9)


@given(st.tuples(REAL, REAL, REAL), st.floats(0.01, 50), st.floats(-3, 3))
@settings(max_examples=30, deadline=None)
def test_scaling_y_moves_the_centre(raw: tuple[float, float, float], y: float, c: float) -> None:
    moved = tensor(*raw) + tensor(0, c, 0)
    change = ziln_nll(moved, tensor(y * np.exp(c))) - ziln_nll(tensor(*raw), tensor(y))
    assert change.item() == pytest.approx(c, abs=1e-9)


def test_zeros_read_the_logit_alone_and_gradients_are_finite() -> None:
    raw = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = tensor(0, 0, 0.5, 1, 7, 300)
    assert gradcheck(lambda r: ziln_nll(r, y), raw)
    assert gradcheck(ziln_mean, raw)
    (gradient,) = torch.autograd.grad(ziln_nll(raw, y).sum(), raw)
    assert (gradient[:2, 1:] == 0).all()
    assert (gradient[2:, 1:] != 0).all()
    torch.testing.assert_close(gradient[:2, 0], raw[:2, 0].sigmoid())


def test_extremes_stay_finite_and_means_are_cut() -> None:
    wide = torch.tensor([[80.0, 0.0, 60.0], [-200.0, 0.0, -60.0]])
    assert torch.isfinite(ziln_nll(wide, torch.tensor([3.0, 0.0]))).all()
    assert ziln_mean(wide.double())[0] == 1e300
    assert torch.isfinite(ziln_mean(wide)).all()
    narrow = ziln_nll(tensor(0, 0, -60), tensor(1.0)[0])
    assert narrow.item() == pytest.approx(np.log(2) + np.log(SIGMA_FLOOR) + 0.5 * np.log(2 * np.pi))


def test_the_mean_of_samples() -> None:
    rng = np.random.default_rng(0)
    draws = np.where(rng.random(200_000) < 0.7, np.exp(0.3 + 0.5 * rng.standard_normal(200_000)), 0)
    raw = tensor(np.log(0.7 / 0.3), 0.3, np.log(np.expm1(0.5)))
    assert ziln_mean(raw).item() == pytest.approx(draws.mean(), rel=0.01)


# --- selection --------------------------------------------------------------------------------------------------------


def test_the_noisy_argmax_has_the_law_alpha() -> None:
    alpha = tensor(0.05, 0.15, 0.3, 0.5)
    noise = gumbel_noise(torch.rand(40_000, 4, generator=torch.Generator().manual_seed(0)).double())
    picks = (alpha.log() + noise).argmax(-1)
    frequency = torch.bincount(picks, minlength=4).double() / 40_000
    torch.testing.assert_close(frequency, alpha, atol=0.01, rtol=0)
    cold = gumbel_softmax(alpha.log(), 1e-4, noise[:200])
    assert (cold.argmax(-1) == picks[:200]).all()
    assert cold.max(-1).values.min() > 0.99
    torch.testing.assert_close(
        gumbel_softmax(alpha.log(), 1e6, noise[:9]), torch.full((9, 4), 0.25).double(), atol=1e-4, rtol=0
    )


def test_noise_is_finite_and_drawn_if_absent() -> None:
    assert torch.isfinite(gumbel_noise(torch.tensor([0.0, 1.0, 0.5]))).all()
    torch.manual_seed(0)
    first = gumbel_softmax(torch.zeros(3), 1.0)
    assert not torch.equal(first, gumbel_softmax(torch.zeros(3), 1.0))
    torch.testing.assert_close(gumbel_log_softmax(tensor(-1, 0), 0.5, tensor(0, 0)), tensor(-2, 0).log_softmax(0))
    with pytest.raises(UsageError, match="tau is 0"):
        gumbel_softmax(torch.zeros(3), 0.0)


# --- alignment --------------------------------------------------------------------------------------------------------


def test_labels_follow_the_losses_without_gradient() -> None:
    losses = torch.tensor([[3.0, 1.0, 1.0], [0.0, 9.0, 2.0]], requires_grad=True)
    hard, log_soft = pseudo_labels(losses)
    assert hard.tolist() == [1, 0]  # the first wins a tie
    torch.testing.assert_close(log_soft.exp(), torch.softmax(-losses.detach(), -1))
    assert not log_soft.requires_grad
    same = pseudo_labels(torch.full((2, 4), 1e4))[1]
    torch.testing.assert_close(same, torch.full((2, 4), -np.log(4.0)))


@given(st.lists(REAL, min_size=2, max_size=5))
@settings(max_examples=30, deadline=None)
def test_focal_loss_and_divergence(logits: list[float]) -> None:
    log_q = tensor(*logits).log_softmax(0)
    label = torch.tensor(len(logits) - 1)
    q = log_q.exp()[-1].item()
    assert focal_cross_entropy(log_q, label, 0.0).item() == pytest.approx(-np.log(q), abs=1e-12)
    assert focal_cross_entropy(log_q, label, 2.0).item() == pytest.approx(-((1 - q) ** 2) * np.log(q), abs=1e-12)
    losses = torch.arange(len(logits)).double()
    log_soft = pseudo_labels(losses)[1]
    assert alignment_kl(log_soft, log_soft).item() == pytest.approx(0, abs=1e-12)
    direct = (log_q.exp() * (log_q - log_soft)).sum().item()
    assert alignment_kl(log_q, log_soft).item() == pytest.approx(direct, abs=1e-9)


def test_the_divergence_is_least_at_minus_the_losses() -> None:
    losses, logits = tensor(0.3, 2.0, -1.0), tensor(0, 0, 0).requires_grad_()
    optimizer = torch.optim.LBFGS([logits], max_iter=100, tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = alignment_kl(logits.log_softmax(0), pseudo_labels(losses)[1])
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.detach().softmax(0), (-losses).softmax(0), atol=1e-5, rtol=0)


def test_a_certain_selector_has_a_finite_gradient_at_any_gamma() -> None:
    for gamma in (0.0, 0.5, 2.0):
        log_q = torch.zeros(1, 1, requires_grad=True)
        focal_cross_entropy(log_q, torch.tensor([0]), gamma).sum().backward()
        assert log_q.grad is not None
        assert torch.isfinite(log_q.grad).all()
    with pytest.raises(UsageError, match="gamma is -1"):
        focal_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), -1.0)


# --- ranking ----------------------------------------------------------------------------------------------------------


def gain_gini(y: np.ndarray, by: np.ndarray) -> float:
    """The definition: mean of the cumulative share at ranks 1..n, sorted by prediction."""
    order = np.argsort(-by, kind="stable")
    return float(2 * np.mean(np.cumsum(y[order]) / y.sum()) - 1)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_gini_is_the_gain_curves(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, by = rng.exponential(size=20) * (rng.random(20) < 0.6) + 0.01, rng.permutation(20).astype(float)
    ty, tb = torch.from_numpy(y), torch.from_numpy(by)
    assert gini(ty, tb).item() == pytest.approx(gain_gini(y, by))
    assert norm_gini(ty, tb).item() == pytest.approx(gain_gini(y, by) / gain_gini(y, y))
    torch.testing.assert_close(norm_gini(ty, tb), norm_gini(ty, torch.exp(3 * tb)))
    assert norm_gini(ty, ty).item() == pytest.approx(1)
    weight = rng.integers(1, 4, 20)
    repeated = (torch.from_numpy(np.repeat(v, weight)) for v in (y, by))
    weighted = gini(ty, tb, torch.from_numpy(weight).double()).item() - 1 / 20
    assert weighted == pytest.approx(gini(*repeated).item() - 1 / weight.sum())


def test_ties_share_whatever_the_order_of_rows() -> None:
    y, flat = tensor(0, 0, 5, 1), tensor(1, 1, 1, 1)
    orders = [gini(y[torch.tensor(o)], flat).item() for o in ([0, 1, 2, 3], [2, 3, 0, 1])]
    assert orders == pytest.approx([0.25, 0.25])  # 1/n: the curve is the diagonal
    shuffles = [gain_gini(y.numpy()[np.random.default_rng(s).permutation(4)], np.ones(4)) for s in range(4000)]
    assert orders[0] == pytest.approx(np.mean(shuffles), abs=0.02)
    for bad in (tensor(0, 0), tensor(1, -1)):
        with pytest.raises(UsageError, match="positive sum"):
            gini(bad, bad)
