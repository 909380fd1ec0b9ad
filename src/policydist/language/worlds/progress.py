"""A small world of thinking that makes progress: a trace is solved once enough right tokens have been chosen in turn.

Answers are drawn by the world, not by the policy: right with one chance where the trace is solved at the cut, with another
where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policydist.language.generation import draw
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Setting
from policydist.language.segmented import Answers
from policydist.language.types import (
    Generation,
    Prompts,
    Rollouts,
    Sampling,
    Scores,
    TokenTerms,
    apply_terms,
)  # fmt: skip
from policydist.runs import seeds


class Steps(nn.Module):
    """``logits`` [K+1, V], one row a state; the right token of state k leads to state k+1, any other one changes nothing."""

    right: Tensor

    def __init__(self, logits: Float[Tensor, "K1 V"], right: Int[Tensor, " K"]) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.register_buffer("right", right, persistent=False)

    def forward(self, ids: Int[Tensor, "N T"]) -> Float[Tensor, "N T V"]:
        """Log-probabilities of all tokens at every place."""
        return self.logits.log_softmax(-1)[self.states(ids)[:, :-1]]

    def states(self, ids: Int[Tensor, "N T"]) -> Int[Tensor, "N T1"]:
        """The state before every token and after the last one."""
        state = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        found = [state]
        for column in ids.T:
            state = self.advance(state, column)
            found.append(state)
        return torch.stack(found, 1)

    def advance(self, state: Int[Tensor, " N"], token: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
        """The state after one token; the last one is never left."""
        wanted = torch.nn.functional.pad(self.right, (0, 1), value=-1)
        return state + (token == wanted[state])


class ProgressPolicy:
    """Responses of exactly ``length`` tokens, each from a softmax that knows the state alone."""

    def __init__(self, logits: Float[Tensor, "K1 V"], right: Int[Tensor, " K"], length: int) -> None:
        self.core = Steps(logits, right)
        self.module: nn.Module = self.core
        self.length = length

    @property
    def device(self) -> torch.device:
        return self.core.logits.device

    def add_value_head(self) -> None:
        """No method of this world uses one."""

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample; see `Policy`."""
        state = torch.zeros(int(prompts.samples.sum()), dtype=torch.long, device=self.device)
        drawn = []
        for step in range(min(self.length, sampling.max_new_tokens)):
            drawn.append(draw(self.core.logits[state], uniforms[:, step], sampling))
            state = self.core.advance(state, drawn[-1][0])
        ids, logprobs = (torch.stack(column, 1) for column in zip(*drawn, strict=True))
        return Generation(ids, torch.ones_like(ids, dtype=torch.bool), logprobs)

    def score(
        self,
        rollouts: Rollouts,
        *,
        entropy: bool = False,
        tilts: Sequence[float] = (),
        values: bool = False,
        terms: TokenTerms | None = None,
    ) -> Scores:
        """Score; see `Policy`. It has no values."""
        ids, real = rollouts.response_ids, rollouts.response_attention
        everything = self.module(ids)

        def chosen(logprobs: Tensor) -> Tensor:
            return logprobs.gather(-1, ids.unsqueeze(-1))[..., 0] * real

        return Scores(
            chosen(everything),
            entropy=torch.special.entr(everything.exp()).sum(-1) * real if entropy else None,
            tilted={tilt: chosen((everything / tilt).log_softmax(-1)) for tilt in tilts},
            terms=apply_terms(terms, everything, ids, real),
        )


@dataclass(frozen=True)
class Chain:
    """``solved``/``unsolved``: chance of a right answer in the last state and before it."""

    policy: ProgressPolicy
    solved: float = 0.95
    unsolved: float = 0.15

    @classmethod
    def draw(cls, seed: int, states: int = 3, vocab: int = 8, length: int = 24) -> Chain:
        """Right tokens drawn uniformly, a policy that is uniform at first."""
        right = torch.randint(vocab, (states,), generator=seeds.torch_generator(seed, "progress-chain"))
        return cls(ProgressPolicy(torch.zeros(states + 1, vocab), right, length))

    def setting(self, prompts: int, samples: int) -> Setting:
        return Setting(ChainPrompts(self, prompts), self.judge, Sampling(self.policy.length), prompts, samples)

    def chance(self, traces: Rollouts, budgets: Sequence[int]) -> Float[Tensor, "N S"]:
        """How likely an answer is right after each cut."""
        core = self.policy.core
        state = core.states(traces.response_ids)[:, torch.tensor(budgets)]
        return torch.where(state == len(core.right), self.solved, self.unsolved)

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        """One answer after the whole trace, for methods that do not cut."""
        chance = self.chance(rollouts, [self.policy.length])[:, 0]
        return replace(rollouts, rewards=(torch.rand(len(chance), generator=ctx.generator("judge")) < chance).float())

    @torch.no_grad()
    def accuracy(self) -> Float[Tensor, " T"]:
        """Exact expected accuracy of an answer after 1, 2, … tokens."""
        core = self.policy.core
        hit = core.logits.double().softmax(-1)[torch.arange(len(core.right)), core.right]
        mass = torch.zeros(len(core.right) + 1, dtype=torch.float64)
        mass[0] = 1
        found = []
        for _ in range(self.policy.length):
            moved = mass[:-1] * hit
            mass = mass + torch.nn.functional.pad(moved, (1, 0)) - torch.nn.functional.pad(moved, (0, 1))
            found.append(mass[-1])
        return self.unsolved + (self.solved - self.unsolved) * torch.stack(found)


class ChainPrompts(ContextPrompts):
    """Questions that are all alike, with the world's answers to traces of thinking about them."""

    def __init__(self, world: Chain, contexts: int) -> None:
        super().__init__(contexts)
        self.world = world

    def answer(self, traces: Rollouts, budgets: Sequence[int], count: int, ctx: Context) -> Answers:
        chance = self.world.chance(traces, budgets)
        noise = torch.rand((count, *chance.shape), generator=ctx.generator("answer"))
        return Answers((noise < chance).float().mean(0))


def hazard_scores(
    seed: int, questions: int = 200, samples: int = 8, cuts: int = 8, answers: int = 4
) -> tuple[Float[Tensor, "N S"], Int[Tensor, " N"]]:
    """Mean rewards of traces that are solved, for good, with a question's own chance in every segment; and their groups.

    The chance is uniform in [0.02, 0.4]; an answer is right with chance 0.95 once solved, 0.1 before.
    """
    generator = seeds.torch_generator(seed, "hazard-scores")
    hazard = 0.02 + 0.38 * torch.rand(questions, dtype=torch.float64, generator=generator)
    group = torch.arange(questions).repeat_interleave(samples)
    events = torch.rand(len(group), cuts, dtype=torch.float64, generator=generator) < hazard[group].unsqueeze(1)
    right = torch.where(events.cummax(1).values, 0.95, 0.1).unsqueeze(-1)
    drawn = torch.rand(len(group), cuts, answers, dtype=torch.float64, generator=generator) < right
    return drawn.double().mean(-1), group
