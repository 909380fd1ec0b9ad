"""Prompts that show a context without its question, and prompts that hand a Solver an analysis of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from policydist.errors import UsageError
from policydist.language import guided
from policydist.language.images import images_of, pieces
from policydist.language.judges import decode
from policydist.language.recipe import Setting
from policydist.language.types import Prompts, Rollouts

THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
BOXED = re.compile(r"\\boxed\{\s*[^\s}].*\}")
TAG = re.compile(
    r"<(/?(?:think|image|img|video|answer)\b[^<>]*|\|(?:image|vision|video)[^<>|]*\||(?:start|end)_of_image|image_soft_token)>",
    re.IGNORECASE,
)

ANALYSIS_PROMPT = (
    "{context}\n\nStudy the material above and write down everything in it that a question about it might need. Reason between "
    "<think> and </think> first, then give your analysis.\n"
)
SOLVER_PROMPT = (
    "{context}\n\n{question}\n\nAn expert has analysed the material; use the analysis if it helps.\n[analysis]\n{analysis}\n"
    "[end of analysis]\n\nReason between <think> and </think>, then give the final answer in \\boxed{{}}.\n"
)


@runtime_checkable
class ContextSource(Protocol):
    """Knows context and question of each prompt. Small worlds' prompt sources implement it themselves."""

    def analysis_prompts(self, prompts: Prompts, masked: bool) -> Prompts:
        """The same prompts as requests for an analysis, without the question if ``masked``."""
        ...

    def solver_prompts(self, analyses: Rollouts) -> Prompts:
        """One prompt an analysis, with the question and the analysis in it; items are the rows that answers are judged by."""
        ...

    def analysis_formats(self, analyses: Rollouts) -> Float[Tensor, " N"]:
        """1 where an analysis has the form asked for."""
        ...

    def answer_formats(self, answers: Rollouts) -> Float[Tensor, " N"]:
        """1 where an answer has the form asked for."""
        ...


def has_thought(text: str) -> bool:
    """Whether an analysis holds a closed think block; what follows it is free."""
    return THINK.search(text) is not None


def has_boxed_answer(text: str) -> bool:
    """Whether an answer is exactly one think block followed by a ``\\boxed{...}``."""
    if text.count("<think>") != 1 or text.count("</think>") != 1:
        return False
    found = THINK.match(text.strip())
    return found is not None and BOXED.search(text.strip(), found.end()) is not None


def neutral(text: str) -> str:
    """Think, answer and image tags in round brackets, so that whoever reads the text does not take them for its own."""
    return TAG.sub(r"(\1)", text)


def contains(text: str, question: str) -> bool:
    """Whether the question stands in the text; case and blanks do not matter."""
    return guided.same(question) in guided.same(text)


@dataclass(frozen=True)
class ContextText:
    """The text form of `ContextSource`: the columns ``context`` and ``question`` of a task's rows in two templates. A row's
    images are shown with both, where the context (or the question) marks them, else in front.

    Raises:
        UsageError: for a row without one of the columns, whose question stands in the masked prompt, or that marks places for
            other images than it has; it names the row.
    """

    rows: Sequence[Mapping[str, Any]]
    tokenizer: Any
    analysis_prompt: str = ANALYSIS_PROMPT
    solver_prompt: str = SOLVER_PROMPT
    masked: bool = True

    def __post_init__(self) -> None:
        guided.check_template("doge: analysis_prompt", self.analysis_prompt, ("context",))
        guided.check_template("doge: solver_prompt", self.solver_prompt, ("context", "question", "analysis"))
        if "{analysis}" not in self.solver_prompt or "{question}" not in self.solver_prompt:
            raise UsageError("doge: solver_prompt must show the Solver {question} and {analysis}")
        for number, row in enumerate(self.rows):
            self.check(number, row)

    def check(self, number: int, row: Mapping[str, Any]) -> None:
        for column in ("context", "question"):
            text = row.get(column)
            if not isinstance(text, str) or not text.strip():
                raise UsageError(
                    f"doge: row {number} has no text in column {column!r} (it has {', '.join(map(str, row))}); the question "
                    "must stand apart from its context, so that it can be hidden"
                )
        count = len(images_of(row, f"doge: row {number}"))
        if count:
            solving = self.solver_prompt.format(context=row["context"], question=row["question"], analysis="")
            for name, text in (("analysis", self.analysis(row, self.masked)), ("Solver's", solving)):
                pieces(text, count, f"doge: row {number}, {name} prompt")
        if self.masked and contains(self.analysis(row, True), row["question"]):
            raise UsageError(
                f"doge: the masked prompt of row {number} still holds its question {row['question'][:60]!r}; take it out of "
                "the context (or set knobs.mask=false)"
            )

    def analysis(self, row: Mapping[str, Any], masked: bool) -> str:
        """The request for an analysis."""
        shown = row["context"] if masked else f"{row['context']}\n\n{row['question']}"
        return self.analysis_prompt.format(context=shown)

    def analysis_prompts(self, prompts: Prompts, masked: bool) -> Prompts:
        texts = [guided.with_question(item["prompt"], self.analysis(item, masked)) for item in prompts.items]
        return guided.encode(prompts, texts, self.tokenizer)

    def solver_prompts(self, analyses: Rollouts) -> Prompts:
        items: list[Mapping[str, Any]] = []
        for text, row in zip(decode(analyses, self.tokenizer), analyses.items, strict=True):
            shown = self.solver_prompt.format(
                context=row["context"], question=row["question"], analysis=neutral(text).strip()
            )
            items.append({**row, "prompt": guided.with_question(row["prompt"], shown)})
        ones = torch.ones(len(analyses), dtype=torch.long)
        plain = Prompts(analyses.prompt_ids, analyses.prompt_mask, ones, analyses.index.cpu(), tuple(items))
        return guided.encode(plain, [item["prompt"] for item in items], self.tokenizer)

    def analysis_formats(self, analyses: Rollouts) -> Float[Tensor, " N"]:
        return self.marks(analyses, has_thought)

    def answer_formats(self, answers: Rollouts) -> Float[Tensor, " N"]:
        return self.marks(answers, has_boxed_answer)

    def marks(self, rollouts: Rollouts, rule: Any) -> Float[Tensor, " N"]:
        texts = decode(rollouts, self.tokenizer)
        return torch.tensor([float(rule(text)) for text in texts], device=rollouts.response_ids.device)


def find_contexts(setting: Setting, analysis_prompt: str, solver_prompt: str, masked: bool) -> ContextSource:
    """The source's own (a small world's), or the text form of a task's rows.

    Raises:
        UsageError: for a task without text, or rows that `ContextText` refuses.
    """
    source: Any = setting.source
    if isinstance(source, ContextSource):
        return source
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise UsageError("doge hides the question of a text; give it a task whose rows have a context and a question")
    return ContextText(source.rows, tokenizer, analysis_prompt, solver_prompt, masked)
