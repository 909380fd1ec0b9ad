"""Small worlds for selection and allocation: pools of prompts of very different difficulty, learnt alone or together.

A response is a chain of decisions, each right (token 1) or wrong (token 0), and is rewarded if all are right. Prompts that
share a logit share what is learnt on them; a skill common to all carries part of it over to every other prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policydist.language.generation import draw
from policydist.language.policies.linear import LinearPolicy
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Recipe, Setting
from policydist.language.trainer import Row, TrainConfig, Trainer
from policydist.language.types import (
    Generation,
    Policy,
    Prompts,
    Rollouts,
    Sampling,
    Scores,
    TokenTerms,
    apply_terms,
)
from policydist.language.worlds import LinearBandit
from policydist.runs import seeds


class Chain(nn.Module):
    """``logits`` [K] and a ``skill``; a decision of prompt q is right with probability
    ``sigmoid(logits[owner[q]] + coupling * skill)``."""

    owner: Tensor

    def __init__(self, logits: Float[Tensor, " K"], owner: Int[Tensor, " Q"], coupling: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.skill = nn.Parameter(torch.zeros((), dtype=logits.dtype))
        self.coupling = coupling
        self.register_buffer("owner", owner)

    def forward(self, prompt: Int[Tensor, " N"]) -> Float[Tensor, "N 2"]:
        """Logits of a wrong and a right decision."""
        right = self.logits[self.owner[prompt]] + self.coupling * self.skill
        return torch.stack([torch.zeros_like(right), right], 1)


class ChainPolicy:
    """Responses of ``length[q]`` independent decisions to prompt q; see `Chain`. There are no value estimates."""

    def __init__(
        self, logits: Float[Tensor, " K"], owner: Int[Tensor, " Q"], length: Int[Tensor, " Q"], coupling: float
    ) -> None:
        self.core = Chain(logits, owner, coupling)
        self.module: nn.Module = self.core
        self.length = length

    @property
    def device(self) -> torch.device:
        return self.core.logits.device

    def add_value_head(self) -> None:
        """No method of these worlds uses one."""

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample; see `Policy`."""
        prompt = torch.repeat_interleave(prompts.ids[:, -1], prompts.samples)
        length = self.length[prompt]
        width = int(length.max())
        logits = self.core(prompt).repeat_interleave(width, 0)
        ids, logprobs = draw(logits, uniforms[:, :width].flatten(), sampling)
        mask = torch.arange(width) < length.unsqueeze(1)
        return Generation(ids.view(-1, width) * mask, mask, logprobs.view(-1, width) * mask)

    def score(
        self,
        rollouts: Rollouts,
        *,
        entropy: bool = False,
        tilts: Sequence[float] = (),
        values: bool = False,
        terms: TokenTerms | None = None,
    ) -> Scores:
        """Score; see `Policy`."""
        ids, real = rollouts.response_ids, rollouts.response_attention
        logits = self.module(rollouts.prompt_ids[:, -1])
        logprobs = logits.log_softmax(-1)
        return Scores(
            logprobs=logprobs.gather(1, ids) * real,
            entropy=-(logprobs.exp() * logprobs).sum(-1, keepdim=True) * real if entropy else None,
            tilted={tilt: (logits / tilt).log_softmax(-1).gather(1, ids) * real for tilt in tilts},
            terms=apply_terms(terms, logits.unsqueeze(1).expand(-1, ids.shape[1], -1), ids, real),
        )

    @torch.no_grad()
    def success(self) -> Float[Tensor, " Q"]:
        """Exact probability that all of a prompt's decisions are right."""
        everything = torch.arange(len(self.length))
        return self.core(everything).softmax(-1)[:, 1] ** self.length


@dataclass(frozen=True)
class Pool:
    """Q prompts of a `ChainPolicy`; ``fixed`` [Q] is the reward where it does not depend on the response, else NaN."""

    policy: ChainPolicy
    fixed: Float[Tensor, " Q"]
    sources: Sequence[str] | None = None

    @classmethod
    def items(cls, seed: int, count: int, mean: float, deviation: float, coupling: float = 0.0) -> Pool:
        """``count`` one-decision prompts with a logit each, drawn from N(mean, deviation^2)."""
        logits = mean + deviation * torch.randn(count, generator=seeds.torch_generator(seed, "pool"))
        return cls.of(ChainPolicy(logits, torch.arange(count), torch.ones(count, dtype=torch.long), coupling))

    @classmethod
    def of(cls, policy: ChainPolicy) -> Pool:
        """All prompts of a policy, every reward up to the response."""
        return cls(policy, torch.full((len(policy.length),), torch.nan))

    @classmethod
    def chains(cls, count: int = 8, each: int = 32, coupling: float = 0.5**0.5, pure: bool = False) -> Pool:
        """``count`` sources d of ``each`` prompts: chains of 2 (d + 1) decisions, logit 1 - d/4, all coupled by a skill.

        ``pure`` adds two sources of single decisions, one rewarded always ("solved") and one never ("hopeless").
        """
        names = [f"{d}" for d in range(count)] + (["solved", "hopeless"] if pure else [])
        place = torch.arange(len(names)).repeat_interleave(each)
        logits = torch.tensor([1 - d / 4 for d in range(count)] + [0.0] * (len(names) - count))
        length = torch.where(place < count, 2 * (place + 1), 1)
        fixed = torch.full((len(place),), torch.nan)
        if pure:
            fixed[place == count], fixed[place == count + 1] = 1.0, 0.0
        return cls(ChainPolicy(logits, place, length, coupling), fixed, [names[i] for i in place.tolist()])

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        prompt = rollouts.prompt_ids[:, 0]
        right = (rollouts.response_ids.bool() | ~rollouts.response_attention).all(1).float()
        fixed = self.fixed[prompt]
        return replace(rollouts, rewards=torch.where(fixed.isnan(), right, fixed))

    def setting(self, prompts: int, samples: int) -> Setting:
        source = ContextPrompts(len(self.fixed), self.sources)
        return Setting(source, self.judge, Sampling(int(self.policy.length.max())), prompts, samples)

    def success(self) -> Float[Tensor, " Q"]:
        """Exact success probability of every prompt."""
        return torch.where(self.fixed.isnan(), self.policy.success(), self.fixed)


class DriftingPolicy(ChainPolicy):
    """``count`` single decisions with rates U(0, 1). Nothing is learnt; every ``every`` steps a random third is redrawn."""

    def __init__(self, seed: int, count: int, every: int = 40) -> None:
        super().__init__(torch.zeros(count), torch.arange(count), torch.ones(count, dtype=torch.long), coupling=0.0)
        # The skill, which nothing is coupled to, is left for the optimiser.
        self.core.logits.requires_grad_(False)
        self.seed, self.every, self.steps = seed, every, 0
        self.redraw(count)

    def redraw(self, some: int) -> None:
        """New rates for ``some`` random prompts."""
        rng = seeds.torch_generator(self.seed, "drift", self.steps)
        chosen = torch.randperm(len(self.length), generator=rng)[:some]
        self.core.logits[chosen] = torch.rand(some, generator=rng).logit(1e-6)

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Time passes; then sample."""
        if self.steps and self.steps % self.every == 0:
            self.redraw(len(self.length) // 3)
        self.steps += 1
        return super().generate(prompts, sampling, uniforms)


def shared_pool(seed: int, train: int, test: int = 512, dim: int = 48, answers: int = 50) -> LinearBandit:
    """A linear softmax policy over answers, the last ``test`` contexts held out, that can already do a little.

    Features N(0, 4/dim); the right answer is the best of a random linear map W plus N(0, 1); the policy starts at
    ``W/4 + N(0, 0.8^2)``, so success rates differ widely and most are small.
    """
    generator = seeds.torch_generator(seed, "shared-pool")
    features = torch.randn(train + test, dim, generator=generator) * 2 / dim**0.5
    true = torch.randn(dim, answers, generator=generator)
    scores = features @ true
    scores = scores + torch.randn(scores.shape, generator=generator)
    right = nn.functional.one_hot(scores.argmax(1), answers).bool()
    policy = LinearPolicy(features, answers)
    with torch.no_grad():
        policy.core.weights.copy_(true / 4 + 0.8 * torch.randn(dim, answers, generator=generator))
    return LinearBandit(policy, right, train, {})


def train(
    recipe: Recipe,
    policy: Policy,
    config: TrainConfig,
    measure: Callable[[], Mapping[str, float]] | None = None,
) -> list[Row]:
    """Train in place; returns the metrics of every step, with ``measure`` taken after each."""
    evaluate = None if measure is None else (lambda ctx: measure())
    config = replace(config, eval_every=1) if measure else config
    return Trainer(policy, recipe, config, evaluate=evaluate).train()
