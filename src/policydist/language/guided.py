"""Guided rows: responses drawn under one prompt and trained under another, or given instead of drawn; and what guides.

A guided sampler draws with `Context.generate` under a steered prompt, gives the rows back their plain prompt
(`swap_prompts`), tags them (`tag`) and joins them to their groups (`join`, `replace_rows`). Old log-probabilities of such
rows are always those under the prompt that stands in the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.language import origins
from policydist.language.images import unmarked
from policydist.language.judges import encode_prompts, pad_id
from policydist.language.recipe import Context, Setting
from policydist.language.types import Generation, Policy, Prompts, Rollouts
from policydist.language.world import to_rollouts

ANY_LENGTH = 1 << 40


@runtime_checkable
class Steering(Protocol):
    """Puts solved examples in front of prompts. Small worlds' prompt sources implement it themselves."""

    def steer(self, prompts: Prompts, generator: torch.Generator) -> Prompts:
        """The same prompts, in the same order, under guidance."""
        ...


@runtime_checkable
class ExpertSource(Protocol):
    """Knows an expert's response to each prompt."""

    def experts(self, prompts: Prompts) -> Sequence[Int[Tensor, " L"] | None]:
        """Token ids of one response a prompt, end token included; None where there is none."""
        ...


# --- rows ------------------------------------------------------------------------------------------------------------


def swap_prompts(rollouts: Rollouts, prompts: Prompts, owner: Int[Tensor, " N"]) -> Rollouts:
    """The same responses as answers to ``prompts[owner]``; what was known about them under the old prompt is dropped.

    ``behavior_logprobs`` stay: they are facts about how the tokens were drawn. Groups are not touched.
    """
    owner = owner.to(prompts.ids.device)
    device = rollouts.response_ids.device
    items = tuple(prompts.items[i] for i in owner.tolist()) if prompts.items else ()
    return replace(
        rollouts,
        prompt_ids=prompts.ids[owner].to(device),
        prompt_mask=prompts.mask[owner].to(device),
        index=prompts.index[owner].to(device),
        old_logprobs=None,
        items=items,
    )


def tag(rollouts: Rollouts, code: int) -> Rollouts:
    """Mark the rows' origin; off-policy rows are also marked ``auxiliary``, so that the logged reward is the policy's own."""
    marked = origins.mark(rollouts, code)
    flags = torch.full((len(rollouts),), code in origins.OFF_POLICY, device=rollouts.group.device)
    return replace(marked, extras={**marked.extras, "auxiliary": flags})


def join(main: Rollouts, added: Rollouts, ctx: Context) -> Rollouts:
    """Append rows to their groups; if ``main`` knows its old log-probabilities, the added rows' are computed under the
    prompts stored in them."""
    if len(added) == 0:
        return main
    known = None if main.old_logprobs is None else ctx.score(added).logprobs
    return Rollouts.cat([main, replace(added, old_logprobs=known)])


def by_group(rollouts: Rollouts) -> Rollouts:
    """The rows sorted by group, so that mini-batches hold added rows beside their own group's."""
    return rollouts.select(torch.argsort(rollouts.group, stable=True))


def replace_rows(rollouts: Rollouts, slots: Int[Tensor, " K"], rows: Rollouts, ctx: Context) -> Rollouts:
    """Put ``rows`` in the place of rows ``slots``: count and order stay, and each new row takes over its slot's group.

    Raises:
        PolicydistError: if a slot is named twice, or slots and rows differ in number.
    """
    if len(slots) != len(rows) or len(slots.unique()) != len(slots):
        raise PolicydistError(f"{len(rows)} rows cannot replace slots {slots.tolist()}: one distinct slot a row")
    slots = slots.to(rollouts.group.device)
    moved = replace(rows, group=rollouts.group[slots])
    order = torch.arange(len(rollouts), device=slots.device)
    order[slots] = len(rollouts) + torch.arange(len(slots), device=slots.device)
    return join(rollouts, moved, ctx).select(order)


def given_rows(prompts: Prompts, responses: Sequence[Int[Tensor, " L"]], pad: int, device: torch.device) -> Rollouts:
    """Responses that were given, one a prompt, as rows of groups 0, 1, …; their behaviour log-probabilities are 0."""
    ids = torch.nn.utils.rnn.pad_sequence(list(responses), batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(response) for response in responses])
    mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
    once = replace(prompts, samples=torch.ones_like(prompts.samples))
    return to_rollouts(once, Generation(ids, mask, torch.zeros(ids.shape))).to(device)


def fitting(prompts: Prompts, policy: Policy, new_tokens: int) -> Bool[Tensor, " Q"]:
    """Which prompts leave room for ``new_tokens`` in the policy's context, if it has a limit."""
    limit = getattr(policy, "context", None)
    lengths = prompts.mask.sum(1)
    return torch.ones_like(lengths, dtype=torch.bool) if limit is None else lengths + new_tokens <= limit


# --- prompts ---------------------------------------------------------------------------------------------------------


def question_of(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """The text of a prompt: the string itself, or the last user message of a chat."""
    if isinstance(prompt, str):
        return prompt
    users = [message["content"] for message in prompt if message["role"] == "user"]
    if not users:
        raise UsageError("a chat prompt without a user message cannot be steered")
    return users[-1]


def with_question(prompt: str | Sequence[Mapping[str, str]], text: str) -> str | list[dict[str, str]]:
    """The prompt with `question_of` replaced by ``text``."""
    if isinstance(prompt, str):
        return text
    last = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=-1)
    return [{**message, "content": text} if i == last else dict(message) for i, message in enumerate(prompt)]


def encode(prompts: Prompts, texts: Sequence[Any], tokenizer: Any) -> Prompts:
    """The same prompts with the given texts (or chats) as what the policy reads, beside their rows' images."""
    items = prompts.items or [{}] * len(texts)
    rows = [{**item, "prompt": text} for item, text in zip(items, texts, strict=True)]
    ids, mask = encode_prompts(rows, tokenizer, ANY_LENGTH)
    return replace(prompts, ids=ids, mask=mask)


def check_template(name: str, template: str, fields: Sequence[str]) -> None:
    """Refuse a template that ``str.format`` cannot fill.

    Raises:
        UsageError: naming the template and the fields there are.
    """
    try:
        template.format(**dict.fromkeys(fields, ""))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join("{" + field + "}" for field in fields)
        raise UsageError(f"{name} {template!r} cannot be filled in; its fields are {known}") from error


# --- solved examples -------------------------------------------------------------------------------------------------

Match = Literal["random", "similarity", "best_reward"]


@dataclass(frozen=True)
class Example:
    """A question, an answer to it, and the answer's reward."""

    question: str
    answer: str
    reward: float = 1.0

    @property
    def key(self) -> str:
        return same(self.question)


def same(question: str) -> str:
    """Two questions are the same if this is: case and blanks do not matter."""
    return " ".join(question.casefold().split())


class SolvedExamples:
    """A pool of at most ``max_size`` solved examples, the oldest leaving first.

    ``match`` says which are drawn for a question: ``random`` ones (ICPO's default); the ones that share most words,
    Jaccard index at least ``threshold`` first (``similarity``, order reconstructed); those of highest reward
    (``best_reward``). An example of the question itself is never drawn.
    """

    def __init__(self, max_size: int = 75_000, match: Match = "random", threshold: float = 0.8) -> None:
        if max_size < 1:
            raise UsageError(f"the example pool's size is {max_size}; it must be at least 1")
        self.max_size, self.match, self.threshold = max_size, match, threshold
        self.examples: list[Example] = []

    def __len__(self) -> int:
        return len(self.examples)

    def add(self, question: str, answer: str, reward: float = 1.0) -> None:
        """Keep an example; beyond ``max_size`` the oldest is forgotten."""
        self.examples.append(Example(question, answer, reward))
        if len(self.examples) > self.max_size:
            del self.examples[0]

    def sample(self, question: str, count: int, generator: torch.Generator) -> list[Example]:
        """At most ``count`` distinct examples of other questions; fewer only if there are no more."""
        key, size = same(question), len(self.examples)
        if size and self.match == "random":
            quick = torch.randint(size, (4 * count + 8,), generator=generator).tolist()
            drawn = [i for i in dict.fromkeys(quick) if self.examples[i].key != key]
            if len(drawn) >= count:
                return [self.examples[i] for i in drawn[:count]]
        order = [self.examples[i] for i in torch.randperm(size, generator=generator).tolist()]
        usable = [example for example in order if example.key != key]
        if self.match == "similarity":
            usable.sort(key=lambda example: -self._similar(example, key))
        elif self.match == "best_reward":
            usable.sort(key=lambda example: -example.reward)
        return usable[:count]

    def _similar(self, example: Example, key: str) -> float:
        """The Jaccard index, all values from the threshold on counting as equal: among those the draw is random."""
        return min(jaccard(example.key, key), self.threshold)


def jaccard(one: str, two: str) -> float:
    """Shared words over all words of two texts, lower-cased; 0 for two empty texts."""
    first, second = set(one.lower().split()), set(two.lower().split())
    return len(first & second) / len(first | second) if first | second else 0.0


@dataclass(frozen=True)
class ExamplePrompts:
    """Writes ``count`` examples of the pool in front of each question: the text form of `Steering`.

    ``example`` and ``question`` are templates with the fields {question} and {answer}, and {question}.
    """

    pool: SolvedExamples
    tokenizer: Any
    count: int = 1
    example: str = "Question: {question}\nAnswer: {answer}\n\n"
    question: str = "Question: {question}\nAnswer:"

    def steer(self, prompts: Prompts, generator: torch.Generator) -> Prompts:
        return encode(
            prompts, [self.with_examples(item["prompt"], generator) for item in prompts.items], self.tokenizer
        )

    def with_examples(self, prompt: str | Sequence[Mapping[str, str]], generator: torch.Generator) -> Any:
        """One prompt with examples in front of its question.

        Raises:
            PolicydistError: if the pool holds nothing but the question itself.
        """
        text = question_of(prompt)
        examples = self.pool.sample(text, self.count, generator)
        if not examples:
            raise PolicydistError(f"the example pool holds nothing but the question itself ({text[:60]!r}); enlarge it")
        shown = "".join(self.example.format(question=unmarked(e.question), answer=unmarked(e.answer)) for e in examples)
        return with_question(prompt, shown + self.question.format(question=text))


# --- experts ---------------------------------------------------------------------------------------------------------

Absent = Literal["error", "skip"]


class ExpertColumn:
    """Expert responses in a column of the task's rows, tokenised once, with the end token.

    Rows without one, and ones longer than the longest response allowed, are errors; ``skip`` leaves their prompts
    without an expert instead.

    Raises:
        UsageError: naming the first such row and the mend, or that no row has an expert.
    """

    def __init__(self, setting: Setting, column: str, missing: Absent = "error", long: Absent = "error") -> None:
        source: Any = setting.source
        tokenizer = getattr(source, "tokenizer", None)
        if tokenizer is None:
            raise UsageError("expert responses are read from text; give the method a task with a column of them")
        limit = setting.sampling.max_new_tokens
        self.responses: list[Tensor | None] = []
        self.skipped = 0
        for index, row in enumerate(source.rows):
            text = row.get(column)
            if not isinstance(text, str) or not text.strip():
                if missing == "error":
                    raise UsageError(
                        f"row {index} has no expert response in column {column!r} (it has {', '.join(map(str, row))}); "
                        "set knobs.expert_column, or knobs.missing_expert=skip to train such prompts without one"
                    )
                self.responses.append(None)
                continue
            ids = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            if len(ids) > limit and long == "error":
                raise UsageError(
                    f"the expert response of row {index} has {len(ids)} tokens with its end, more than the {limit} of a "
                    "response; raise rollout.max_new_tokens, or set knobs.long_expert=skip"
                )
            self.responses.append(torch.tensor(ids) if len(ids) <= limit else None)
        if not any(response is not None for response in self.responses):
            raise UsageError(f"no row has an expert response of at most {limit} tokens in column {column!r}")
        self.skipped = sum(response is None for response in self.responses)
        self.pad = pad_id(tokenizer)

    def experts(self, prompts: Prompts) -> Sequence[Int[Tensor, " L"] | None]:
        return [self.responses[i] for i in prompts.index.tolist()]


def find_experts(setting: Setting, column: str, missing: Absent, long: Absent) -> ExpertSource:
    """The source's own experts (a small world's), or those of a data column."""
    source = setting.source
    return source if isinstance(source, ExpertSource) else ExpertColumn(setting, column, missing, long)


def expert_rows(source: ExpertSource, prompts: Prompts, ctx: Context) -> Rollouts | None:
    """The experts' responses as rows of their prompts' groups, tagged `origins.EXPERT`; None if no prompt has one."""
    found = source.experts(prompts)
    present = [q for q, response in enumerate(found) if response is not None]
    if not present:
        return None
    kept = torch.tensor(present)
    responses = [response for response in found if response is not None]
    rows = given_rows(prompts.select(kept), responses, getattr(source, "pad", 0), ctx.policy.device)
    return tag(replace(rows, group=kept.to(rows.group.device)), origins.EXPERT)
