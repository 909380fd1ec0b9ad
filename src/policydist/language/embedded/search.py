"""Train the embedded model that can search: ``python -m policydist.language.embedded.search [--out DIR]``.

A still smaller relative of `embedded`, with one token for each tag, learns from worked traces of two-hop questions
(`tasks.twohop`) about people that are drawn anew in every batch: nothing can be remembered, names must be copied from what a
search finds. The last steps show traces that go wrong (`SLIPS`): answers after one look-up, answers without any, searches for
the wrong relation. Some traces stop to doubt (`hints`) and then go on rightly. Observations carry no loss.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from policydist.language.embedded import search_path
from policydist.language.embedded.tokenizer import build_tokenizer
from policydist.language.embedded.train import Plan as Shared
from policydist.language.embedded.train import descend, save
from policydist.language.hints import HINTS
from policydist.language.tasks.twohop import FIRST, NAMES, SECOND, fact
from policydist.runs.seeds import derive, numpy_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

LOG = "training_log.json"
TEST_ROWS = 256
TAGS = ("<search>", "</search>", "<answer>", "</answer>", "<information>", "</information>", "<think>", "</think>")
SLIPS = {"guess": 0.15, "relation": 0.1, "early": 0.45}
"""Chances, in the last stage, of an answer without a search, a first search for the wrong relation, and an answer after one
look-up."""
DOUBT = 0.15
"""Chance of a hint before an action, in all stages; of a hint in place of an early answer in the last."""

Piece = tuple[str, bool]
"""A part of a trace, and whether the policy wrote it."""


@dataclass(frozen=True)
class Plan:
    """How long, how fast and from which seed. Every search shows one document."""

    clean_steps: int = 360
    slip_steps: int = 50
    batch: int = 32
    threads: int = 1
    seed: int = 0


def build_model(tokenizer: Any) -> Qwen2ForCausalLM:
    """A Qwen2 of three layers and some 0.1 million parameters, randomly initialised."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return Qwen2ForCausalLM(config)


def trace(rng: np.random.Generator, documents: int, slips: bool) -> tuple[str, list[Piece]]:
    """A question about names drawn at random, and a trace that answers it, rightly unless it slips."""
    person, relative, other, thing, *rest = (str(NAMES[i]) for i in rng.permutation(len(NAMES))[:10])
    relation, belonging = str(rng.choice(FIRST)), str(rng.choice(SECOND))
    chance = SLIPS if slips else dict.fromkeys(SLIPS, 0.0)
    pieces: list[Piece] = []

    def doubt(probability: float) -> bool:
        if rng.random() >= probability:
            return False
        pieces.append((HINTS[rng.integers(len(HINTS))], True))
        return True

    def search(word: str, name: str, relations: tuple[str, ...], found: str) -> None:
        pieces.append((f"<search>{word} of {name}</search>", True))
        others = [r for r in relations if r != word]
        lines = [fact(word, name, found)]
        for k in range(documents - 1):
            if relations is SECOND and rng.random() < 0.5:  # a search for a relative also finds whose relative that is
                lines.append(fact(str(rng.choice(FIRST)), rest[k], name))
            else:
                lines.append(fact(str(rng.choice(others)), name, rest[k]))
        pieces.append(("<information>" + "\n".join(lines) + "</information>", False))

    prompt = f"{belonging} of {relation} of {person}?"
    if rng.random() < chance["guess"] and not doubt(DOUBT):
        return prompt, [(f"<answer>{thing}</answer>", True)]
    if not slips:
        doubt(DOUBT / 2)
    if rng.random() < chance["relation"]:
        relation, relative = str(rng.choice([r for r in FIRST if r != relation])), other
    search(relation, person, FIRST, relative)
    if rng.random() < chance["early"] and not doubt(DOUBT):
        return prompt, [*pieces, (f"<answer>{relative}</answer>", True)]
    if not slips:
        doubt(DOUBT)
    search(belonging, relative, SECOND, thing)
    return prompt, [*pieces, (f"<answer>{thing}</answer>", True)]


def encode(tokenizer: Any, prompt: str, pieces: list[Piece]) -> tuple[list[int], list[bool]]:
    """Token ids of prompt and trace, and which of them carry loss."""
    ids = list(tokenizer(prompt)["input_ids"])
    own = [False] * len(ids)
    for text, written in pieces:
        tokens = tokenizer(text)["input_ids"]
        ids += tokens
        own += [written] * len(tokens)
    return ids, own


def loss_of(model: Any, rows: list[tuple[list[int], list[bool]]], pad: int) -> torch.Tensor:
    """Mean negative log-probability of the tokens that the policy is to write."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [pad] * (width - len(row)) for row, _ in rows])
    own = torch.tensor([flags + [False] * (width - len(flags)) for _, flags in rows])[:, 1:]
    hidden = model.model(ids).last_hidden_state[:, :-1][own]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[:, 1:][own])


def train(plan: Plan) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase, list[dict[str, float]]]:
    """Run the plan. Equal plans give equal weights on one kind of machine: the thread count is part of the plan."""
    torch.set_num_threads(plan.threads)
    torch.manual_seed(derive(plan.seed, "embedded-search", "weights"))
    rng = numpy_generator(plan.seed, "embedded-search", "traces")
    tokenizer: Any = build_tokenizer()
    tokenizer.add_tokens(list(TAGS))
    model = build_model(tokenizer)
    shared = Shared(base_steps=plan.clean_steps, hard_steps=0, slip_steps=plan.slip_steps)
    losses = (
        loss_of(model, [encode(tokenizer, *trace(rng, 1, slips)) for _ in range(plan.batch)], tokenizer.pad_token_id)
        for slips in [False] * plan.clean_steps + [True] * plan.slip_steps
    )
    return model, tokenizer, descend(model, losses, shared, 50)


def main(out: Path, plan: Plan) -> None:
    """Train, measure episodes on held-out questions, and write model, tokenizer and log to ``out``."""
    from policydist.language.measure import evaluate

    start = time.process_time()
    model, tokenizer, curve = train(plan)
    log = save(out, model, tokenizer, plan, curve, start)
    log |= {
        "slips": SLIPS,
        "doubt": DOUBT,
        "held_out": evaluate(out, rows=TEST_ROWS, samples=1, config={"method": "rexrag", "task": {"name": "two-hop"}}),
    }
    (out / LOG).write_text(json.dumps(log, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the embedded searching model anew; a few CPU minutes.")
    parser.add_argument(
        "--out", type=Path, default=search_path(), help="directory to write (default: inside the package)"
    )
    main(parser.parse_args().out, Plan())
