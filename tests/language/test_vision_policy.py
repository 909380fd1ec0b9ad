"""Vision-language policies: what they read, that sampler and scorer agree, and that images matter and are worked on once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vision import (
    AT,
    CHAT,
    KINDS,
    LAYERS,
    ROWS,
    TEXT,
    StillQwen,
    build,
    picture,
    policy,
    prompts,
    qwen,
    tokenizer,
    uniforms,
)

from policydist.errors import PolicydistError, UsageError
from policydist.language.policies import processing
from policydist.language.policies.loading import Lora, load_policy
from policydist.language.policies.vision import VisionPolicy, join
from policydist.language.types import Rollouts, Sampling
from policydist.language.world import to_rollouts


@cache
def made(kind: str) -> VisionPolicy:
    return policy(kind)


@cache
def drawn(kind: str) -> Rollouts:
    """Two to three responses to each of `ROWS`."""
    asked = prompts(made(kind))
    return to_rollouts(asked, made(kind).generate(asked, Sampling(12), uniforms()))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def unpacked(kind: str) -> Iterator[VisionPolicy]:
    """The policy on the padded path."""
    before = made(kind).packing
    made(kind).packing = False
    yield made(kind)
    made(kind).packing = before


def images(row: Any) -> list[Any] | None:
    return row.get("images") or ([row["image"]] if "image" in row else None)


def inputs(kind: str, row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the model's own processor makes of a row."""
    reader = made(kind).reader
    text = row["prompt"] if "<image>" in row["prompt"] or not images(row) else "<image>" + row["prompt"]
    held = images(row)
    found = reader.processor(
        text=[text.replace("<image>", reader.mark)], images=[held] if held else None, return_tensors="pt"
    )
    return dict(found)


def test_packing_is_given_up_only_where_image_tokens_see_each_other() -> None:
    assert [made(kind).packing for kind in KINDS] == [True, True, False]


def test_models_that_read_prompts_both_ways_or_by_cross_attention_are_refused() -> None:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    words, scaler = tokenizer(), SiglipImageProcessorPil(size={"height": 16, "width": 16})
    words.bos_token, scaler.image_seq_length = "<pad>", 16
    processor = PaliGemmaProcessor(scaler, words)  # adds location tokens
    config = PaliGemmaConfig(
        vision_config={**LAYERS, "vision_use_head": False, "projection_dim": 32}, projection_dim=32,
        text_config={**TEXT, "vocab_size": len(words), "head_dim": 8, "model_type": "gemma"}, image_token_index=AT["image"],
    )  # fmt: skip
    model = PaliGemmaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with pytest.raises(UsageError, match="PaliGemmaForConditionalGeneration gives a text other probabilities"):
        VisionPolicy(model, processor)

    class Crossing(torch.nn.Module):
        def forward(self, input_ids: Any, cross_attention_mask: Any) -> None: ...

    with pytest.raises(UsageError, match="Crossing looks at images by cross-attention, which is not supported"):
        processing.ImageTokenizer(processor, Crossing())


def test_prompts_are_what_the_processor_makes_of_them(kind: str) -> None:
    asked = prompts(made(kind))
    for number, row in enumerate(ROWS):
        assert asked.ids[number][asked.mask[number]].tolist() == inputs(kind, row)["input_ids"][0].tolist()
    assert len(set(asked.mask.sum(1).tolist())) > 2  # ragged


@torch.no_grad()
def test_scores_are_those_of_the_model_row_by_row(kind: str) -> None:
    rows, found = drawn(kind), torch.zeros(drawn(kind).response_ids.shape)
    for i in range(len(rows)):
        given, count = inputs(kind, dict(rows.items[i])), int(rows.lengths[i])
        response, start = rows.response_ids[i, :count][None], given["input_ids"].shape[1]
        given["input_ids"] = torch.cat([given["input_ids"], response], 1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in given:
                given[name] = torch.cat([given[name], torch.zeros_like(response)], 1)
        logprobs = made(kind).model(**given).logits[0].log_softmax(-1)
        found[i, :count] = logprobs[start - 1 : start - 1 + count].gather(1, response[0][:, None])[:, 0]
    scores = made(kind).score(rows, entropy=True)
    torch.testing.assert_close(scores.logprobs, found, rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.behavior_logprobs, found, rtol=0, atol=1e-4)
    assert scores.entropy is not None
    assert scores.entropy.isfinite().all()


@torch.no_grad()
def test_the_padded_path_and_small_passes_give_the_same(kind: str, unpacked: VisionPolicy) -> None:
    rows = drawn(kind)
    unpacked.add_value_head()
    assert unpacked.core.value_head is not None
    torch.nn.init.normal_(unpacked.core.value_head.weight)
    drawn_again = unpacked.generate(prompts(unpacked), Sampling(12), uniforms())
    assert torch.equal(drawn_again.ids, rows.response_ids)
    torch.testing.assert_close(drawn_again.logprobs, rows.behavior_logprobs, rtol=0, atol=1e-4)
    padded = unpacked.score(rows, values=True)
    torch.testing.assert_close(padded.logprobs, rows.behavior_logprobs, rtol=0, atol=1e-4)
    unpacked.packing = kind != "gemma"
    before, unpacked.pass_tokens = unpacked.pass_tokens, 40
    small = unpacked.score(rows, values=True)
    unpacked.pass_tokens = before
    torch.testing.assert_close(small.logprobs, padded.logprobs, rtol=0, atol=1e-4)
    torch.testing.assert_close(small.values, padded.values, rtol=0, atol=1e-4)


@torch.no_grad()
def test_swapped_images_change_the_scores_of_their_rows_alone(kind: str) -> None:
    rows = drawn(kind)
    other = {0: ROWS[3], 3: ROWS[0]}
    swapped = replace(
        rows, items=tuple(other.get(q, item) for q, item in zip(rows.index.tolist(), rows.items, strict=True))
    )
    changed = (made(kind).score(swapped).logprobs - made(kind).score(rows).logprobs).abs().amax(1) > 1e-3
    assert changed.tolist() == [q in other for q in rows.index.tolist()]


@pytest.mark.parametrize("kind", ["llava"])
def test_an_image_passes_the_encoder_once_however_many_responses(kind: str) -> None:
    seen: list[int] = []
    handle = made(kind).model.get_encoder("image").register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    made(kind).generate(prompts(made(kind)), Sampling(2), uniforms())
    made(kind).score(drawn(kind))
    handle.remove()
    assert seen == [5, 5]  # images of the five rows


def test_images_are_made_into_pixels_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = policy(kind)
    asked = prompts(fresh)
    count = fresh.reader.processed
    twin = copy.deepcopy(fresh)
    prompts(fresh)
    fresh.generate(asked, Sampling(2), uniforms())
    expected = twin.score(drawn(kind)).logprobs
    assert fresh.reader.processed == count
    monkeypatch.setattr(processing, "CACHE_BYTES", 1)  # nothing but the newest stays, and all comes out the same
    torch.testing.assert_close(fresh.score(drawn(kind)).logprobs, expected)
    other = {"prompt": "w2", "image": picture(9)}
    fresh.reader.prompt_ids(other, "row 0")
    assert len(fresh.reader.kept) == 1
    torch.testing.assert_close(fresh.score(drawn(kind)).logprobs, expected)
    assert fresh.reader.processed > count + 1


def test_gradients_reach_the_image_encoder(kind: str) -> None:
    made(kind).module.zero_grad()
    made(kind).score(drawn(kind)).logprobs.sum().backward()
    encoder = made(kind).model.get_encoder("image")
    assert max(float(p.grad.abs().max()) for p in encoder.parameters() if p.grad is not None) > 0
    made(kind).module.zero_grad()
    text = drawn(kind).select(drawn(kind).index == 1)
    made(kind).score(text).logprobs.sum().backward()
    assert all(p.grad is None for p in encoder.parameters())


def test_with_several_processes_every_parameter_takes_part(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    made(kind).module.zero_grad()
    text = drawn(kind).select(drawn(kind).index == 1)
    made(kind).score(text).logprobs.sum().backward()
    assert all(p.grad is not None for p in made(kind).module.parameters())


def test_image_tokens_are_never_said(kind: str) -> None:
    places = list(made(kind).reader.placeholders)
    with torch.no_grad():
        logits = made(kind).model(input_ids=torch.tensor([[2, 3, 4]])).logits
    assert float(logits.softmax(-1)[..., places].max()) == 0
    rows = drawn(kind)
    ids = rows.response_ids.clone()
    ids[4, 0] = places[0]
    with pytest.raises(PolicydistError, match="a response to row 1 holds an image token"):
        made(kind).score(replace(rows, response_ids=ids))
    with pytest.raises(PolicydistError, match="without the rows that hold them"):
        made(kind).score(replace(rows, items=()))


def test_a_saved_policy_and_an_adapter_of_its_language_part_load_again(kind: str, tmp_path: Path) -> None:
    made(kind).core.value_head = None
    made(kind).save(tmp_path / "model")
    expected = made(kind).score(drawn(kind)).logprobs
    again = load_policy(tmp_path / "model", freeze_vision=True)
    assert isinstance(again, VisionPolicy)
    assert again.packing == made(kind).packing
    assert torch.equal(again.score(drawn(kind)).logprobs, expected)
    encoder = {id(p) for p in again.model.get_encoder("image").parameters()}
    assert all(p.requires_grad == (id(p) not in encoder) for p in again.module.parameters())

    adapted = load_policy(tmp_path / "model", lora=Lora(rank=2))
    trained = {name: p for name, p in adapted.module.named_parameters() if p.requires_grad}
    assert all("language_model" in name for name in trained)
    assert len(trained) == 2 * 7 * 2  # seven linear maps a layer
    with torch.no_grad():
        for number, parameter in enumerate(trained.values()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    scores = adapted.score(drawn(kind)).logprobs
    assert float((scores - expected).detach().abs().max()) > 0.1
    asked = prompts(adapted)  # type: ignore[arg-type]
    sampled = adapted.generate(asked, Sampling(12), uniforms())
    torch.testing.assert_close(adapted.score(to_rollouts(asked, sampled)).logprobs, sampled.logprobs, rtol=0, atol=1e-4)
    adapted.save(tmp_path / "adapter")
    torch.testing.assert_close(load_policy(tmp_path / "adapter").score(drawn(kind)).logprobs, scores, rtol=0, atol=1e-5)


def test_chats_take_their_images_where_they_are_marked_or_before_the_last_question() -> None:
    model, processor = build("qwen")
    processor.chat_template = CHAT
    reader = VisionPolicy(model, processor).reader
    assert reader.mark == "<|vision_start|><|image_pad|><|vision_end|>"
    asked = [
        {"role": "user", "content": "w2"},
        {"role": "assistant", "content": "w3"},
        {"role": "user", "content": "w4"},
    ]
    place = [AT["vision_start"], *[AT["image_pad"]] * 4, AT["vision_end"]]
    frame = (0, AT["start"], AT["stop"])
    shown = {"image": picture(0)}
    found = reader.prompt_ids({"prompt": asked, **shown}, "row 0")
    words = [token for token in found if token not in frame]
    assert words == [2, 3, *place, 4]
    marked = [{**asked[0], "content": "w2 <image>"}, *asked[1:]]
    words = [token for token in reader.prompt_ids({"prompt": marked, **shown}, "row 0") if token not in frame]
    assert words == [2, *place, 3, 4]
    with pytest.raises(UsageError, match="row 3: the prompt marks 1 places with <image>, but the row has 0 images"):
        reader.prompt_ids({"prompt": marked}, "row 3")
    with pytest.raises(UsageError, match=r"row 3: the prompt holds <\|image_pad\|>, a token of the model's own"):
        reader.prompt_ids({"prompt": "w2 <|image_pad|>", **shown}, "row 3")


def test_pixels_of_several_sizes_are_filled_up() -> None:
    parts = [{"x": torch.ones(1, 2, 3)}, {"x": torch.ones(2, 4, 1)}]
    joined = join(parts)["x"]
    assert joined.shape == (3, 4, 3)
    assert joined.sum() == 6 + 8
    assert joined[0, :2].eq(1).all()
    assert joined[1:, :, 0].eq(1).all()


def test_model_and_processor_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match="the model's image token is 43, the processor's 44"):
        VisionPolicy(build("llava")[0], StillQwen(qwen(tokenizer())[1].image_processor, tokenizer()))


def test_other_rows_images_are_not_marked_in_examples() -> None:
    from policydist.language.guided import ExamplePrompts, SolvedExamples

    pool = SolvedExamples()
    pool.add("w2 <image> w3", "w4")
    asked = prompts(made("llava"), ROWS[4:])
    shown = ExamplePrompts(pool, made("llava").reader, example="{question} {answer} ", question="{question}").steer(
        asked, torch.Generator().manual_seed(0)
    )
    place = [AT["image"]] * 16
    assert shown.ids[0].tolist() == [*place, 2, 0, 3, 4, 11]  # (image) is an unknown word
    made("llava").generate(shown, Sampling(2), uniforms(3))


def test_episodes_of_several_turns_keep_their_images() -> None:
    from policydist.language.multiturn import Episode, SearchEpisodes

    asked = prompts(made("llava"), ROWS[:1])
    going = [Episode(asked.ids[0].tolist(), [5, 6], item=ROWS[0])]
    later = SearchEpisodes.prompts_of(_Padded(), going)  # type: ignore[arg-type]
    assert later.items == (ROWS[0],)
    made("llava").generate(later, Sampling(2), uniforms(1))


class _Padded:
    pad = 0
