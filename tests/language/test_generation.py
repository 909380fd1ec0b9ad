"""Decoding: the distribution drawn from, retirement, greedy equality, independence of batching."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tiny_models import END, policy, prompts, rollouts, tiny, uniforms

from policydist.language.generation import cut, decode, draw
from policydist.language.types import Sampling


@given(st.integers(0, 10_000), st.sampled_from([1.0, 0.5, 2.0]), st.integers(0, 7), st.sampled_from([1.0, 0.9, 0.3]))
@settings(max_examples=60, deadline=None)
def test_drawn_tokens_follow_the_inverse_cdf(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, 6, generator=generator)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    grid = torch.arange(0, 1, 1 / 2048)
    ids, logprobs = draw(logits.expand(len(grid), -1), grid, sampling)
    probabilities = cut(logits, sampling).double().softmax(-1)[0]
    assert (ids.diff() >= 0).all()
    frequencies = torch.bincount(ids, minlength=6) / len(grid)
    torch.testing.assert_close(frequencies.double(), probabilities, atol=2 / 2048, rtol=0)
    torch.testing.assert_close(logprobs.double(), probabilities[ids].log(), atol=1e-5, rtol=1e-5)


def test_cuts_keep_the_smallest_head_that_is_enough() -> None:
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    kept = cut(logits, Sampling(top_p=0.6)).softmax(-1)
    torch.testing.assert_close(kept, torch.tensor([[0, 4 / 7, 0, 3 / 7]]))
    torch.testing.assert_close(cut(logits, Sampling(top_k=1)).softmax(-1), torch.tensor([[0.0, 1, 0, 0]]))
    after_k = cut(logits, Sampling(top_k=2, top_p=0.55)).softmax(-1)
    torch.testing.assert_close(after_k, torch.tensor([[0.0, 1, 0, 0]]), msg="top_p counts what top_k left")


def test_extreme_uniforms_never_select_an_impossible_token() -> None:
    logits = torch.full((2, 5000), float("-inf"))
    logits[:, 3:4000] = 0.0
    ids, logprobs = draw(logits, torch.tensor([0.0, 1 - 2**-24]), Sampling())
    assert ids[0] == 3
    assert 3 <= ids[1] < 4000
    assert torch.isfinite(logprobs).all()
    late = draw(logits.double(), torch.tensor([1 - 1e-12, 1 - 1e-12], dtype=torch.float64), Sampling())
    assert torch.isfinite(late[1]).all(), "a float64 uniform that rounds to one"


def test_temperature_zero_is_certain() -> None:
    ids, logprobs = draw(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([0.99]), Sampling(temperature=0))
    assert ids.tolist() == [1]
    assert logprobs.tolist() == [0.0]


class _Scripted:
    """Row i says ``i + 2`` until its appointed length, then the end; counts the rows it is asked for."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths, self.rows, self.step, self.work = torch.tensor(lengths), torch.arange(len(lengths)), 0, 0

    def first(self) -> torch.Tensor:
        return self._logits()

    def next(self, ids: torch.Tensor) -> torch.Tensor:
        self.step += 1
        return self._logits()

    def keep(self, rows: torch.Tensor) -> None:
        self.rows = self.rows[rows]

    def _logits(self) -> torch.Tensor:
        self.work += len(self.rows)
        ended = self.lengths[self.rows] == self.step + 1
        token = torch.where(ended, END, self.rows + 2)
        return torch.nn.functional.one_hot(token, 20) * 100.0


def test_finished_rows_are_retired_and_written_in_place() -> None:
    lengths = [3, 1, 9, 2, 2, 1, 1, 20]
    script = _Scripted(lengths)
    found = decode(script, torch.rand(8, 12), Sampling(max_new_tokens=12), (END,), 0)
    assert found.mask.sum(1).tolist() == [3, 1, 9, 2, 2, 1, 1, 12]
    assert found.ids[2].tolist() == [4] * 8 + [END] + [0] * 3
    assert found.ids[7].tolist() == [9] * 12
    assert (found.logprobs[~found.mask] == 0).all()
    assert script.work <= 1.3 * sum(min(n, 12) for n in lengths), "a long tail must run on few rows"


def test_decoding_stops_with_the_last_row() -> None:
    script = _Scripted([2, 4])
    assert decode(script, torch.rand(2, 50), Sampling(max_new_tokens=50), (END,), 0).ids.shape == (2, 4)
    assert script.step == 3


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "gemma2", "bloom"])
def test_sampler_and_scorer_agree(kind: str) -> None:
    model = policy(kind)
    assert model.packing == (kind != "bloom")
    model.ends = (END, 3, 9, 24)
    found = model.generate(prompts(), Sampling(max_new_tokens=24), uniforms())
    assert len(set(found.mask.sum(1).tolist())) > 2, "the test needs responses that end early"
    with torch.no_grad():
        scores = model.score(rollouts(found))
    torch.testing.assert_close(scores.logprobs, found.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["qwen2", "bloom"])
def test_what_the_sampler_notes_under_a_tilt_is_what_the_scorer_finds(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = policy(kind)
    model.ends = (END, 3, 9, 24)
    plain = model.generate(prompts(), Sampling(max_new_tokens=24), uniforms())
    assert plain.tilted is None
    monkeypatch.setattr("policydist.language.policies.hf.DECODE_ROWS", 5)
    found = model.generate(prompts(), Sampling(max_new_tokens=24, tilt=1.7), uniforms())
    assert torch.equal(found.ids * found.mask, plain.ids * plain.mask), "noting must not change what is drawn"
    with torch.no_grad():
        scores = model.score(rollouts(found), tilts=(1.7,))
    noted = rollouts(found).extras["tilted_logprobs"]
    assert (noted - found.logprobs).abs().max() > 0.1, "the test needs a tilt that matters"
    torch.testing.assert_close(noted, scores.tilted[1.7], atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["qwen2", "gpt2", "gemma2"])
def test_greedy_equals_transformers_generate(kind: str) -> None:
    found = policy(kind).generate(prompts(), Sampling(max_new_tokens=12, temperature=0), uniforms())
    asked = prompts()
    mask, special = asked.mask.long(), {"eos_token_id": END, "pad_token_id": 0}
    theirs = tiny(kind).generate(asked.ids, attention_mask=mask, do_sample=False, max_new_tokens=12, **special)[
        :, asked.ids.shape[1] :
    ]
    owner = torch.repeat_interleave(torch.arange(5), asked.samples)
    width = min(found.ids.shape[1], theirs.shape[1])
    assert torch.equal((found.ids * found.mask)[:, :width], theirs[owner, :width])
    assert not found.mask[:, width:].any()


@pytest.mark.parametrize("kind", ["qwen2", "bloom"])
def test_samples_do_not_depend_on_batching(kind: str) -> None:
    model = policy(kind)
    sampling = Sampling(max_new_tokens=24, temperature=0.8, top_p=0.95)
    whole = model.generate(prompts(), sampling, uniforms())
    for rows, piece in ((slice(0, 4), torch.tensor([0, 1])), (slice(4, 16), torch.tensor([2, 3, 4]))):
        part = model.generate(prompts().select(piece), sampling, uniforms()[rows])
        width = part.ids.shape[1]
        assert torch.equal(part.mask, whole.mask[rows, :width])
        assert torch.equal(part.ids * part.mask, whole.ids[rows, :width] * part.mask)


def test_samples_do_not_depend_on_the_row_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = policy()
    whole = model.generate(prompts(), Sampling(max_new_tokens=24), uniforms())
    monkeypatch.setattr("policydist.language.policies.hf.DECODE_ROWS", 5)
    parts = model.generate(prompts(), Sampling(max_new_tokens=24), uniforms())
    assert torch.equal(parts.mask, whole.mask)
    assert torch.equal(parts.ids * parts.mask, whole.ids * whole.mask)


def test_sampled_first_tokens_follow_the_softmax() -> None:
    model = policy()
    one = prompts().select(torch.tensor([1]))
    count = 4000
    many = type(one)(one.ids, one.mask, torch.tensor([count]), one.index)
    chances = torch.rand(count, 1, generator=torch.Generator().manual_seed(5))
    draws = model.generate(many, Sampling(max_new_tokens=1), chances)
    with torch.no_grad():
        expected = tiny("qwen2")(input_ids=one.ids[:, one.mask[0]]).logits[0, -1].double().softmax(-1) * count
    observed = torch.bincount(draws.ids[:, 0], minlength=len(expected)).double()
    common = expected > 5
    seen = torch.cat([observed[common], observed[~common].sum()[None]]).numpy()
    wanted = torch.cat([expected[common], expected[~common].sum()[None]]).numpy()
    assert stats.chisquare(seen, wanted).pvalue > 1e-3
