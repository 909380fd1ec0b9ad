"""BRPO, AnytimeReasoner: one trace of thought, cut at several budgets and rated at each cut (arXiv 2505.13438)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import Aggregation, anytime_advantage, budget_prior, budget_segments, group_centred
from policydist.functional.anytime import Baseline, Mixing, Prior, check_budgets
from policydist.language import guided
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Recipe, Setting
from policydist.language.segmented import Answering, Answers, TextAnswering, anytime_metrics, think, thinking_of
from policydist.language.types import Prompts, Rollouts, Sampling

DIFFERENCES: tuple[str, ...] = (
    "The share of V1 in the baseline is (s-1)/S by the budget's number in equation and code; the paper's first figure draws "
    "b_{s-1}/b_S (mixing=length). The two agree for equally spaced budgets.",
    "The released code packs a trace and its answers into one tree-shaped sequence; here each answer is a row of its own behind "
    "its cut trace. The gradients are the same, the cost of training is higher.",
    "The loss is divided by traces times a constant length, as in the code, whatever the number of answers.",
    "A trace that the policy ends without closing it scores 0 at the budgets beyond its end, as in the code; at smaller budgets "
    "it is cut like any other.",
    "Without decoupling only the answers at the last budget are trained, against the mean over the group's traces, as in the "
    "code's arms with one answer a cut; decouple=false does the same with several.",
    "Answers are graded from the end of thinking on, as the released reward does: an answer that stands in the trace alone "
    "earns nothing.",
)
"""Where paper, released code and this module part."""

EXAMPLE = "--task chain --set knobs.answer_tokens=4"
"""What ``policydist show`` adds to ``policydist train NAME``: answers are as short as the task's."""


@dataclass(frozen=True)
class Config(LossConfig):
    """``budgets``: tokens of thinking at which a trace is rated, ascending (null: ``cuts`` equal parts of
    rollout.max_new_tokens); ``prior``: how much each budget counts; ``answers`` a cut, of at most ``answer_tokens``;
    ``baseline`` of the thinking: ``brpo`` mixes the trace's own progress (``v1``, its earlier cuts discounted by ``discount``)
    with the group's mean return (``v2``), by the budget's number or length (``mixing``); ``decouple``: answers are compared with
    those of the same cut, whatever the prior (null: if there are several; false: those of the last budget alone are trained,
    against the mean over the group's traces). ``think_end``: the token that ends thinking (null: </think>, or what the
    tokenizer's configuration names);
    ``ellipsis`` is written before it where a trace is cut, ``header`` behind it before every answer."""

    aggregation: Aggregation = "dr-grpo"
    budgets: tuple[int, ...] | None = None
    cuts: int = 4
    prior: Prior = "uniform"
    answers: int = 4
    answer_tokens: int = 118
    baseline: Baseline = "brpo"
    discount: float = 0.5
    mixing: Mixing = "index"
    decouple: bool | None = None
    think_end: str | None = None
    ellipsis: str | None = None
    header: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("cuts", "answers", "answer_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"brpo: {name} is {getattr(self, name)}; it must be at least 1")
        if not 0 < self.discount <= 1:
            raise UsageError(f"brpo: discount is {self.discount}; it must lie in (0, 1]")
        if self.decouple and self.answers == 1:
            raise UsageError("brpo: decouple compares the answers of one cut; raise answers to 2 or more")
        if self.budgets is not None:
            check_budgets(self.budgets)

    @property
    def within_cuts(self) -> bool:
        """Whether answers are compared with those of their own cut."""
        return self.answers > 1 if self.decouple is None else self.decouple


def budgets_of(config: Config, longest: int) -> tuple[int, ...]:
    """The budgets asked for, or equal parts of the longest trace.

    Raises:
        UsageError: if they do not fit into the longest trace.
    """
    if config.budgets is None:
        if config.cuts > longest:
            raise UsageError(f"brpo: {config.cuts} cuts do not fit into rollout.max_new_tokens={longest}")
        return tuple(longest * (s + 1) // config.cuts for s in range(config.cuts))
    if config.budgets[-1] > longest:
        raise UsageError(
            f"brpo: the last budget, {config.budgets[-1]} tokens, exceeds rollout.max_new_tokens={longest}; raise that"
        )
    return tuple(config.budgets)


class BudgetSampler:
    """Traces, and answers after each of their cuts; both judged."""

    def __init__(self, config: Config, sampling: Sampling, budgets: tuple[int, ...], answering: Answering) -> None:
        self.config, self.sampling, self.budgets, self.answering = config, sampling, budgets, answering

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        traces = think(prompts, self.sampling, self.budgets, ctx)
        answers = self.answering.answer(traces, self.budgets, self.config.answers, ctx)
        for name, value in anytime_metrics(answers.scores, self.budgets).items():
            ctx.log(f"brpo/{name}", value)
        ctx.log("brpo/thinking_length", traces.lengths.float().mean())
        return together(traces, answers)


def together(traces: Rollouts, answers: Answers) -> Rollouts:
    """Traces, rewarded by their last budget's score, and their answers (``auxiliary``) as one batch, group by group."""
    scores = {f"score/{s}": column for s, column in enumerate(answers.scores.T)}
    none = torch.full((len(traces),), -1, device=traces.group.device)
    flags = torch.zeros(len(traces), dtype=torch.bool, device=traces.group.device)
    extras = {**scores, "cut": none, "budget": none, "auxiliary": flags}
    main = replace(traces, rewards=answers.scores[:, -1], extras=extras)
    if answers.rows is None or answers.cut is None or answers.budget is None:
        return main
    rows, blank = answers.rows, torch.zeros(len(answers.rows), device=traces.group.device)
    marks = {"cut": answers.cut, "budget": answers.budget, "auxiliary": torch.ones_like(answers.cut, dtype=torch.bool)}
    return guided.by_group(Rollouts.cat([main, replace(rows, extras={**dict.fromkeys(scores, blank), **marks})]))


class BudgetCredit:
    """Segment advantages for the thinking tokens, advantages within each cut for the answers."""

    def __init__(self, config: Config, budgets: tuple[int, ...]) -> None:
        self.config, self.budgets = config, budgets
        self.prior = budget_prior(config.prior, budgets)

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        answer = rollouts.extras["auxiliary"]
        advantages = torch.zeros(rollouts.response_ids.shape, device=rollouts.group.device)
        advantages[~answer] = self.thinking(rollouts.select(~answer), ctx)
        if bool(answer.any()):
            advantages[answer] = self.answers(rollouts.select(answer)).unsqueeze(1)
        # dr-grpo divides the loss by all rows, the paper by the traces alone.
        scale = len(rollouts) / int((~answer).sum()) if self.config.aggregation == "dr-grpo" else 1.0
        return replace(rollouts, advantages=advantages * rollouts.response_mask * scale)

    def thinking(self, traces: Rollouts, ctx: Context) -> Float[Tensor, "G T"]:
        config = self.config
        scores = torch.stack([traces.extras[f"score/{s}"] for s in range(len(self.budgets))], 1)
        found = anytime_advantage(
            scores, traces.group, self.prior, baseline=config.baseline, discount=config.discount, mixing=config.mixing,
            budgets=self.budgets,
        )  # fmt: skip
        spread = found.returns.var(0, correction=0).clamp(min=1e-12)
        ctx.log("brpo/variance_left", (found.advantages.var(0, correction=0) / spread).mean())
        # Answer rows may be wider than the longest trace; there are no thinking tokens there.
        width = min(traces.response_ids.shape[1], self.budgets[-1])
        own = budget_segments(width, self.budgets).to(scores.device)
        return torch.nn.functional.pad(found.advantages[:, own], (0, traces.response_ids.shape[1] - width))

    def answers(self, rows: Rollouts) -> Float[Tensor, " M"]:
        rewards = rows.rewards
        assert rewards is not None
        if self.config.within_cuts:
            return group_centred(rewards, rows.extras["cut"])
        last = rows.extras["budget"] == len(self.budgets) - 1
        result = torch.zeros_like(rewards)
        result[last] = group_centred(rewards[last], rows.group[last])
        return result


def answering_of(config: Config, setting: Setting) -> tuple[Answering, Sampling]:
    """Who answers, and how traces are sampled: the source itself (a small world's), or the policy in text."""
    source: Any = setting.source
    if isinstance(source, Answering):
        return source, setting.sampling
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise UsageError("brpo cuts thinking in text; give it a task with text")
    thinking = thinking_of(tokenizer, config.think_end, config.ellipsis, config.header)
    short = replace(setting.sampling, max_new_tokens=config.answer_tokens)
    return TextAnswering(thinking, setting.judge, short), thinking.sampling(setting.sampling)


def build(config: Config, setting: Setting) -> Recipe:
    budgets = budgets_of(config, setting.sampling.max_new_tokens)
    answering, sampling = answering_of(config, setting)
    knobs = config if config.max_length else replace(config, max_length=budgets[-1] + config.answer_tokens)
    recipe = grpo.plain(knobs, setting, BudgetCredit(config, budgets))
    return replace(recipe, sampler=BudgetSampler(config, sampling, budgets, answering))
