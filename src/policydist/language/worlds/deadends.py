"""A tree of dead ends: the policy prefers a wrong first search, answers at once, and is never rewarded.

A response is ``search, ANSWER`` or ``search, hint, search``; the last search decides. Tokens: ``SEARCHES`` searches, then
`ANSWER`, then the hints. Every prefix has logits of its own, so all expectations can be written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policydist.language import multiturn, origins
from policydist.language.generation import draw
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Setting
from policydist.language.types import Generation, Prompts, Rollouts, Sampling, Scores, TokenTerms, apply_terms
from policydist.runs import seeds

ROOT = 0
"""The state before the first search; then one state a search, then one a pair of search and hint."""


class TreeTable(nn.Module):
    """``logits`` [Q, S, V]; moves that do not exist have minus infinity, which stays."""

    def __init__(self, logits: Float[Tensor, "Q S V"]) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, question: Int[Tensor, " N"], state: Int[Tensor, "N T"]) -> Float[Tensor, "N T V"]:
        return self.logits[question.unsqueeze(1), state]


class TreePolicy:
    """A policy over the tree. A prompt is the question's number, or that number and a prefix of a response."""

    def __init__(self, logits: Float[Tensor, "Q S V"], searches: int, hints: int) -> None:
        self.core = TreeTable(logits)
        self.module: nn.Module = self.core
        self.searches, self.hints = searches, hints
        self.answer = searches

    @property
    def device(self) -> torch.device:
        return self.core.logits.device

    def add_value_head(self) -> None:
        """No method of this world uses one."""

    def after(self, first: Int[Tensor, " N"], second: Int[Tensor, " N"] | None = None) -> Int[Tensor, " N"]:
        """The state after a search, or after a search and a hint."""
        if second is None:
            return 1 + first
        hint = (second - self.answer - 1).clamp(min=0)
        return 1 + self.searches + first * self.hints + hint

    def states(self, ids: Int[Tensor, "N T"]) -> Int[Tensor, "N T"]:
        """The state before each token of responses of at most three."""
        first = ids[:, 0].clamp(max=self.searches - 1)
        found = [torch.full_like(first, ROOT), self.after(first)]
        if ids.shape[1] > 2:
            found.append(self.after(first, ids[:, 1]))
        return torch.stack(found[: ids.shape[1]], 1)

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample; see `Policy`."""
        prompt = prompts.ids.repeat_interleave(prompts.samples, 0)
        question, prefix = prompt[:, 0], prompt[:, 1:]
        start, count = prefix.shape[1], len(prompt)
        ids = torch.cat([prefix, prefix.new_zeros(count, 3 - start)], 1)
        logprobs = torch.zeros(ids.shape, dtype=self.core.logits.dtype)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        going = torch.ones(count, dtype=torch.bool)
        for step in range(start, 3):
            logits = self.core(question, self.states(ids)[:, step : step + 1])[:, 0]
            drawn, chances = draw(logits, uniforms[:, step - start], sampling)
            ids[going, step], logprobs[going, step], mask[going, step] = drawn[going], chances.to(logprobs)[going], True
            going = going & (drawn != self.answer)
        width = int(mask.any(0).sum())
        return Generation(*(tensor[:, start : start + width] for tensor in (ids, mask, logprobs)))

    def score(
        self,
        rollouts: Rollouts,
        *,
        entropy: bool = False,
        tilts: Sequence[float] = (),
        values: bool = False,
        terms: TokenTerms | None = None,
    ) -> Scores:
        """Score; see `Policy`. There are no value estimates."""
        ids, real = rollouts.response_ids, rollouts.response_attention
        logits = self.module(rollouts.prompt_ids[:, 0], self.states(ids))

        def chosen(table: Tensor) -> Tensor:
            return torch.where(real, table.log_softmax(-1).gather(-1, ids.unsqueeze(-1))[..., 0], 0.0)

        everything = logits.log_softmax(-1)
        return Scores(
            logprobs=chosen(logits),
            entropy=-torch.where(everything.isfinite(), everything.exp() * everything, 0.0).sum(-1) * real
            if entropy
            else None,
            tilted={tilt: chosen(logits / tilt) for tilt in tilts},
            terms=apply_terms(terms, logits, ids, real),
        )


class TreeQuestions(ContextPrompts):
    """The questions, and how they are played: at most two turns, a hint being what opens the second."""

    max_turns = 2

    def __init__(self, policy: TreePolicy, right: Int[Tensor, " Q"], chance: float) -> None:
        super().__init__(len(right))
        self.policy, self.right, self.chance = policy, right, chance
        self.hints = [[policy.answer + 1 + hint] for hint in range(policy.hints)]

    def play(self, prompts: Prompts, sampling: Sampling, ctx: Context) -> Rollouts:
        """See `policydist.language.recipe.Episodes`."""
        return self.marked(origins.mark(ctx.generate(prompts, sampling, "rollout"), origins.MODEL))

    def resume(self, rollouts: Rollouts, sampling: Sampling, ctx: Context) -> Rollouts:
        """See `policydist.language.recipe.Episodes`."""
        drawn = ctx.generate(multiturn.continued(rollouts), sampling, "resumed")
        whole = replace(
            rollouts,
            response_ids=torch.cat([rollouts.response_ids, drawn.response_ids], 1),
            response_attention=torch.cat([rollouts.response_attention, drawn.response_attention], 1),
            response_mask=torch.cat([rollouts.response_mask, drawn.response_mask], 1),
            behavior_logprobs=torch.cat([rollouts.behavior_logprobs, drawn.behavior_logprobs], 1),
            extras={},
        )
        model = torch.full_like(drawn.response_ids, origins.MODEL, dtype=torch.int8)
        return self.marked(origins.assign(whole, torch.cat([origins.of(rollouts), model], 1)))

    def marked(self, rollouts: Rollouts) -> Rollouts:
        """With the extras of episodes."""
        answered = rollouts.response_ids[:, 1] == self.policy.answer
        start = torch.where(answered, 1, -1)
        marks = {
            "turns": torch.where(answered, 1, 2),
            "answer_start": start,
            "answer_end": torch.where(answered, 2, -1),
        }
        return replace(rollouts, extras={**rollouts.extras, **marks})

    @torch.no_grad()
    def failure_logprobs(self, rollouts: Rollouts, rows: Int[Tensor, " K"], starts: Int[Tensor, " K"]) -> Tensor:
        """See `policydist.language.recipe.Episodes`: exact."""
        question, first = rollouts.prompt_ids[rows, 0], rollouts.response_ids[rows, 0]
        answers = self.policy.core(question, self.policy.after(first).unsqueeze(1))[:, 0].log_softmax(-1)
        failing = 1 - self.chance * (first == self.right[question]).to(answers.dtype)
        return answers[:, self.policy.answer] + failing.log()

    def expected(self, rollouts: Rollouts) -> Float[Tensor, " N"]:
        """Each response's chance of a reward: the last search decides."""
        answered = rollouts.response_ids[:, 1] == self.policy.answer
        last = torch.where(answered, rollouts.response_ids[:, 0], rollouts.response_ids[:, -1])
        return self.chance * (last == self.right[rollouts.prompt_ids[:, 0]]).to(self.policy.core.logits.dtype)


@dataclass(frozen=True)
class DeadEnds:
    """Questions whose right search is unlikely, and whose wrong favourite is answered at once."""

    policy: TreePolicy
    source: TreeQuestions

    @classmethod
    def draw(
        cls,
        seed: int,
        questions: int = 24,
        searches: int = 5,
        hints: int = 3,
        hint_logit: float = -7.0,
        chance: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> DeadEnds:
        """First searches 0.3 N(0, 1), a random wrong one 5 higher, the right one 1 lower; hints at ``hint_logit`` beside
        an answer at 0; second searches 0.3 N(0, 1), the same behind every first search and hint of a question."""
        generator = seeds.torch_generator(seed, "dead-ends")
        root, second = (
            0.3 * torch.randn(questions, searches, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        right = torch.randint(searches, (questions,), generator=generator)
        wrong = (right + torch.randint(1, searches, (questions,), generator=generator)) % searches
        number = torch.arange(questions)
        root[number, wrong] += 5
        root[number, right] -= 1
        logits = torch.full((questions, 1 + searches + searches * hints, searches + 1 + hints), -torch.inf, dtype=dtype)
        logits[:, ROOT, :searches] = root.to(dtype)
        logits[:, 1 : 1 + searches, searches] = 0.0
        logits[:, 1 : 1 + searches, searches + 1 :] = hint_logit
        logits[:, 1 + searches :, :searches] = second.to(dtype).unsqueeze(1)
        policy = TreePolicy(logits, searches, hints)
        return cls(policy, TreeQuestions(policy, right, chance))

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        """A reward of 1 with the response's chance."""
        stage = "probe rewards" if bool((origins.of(rollouts) == origins.FORCED).any()) else "rewards"
        drawn = torch.rand(len(rollouts), generator=ctx.generator(stage))
        return replace(rollouts, rewards=(drawn < self.source.expected(rollouts)).float())

    def setting(self, samples: int = 5) -> Setting:
        return Setting(self.source, self.judge, Sampling(3), len(self.source), samples)

    @torch.no_grad()
    def success(self) -> float:
        """Exact chance of a reward without resuming, averaged over questions."""
        return float(self.value(self.policy.core.logits).mean())

    def value(self, logits: Float[Tensor, "Q S V"]) -> Float[Tensor, " Q"]:
        """Exact chance of a reward of each question; differentiable."""
        policy, number = self.policy, torch.arange(len(logits))
        table = logits.softmax(-1)
        searches, right = policy.searches, self.source.right
        root, decide = table[:, ROOT, :searches], table[:, 1 : 1 + searches]
        stop = root[number, right] * decide[number, right, policy.answer]
        later = table[:, 1 + searches :].unflatten(1, (searches, policy.hints))[number, :, :, right]
        again = (root.unsqueeze(-1) * decide[:, :, policy.answer + 1 :] * later).sum((1, 2))
        return self.source.chance * (stop + again)

    def responses(self, question: int = 0) -> Rollouts:
        """Every response to a question, as an original."""
        policy = self.policy
        short = [[s, policy.answer, 0] for s in range(policy.searches)]
        long = [
            [s, policy.answer + 1 + h, t]
            for s in range(policy.searches) for h in range(policy.hints) for t in range(policy.searches)
        ]  # fmt: skip
        ids = torch.tensor(short + long)
        real = torch.ones_like(ids, dtype=torch.bool)
        real[: len(short), 2] = False
        count = len(ids)
        prompt = torch.full((count, 1), question)
        blank = torch.zeros(ids.shape, dtype=policy.core.logits.dtype)
        zeros = torch.zeros(count, dtype=torch.long)
        rows = Rollouts(prompt, torch.ones_like(prompt, dtype=torch.bool), ids, real, real, zeros, prompt[:, 0], blank)
        known = policy.score(rows).logprobs.detach()
        return self.source.marked(
            origins.mark(replace(rows, behavior_logprobs=known, old_logprobs=known), origins.MODEL)
        )

    def resumed(self, question: int = 0) -> tuple[Rollouts, Float[Tensor, " M"], float]:
        """Every resumed response to a question, its probability, and the chance that an original is resumed if it can be."""
        every = self.responses(question)
        rows = every.select(every.extras["answer_start"] < 0)
        origin = origins.of(rows).clone()
        origin[:, 1] = origins.FORCED
        rows = origins.assign(rows, origin)
        number = torch.arange(len(rows))
        failing = self.source.failure_logprobs(rows, number, torch.ones_like(number))
        assert rows.old_logprobs is not None
        mass = (rows.old_logprobs[:, 0] + failing + rows.old_logprobs[:, 2]).exp() / self.policy.hints
        return rows, mass / mass.sum(), float(mass.sum())
