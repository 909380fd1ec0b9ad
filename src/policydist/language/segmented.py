"""Thinking that is cut at token budgets: every trace is rated by answers sampled after each cut (arXiv 2505.13438).

A cut inside the trace is closed by fixed tokens that nobody is trained on; a trace that closed by itself is shared by all
budgets at or beyond its end. An answer is graded from the end of thinking on: what the trace itself says earns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.anytime import check_budgets
from policydist.language.credits import rewards_of
from policydist.language.recipe import Context, Judge
from policydist.language.types import Prompts, Rollouts, Sampling

THINK_END = "</think>"


@dataclass(frozen=True)
class Answers:
    """``scores`` [N, S]: mean reward of the answers to trace n cut at budget s. ``rows``: the answers themselves, one row each
    with its reward, as responses to the cut traces; ``cut`` [M] which cut each answers, ``budget`` [M] for which budget it
    was drawn. Worlds whose answers are no part of the policy have no rows."""

    scores: Float[Tensor, "N S"]
    rows: Rollouts | None = None
    cut: Int[Tensor, " M"] | None = None
    budget: Int[Tensor, " M"] | None = None


@runtime_checkable
class Answering(Protocol):
    """Rates traces by answers after each cut. Small worlds' prompt sources implement it themselves."""

    def answer(self, traces: Rollouts, budgets: Sequence[int], count: int, ctx: Context) -> Answers:
        """``count`` answers to every trace at every budget."""
        ...


@dataclass(frozen=True)
class Thinking:
    """The tokens around a trace of thought.

    ``end`` closes it (one token, so that sampling stops there); ``closing`` is put behind a trace that was cut, and contains
    ``end``; ``header`` behind one that closed by itself.
    """

    end: int
    closing: tuple[int, ...]
    header: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, end: str, ellipsis: str, header: str) -> Thinking:
        """From texts.

        Raises:
            UsageError: if ``end`` is not exactly one token of this tokenizer.
        """

        def encode(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

        ids = encode(end)
        if len(ids) != 1:
            raise UsageError(
                f"the end of thinking {end!r} is {len(ids)} tokens for this tokenizer; name one that is a single token "
                "(think_end), such as </think> of reasoning models"
            )
        return cls(ids[0], (*encode(ellipsis), *ids, *encode(header)), tuple(encode(header)))

    def sampling(self, base: Sampling) -> Sampling:
        """How traces are drawn: the end of thinking ends them too."""
        return replace(base, stop=(*base.stop, self.end))


@dataclass(frozen=True)
class Cuts:
    """Every distinct cut of the traces: ``trace`` [C] whose it is, ``length`` [C] tokens kept, ``closed`` [C] whether it closed
    by itself, ``ended`` [C] whether the policy ended the whole response without closing; ``of`` [N, S] each budget's cut."""

    trace: Int[Tensor, " C"]
    length: Int[Tensor, " C"]
    closed: Bool[Tensor, " C"]
    ended: Bool[Tensor, " C"]
    of: Int[Tensor, "N S"]


def cut_traces(
    lengths: Int[Tensor, " N"], closed: Bool[Tensor, " N"], finished: Bool[Tensor, " N"], budgets: Sequence[int]
) -> Cuts:
    """Where each trace is cut. ``lengths`` count the last token whatever it is: the end of thinking of a ``closed`` trace, or the
    token by which the policy ``finished`` its whole response, which is left out of the cut."""
    limits = torch.tensor(budgets, device=lengths.device)
    whole = lengths.unsqueeze(1) <= limits
    natural = whole & closed.unsqueeze(1)
    ended = whole & (finished & ~closed).unsqueeze(1)
    kept = torch.minimum(lengths.unsqueeze(1), limits) - ended.long()
    new = torch.ones_like(natural)
    new[:, 1:] = (kept[:, 1:] != kept[:, :-1]) | (natural[:, 1:] != natural[:, :-1]) | (ended[:, 1:] != ended[:, :-1])
    of = new.flatten().cumsum(0).view(new.shape) - 1
    trace = torch.arange(len(lengths), device=lengths.device).unsqueeze(1).expand_as(new)
    return Cuts(trace[new], kept[new], natural[new], ended[new], of)


@dataclass(frozen=True)
class TextAnswering:
    """The policy itself answers after each cut, at most ``max_new_tokens`` tokens; ``judge`` grades the text from the end of
    thinking on.

    An answer counts only if cut trace, closing and answer hold exactly one end of thinking between them, and not if the
    policy had ended the response inside its thinking. ``component`` grades by one part of the reward alone.
    """

    thinking: Thinking
    judge: Judge
    sampling: Sampling
    component: str | None = None

    def answer(self, traces: Rollouts, budgets: Sequence[int], count: int, ctx: Context) -> Answers:
        policy: Any = ctx.policy  # a language model, which has end tokens of its own
        closed = ((traces.response_ids == self.thinking.end) & traces.response_attention).any(1)
        last = traces.response_ids.gather(1, (traces.lengths - 1).unsqueeze(1))[:, 0]
        finished = torch.isin(last, torch.tensor(list(policy.ends), device=last.device))
        cuts = cut_traces(traces.lengths, closed, finished, budgets)
        wanted = torch.bincount(cuts.of.flatten(), minlength=len(cuts.trace)) * count
        prefix = self.prefixes(traces, cuts)
        rows = ctx.generate(self.prompts(traces, cuts, prefix, wanted), self.sampling, "answer")
        cut = rows.group
        rows = replace(rows, group=traces.group[cuts.trace][cut], index=traces.index[cuts.trace][cut])
        once = self.ends_in(*prefix)[cut] + self.ends_in(rows.response_ids, rows.response_attention) == 1
        rewards = self.grade(rows, ctx) * (once & ~cuts.ended[cut])
        # Cut numbers ascend with trace and budget, so the answers to a cut that several budgets share are dealt in order.
        places = torch.arange(len(traces) * len(budgets), device=rewards.device).repeat_interleave(count)
        total = rewards.new_zeros(len(traces) * len(budgets)).index_add(0, places, rewards)
        scores = (total / count).view(len(traces), len(budgets))
        return Answers(scores, replace(rows, rewards=rewards), cut, places % len(budgets))

    def ends_in(self, ids: Int[Tensor, "M L"], real: Bool[Tensor, "M L"]) -> Int[Tensor, " M"]:
        """Ends of thinking in each row."""
        return ((ids == self.thinking.end) & real).sum(1)

    def prefixes(self, traces: Rollouts, cuts: Cuts) -> tuple[Int[Tensor, "C L"], Bool[Tensor, "C L"]]:
        """Ids and mask of each cut trace with its closing tokens, left-aligned."""
        device = traces.response_ids.device
        place = torch.arange(traces.response_ids.shape[1], device=device)
        ids, mask = traces.response_ids[cuts.trace], place < cuts.length.unsqueeze(1)
        for tokens, chosen in ((self.thinking.header, cuts.closed), (self.thinking.closing, ~cuts.closed)):
            ids = torch.cat([ids, torch.tensor(tokens, dtype=ids.dtype, device=device).expand(len(ids), -1)], 1)
            mask = torch.cat([mask, chosen.unsqueeze(1).expand(-1, len(tokens))], 1)
        return aligned(ids, mask, left=True)

    def prompts(
        self, traces: Rollouts, cuts: Cuts, prefix: tuple[Tensor, Tensor], wanted: Int[Tensor, " C"]
    ) -> Prompts:
        """What the answers are sampled from: question, cut trace, closing tokens."""
        ids = torch.cat([traces.prompt_ids[cuts.trace], prefix[0]], 1)
        mask = torch.cat([traces.prompt_mask[cuts.trace], prefix[1]], 1)
        ids, mask = aligned(ids, mask, left=False)
        items = tuple(traces.items[i] for i in cuts.trace.tolist()) if traces.items else ()
        return Prompts(ids.cpu(), mask.cpu(), wanted.cpu(), traces.index[cuts.trace].cpu(), items)

    def grade(self, rows: Rollouts, ctx: Context) -> Float[Tensor, " M"]:
        """The judge's reward of each answer, with the end of thinking and the header in front of it."""
        front = torch.tensor([self.thinking.end, *self.thinking.header], device=rows.response_ids.device)
        real = torch.nn.functional.pad(rows.response_attention, (len(front), 0), value=True)
        ids = torch.cat([front.expand(len(rows), -1), rows.response_ids], 1)
        shown = replace(
            rows, response_ids=ids, response_attention=real, response_mask=real, old_logprobs=None,
            behavior_logprobs=torch.zeros(ids.shape, device=ids.device),
        )  # fmt: skip
        judged = ctx.judge(self.judge, shown)
        return rewards_of(judged) if self.component is None else judged.extras[self.component]


def aligned(ids: Tensor, mask: Tensor, left: bool) -> tuple[Tensor, Tensor]:
    """The real tokens of each row moved together, to the left or right end, in their order; common padding cut off."""
    order = torch.argsort((~mask if left else mask).to(torch.int8), dim=1, stable=True)
    ids, mask = ids.gather(1, order), mask.gather(1, order)
    width = int(mask.sum(1).max()) if len(mask) else 0
    part = slice(0, width) if left else slice(ids.shape[1] - width, None)
    return ids[:, part].masked_fill(~mask[:, part], 0), mask[:, part]


def thinking_of(tokenizer: Any, end: str | None, ellipsis: str | None, header: str | None) -> Thinking:
    """The tokens around thinking, by default as the model's tokenizer knows them: its </think> token, with the released code's
    closing words; or the token that its configuration names as ``think_end``, without further words.

    Raises:
        UsageError: if the tokenizer has neither and none is given.
    """
    own = getattr(tokenizer, "init_kwargs", {}).get("think_end")
    if end is None and own is None and THINK_END not in tokenizer.get_vocab():
        raise UsageError(
            f"this model's tokenizer has no token {THINK_END}; name the token that ends its thinking (think_end)"
        )
    words = ("\n...\n", "\n**Final Answer**\n") if end is None and own is None else ("", "")
    chosen = end if end is not None else own or THINK_END
    return Thinking.of(
        tokenizer, chosen, words[0] if ellipsis is None else ellipsis, words[1] if header is None else header
    )


def think(prompts: Prompts, sampling: Sampling, budgets: Sequence[int], ctx: Context) -> Rollouts:
    """Traces up to the last budget, or up to a token that ``sampling`` stops at."""
    return ctx.generate(prompts, replace(sampling, max_new_tokens=budgets[-1]), "thinking")


def anytime_metrics(scores: Float[Tensor, "N S"], budgets: Sequence[int]) -> Mapping[str, float]:
    """Accuracy after each budget, and their mean, the area under the anytime curve with equal weights."""
    means = scores.double().mean(0).tolist()
    return {f"accuracy@{budget}": value for budget, value in zip(budgets, means, strict=True)} | {
        "anytime": sum(means) / len(means)
    }


def parse_budgets(text: str) -> tuple[int, ...]:
    """``"16,32,64"`` as ascending token budgets.

    Raises:
        UsageError: if it is no such list.
    """
    try:
        budgets = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise UsageError(f"budgets {text!r} are no list of whole numbers such as 16,32,64") from None
    check_budgets(budgets)
    return budgets
