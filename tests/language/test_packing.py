"""Packed scoring against one unpadded pass a response: values, gradients, layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import policy, prompts, reference_logprobs, rollouts, tiny, uniforms

from policydist.language.policies.packing import SLACK, buckets, pack
from policydist.language.types import Generation, Rollouts, Sampling


def sampled(kind: str = "qwen2") -> Rollouts:
    return rollouts(policy(kind).generate(prompts(), Sampling(max_new_tokens=24), uniforms()))


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "gemma2", "bloom"])
@pytest.mark.parametrize("budget", [30, 100_000])
def test_scores_and_gradients_equal_the_unpacked_reference(kind: str, budget: int) -> None:
    rows = sampled(kind)
    model, plain = policy(kind), tiny(kind)
    model.pass_tokens = budget
    weights = torch.randn(rows.response_ids.shape, generator=torch.Generator().manual_seed(3))
    ours = model.score(rows).logprobs
    theirs = reference_logprobs(plain, rows)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    for (name, mine), other in zip(model.model.named_parameters(), plain.parameters(), strict=True):
        scale = float(other.grad.abs().max())
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4 * scale + 1e-7, rtol=0, msg=name)


def test_gradients_by_finite_differences_in_float64() -> None:
    rows = sampled()
    model = policy()
    model.model.double()
    weight = model.model.model.layers[0].self_attn.k_proj.weight
    score = lambda: float(model.score(rows).logprobs.double().sum())  # noqa: E731
    model.score(rows).logprobs.sum().backward()
    direction = torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        weight += 1e-3 * direction
        up = score()
        weight -= 2e-3 * direction
        down = score()
    assert (up - down) / 2e-3 == pytest.approx(float((weight.grad * direction).sum()), rel=0.02)


def test_prompts_shared_by_content_not_by_group() -> None:
    rows = sampled()
    changed = rows.prompt_ids.clone()
    changed[1, -1] = 2 + (changed[1, -1] - 1) % 30
    rows = replace(rows, prompt_ids=changed)
    with torch.no_grad():
        torch.testing.assert_close(
            policy().score(rows).logprobs, reference_logprobs(tiny("qwen2"), rows), atol=2e-5, rtol=0
        )


def test_entropy_tilts_and_values() -> None:
    rows, model = sampled(), policy()
    model.add_value_head()
    torch.nn.init.normal_(model.core.value_head.weight)
    with torch.no_grad():
        scores = model.score(rows, entropy=True, tilts=(1.0, 0.5), values=True)
        i, steps = 2, int(rows.lengths[2])
        ids = torch.cat([rows.prompt_ids[i][rows.prompt_mask[i]], rows.response_ids[i, :steps]])
        out = tiny("qwen2")(input_ids=ids[None], output_hidden_states=True)
        start = int(rows.prompt_mask[i].sum()) - 1
        logits = out.logits[0, start : start + steps].double()
        hidden = out.hidden_states[-1][0, start : start + steps]
    expected = torch.distributions.Categorical(logits=logits).entropy().float()
    torch.testing.assert_close(scores.entropy[i, :steps], expected, atol=1e-5, rtol=0)
    tilted = (logits / 0.5).log_softmax(-1).gather(1, rows.response_ids[i, :steps, None])[:, 0].float()
    torch.testing.assert_close(scores.tilted[0.5][i, :steps], tilted, atol=3e-5, rtol=0)
    torch.testing.assert_close(scores.tilted[1.0], scores.logprobs)
    torch.testing.assert_close(scores.values[i, :steps], model.core.value_head(hidden)[:, 0], atol=1e-4, rtol=1e-4)
    for tensor in (scores.entropy, scores.values, scores.logprobs):
        assert (tensor[~rows.response_attention] == 0).all()


def test_every_distinct_prompt_is_computed_once_and_nothing_is_padding() -> None:
    rows = sampled()
    (single,) = pack(rows, 100_000)
    distinct = int(prompts().mask.sum())
    assert len(single.ids) == distinct + int((rows.lengths - 1).sum())


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20), st.integers(5, 60), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_layout_covers_every_response_token_exactly_once(lengths: list[int], budget: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count, width = len(lengths), 12
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    owner = torch.randint(0, 5, (count,), generator=generator)
    some = prompts()
    ids = torch.randint(0, 40, (count, width), generator=generator)
    rows = Rollouts(some.ids[owner], some.mask[owner], ids, mask, mask, owner, owner, torch.zeros(count, width))
    packs = list(pack(rows, budget))
    places = torch.cat([item.place for item in packs]) if packs else torch.zeros(0, dtype=torch.long)
    assert torch.equal(places.sort().values, mask.flatten().nonzero()[:, 0])
    for item in packs:
        assert torch.equal(item.target, rows.response_ids.flatten()[item.place])
        assert torch.equal(item.plan.slots[item.plan.where], torch.arange(len(item.ids)))


@given(st.lists(st.integers(1, 200), min_size=1, max_size=50))
def test_buckets_partition_rows_with_little_padding(lengths: list[int]) -> None:
    found = buckets(np.array(lengths))
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    for rows in found:
        sizes = np.array(lengths)[rows]
        assert sizes[0] == sizes.max()
        assert sizes.min() >= SLACK * sizes.max()


def test_a_batch_without_tokens_scores_zero() -> None:
    rows = sampled()
    none = torch.zeros_like(rows.response_attention)
    scores = policy().score(replace(rows, response_attention=none, response_mask=none), entropy=True, tilts=(0.5,))
    assert float(scores.logprobs.abs().sum() + scores.entropy.abs().sum() + scores.tilted[0.5].abs().sum()) == 0


def test_generated_tensors_can_be_trained_on() -> None:
    found: Generation = policy().generate(prompts(), Sampling(max_new_tokens=4), uniforms())
    assert not any(tensor.is_inference() for tensor in (found.ids, found.mask, found.logprobs))
