"""Responses of several turns: the policy acts, an environment answers, and the policy goes on behind both.

A turn ends with an action: ``<search>query</search>`` or ``<answer>text</answer>``. What a search finds is written behind it as
an observation (origin `TOOL`, outside the loss) and the next turn is drawn behind everything so far. A row stays one flat
response; the log-probability of every token of the policy is the one it was drawn with.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.language import origins
from policydist.language.guided import check_template, encode, question_of, with_question
from policydist.language.judges import pad_id
from policydist.language.recipe import Context, Judge
from policydist.language.retrieval import Retriever
from policydist.language.types import Generation, Prompts, Rollouts, Sampling
from policydist.language.world import to_rollouts

ACTION = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
TAG = re.compile(r"</?(?:search|answer|information)>")
CLOSING = ("</search>", "</answer>")
INVALID = "\nThat was neither a search nor an answer. Write one of them between its tags.\n"
INSTRUCTION = (
    "Answer the question. You may first look things up: write <search>query</search>, and what was found is shown between "
    "<information> and </information>. Search as often as you need. When you know the answer, write it alone and briefly "
    "between <answer> and </answer>.\nQuestion: {question}\n"
)


@dataclass(frozen=True)
class Tooling:
    """``max_turns`` actions an episode; ``top_k`` documents a search, at most ``observation_tokens`` tokens of them; the
    templates ``observation`` ({documents}) and ``instruction`` ({question}; null leaves the prompt as it is); ``invalid`` is
    written behind a turn without an action."""

    max_turns: int = 5
    top_k: int = 3
    observation_tokens: int = 500
    observation: str = "<information>{documents}</information>"
    instruction: str | None = None
    invalid: str = INVALID

    def __post_init__(self) -> None:
        for name in ("max_turns", "top_k", "observation_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_template("observation", self.observation, ("documents",))
        if self.observation.count("{documents}") != 1:
            raise UsageError(f"observation {self.observation!r} must name {{documents}} once")
        if self.instruction is not None:
            check_template("instruction", self.instruction, ("question",))
        refuse_actions("invalid", self.invalid)


def refuse_actions(name: str, text: str) -> None:
    """What a method writes into a response must not look like the policy's action.

    Raises:
        UsageError: for a text with an action's tag.
    """
    if re.search(r"</?(?:search|answer)>", text):
        raise UsageError(f"{name} {text[:60]!r} holds an action's tag; only the policy may act")


@dataclass
class Episode:
    """One row on its way: its prompt, its tokens with origin and log-probability, where its answer stands, its data."""

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    origin: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: int = 0
    open: bool = True
    answer: tuple[int, int] = (-1, -1)
    item: Mapping[str, Any] = field(default_factory=dict)

    def add(self, ids: Sequence[int], origin: int, logprobs: Sequence[float] | None = None) -> None:
        self.ids += ids
        self.origin += [origin] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.ids)


@dataclass(frozen=True)
class Action:
    """What a turn came to: the number of its tokens that count, where an answer's tokens begin, and its content."""

    kind: Literal["search", "answer", "none"]
    tokens: int
    start: int = 0
    content: str = ""


def parse_action(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> Action:
    """The first whole action of a turn. Tokens behind it are dropped; one that straddles its end stays whole, one that
    straddles its beginning belongs to it."""
    text = decode(tokens)
    found = ACTION.search(text)
    if found is None:
        return Action("none", len(tokens))
    places = range(len(tokens) + 1)
    end = bisect_left(places, found.end(), key=lambda n: len(decode(tokens[:n])))
    start = bisect_right(places, found.start(), key=lambda n: len(decode(tokens[:n]))) - 1
    kind: Literal["search", "answer"] = "search" if found[1] == "search" else "answer"
    return Action(kind, end, start, found[2].strip())


class SearchEpisodes:
    """Episodes of a language model with a search engine. A turn has at most ``sampling.max_new_tokens`` tokens.

    An episode ends with an answer, after ``max_turns`` turns, or when the model's context has no room for another turn.
    Observations are cut to ``observation_tokens`` and to what the context leaves beside a turn. Action tags and special
    tokens in documents are removed: nobody but the policy acts.
    """

    def __init__(
        self, tokenizer: Any, retriever: Retriever, tooling: Tooling, max_prompt_tokens: int = 1 << 20
    ) -> None:
        self.tokenizer, self.retriever, self.tooling = tokenizer, retriever, tooling
        self.pad = pad_id(tokenizer)
        self.max_prompt_tokens = max_prompt_tokens
        head, tail = tooling.observation.split("{documents}")
        self.head, self.tail = self.tokens(head), self.tokens(tail)
        self.invalid = self.tokens(tooling.invalid)
        closing = [self.tokens(tag) for tag in CLOSING]
        self.stop = tuple(ids[0] for ids in closing if len(ids) == 1)

    @property
    def max_turns(self) -> int:
        return self.tooling.max_turns

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def play(self, prompts: Prompts, sampling: Sampling, ctx: Context) -> Rollouts:
        """See `policydist.language.recipe.Episodes`."""
        prompts = self.instructed(prompts)
        count = int(prompts.samples.sum())
        blank = torch.zeros((count, 0))
        rows = to_rollouts(prompts, Generation(blank.long(), blank.bool(), blank))
        first = ctx.generate(prompts, self.turn_sampling(sampling), "turn 1")
        items = rows.items or [{}] * count
        told = zip(rows.prompt_ids, rows.prompt_mask, items, strict=True)
        episodes = [Episode(own[real].tolist(), item=item) for own, real, item in told]
        self.take(episodes, first, ctx, sampling)
        self.go_on(episodes, sampling, ctx, "turn")
        return self.written(rows, episodes, sampling).to(first.response_ids.device)

    def resume(self, rollouts: Rollouts, sampling: Sampling, ctx: Context) -> Rollouts:
        """See `policydist.language.recipe.Episodes`."""
        origin, rows = origins.of(rollouts), rollouts.to("cpu")
        episodes = []
        for i in range(len(rows)):
            length = int(rows.lengths[i])
            episodes.append(
                Episode(
                    rows.prompt_ids[i][rows.prompt_mask[i]].tolist(), rows.response_ids[i, :length].tolist(),
                    origin[i, :length].tolist(), rows.behavior_logprobs[i, :length].tolist(),
                    int(rows.extras["turns"][i]), item=rows.items[i] if rows.items else {},
                )
            )  # fmt: skip
        self.go_on(episodes, sampling, ctx, "resumed turn")
        ctx.responses += len(rows)
        return self.written(rows, episodes, sampling).to(rollouts.response_ids.device)

    def failure_logprobs(self, rollouts: Rollouts, rows: Int[Tensor, " K"], starts: Int[Tensor, " K"]) -> Tensor:
        """See `policydist.language.recipe.Episodes`: of a language model it is not known."""
        return torch.zeros(len(rows), device=rollouts.response_ids.device)

    def instructed(self, prompts: Prompts) -> Prompts:
        """The prompts with the instruction around their questions."""
        template = self.tooling.instruction
        if template is None:
            return prompts
        texts = [
            with_question(item["prompt"], template.format(question=question_of(item["prompt"])))
            for item in prompts.items
        ]
        return encode(prompts, texts, self.tokenizer)

    def turn_sampling(self, sampling: Sampling) -> Sampling:
        return replace(sampling, stop=(*sampling.stop, *self.stop))

    def go_on(self, episodes: list[Episode], sampling: Sampling, ctx: Context, stage: str) -> None:
        """Turn after turn of the open episodes until none is left."""
        limit, counted = getattr(ctx.policy, "context", None), ctx.responses
        turn = 1
        while True:
            for episode in episodes:
                full = limit is not None and episode.length + sampling.max_new_tokens > limit
                episode.open = episode.open and episode.turns < self.max_turns and not full
            going = [episode for episode in episodes if episode.open]
            if not going:
                ctx.responses = counted  # a further turn is no further response
                return
            turn += 1
            drawn = ctx.generate(self.prompts_of(going), self.turn_sampling(sampling), f"{stage} {turn}")
            self.take(going, drawn, ctx, sampling)

    def prompts_of(self, episodes: Sequence[Episode]) -> Prompts:
        """Everything so far, one prompt an episode."""
        width = max(episode.length for episode in episodes)
        ids = torch.full((len(episodes), width), self.pad)
        for row, episode in enumerate(episodes):
            ids[row, width - episode.length :] = torch.tensor(episode.prompt + episode.ids)
        lengths = torch.tensor([episode.length for episode in episodes])
        mask = torch.arange(width) >= (width - lengths).unsqueeze(1)
        number = torch.arange(len(episodes))
        return Prompts(ids, mask, torch.ones_like(number), number, tuple(episode.item for episode in episodes))

    def take(self, episodes: Sequence[Episode], drawn: Rollouts, ctx: Context, sampling: Sampling) -> None:
        """Read one turn of every episode, and write what the environment answers."""
        asked: list[tuple[Episode, str]] = []
        lengths, ids, logprobs = drawn.lengths.tolist(), drawn.response_ids.tolist(), drawn.behavior_logprobs.tolist()
        for episode, length, own, values in zip(episodes, lengths, ids, logprobs, strict=True):
            action = parse_action(own[:length], self.decode)
            begin = len(episode.ids)
            episode.add(own[: action.tokens], origins.MODEL, values[: action.tokens])
            episode.turns += 1
            if action.kind == "answer":
                episode.answer, episode.open = (begin + action.start, len(episode.ids)), False
            elif episode.turns == self.max_turns:
                episode.open = False
            elif action.kind == "search":
                asked.append((episode, action.content))
            else:
                self.observe(episode, [], self.invalid, [], ctx, sampling)
        queries = [query for _, query in asked]
        ctx.log("tools/searches", len(queries) + ctx.metrics.get("tools/searches", 0.0))
        for (episode, _), texts in zip(asked, self.search(queries, ctx), strict=True):
            found = "\n".join(self.harmless(text) for text in texts)
            self.observe(episode, self.head, self.tokens(found), self.tail, ctx, sampling)

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return text

    def search(self, queries: Sequence[str], ctx: Context) -> list[list[str]]:
        """Each process asks its own part of the queries."""
        share = ctx.world.share(len(queries))
        mine = self.retriever.search(queries[share], self.tooling.top_k) if queries[share] else []
        return [texts for part in ctx.world.gather(mine) for texts in part]

    def harmless(self, text: str) -> str:
        """A document without action tags and special tokens."""
        previous = None
        while previous != text:  # what is left after a removal could form a tag again
            previous, text = text, TAG.sub("", text)
            for token in self.tokenizer.all_special_tokens:
                text = text.replace(token, "")
        return text

    def observe(
        self, episode: Episode, head: list[int], body: list[int], tail: list[int], ctx: Context, sampling: Sampling
    ) -> None:
        """Write an observation, cut to the room there is; without room for its frame the episode ends."""
        limit = getattr(ctx.policy, "context", None)
        room = self.tooling.observation_tokens
        if limit is not None:
            room = min(room, limit - episode.length - sampling.max_new_tokens - len(head) - len(tail))
        if room < 0 or (room == 0 and body):
            episode.open = False
            ctx.log("tools/no_room", 1 + ctx.metrics.get("tools/no_room", 0.0))
            return
        if len(body) > room:
            ctx.log("tools/cut_observations", 1 + ctx.metrics.get("tools/cut_observations", 0.0))
        episode.add([*head, *body[:room], *tail], origins.TOOL)

    def written(self, rows: Rollouts, episodes: Sequence[Episode], sampling: Sampling) -> Rollouts:
        """The episodes as responses of ``rows``."""

        def padded(values: list[list[Any]], fill: float, dtype: torch.dtype) -> Tensor:
            parts = [torch.tensor(value, dtype=dtype) for value in values]
            return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=fill)

        ids = padded([e.ids for e in episodes], self.pad, torch.long)
        lengths = torch.tensor([len(e.ids) for e in episodes])
        logprobs = padded([e.logprobs for e in episodes], 0.0, torch.float32)
        real = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        extras = {
            **rows.extras,
            "turns": torch.tensor([e.turns for e in episodes]),
            "answer_start": torch.tensor([e.answer[0] for e in episodes]),
            "answer_end": torch.tensor([e.answer[1] for e in episodes]),
        }
        flat = replace(
            rows, response_ids=ids, response_attention=real, response_mask=real, behavior_logprobs=logprobs,
            old_logprobs=logprobs if sampling.exact else None, extras=extras,
        )  # fmt: skip
        return origins.assign(flat, padded([e.origin for e in episodes], origins.PROMPT, torch.int8))


@dataclass(frozen=True)
class AnswerJudge:
    """Shows the judge nothing but the answer that ends the episode, tags included: a tag in an observation or a hint cannot
    count. Episodes without an answer are judged by an empty response."""

    judge: Judge

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        span = answer_tokens(rollouts)
        judged = self.judge(
            replace(rollouts, response_attention=span, response_mask=span & rollouts.response_mask), ctx
        )
        return replace(judged, response_attention=rollouts.response_attention, response_mask=rollouts.response_mask)


def answer_tokens(rollouts: Rollouts) -> Bool[Tensor, "N T"]:
    """The tokens of each row's final answer."""
    place = torch.arange(rollouts.response_ids.shape[1], device=rollouts.response_ids.device)
    start, end = (rollouts.extras[name].unsqueeze(1) for name in ("answer_start", "answer_end"))
    return (place >= start) & (place < end)


def cut_and_hint(rollouts: Rollouts, hints: Sequence[Sequence[int]], pad: int) -> Rollouts:
    """Rows without their answer, one hint behind what is left as if the policy had written it (origin `FORCED`).

    Rewards and log-probabilities before the update are dropped; the extras say that there is no answer.
    """
    starts = rollouts.extras["answer_start"].tolist()
    width = max((start + len(hint) for start, hint in zip(starts, hints, strict=True)), default=0)
    device = rollouts.response_ids.device
    ids = torch.full((len(rollouts), width), pad, device=device)
    origin = torch.zeros((len(rollouts), width), dtype=torch.int8, device=device)
    logprobs = torch.zeros((len(rollouts), width), dtype=rollouts.behavior_logprobs.dtype, device=device)
    known = origins.of(rollouts)
    for i, (start, hint) in enumerate(zip(starts, hints, strict=True)):
        end = start + len(hint)
        ids[i, :start], ids[i, start:end] = rollouts.response_ids[i, :start], torch.tensor(list(hint), device=device)
        origin[i, :start], origin[i, start:end] = known[i, :start], origins.FORCED
        logprobs[i, :start] = rollouts.behavior_logprobs[i, :start]
    real = origin != origins.PROMPT
    none = torch.full_like(rollouts.extras["turns"], -1)
    cut = replace(
        rollouts, response_ids=ids, response_attention=real, response_mask=real, behavior_logprobs=logprobs,
        old_logprobs=None, rewards=None, token_rewards=None, advantages=None,
        extras={"turns": rollouts.extras["turns"], "answer_start": none, "answer_end": none},
    )  # fmt: skip
    return origins.assign(cut, origin)


def continued(rollouts: Rollouts) -> Prompts:
    """One prompt a row: its prompt and its whole response so far. For rows whose responses are equally long."""
    ids = torch.cat([rollouts.prompt_ids, rollouts.response_ids], 1)
    mask = torch.cat([rollouts.prompt_mask, rollouts.response_attention], 1)
    return Prompts(ids, mask, torch.ones(len(ids), dtype=torch.long), rollouts.index, rollouts.items)


def joined_logratio(size: int, rows: Int[Tensor, " K"], values: Float[Tensor, " K"]) -> Float[Tensor, " N"]:
    """``log sum exp`` of the values of each of ``size`` rows; minus infinity for rows without any."""
    result = torch.full((size,), -torch.inf, dtype=values.dtype, device=values.device)
    for row, value in zip(rows.tolist(), values, strict=True):
        result[row] = torch.logaddexp(result[row], value)
    return result
