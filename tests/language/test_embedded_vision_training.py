"""How the embedded vision-language model is trained: what it reads, what carries loss, and that the script repeats itself."""

from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from policydist.language.embedded import vision
from policydist.language.embedded.muon import Muon
from policydist.language.tasks.procedural import rows, scenes

FORMS = dict.fromkeys(form for shares in vision.STAGES.values() for form in shares)


def test_words_are_tokens_and_texts_come_back():
    tokenizer = vision.build_processor().tokenizer
    for row in scenes.build(0, 0, 8).test:
        text = f"{row['question']} {row['completion']}"
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert len(tokenizer(row["completion"])["input_ids"]) < scenes.response_tokens(row["difficulty"])
    assert tokenizer.init_kwargs["think_end"] == "</think>"
    assert len(tokenizer("What else, 42?")["input_ids"]) >= 10


def test_the_corpus_holds_no_drawing_of_the_test_side():
    drawn = vision.problems(vision.Plan(), np.random.default_rng(0))
    assert not any(rows.in_test_pool("scenes", scenes.key(next(drawn).shapes)) for _ in range(100))


def test_forms_without_a_picture_name_none_and_the_others_show_theirs():
    rng = np.random.default_rng(0)
    drawn = vision.problems(vision.Plan(), rng)
    assert set(FORMS) == {"retold", "read", "analysis", "solver", "direct"}
    for form in FORMS:
        item = vision.example(form, next(drawn), rng, 0.0)
        assert (item.pixels is None) == (form in ("retold", "read")) == (vision.IMAGE not in item.prompt)


def test_a_description_is_retold_whole_in_both_directions():
    rng = np.random.default_rng(0)
    shapes = (scenes.Shape("top left", "circle", "red"), scenes.Shape("middle right", "square", "blue"))
    told = {vision.retold(shapes, rng) for _ in range(60)}
    forth, back = (
        ("top left circle red", "middle right square blue"),
        ("red circle top left", "blue square middle right"),
    )
    assert told == {f" {one}, {other}" for pair in (forth, back) for one, other in (pair, pair[::-1])}


def test_muon_leaves_a_matrix_that_had_no_part_in_the_loss():
    weight = torch.nn.Parameter(torch.ones(2, 2))
    Muon([weight]).step()
    assert torch.equal(weight.detach(), torch.ones(2, 2))


def test_the_loss_covers_answers_and_their_end_alone_and_boxes_most():
    torch.manual_seed(0)
    processor = vision.build_processor()
    model, tokenizer = vision.build_model(processor.tokenizer), processor.tokenizer
    rng = np.random.default_rng(0)
    drawn = vision.problems(vision.Plan(), rng)
    examples = [vision.example(form, next(drawn), rng, 0.0) for form in FORMS]
    total = weight = 0.0
    for item in examples:
        ids = tokenizer(item.prompt.replace("<image>", "<image>" * 9))["input_ids"]
        weights = [0.0] * len(ids)
        for question, answer in (("", item.answer), *item.further):
            asked, told = tokenizer(f" {question}" if question else "")["input_ids"], tokenizer(answer)["input_ids"]
            boxed = 2 * ("boxed" in answer)  # the answer's one token and the brace
            ids += asked + told
            weights += [0.0] * len(asked) + [1.0] * (len(told) - boxed) + [vision.BOX_WEIGHT] * boxed
        ids, weights = torch.tensor([*ids, tokenizer.eos_token_id]), torch.tensor([*weights, 1.0])
        seen = {} if item.pixels is None else processor.image_processor(item.pixels, return_tensors="pt")
        logprobs = model(ids[None], **seen).logits[0].log_softmax(-1)
        losses = -logprobs[:-1].gather(1, ids[1:, None])[:, 0]
        total, weight = total + (losses * weights[1:]).sum(), weight + weights.sum()
    torch.testing.assert_close(vision.loss_of(model, tokenizer, examples), total / weight, atol=1e-5, rtol=1e-5)


def test_the_script_trains_writes_and_repeats_itself(tmp_path, monkeypatch, capsys):
    small = {"retell": {"retold": 1}, "read": {"read": 1}, "look": {"analysis": 1}, "mixed": {"direct": 2, "solver": 1}}
    monkeypatch.setattr(vision, "STAGES", small)
    plan = vision.Plan(retell_steps=1, read_steps=1, look_steps=1, mixed_steps=1, slip_steps=1)
    vision.main(tmp_path, plan, rows=2)
    assert (
        len(AutoProcessor.from_pretrained(tmp_path)([Image.new("RGB", (48, 48))], "<image>which")["input_ids"][0]) == 10
    )
    assert {"model.safetensors", "README.md", vision.LOG} <= {file.name for file in tmp_path.iterdir()}
    assert "pass@16" in capsys.readouterr().out
    written = AutoModelForImageTextToText.from_pretrained(tmp_path).state_dict()
    again, other = (vision.train(plan)[0].state_dict() for plan in (plan, replace(plan, seed=1)))
    assert all(torch.equal(written[name], again[name]) for name in written)
    assert not torch.equal(again["lm_head.weight"], other["lm_head.weight"])
