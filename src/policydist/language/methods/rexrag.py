"""REX-RAG: failed search episodes are resumed behind a hint and corrected for what the policy would not have done
(arXiv 2508.08149)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import (
    HintPool,
    grpo_advantage,
    keep_likely,
    most_resumed,
    moving_average,
    resumed_mixture,
    trajectory_weights,
)
from policydist.language import guided, multiturn, origins
from policydist.language.credits import rewards_of
from policydist.language.hints import read_hints
from policydist.language.methods import grpo
from policydist.language.mixed_objective import MIXTURE, MixedPolicyGradient
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Episodes, Judge, Recipe, Setting, broadcast
from policydist.language.retrieval import find_retriever
from policydist.language.types import Prompts, Rollouts

DIFFERENCES: tuple[str, ...] = (
    "The paper's equations could not be obtained; the procedure is the released code's.",
    "The paper speaks of correcting whole trajectories; the code mixes token by token, with a density of 0 for originals, which "
    "removes only part of the bias (correction=token_mixture, the default). correction=trajectory_mis weighs whole trajectories "
    "and is unbiased where the chance of failing behind the cut is known; of a language model it is not, and is taken as 1.",
    "The code divides by the number of tokens before the hint and fails if there is none; here there is then no such factor.",
    "In the code a failed answer is resumed with chance 20/101, here with chance 0.2 (p_rev).",
    "The number kept is not rounded down to a multiple of the GPUs. With the token mixture it is also held so low that no "
    "original's ratio, 1/(1-alpha), begins outside the clip range. The DAPO script's cap at its first share is left out.",
    "The code gives a hint that is the beginning of another too little probability; here the chance of stopping is counted.",
    "In the code the last turn may not search; here a search in it is drawn, but nothing is looked up.",
    "Nothing but the final answer is shown to the grader: a tag in a document or a hint cannot be taken for the answer.",
)
"""Where paper, released code and this module part."""

DEFAULTS: Mapping[str, Any] = {"task": {"name": "two-hop"}, "model": {"name": "embedded-search"}}
"""What ``policydist train rexrag`` runs on when nothing is asked for."""

EXAMPLE = ""
"""What ``policydist show`` adds to ``policydist train rexrag``: nothing."""

EPISODES = True
"""A response is an episode with a search engine, in evaluation too."""

TOP_K = 3
"""Documents a search, as in the paper."""

Correction = Literal["token_mixture", "trajectory_mis", "none"]


@dataclass(frozen=True)
class Config(LossConfig):
    """``p_rev``: chance that a failed answer with turns left is resumed (0: GRPO with tools); ``keep_init``: resumed episodes
    kept in a step as a share of the originals, later the moving average (weight ``keep_weight``) of their success; ``filter``
    false keeps all; ``correction`` for their not being the policy's own; ``hints``: a file with one hint a line;
    ``in_loss_hints``: hints are trained like the policy's own words. ``max_turns`` actions an episode of at most
    rollout.max_new_tokens tokens each; ``top_k`` documents a search (null: 3, or 1
    for embedded-search, which has read no more) from the task's own, the file ``corpus``, or the service at
    ``retriever`` (``timeout`` in seconds, ``retries``); at most ``observation_tokens`` tokens of them are shown, in the template
    ``observation``; ``invalid`` is written behind a turn without an action; ``instruction``: a template around the {question}
    (null: one that explains the tags, unless each tag is a token of the model's own)."""

    kl_coef: float = 0.001
    p_rev: float = 0.2
    keep_init: float = 0.08
    keep_weight: float = 0.1
    filter: bool = True
    correction: Correction = "token_mixture"
    hints: str | None = None
    in_loss_hints: bool = True
    max_turns: int = 5
    top_k: int | None = None
    observation_tokens: int = 500
    observation: str = multiturn.Tooling.observation
    invalid: str = multiturn.Tooling.invalid
    instruction: str | None = None
    corpus: str | None = None
    retriever: str | None = None
    timeout: float = 30.0
    retries: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("p_rev", "keep_init", "keep_weight"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"rexrag: {name} is {getattr(self, name)}; it must lie in [0, 1]")
        if not self.timeout > 0 or self.retries < 0:
            raise UsageError(
                f"rexrag: timeout is {self.timeout} and retries {self.retries}; they must be positive, and 0 or more"
            )
        self.tooling()

    def tooling(self) -> multiturn.Tooling:
        """The settings of the episodes."""
        return multiturn.Tooling(
            self.max_turns,
            TOP_K if self.top_k is None else self.top_k,
            self.observation_tokens,
            self.observation,
            self.instruction,
            self.invalid,
        )


class ProbeSampler:
    """Episodes, judged; some failed ones resumed behind a hint; the kept ones among their groups; the correction."""

    def __init__(
        self, config: Config, setting: Setting, judge: Judge, episodes: Episodes, pool: HintPool, pad: int
    ) -> None:
        self.config, self.sampling, self.judge = config, setting.sampling, judge
        self.episodes, self.pool, self.pad = episodes, pool, pad
        self.keep = config.keep_init

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        own = ctx.judge(self.judge, self.episodes.play(prompts, self.sampling, ctx))
        own = self.known(flagged(own, False), ctx)
        for name in ("turns", "answer_start"):
            value = own.extras[name].float() if name == "turns" else (own.extras[name] >= 0).float()
            ctx.log(f"tools/{'turns' if name == 'turns' else 'answered'}", value.mean())
        probes = self.probes(own, ctx)
        rows = own if probes is None else guided.by_group(Rollouts.cat([own, probes]))
        return self.corrected(rows, ctx)

    def known(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        """With the log-probabilities before the update."""
        if rollouts.old_logprobs is not None:
            return rollouts
        return replace(rollouts, old_logprobs=ctx.score(rollouts).logprobs)

    def probes(self, own: Rollouts, ctx: Context) -> Rollouts | None:
        """The resumed episodes that are kept."""
        config = self.config
        chance = torch.rand(len(own), generator=ctx.generator("resume")).to(own.group.device)
        chosen = resumable(own, self.episodes.max_turns) & (chance < config.p_rev)
        ctx.log("rexrag/resumed", chosen.float().mean())
        if not bool(chosen.any()):
            return None
        hints = self.pool.sample(int(chosen.sum()), ctx.generator("hints"))
        cut = self.fitting(multiturn.cut_and_hint(own.select(chosen), hints, self.pad), ctx)
        if not len(cut):
            return None
        probes = ctx.judge(self.judge, self.episodes.resume(cut, self.sampling, ctx))
        probes = self.known(flagged(replace(probes, old_logprobs=None), True), ctx)
        likely = keep_likely(
            known_logprobs(probes),
            hint_tokens(probes),
            torch.ones_like(probes.group, dtype=torch.bool),
            self.limit(own),
        )
        if not bool(likely.any()):
            return None
        kept = probes.select(likely)
        rate = float(succeeded(kept).float().mean())
        self.keep = moving_average(self.keep, rate, config.keep_weight)
        ctx.log("rexrag/probe_success", rate)
        if not config.in_loss_hints:
            kept = origins.assign(kept, origins.of(kept), (origins.MODEL,))
        return kept

    def fitting(self, cut: Rollouts, ctx: Context) -> Rollouts:
        """Those that leave room for another turn."""
        limit = getattr(ctx.policy, "context", None)
        if limit is None:
            return cut
        return cut.select(cut.prompt_mask.sum(1) + cut.lengths + self.sampling.max_new_tokens <= limit)

    def limit(self, own: Rollouts) -> int:
        """The most resumed episodes that may be kept."""
        config = self.config
        count = int(len(own) * self.keep) if config.filter else len(own)
        if config.correction == "token_mixture":
            count = min(count, most_resumed(len(own), config.clip_high))
        return count

    def corrected(self, rows: Rollouts, ctx: Context) -> Rollouts:
        """The mixture's log-probabilities, or the trajectories' weights, beside the rows."""
        probe = rows.extras["auxiliary"]
        share = float(probe.float().mean())
        own = rows.select(~probe)
        ctx.log("rexrag/alpha", share)
        ctx.log("rexrag/keep", self.keep)
        if share == 0:
            return rows
        if self.config.correction == "token_mixture":
            failing = 1 - float(succeeded(own).float().mean())
            ctx.log("rexrag/failure_rate", failing)
            return mixed(rows, self.pool, share, failing)
        if self.config.correction == "trajectory_mis":
            failing = float(resumable(own, self.episodes.max_turns).float().mean())
            ctx.log("rexrag/failure_rate", failing)
            weighted_rows = weighted(rows, self.pool, self.episodes, share, failing)
            ctx.log("rexrag/probe_weight", weighted_rows.extras[WEIGHT][probe].mean())
            return weighted_rows
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {"keep": self.keep}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.keep = float(state["keep"])


WEIGHT = "trajectory_weight"
"""An extra [N]: the weight of the whole trajectory, which multiplies its advantage."""


def flagged(rollouts: Rollouts, probe: bool) -> Rollouts:
    """Marked as original or resumed; resumed ones are ``auxiliary``, so that the logged reward is the policy's own."""
    flags = torch.full((len(rollouts),), probe, device=rollouts.group.device)
    return replace(rollouts, extras={**rollouts.extras, "auxiliary": flags})


def known_logprobs(rollouts: Rollouts) -> Float[Tensor, "N T"]:
    assert rollouts.old_logprobs is not None
    return rollouts.old_logprobs


def succeeded(rollouts: Rollouts) -> Bool[Tensor, " N"]:
    """The released code's test: a reward of at least 1; by the accuracy where the judge has more components."""
    return rollouts.extras.get("reward/accuracy", rewards_of(rollouts)) >= 1


def resumable(rollouts: Rollouts, max_turns: int) -> Bool[Tensor, " N"]:
    """Wrong answers given while there were turns left."""
    return (rollouts.extras["answer_start"] >= 0) & (rollouts.extras["turns"] < max_turns) & ~succeeded(rollouts)


def hint_tokens(rollouts: Rollouts) -> Bool[Tensor, "N T"]:
    return origins.of(rollouts) == origins.FORCED


def mixed(rows: Rollouts, pool: HintPool, share: float, failure_rate: float) -> Rollouts:
    """With the token mixture as what the old log-probabilities are replaced by."""
    hint, own = hint_tokens(rows), origins.of(rows) == origins.MODEL
    values = torch.zeros_like(known_logprobs(rows))
    for row in hint.any(1).nonzero().flatten().tolist():
        given = pool.token_logprobs(rows.response_ids[row][hint[row]].tolist())
        values[row, hint[row]] = torch.tensor(given, dtype=values.dtype, device=values.device)
    before = own & (hint.flip(1).cumsum(1).flip(1) > 0)
    found = resumed_mixture(known_logprobs(rows), rows.extras["auxiliary"], before, hint, values, share, failure_rate)
    return replace(rows, extras={**rows.extras, MIXTURE: found})


def weighted(rows: Rollouts, pool: HintPool, episodes: Episodes, share: float, failure_rate: float) -> Rollouts:
    """With the weight of each whole trajectory, originals that hint by themselves included."""
    old = known_logprobs(rows)
    row, start, hint = hint_places(rows, pool)
    ratios = [
        pool.logprob(tokens) - float(old[r, s : s + len(tokens)].sum())
        for r, s, tokens in zip(row.tolist(), start.tolist(), hint, strict=True)
    ]
    values = torch.tensor(ratios, dtype=old.dtype, device=old.device)
    values = values + episodes.failure_logprobs(rows, row, start).to(old.dtype)
    values = values - torch.log(torch.tensor(failure_rate, dtype=old.dtype))
    weights = trajectory_weights(multiturn.joined_logratio(len(rows), row, values), share)
    return replace(rows, extras={**rows.extras, WEIGHT: weights})


def hint_places(rows: Rollouts, pool: HintPool) -> tuple[Int[Tensor, " K"], Int[Tensor, " K"], list[tuple[int, ...]]]:
    """Where whole hints of the pool stand among tokens that the policy wrote or was made to write: row, first token, hint."""
    written = origins.among(origins.of(rows), (origins.MODEL, origins.FORCED))
    row, start, found = [], [], []
    for hint in sorted(set(pool.sequences)):
        if len(hint) > rows.response_ids.shape[1]:
            continue
        same = rows.response_ids.unfold(1, len(hint), 1) == torch.tensor(hint, device=written.device)
        places = (same & written.unfold(1, len(hint), 1)).all(2).nonzero()
        row.append(places[:, 0])
        start.append(places[:, 1])
        found += [hint] * len(places)
    none = torch.zeros(0, dtype=torch.long, device=written.device)
    return torch.cat([none, *row]), torch.cat([none, *start]), found


@dataclass(frozen=True)
class MixedCredit:
    """GRPO's advantages over originals and resumed episodes of a question, times the trajectory's weight if it has one."""

    advantage: Any

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        values = self.advantage(rewards_of(rollouts), rollouts.group)
        weights = rollouts.extras.get(WEIGHT)
        values = values if weights is None else values * weights
        return replace(rollouts, advantages=broadcast(values, rollouts))


def episodes_of(config: Config, setting: Setting) -> tuple[Episodes, Judge, HintPool, int]:
    """Who plays, who judges, and the hints as tokens: the source's own (a small world's), or a model with a retriever."""
    source: Any = setting.source
    if isinstance(source, Episodes):
        return source, setting.judge, HintPool(getattr(source, "hints")), 0  # noqa: B009
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise UsageError("rexrag searches in text; give it a task with text")
    hints = read_hints(config.hints)
    for hint in hints:
        multiturn.refuse_actions("hint", hint)
    retriever = find_retriever(config.retriever, config.corpus, setting.documents, config.timeout, config.retries)
    tooling = config.tooling()
    if config.instruction is None and not knows_tags(tokenizer):
        tooling = replace(tooling, instruction=multiturn.INSTRUCTION)
    if config.top_k is None and knows_tags(tokenizer):
        tooling = replace(tooling, top_k=1)
    episodes = multiturn.SearchEpisodes(tokenizer, retriever, tooling)
    return episodes, multiturn.AnswerJudge(setting.judge), HintPool(tokens_of(hints, tokenizer)), episodes.pad


def knows_tags(tokenizer: Any) -> bool:
    """Whether the model was made for these tags: each closing one is a token of its own."""
    return all(len(tokenizer(tag, add_special_tokens=False)["input_ids"]) == 1 for tag in multiturn.CLOSING)


def tokens_of(hints: Sequence[str], tokenizer: Any) -> list[list[int]]:
    return [list(tokenizer(hint, add_special_tokens=False)["input_ids"]) for hint in hints]


def build(config: Config, setting: Setting) -> Recipe:
    episodes, judge, pool, pad = episodes_of(config, setting)
    advantage = partial(grpo_advantage, singleton="raw")
    recipe = grpo.plain(config, setting, MixedCredit(advantage))
    return replace(
        recipe,
        sampler=ProbeSampler(config, setting, judge, episodes, pool, pad),
        judge=judge,
        objective=MixedPolicyGradient(config, gamma=None),
        episodes=episodes,
    )
