"""Small worlds of text: a transformer of two layers that has just learnt a format, on real prompts with a real tokenizer.

A format is a `Corpus`: endless batches of (prompt, answer). The transformer learns it by next tokens within a minute of one core,
once for all arms of a unit (`policy`); tasks in that format are then trained by the methods' own recipes, as any text is.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch

from policydist.language.embedded.tokenizer import build_tokenizer
from policydist.language.embedded.train import Plan, build_model, descend, loss_of
from policydist.language.evaluate import Evaluation
from policydist.language.judges import TaskJudge
from policydist.language.prompts import TextPrompts
from policydist.language.recipe import Setting
from policydist.language.tasks.base import Row, Task
from policydist.language.types import Sampling
from policydist.runs.seeds import derive, numpy_generator

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

    from policydist.language.policies.hf import TransformersPolicy

Pairs = Sequence[tuple[str, str]]
Corpus = Callable[[np.random.Generator], Iterator[Pairs]]
WIDTH, LAYERS = 64, 2
LONGEST = 256
"""Most tokens of a prompt."""


@lru_cache(maxsize=1)
def pretrained(corpus: Corpus, steps: int, seed: int) -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    """A new transformer after ``steps`` batches of the corpus; only answers carry loss. The last one made is kept."""
    plan = Plan(
        base_steps=steps, hard_steps=0, slip_steps=0, decay_steps=max(1, steps // 3), adam_lr=0.01, warmup=20, seed=seed
    )
    tokenizer = build_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "pretrained", "weights"))
        model = build_model(tokenizer, WIDTH, LAYERS)
    batches = islice(corpus(numpy_generator(seed, "pretrained", "corpus")), steps)
    descend(model, (loss_of(model, tokenizer, pairs) for pairs in batches), plan, every=steps + 1)  # prints no curve
    return model, tokenizer


def policy(corpus: Corpus, steps: int, seed: int) -> TransformersPolicy:
    """A policy with weights of its own, equal for equal arguments: what is learnt later stays with it."""
    from policydist.language.policies.hf import TransformersPolicy

    model, tokenizer = pretrained(corpus, steps, seed)
    return TransformersPolicy(copy.deepcopy(model), tokenizer)


@dataclass(frozen=True)
class TextWorld:
    """A policy and the task that it is to be trained on."""

    policy: TransformersPolicy
    task: Task

    def setting(self, prompts: int, samples: int) -> Setting:
        """What a method's recipe is built on."""
        source = TextPrompts(self.task.train, self.policy.tokenizer, LONGEST)
        return Setting(source, self.judge, Sampling(self.task.max_new_tokens), prompts, samples)

    @property
    def judge(self) -> TaskJudge:
        return TaskJudge(self.task, self.policy.tokenizer)

    def score(self, samples: int, rows: Sequence[Row] | None = None) -> float:
        """Mean of the task's first grader over ``samples`` responses to each of the ``rows``, by default the test rows."""
        rows = self.task.test if rows is None else rows
        source = TextPrompts(rows, self.policy.tokenizer, LONGEST)
        component = f"reward/{next(iter(self.task.graders))}"
        measured = Evaluation(
            source, self.judge, Sampling(self.task.max_new_tokens), len(rows), samples, component=component
        )
        return measured.measure(self.policy)["eval/accuracy"]
