"""Revision: which criteria a response meets, and the prompt that asks the policy to mend what it missed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.language import guided
from policydist.language.images import unmarked
from policydist.language.judges import decode
from policydist.language.recipe import Setting
from policydist.language.types import Prompts, Rollouts

FIELDS = ("instruction", "met", "unmet", "unclear", "draft")
"""What a template may name."""


@dataclass(frozen=True)
class Item:
    """One criterion and how a response fared: met, not met, or unclear (None)."""

    text: str
    weight: float
    met: bool | None


@runtime_checkable
class Reviser(Protocol):
    """Knows which criteria a response meets, and asks for a better one. Small worlds' sources implement it themselves."""

    def met(self, rollouts: Rollouts) -> Int[Tensor, " N"]:
        """How many criteria each response meets."""
        ...

    def revision_prompts(self, drafts: Rollouts, diagnosis: bool) -> Prompts:
        """One prompt a draft that asks for its revision, rows and items being the draft's own question's."""
        ...


def build_hindsight_prompt(instruction: str, draft: str, items: Sequence[Item], diagnosis: bool = True) -> str:
    """The request for a revision: the instruction, what the draft meets, what it misses, the draft. Our own wording of the
    released prompt's sections, in their order."""
    parts = [
        "Revise the answer below. Keep what already meets its requirement, mend what does not, and add no new facts.",
        f"Instruction:\n{instruction}",
    ]
    if diagnosis:
        for title, verdict in (("met", True), ("not met", False), ("that could not be judged", None)):
            lines = [f"- {item.text} (weight {item.weight:g})" for item in items if item.met is verdict]
            if lines or verdict is not None:
                parts.append("\n".join([f"Requirements {title}:", *(lines or ["- none"])]))
    return "\n\n".join([*parts, f"Answer to revise:\n{draft}", "Write the revised answer and nothing else."]) + "\n"


Verdicts = Callable[[str, Mapping[str, Any]], Sequence[Item]]


@dataclass(frozen=True)
class TextReviser:
    """The text form of `Reviser`: criteria by ``verdicts``, prompts through the tokenizer."""

    tokenizer: Any
    verdicts: Verdicts
    template: str | None = None

    def items(self, rollouts: Rollouts) -> list[tuple[str, Sequence[Item]]]:
        """Each response's text and its criteria."""
        texts = decode(rollouts, self.tokenizer)
        return [(text, self.verdicts(text, row)) for text, row in zip(texts, rollouts.items, strict=True)]

    def met(self, rollouts: Rollouts) -> Int[Tensor, " N"]:
        return torch.tensor([sum(item.met is True for item in items) for _, items in self.items(rollouts)])

    def revision_prompts(self, drafts: Rollouts, diagnosis: bool) -> Prompts:
        asked = []
        for (text, items), row in zip(self.items(drafts), drafts.items, strict=True):
            question = self.write(guided.question_of(row["prompt"]), unmarked(text), items, diagnosis)
            asked.append(guided.with_question(row["prompt"], question))
        ones = torch.ones(len(drafts), dtype=torch.long)
        plain = Prompts(drafts.prompt_ids, drafts.prompt_mask, ones, drafts.index.cpu(), drafts.items)
        return guided.encode(plain, asked, self.tokenizer)

    def write(self, instruction: str, draft: str, items: Sequence[Item], diagnosis: bool) -> str:
        """The revision prompt of one draft."""
        if self.template is None:
            return build_hindsight_prompt(instruction, draft, items, diagnosis)
        shown = items if diagnosis else ()
        lists = {
            name: ", ".join(item.text for item in shown if item.met is verdict)
            for name, verdict in (("met", True), ("unmet", False), ("unclear", None))
        }
        return self.template.format(instruction=instruction, draft=draft, **lists)


def rubric_items(column: str) -> Verdicts:
    """Verdicts by the rubric that stands in the row; a penalty counts as met when it does not apply."""
    from policydist.language.tasks.rubrics import check_rubric, rubric_verdicts

    def verdicts(response: str, row: Mapping[str, Any]) -> list[Item]:
        criteria = check_rubric(row[column])
        return [
            Item(c.words, c.weight, holds) if c.weight >= 0 else Item(f"avoid: {c.words}", -c.weight, not holds)
            for c, holds in zip(criteria, rubric_verdicts(response, criteria), strict=True)
        ]

    return verdicts


def given_items(spec: str) -> Verdicts:
    """Verdicts by a user's ``module:function``, checked."""
    from policydist.language.tasks.rewards import load_function

    function = load_function(spec)

    def verdicts(response: str, row: Mapping[str, Any]) -> list[Item]:
        try:
            return [
                Item(str(text), float(weight), None if met is None else bool(met))
                for text, weight, met in function(response, row)
            ]
        except (TypeError, ValueError) as error:
            raise PolicydistError(
                f"herl: {spec} must return (text, weight, met or None) for each criterion: {error}"
            ) from error

    return verdicts


def find_reviser(setting: Setting, column: str, spec: str | None, template: str | None) -> Reviser:
    """The source's own reviser (a small world's), or one for text: criteria in ``column`` of the rows, or by the
    function ``spec``.

    Raises:
        UsageError: for a task without text, or, without ``spec``, a row without criteria.
    """
    source: Any = setting.source
    if isinstance(source, Reviser):
        return source
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise UsageError("herl revises text; give it a task whose rows have a rubric")
    if spec is not None:
        return TextReviser(tokenizer, given_items(spec), template)
    from policydist.language.tasks.rubrics import check_rubric

    for number, row in enumerate(source.rows):
        try:
            check_rubric(row.get(column))
        except PolicydistError as error:
            raise UsageError(
                f"herl: row {number} has no usable criteria in column {column!r} ({error}); set "
                "knobs.rubric_column, or knobs.verdicts to a module:function that judges criterion by criterion"
            ) from error
    return TextReviser(tokenizer, rubric_items(column), template)
