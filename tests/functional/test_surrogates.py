from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ragged_cases import quick

from policydist.errors import UsageError
from policydist.functional import (
    aggregate,
    clip_fraction,
    clipped_surrogate,
    gspo_surrogate,
    importance_ratio,
    reinforce_surrogate,
    rloo_surrogate,
)


def case(seed, spread=0.3, rows=4, width=3):
    generator = torch.Generator().manual_seed(seed)
    old = -2 * torch.rand(rows, width, dtype=torch.float64, generator=generator)
    new = old + spread * torch.randn(rows, width, dtype=torch.float64, generator=generator)
    advantages = torch.randn(rows, 1, dtype=torch.float64, generator=generator)
    lengths = torch.randint(1, width + 1, (rows, 1), generator=generator)
    return new.requires_grad_(), old, advantages, torch.arange(width) < lengths


def loop_clip(ratio, advantage, low, high, dual=None, delta=None):
    first = -advantage * (min(ratio, delta) if delta else ratio)
    loss = max(first, -advantage * min(max(ratio, 1 - low), 1 + high))
    return min(loss, -advantage * dual) if dual and advantage < 0 else loss


@quick
@given(
    st.integers(0, 10**6),
    st.sampled_from([(0.2, 0.2), (0.2, 0.28)]),
    st.sampled_from([None, 1.5, 3.0]),
    st.sampled_from([None, 1.4]),
)
def test_clipped_surrogate_matches_loops(seed, clip, dual, delta):
    new, old, advantages, _ = case(seed)
    got = clipped_surrogate(new, old, advantages, clip_low=clip[0], clip_high=clip[1], dual_clip=dual, delta=delta)
    for i in range(4):
        for t in range(3):
            ratio = math.exp(new[i, t].item() - old[i, t].item())
            assert got[i, t].item() == pytest.approx(loop_clip(ratio, advantages[i].item(), *clip, dual, delta))


@quick
@given(st.integers(0, 10**6))
def test_at_ratio_one_the_gradient_is_reinforce(seed):
    _, old, advantages, _ = case(seed)
    new = old.clone().requires_grad_()
    for dual in (None, 3.0):
        (clipped,) = torch.autograd.grad(clipped_surrogate(new, old, advantages, dual_clip=dual).sum(), new)
        (plain,) = torch.autograd.grad(reinforce_surrogate(new, advantages).sum(), new)
        torch.testing.assert_close(clipped, plain)


def test_gradients_equal_finite_differences():
    new, old, advantages, mask = case(3)
    mean = "seq-mean-token-mean"
    assert torch.autograd.gradcheck(lambda x: aggregate(clipped_surrogate(x, old, advantages), mask), new)
    assert torch.autograd.gradcheck(lambda x: clipped_surrogate(x, old, advantages, dual_clip=1.2, delta=1.3), new)
    assert torch.autograd.gradcheck(lambda x: rloo_surrogate(x, old, advantages[:, 0], mask), new)
    assert torch.autograd.gradcheck(
        lambda x: aggregate(gspo_surrogate(x, old, advantages, mask, form="sequence", clip_low=0.2), mask, mean), new
    )


def test_where_the_gradient_vanishes():
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 4.0]], dtype=torch.float64)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, -1.0]], dtype=torch.float64)
    new, old = ratios.log().requires_grad_(), torch.zeros_like(ratios)
    (gradient,) = torch.autograd.grad(clipped_surrogate(new, old, advantages, dual_clip=3.0).sum(), new)
    assert gradient[0].tolist() == pytest.approx([0.0, 1.5, -0.5, 0.0, 0.0])
    everything = torch.ones(1, 5, dtype=torch.bool)
    assert clip_fraction(new, old, advantages, everything).item() == pytest.approx(2 / 5)
    first = torch.tensor([[True, False, False, False, False]])
    assert clip_fraction(new, old, advantages, first) == 1
    assert clip_fraction(new, old, advantages, ~everything) == 0


def test_constants_carry_no_gradient():
    new, old, advantages, mask = case(1)
    old.requires_grad_()
    advantages.requires_grad_()
    gspo = gspo_surrogate(new, old, advantages, mask)
    total = clipped_surrogate(new, old, advantages).sum() + reinforce_surrogate(new, advantages).sum() + gspo.sum()
    assert torch.autograd.grad(total, [old, advantages], allow_unused=True) == (None, None)


def test_log_ratio_clamp():
    new, old = torch.tensor([[0.0, -30.0]]), torch.tensor([[-30.0, 0.0]])
    assert importance_ratio(new, old)[0].tolist() == pytest.approx([math.exp(20), math.exp(-20)])
    assert importance_ratio(new, old, log_ratio_clamp=None)[0].tolist() == pytest.approx([math.exp(30), math.exp(-30)])


@quick
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.5]))
def test_both_forms_of_gspo_agree_in_value_and_gradient(seed, spread):
    new, old, advantages, mask = case(seed, spread)
    results = []
    for form in ("token", "sequence"):
        losses = gspo_surrogate(new, old, advantages, mask, clip_low=0.1, clip_high=0.1, form=form)
        loss = aggregate(losses, mask, "seq-mean-token-mean")
        results.append((loss.detach(), *torch.autograd.grad(loss, new)))
    torch.testing.assert_close(results[0], results[1])
    for i in range(4):
        d = [(new[i, t] - old[i, t]).item() for t in range(3) if mask[i, t]]
        ratio = math.exp(sum(d) / len(d))
        assert losses[i, 0].item() == pytest.approx(loop_clip(ratio, advantages[i].item(), 0.1, 0.1))


def test_sequence_ratio_of_rloo_is_not_length_normalised():
    new, old = torch.tensor([[0.1, 0.2, 9.0]]), torch.zeros(1, 3)
    mask = torch.tensor([[True, True, False]])
    loss = rloo_surrogate(new, old, torch.tensor([-1.0]), mask)
    assert loss.tolist() == pytest.approx([math.exp(0.3)])
    assert rloo_surrogate(new, old, torch.tensor([1.0]), mask).tolist() == pytest.approx([-1.2])


def test_errors():
    new, old, advantages, mask = case(0)
    with pytest.raises(UsageError, match="dual_clip"):
        clipped_surrogate(new, old, advantages, dual_clip=0.9)
    with pytest.raises(UsageError, match="delta"):
        clipped_surrogate(new, old, advantages, delta=1.1)
    with pytest.raises(UsageError, match="form"):
        gspo_surrogate(new, old, advantages, mask, form="word")
    with pytest.raises(UsageError, match="needs advantages"):
        gspo_surrogate(new, old, advantages.expand(4, 3), mask, form="sequence")
