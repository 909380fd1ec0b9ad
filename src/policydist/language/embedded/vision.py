"""Train the embedded vision-language model: ``python -m policydist.language.embedded.vision [--out DIR]``.

A Llava of ordinary parts, all tiny: a SigLIP tower that sees the nine cells of a drawing of the task `scenes` as nine patches,
and a Qwen2 that reads single characters and, as one token each, the words of the task. It learns next tokens of these forms,
the last two of them without a picture:

    direct     {context} {question}                       <think>description</think>\\boxed{answer}
    analysis   {context} describe:                        <think>description</think>
    solver     {context} {question} {analysis} answer:    <think></think>\\boxed{answer}
    read       {context} {question} {analysis} answer:    <think></think>\\boxed{answer}
    retold     {context} {analysis} describe:             description, its shapes in another order

and learns them one after the other (`STAGES`). Finding a shape by one of its attributes takes two attention heads that are of
use only together. Questions alone, a token of loss each, do not bring them about in any time that we waited, with or without
pictures; retelling, where every token counts, does within 300 steps. Then come questions about words, looking, and all of it.
The last steps show misread attributes (`SLIP`), so that the model knows how to look and is yet unsure of what it sees. A Solver's
answer follows the analysis that it is given, misread or not; where that says nothing, the picture counts.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from policydist.language.contexts import neutral
from policydist.language.embedded import vision_path
from policydist.language.embedded.tokenizer import build_tokenizer
from policydist.language.embedded.train import Plan as Shared
from policydist.language.embedded.train import descend, save
from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.procedural import scenes
from policydist.language.tasks.procedural.rows import in_test_pool
from policydist.runs.seeds import derive, numpy_generator

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

LOG = "training_log.json"
TEST_ROWS = 240
IMAGE = "<image>"
PATCHES = 9
ANALYSIS_PROMPT = "{context} describe:"
SOLVER_PROMPT = "{context} {question} {analysis} answer:"
"""The templates that the model knows, for DoGe's knobs of these names."""
SLIP = 0.4
"""Chance that an attribute of a shape is misread, in the last stage."""
MISTOLD = 0.05
"""Chance that an attribute is told wrongly to a Solver in the stages before, so that it learns to go by what it is told."""
STAGES = {
    "retell": {"retold": 16},
    "read": {"retold": 4, "read": 12},
    "look": {"read": 4, "analysis": 24},
    "mixed": {"read": 4, "analysis": 4, "solver": 6, "direct": 12},
}
"""Sequences of each form in a batch, stage by stage; the last, of misread attributes, has the shares of the one before."""
RETOLD = 4
"""How often a sequence retells its description."""
FURTHER = 6
"""Questions that follow the first in a Solver's sequence."""
ASKED = 0.2
"""Share of the analysis prompts that show the question, as DoGe's ablation does."""
ROPE_THETA = 100.0
"""Base of the rotary positions: heads of 16 dimensions tell neighbours apart better by it than by the usual 10000."""
BOX_WEIGHT = 4.0
"""Weight of an answer's tokens in the loss: there are few of them."""
MARKS = ("<think>", "</think>", "(think)", "(/think)", "\\boxed{")
WORDS = (
    *scenes.COLOURS, *scenes.KINDS, *scenes.PLACES, "coloured", "shapes", "on", "a", "grid.",
    "what", "colour", "is", "the", "which", "shape", "at", "where", "how", "many", "are", "of", "left", "above", "yes", "no",
    "describe:", "answer:",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How long, how fast and from which seed."""

    retell_steps: int = 350
    read_steps: int = 1500
    look_steps: int = 200
    mixed_steps: int = 1300
    slip_steps: int = 200
    muon_lr: float = 0.007
    adam_lr: float = 2e-3
    fewest: int = 2
    most: int = 3
    threads: int = 1
    seed: int = 0

    @property
    def clean_steps(self) -> int:
        """Steps on true descriptions."""
        return sum(self.steps(stage) for stage in STAGES)

    def steps(self, stage: str) -> int:
        """Steps of a stage."""
        return int(getattr(self, f"{stage}_steps"))


class Example(NamedTuple):
    """A picture if any, what is asked about it, and what to write; then further questions and what to write to each."""

    pixels: np.ndarray | None
    prompt: str
    answer: str
    further: tuple[tuple[str, str], ...] = ()


def build_processor() -> LlavaProcessor:
    """Characters, words and marks of the task as tokens; pictures as they are, white paper as zeros."""
    from transformers import LlavaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokenizer: Any = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    # A word behind a blank is a token of its own, as in byte-pair vocabularies; so is a place's two words.
    tokenizer.add_tokens([*MARKS, *(blank + word for word in WORDS for blank in ("", " "))])
    tokenizer.init_kwargs["think_end"] = "</think>"
    side = 3 * scenes.CELL
    images = SiglipImageProcessorPil(
        do_resize=True, size={"height": side, "width": side}, image_mean=[1.0] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(images, tokenizer, patch_size=scenes.CELL, vision_feature_select_strategy="full")


def build_model(tokenizer: Any) -> LlavaForConditionalGeneration:
    """A Llava of some 0.2 million parameters, randomly initialised."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

    special: dict[str, Any] = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    vision = SiglipVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        image_size=3 * scenes.CELL, patch_size=scenes.CELL, vision_use_head=False,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA}, **special,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=PATCHES, vision_feature_select_strategy="full", vision_feature_layer=-1, tie_word_embeddings=True,
        **special,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def problems(plan: Plan, rng: np.random.Generator) -> Iterator[scenes.Problem]:
    """Endless problems whose drawings no test row shows."""
    while True:
        problem = scenes.draw(rng, int(rng.integers(plan.fewest, plan.most + 1)))
        if problem is not None and not in_test_pool("scenes", scenes.key(problem.shapes)):
            yield problem


def example(form: str, problem: scenes.Problem, rng: np.random.Generator, slip: float) -> Example:
    """One sequence of a form."""
    question, context = problem.question.text, scenes.CONTEXT
    if form == "retold":
        shown = f"{context} {neutral(analysis(problem.shapes))} describe:"
        first, *others = (retold(problem.shapes, rng) for _ in range(RETOLD))
        return Example(None, shown.replace(IMAGE, ""), first, tuple(("describe:", other) for other in others))
    pixels = None if form == "read" else scenes.picture(problem)
    if form == "direct":
        return Example(pixels, f"{context} {question}", scenes.solution(problem, rng, slip))
    if form == "analysis":
        shown = f"{context}\n\n{question}" if rng.random() < ASKED else context
        seen = scenes.misread(problem.shapes, rng, slip)
        return Example(pixels, ANALYSIS_PROMPT.format(context=shown), analysis(seen))
    seen = scenes.misread(problem.shapes, rng, max(slip, MISTOLD))
    prompt = SOLVER_PROMPT.format(context=context, question=question, analysis=neutral(analysis(seen)))
    answer = f"<think></think>{scenes.boxed(problem.question.find(seen) or problem.answer)}"
    return Example(pixels, prompt if pixels is not None else prompt.replace(IMAGE, ""), answer, further(seen, rng))


def retold(shapes: Sequence[scenes.Shape], rng: np.random.Generator) -> str:
    """The shapes in a random order; in half the cases each of them backwards."""
    step = rng.choice([1, -1])
    return " " + ", ".join(" ".join(shapes[i][::step]) for i in rng.permutation(len(shapes)))


def further(seen: Sequence[scenes.Shape], rng: np.random.Generator) -> tuple[tuple[str, str], ...]:
    """`FURTHER` more questions that the shapes answer: more to learn from a sequence at little cost."""
    asked = ((question.text, question.find(seen)) for question in iter(lambda: scenes.ask(rng), None))
    found = ((text, scenes.boxed(answer)) for text, answer in asked if answer is not None)
    return tuple(islice(found, FURTHER))


def analysis(seen: Sequence[scenes.Shape]) -> str:
    return scenes.thought(scenes.description(seen))


def batches(plan: Plan) -> Iterator[list[Example]]:
    """Examples for every step of the plan."""
    rng = numpy_generator(plan.seed, "embedded-vision", "corpus")
    drawn = problems(plan, rng)
    for stage in (*STAGES, "slip"):
        shares, slip = (STAGES["mixed"], SLIP) if stage == "slip" else (STAGES[stage], 0.0)
        for _ in range(plan.steps(stage)):
            yield [example(form, next(drawn), rng, slip) for form, count in shares.items() for _ in range(count)]


def encode(tokenizer: Any, examples: Sequence[Example]) -> list[tuple[list[int], list[float]]]:
    """Token ids of each example and their weights in the loss: 0 for what is asked, 1 for what is to be written and the end
    token, `BOX_WEIGHT` for what stands in a box and behind it."""
    texts: list[tuple[int, bool, str]] = []
    for row, item in enumerate(examples):
        texts += [(row, False, item.prompt.replace(IMAGE, IMAGE * PATCHES)), (row, True, item.answer)]
        for question, answer in item.further:
            texts += [(row, False, f" {question}"), (row, True, answer)]
        texts.append((row, True, tokenizer.eos_token))
    box = tokenizer.convert_tokens_to_ids("\\boxed{")
    rows: list[tuple[list[int], list[float]]] = [([], []) for _ in examples]
    for (row, written, _), tokens in zip(texts, tokenizer([text for *_, text in texts])["input_ids"], strict=True):
        ids, weights = rows[row]
        behind = tokens.index(box) + 1 if box in tokens else len(tokens)
        ids += tokens
        weights += [1.0 * written] * behind + [BOX_WEIGHT * written] * (len(tokens) - behind)
    return rows


def loss_of(model: Any, tokenizer: Any, examples: Sequence[Example]) -> torch.Tensor:
    """Mean negative log-probability of what is to be written, by the weights of `encode`."""
    rows = encode(tokenizer, examples)
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
    weights = torch.tensor([given + [0.0] * (width - len(given)) for _, given in rows])
    drawn = [item.pixels for item in examples if item.pixels is not None]
    pixels = (torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() - 255) / 127.5 if drawn else None
    weights = weights[:, 1:]
    wanted = weights > 0
    hidden = model.model(ids, pixel_values=pixels).last_hidden_state[:, :-1][wanted]
    losses = torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[:, 1:][wanted], reduction="none")
    return (losses * weights[wanted]).sum() / weights.sum()


def train(plan: Plan) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, list[dict[str, float]]]:
    """Run the plan. Equal plans give equal weights on one kind of machine: the thread count is part of the plan."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(derive(plan.seed, "embedded-vision", "weights"))
    processor: Any = build_processor()
    model = build_model(processor.tokenizer)
    shared = Shared(plan.clean_steps, 0, plan.slip_steps, muon_lr=plan.muon_lr, adam_lr=plan.adam_lr)
    losses = (loss_of(model, processor.tokenizer, examples) for examples in batches(plan))
    return model, processor, descend(model, losses, shared, 50)


def write(model: Any, processor: Any, prompts: Sequence[str], rows: Sequence[Row], temperature: float) -> list[str]:
    """One response to each prompt about its row's picture, by transformers' own generation; greedy at temperature 0."""
    from PIL import Image

    texts = []
    for start in range(0, len(rows), 1024):
        chunk = slice(start, start + 1024)
        pictures = [Image.open(io.BytesIO(row["image"])) for row in rows[chunk]]
        encoded = processor(images=pictures, text=list(prompts[chunk]), padding=True, return_tensors="pt")
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        room = scenes.response_tokens(max(row["difficulty"] for row in rows))
        ids = model.generate(**encoded, max_new_tokens=room, **how)[:, encoded["input_ids"].shape[1] :]
        texts += processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def measured(model: Any, processor: Any, task: Task, samples: int = 16, seed: int = 0) -> dict[str, dict[str, float]]:
    """Of the task's test rows, as ``pass_rates``: ``pass@1`` at temperature 1, ``pass@k`` with k = ``samples``, ``greedy``, and
    how often one answer as Solver is right, at temperature 1, after an analysis of the model's own (``own_analysis``) and after a
    true one (``true_analysis``); as ``by_kind`` the greedy share of each kind of question."""
    torch.manual_seed(derive(seed, "embedded-vision", "pass rates"))
    rows, grade = task.test, task.graders["accuracy"]

    def right(prompts: Sequence[str], asked: Sequence[Row], temperature: float) -> torch.Tensor:
        return torch.tensor(list(grade(write(model, processor, prompts, asked, temperature), asked)))

    def solved(analyses: Sequence[str]) -> float:
        shown = [
            SOLVER_PROMPT.format(context=row["context"], question=row["question"], analysis=neutral(text))
            for row, text in zip(rows, analyses, strict=True)
        ]
        return float(right(shown, rows, 1.0).mean())

    many = [row for row in rows for _ in range(samples)]
    drawn = right([row["prompt"] for row in many], many, 1.0).view(len(rows), samples)
    own = write(model, processor, [ANALYSIS_PROMPT.format(context=row["context"]) for row in rows], rows, 1.0)
    greedy = right([row["prompt"] for row in rows], rows, 0.0)
    kinds = [row["source"] for row in rows]
    found = {
        "pass@1": float(drawn.mean()),
        f"pass@{samples}": float(drawn.amax(1).mean()),
        "greedy": float(greedy.mean()),
        "own_analysis": solved(own),
        "true_analysis": solved([scenes.thought(row["description"]) for row in rows]),
    }
    by_kind = {kind: float(greedy[[own == kind for own in kinds]].mean()) for kind in sorted(set(kinds))}
    rounded = ({name: round(value, 4) for name, value in rates.items()} for rates in (found, by_kind))
    return dict(zip(("pass_rates", "by_kind"), rounded, strict=True))


def main(out: Path, plan: Plan, rows: int = TEST_ROWS) -> None:
    """Train, measure on held-out drawings, and write model, processor, log and model card to ``out``."""
    from policydist.language.embedded.card import write_vision_card

    start = time.process_time()
    model, processor, curve = train(plan)
    log = save(out, model, processor, plan, curve, start)
    log |= {
        "slip": SLIP,
        "mistold": MISTOLD,
        "batches": STAGES,
        "prompts": {"direct": "{context} {question}", "analysis": ANALYSIS_PROMPT, "solver": SOLVER_PROMPT},
        "test_rows": rows,
        **measured(model.eval(), processor, scenes.build(plan.seed, 0, rows)),
    }
    (out / LOG).write_text(json.dumps(log, indent=1) + "\n")
    write_vision_card(out, model.config, log)
    print(json.dumps(log["pass_rates"], indent=1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the embedded vision-language model anew; a few CPU minutes.")
    parser.add_argument(
        "--out", type=Path, default=vision_path(), help="directory to write (default: inside the package)"
    )
    main(parser.parse_args().out, Plan())
