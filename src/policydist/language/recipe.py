"""A recipe is the five parts of a training step; a method replaces the parts that its paper changes.

curriculum   which prompts, how many samples each
sampler      how responses come about
judge        rewards
credit       advantages and weights
objective    the loss
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.language.types import Policy, Prompts, Rollouts, Sampling, Scores
from policydist.language.world import World
from policydist.runs import seeds


@dataclass(frozen=True)
class Norm:
    """Denominators of the loss over the whole mini-batch, all micro-batches and processes taken together."""

    tokens: float
    sequences: float
    max_length: int


@dataclass
class Context:
    """What a stage can see besides its input: the policy, the step, the previous update's entropy, and a place to log.

    ``entropy`` is the sampled entropy (mean of -log p over chosen tokens, nats) seen during the previous update; 0 before the
    first. ``updates`` is how many optimiser steps each batch of rollouts gets; ``generated`` and ``responses`` count the tokens and
    the responses sampled so far.
    """

    policy: Policy
    seed: int
    world: World = field(default_factory=World)
    reference: Policy | None = None
    step: int = 0
    entropy: float = 0.0
    updates: int = 1
    generated: int = 0
    responses: int = 0
    norm: Norm = field(default_factory=lambda: Norm(1, 1, 1))
    metrics: dict[str, float] = field(default_factory=dict)

    def log(self, name: str, value: float | Tensor) -> None:
        """Record one number for this step."""
        self.metrics[name] = float(value)

    def generator(self, *names: object) -> torch.Generator:
        """A generator for this step and stage, the same on every process and after a resume."""
        return seeds.torch_generator(self.seed, self.step, *names)

    def generate(self, prompts: Prompts, sampling: Sampling, stage: str) -> Rollouts:
        """Sample all responses to ``prompts``; group q is prompt q. The work is spread over the processes."""
        total = int(prompts.samples.sum())
        uniforms = torch.rand(total, sampling.max_new_tokens, generator=self.generator(stage))
        rollouts = self.world.generate(self.policy, prompts, sampling, uniforms)
        self.generated += int(rollouts.response_attention.sum())
        self.responses += len(rollouts)
        return rollouts

    def judge(self, judge: Judge, rollouts: Rollouts) -> Rollouts:
        """The rollouts with rewards, the work spread over the processes."""
        return self.world.map(lambda part: judge(part, self), rollouts)

    @torch.no_grad()
    def score(self, rollouts: Rollouts, policy: Policy | None = None, **options: Any) -> Scores:
        """Score rollouts without gradient, spread over the processes."""
        return self.world.score(policy or self.policy, rollouts, **options)


class Curriculum(Protocol):
    """Selects prompts, learns from what came back, and can be saved and restored."""

    def select(self, ctx: Context) -> Prompts: ...

    def observe(self, rollouts: Rollouts, ctx: Context) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class Sampler(Protocol):
    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts: ...


class Judge(Protocol):
    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts: ...


class Credit(Protocol):
    """Fills ``advantages`` [N, T]; may also drop, add or reorder rows."""

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts: ...


class Objective(Protocol):
    """The loss of one micro-batch and numbers to log, all divided by ``ctx.norm``: over micro-batches they add up.

    ``sparse``: rows whose advantages are all zero contribute nothing to the gradient, so the trainer may leave them out.
    """

    @property
    def sparse(self) -> bool: ...

    def __call__(self, policy: Policy, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]: ...


@runtime_checkable
class Episodes(Protocol):
    """Plays prompts to their end, turn by turn (see `multiturn`). Small worlds' prompt sources implement it themselves.

    Rows carry the extras ``origin``, ``turns`` [N] taken, and ``answer_start`` and ``answer_end`` [N], the tokens of the final
    answer, -1 where there is none.
    """

    @property
    def max_turns(self) -> int: ...

    def play(self, prompts: Prompts, sampling: Sampling, ctx: Context) -> Rollouts:
        """``prompts.samples[q]`` episodes of each prompt, as `Context.generate` orders them."""
        ...

    def resume(self, rollouts: Rollouts, sampling: Sampling, ctx: Context) -> Rollouts:
        """The rows, none of which has an answer, played on for the turns that they have left."""
        ...

    def failure_logprobs(self, rollouts: Rollouts, rows: Int[Tensor, " K"], starts: Int[Tensor, " K"]) -> Tensor:
        """[K] log-probability that behind the first ``starts`` tokens of a row the policy at once answers wrongly; 0 where it
        cannot be known."""
        ...


class Extension(Protocol):
    """What accompanies training without being a stage: it sees the weights before and after each update."""

    def begin(self, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
        """Once, with the initial weights: before the first step, and before a checkpoint is restored."""
        ...

    def observe(self, ctx: Context) -> None:
        """After every update."""
        ...


@dataclass(frozen=True)
class Recipe:
    """Five parts, and what they need from the trainer: a value head, a frozen reference policy, extensions. ``episodes``: how
    prompts are played in evaluation where a response takes several turns. ``together``: rows that the objective must see at
    once, each so many consecutive ones that credit leaves, such as the two of a pair; they are never torn apart by mini-batches,
    micro-batches or processes, and the objective must not be sparse."""

    curriculum: Curriculum
    sampler: Sampler
    judge: Judge
    credit: Credit
    objective: Objective
    needs_values: bool = False
    needs_reference: bool = False
    together: int = 1
    extensions: tuple[Extension, ...] = ()
    episodes: Episodes | None = None


class PromptSource(Protocol):
    """Encoded prompts by row number: a tokenised task, or the contexts of a small world."""

    def __len__(self) -> int: ...

    def take(self, rows: Int[Tensor, " Q"], samples: int | Int[Tensor, " Q"]) -> Prompts: ...


@dataclass(frozen=True)
class Setting:
    """What a method builds its recipe on: where prompts come from, who judges, how much is sampled; and the texts that a task
    brings for a retriever."""

    source: PromptSource
    judge: Judge
    sampling: Sampling
    prompts_per_step: int = 32
    samples_per_prompt: int = 8
    documents: Sequence[str] = ()


def epoch_rows(size: int, count: int, seed: int, step: int) -> Int[Tensor, " Q"]:
    """``count`` of ``size`` rows for step ``step``, all once an epoch in a fresh seeded order; a batch that crosses the end of an
    epoch goes on in the next one."""
    start = step * count
    order = [torch.randperm(size, generator=seeds.torch_generator(seed, "epoch", start // size + k)) for k in (0, 1)]
    return torch.cat(order)[start % size : start % size + count]


class Shuffled:
    """Every epoch passes over all prompts once in a fresh seeded order; a pure function of seed and step, so it keeps no state."""

    def __init__(self, source: PromptSource, prompts_per_step: int, samples_per_prompt: int) -> None:
        self.source = source
        self.count = min(prompts_per_step, len(source))
        self.samples = samples_per_prompt

    def rows(self, seed: int, step: int) -> Int[Tensor, " Q"]:
        """The data rows of step ``step``."""
        return epoch_rows(len(self.source), self.count, seed, step)

    def select(self, ctx: Context) -> Prompts:
        return self.source.take(self.rows(ctx.seed, ctx.step), self.samples)

    def observe(self, rollouts: Rollouts, ctx: Context) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""


@dataclass(frozen=True)
class OnPolicy:
    """Plain sampling from the current policy. ``tilt``: this step's `Sampling.tilt`; what comes of it is in the extra
    ``tilted_logprobs`` [N, T], which some policies leave out."""

    sampling: Sampling
    tilt: Callable[[Context], float] | None = None

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        sampling = self.sampling if self.tilt is None else replace(self.sampling, tilt=self.tilt(ctx))
        return ctx.generate(prompts, sampling, "rollout")


def broadcast(values: Float[Tensor, " N"], rollouts: Rollouts) -> Float[Tensor, "N T"]:
    """One advantage a response, spread over the tokens the policy chose, zero elsewhere."""
    return values.unsqueeze(1) * rollouts.response_mask
