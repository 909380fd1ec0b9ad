"""Supervised token losses: the identities of One-Token Rollout, its limits, and traps."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.streams import keyed_uniforms
from policydist.functional.supervised import (
    by_rows,
    dft_loss,
    draw_tokens,
    first_occurrences,
    otr_loss,
    otr_terms,
    sft_loss,
    sft_terms,
    unlikelihood,
)

VOCAB = 7


def batch(seed: int = 0, rows: int = 3, width: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(rows, width, VOCAB, generator=generator, dtype=torch.float64)).requires_grad_()
    targets = torch.randint(VOCAB, (rows, width), generator=generator)
    mask = torch.arange(width) < torch.randint(1, width + 1, (rows, 1), generator=generator)
    return logits, targets, mask


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@given(st.integers(0, 50), st.floats(-2, 1))
@settings(max_examples=25, deadline=None)
def test_the_exact_gradient_is_one_minus_beta_times_dfts(seed: int, beta: float) -> None:
    logits, targets, mask = batch(seed)
    for agg in ("token-mean", "seq-mean-token-mean"):
        ours = gradient(otr_loss(logits, targets, mask, beta=beta, estimator="exact", agg=agg)[0], logits)
        dft = gradient(dft_loss(logits, targets, mask, agg), logits)
        torch.testing.assert_close(ours, (1 - beta) * dft, rtol=0, atol=1e-12)


def test_a_constant_reward_has_no_gradient_at_kappa_one_and_one_elsewhere() -> None:
    logits, targets, mask = batch()
    at_one = gradient(otr_loss(logits, targets, mask, beta=1.0, estimator="exact")[0], logits)
    assert float(at_one.abs().max()) < 1e-15
    hot = gradient(otr_loss(logits, targets, mask, beta=1.0, kappa=1.5, estimator="exact")[0], logits)
    assert float(hot.abs().max()) > 1e-3


def test_beta_zero_is_the_weighted_cross_entropy_in_value() -> None:
    logits, targets, mask = batch()
    loss, _ = otr_loss(logits, targets, mask, beta=0.0, estimator="exact", agg="token-mean")
    logp = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(loss, (-logp.exp() * logp)[mask].mean())


@pytest.mark.parametrize("kappa", [0.5, 1.0, 1.3])
def test_the_exact_gradient_has_its_closed_form_with_the_sampler_detached_and_log_pi_untempered(kappa: float) -> None:
    logits, targets, _ = batch(rows=1)
    mask = torch.ones_like(targets, dtype=torch.bool)
    beta = -0.3
    loss, _ = otr_loss(logits, targets, mask, beta=beta, kappa=kappa, estimator="exact")
    q = (logits.detach() / kappa).softmax(-1)
    reward = torch.full_like(q, beta).scatter(-1, targets[..., None], 1.0)
    q = q * reward
    expected = -(q - q.sum(-1, keepdim=True) * logits.detach().softmax(-1)) / mask.sum()
    torch.testing.assert_close(gradient(loss, logits), expected)


def test_a_hot_sampler_is_uniform_and_a_cold_one_takes_the_argmax() -> None:
    logits, targets, mask = batch()
    mask = torch.ones_like(mask)
    uniform = gradient(
        otr_loss(logits, targets, mask, beta=-0.5, kappa=1e9, estimator="exact", agg="token-mean")[0], logits
    )
    weight = torch.full_like(logits, -0.5 / VOCAB).scatter(-1, targets[..., None], 1 / VOCAB).detach()
    expected = -(weight - weight.sum(-1, keepdim=True) * logits.detach().softmax(-1)) / mask.sum()
    torch.testing.assert_close(uniform, expected, atol=1e-8, rtol=1e-6)
    tokens = draw_tokens(logits.flatten(0, 1), torch.rand(12, 50), kappa=1e-4)
    assert bool((tokens == logits.flatten(0, 1).argmax(-1)[:, None]).all())


def test_the_mean_of_many_sampled_gradients_is_the_exact_one() -> None:
    logits, targets, _ = batch(rows=2)
    mask = torch.ones_like(targets, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    options = {"beta": -0.4, "kappa": 1.4}
    drawn = torch.stack([
        gradient(otr_loss(logits, targets, mask, k=64, generator=generator, **options)[0], logits) for _ in range(200)
    ])  # fmt: skip
    exact = gradient(otr_loss(logits, targets, mask, estimator="exact", **options)[0], logits)
    z = (drawn.mean(0) - exact) / (drawn.std(0) / math.sqrt(200)).clamp(min=1e-9)
    assert float(z.abs().max()) < 4.5
    assert float(drawn.sum(-1).abs().max()) < 1e-15  # over the vocabulary the gradient sums to nothing


def test_tokens_are_drawn_with_replacement_and_the_target_is_not_forced_in() -> None:
    logits = torch.tensor([[10.0, 0.0, 0.0]])
    found = otr_terms(logits, torch.tensor([2]), torch.tensor([5]), torch.tensor([0]), k=50, beta=0.0)
    assert float(found["hit_rate"]) == 0
    assert float(found["zero_hits"]) == 1
    assert float(found["loss"]) == 0  # no hits and no reward for the rest: no signal at all


def test_an_unlikely_target_gets_no_push_from_otr_and_a_full_one_from_sft() -> None:
    logits = torch.tensor([[[30.0, 0.0, -30.0]]], dtype=torch.float64, requires_grad=True)
    targets, mask = torch.tensor([[2]]), torch.ones(1, 1, dtype=torch.bool)
    assert float(gradient(sft_loss(logits, targets, mask), logits)[0, 0, 2]) == pytest.approx(-1)
    assert abs(float(gradient(otr_loss(logits, targets, mask, beta=0.0)[0], logits)[0, 0, 2])) == 0


def test_finite_differences_with_the_samples_held_fixed() -> None:
    logits, targets, _ = batch(rows=1, width=2)
    still = logits.detach()

    def held(z: Tensor) -> Tensor:
        tokens = draw_tokens(still.flatten(0, 1), keyed_uniforms(torch.tensor([9, 9]), torch.arange(2), 8))
        logp = z.flatten(0, 1).log_softmax(1).gather(1, tokens)
        reward = torch.where(tokens == targets.flatten()[:, None], 1.0, -0.2).double()
        return -(reward * logp).mean(1).mean()

    def ours(z: Tensor) -> Tensor:
        seeds = torch.tensor([9, 9])
        return otr_terms(z.flatten(0, 1), targets.flatten(), seeds, torch.arange(2), k=8, beta=-0.2)["loss"].mean()

    torch.testing.assert_close(ours(logits), held(logits))
    analytic, step = gradient(ours(logits), logits), 1e-6
    for place in range(VOCAB):
        moved = still.clone()
        moved[0, 1, place] += step
        back = still.clone()
        back[0, 1, place] -= step
        assert float((held(moved) - held(back)) / (2 * step)) == pytest.approx(float(analytic[0, 1, place]), abs=1e-8)


def test_masked_positions_do_nothing_and_one_sequence_has_one_mean() -> None:
    logits, targets, mask = batch(3)
    loss, _ = otr_loss(logits, targets, mask, estimator="exact")
    assert not bool(gradient(loss, logits)[~mask].any())
    one = (logits[:1], targets[:1], mask[:1])
    torch.testing.assert_close(
        otr_loss(*one, estimator="exact")[0], otr_loss(*one, estimator="exact", agg="token-mean")[0]
    )


@pytest.mark.parametrize("estimator", ["mc", "exact"])
def test_pieces_give_what_one_call_gives(estimator: str) -> None:
    logits, targets, _ = batch(rows=5, width=6)
    flat, wanted = logits.flatten(0, 1), targets.flatten()
    seeds, positions = torch.arange(30) // 6, torch.arange(30) % 6

    def terms(z: Tensor, x: Tensor, n: Tensor, t: Tensor) -> dict[str, Tensor]:
        return dict(otr_terms(z, x, n, t, k=9, estimator=estimator))  # type: ignore[arg-type]

    whole = by_rows(terms, flat, wanted, seeds, positions)
    cut = by_rows(terms, flat, wanted, seeds, positions, piece=4 * VOCAB)
    for name in whole:
        torch.testing.assert_close(cut[name], whole[name])
    first = gradient(whole["loss"].sum(), logits)
    torch.testing.assert_close(gradient(cut["loss"].sum(), logits), first)


def test_half_precision_logits_are_sampled_in_full_precision() -> None:
    logits = torch.zeros(1, 150_000, dtype=torch.bfloat16)
    tokens = draw_tokens(logits, torch.tensor([[0.0, 0.5, 0.999999]]))
    assert tokens.tolist()[0] == pytest.approx([0, 75_000, 149_999], abs=2)


def test_smoothing_and_unlikelihood_by_hand() -> None:
    logits = torch.tensor([[1.0, 0.0, -1.0]], dtype=torch.float64)
    logp = logits.log_softmax(1)[0]
    found = sft_terms(logits, torch.tensor([0]), smoothing=0.3)["loss"]
    torch.testing.assert_close(found[0], -(0.7 * logp[0] + 0.1 * logp.sum()))
    valid = torch.tensor([[True, True, False]])
    pushed = unlikelihood(logits, torch.tensor([[1, 2, 0]]), valid)
    torch.testing.assert_close(pushed[0], -torch.log(1 - logp[1].exp()) - torch.log(1 - logp[2].exp()))
    assert first_occurrences(torch.tensor([[4, 5, 4, 4, 6]])).tolist() == [[True, True, False, False, True]]


@pytest.mark.parametrize(
    ("change", "word"),
    [({"k": 0}, "k is 0"), ({"kappa": 0.0}, "kappa"), ({"beta": 1.5}, "beta"), ({"estimator": "sum"}, "estimator")],
)
def test_settings_without_meaning_are_refused(change: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        otr_loss(*batch(), **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="smoothing"):
        sft_terms(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), smoothing=1.0)


def test_keyed_uniforms_are_uniform_independent_and_depend_on_their_name_alone() -> None:
    seeds, positions = torch.arange(200).repeat_interleave(50), torch.arange(50).repeat(200)
    drawn = keyed_uniforms(seeds, positions, 8)
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    flat = drawn.flatten().sort().values
    gap = (flat - (torch.arange(len(flat)) + 0.5) / len(flat)).abs().max()
    assert float(gap) * math.sqrt(len(flat)) < 1.95  # Kolmogorov-Smirnov at 0.1 %
    table = drawn.view(200, 50, 8)
    for first, second in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1]), (table[..., 1:], table[..., :-1])):
        pair = torch.stack([first.flatten(), second.flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) * math.sqrt(pair.shape[1]) < 4
    again = keyed_uniforms(seeds[777:778], positions[777:778], 3)
    assert torch.equal(again[0], drawn[777, :3])
