"""Small worlds in which a prompt can steer: a table of logits to which the text before the question adds.

A plain prompt is the question's number alone. A steered one has ``length`` tokens in front of it: token g at place t adds
``strength`` to the logit of g at position t of the response. So guidance is carried in the prompt itself, as a text is, and
scoring a response under a prompt shows whether the guidance was still in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from policydist.language import methods
from policydist.language.generation import draw
from policydist.language.policies.tabular import TabularPolicy
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Setting
from policydist.language.trainer import Row, TrainConfig, Trainer
from policydist.language.types import Generation, Prompts, Rollouts, Sampling, Scores, TokenTerms, apply_terms
from policydist.runs import seeds


class SteeredTable(nn.Module):
    """``logits`` [Q, T, V], and what a prompt's guidance adds to them."""

    def __init__(self, logits: Float[Tensor, "Q T V"], strength: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())
        self.strength = strength

    def forward(self, ids: Int[Tensor, "N P"], mask: Bool[Tensor, "N P"]) -> Float[Tensor, "N T V"]:
        """Logits of all positions under each prompt."""
        logits = self.logits[ids[:, -1]]
        length, vocab = logits.shape[1:]
        if ids.shape[1] == 1:
            return logits
        there = mask[:, -1 - length : -1].unsqueeze(-1)
        favoured = nn.functional.one_hot(ids[:, -1 - length : -1].clamp(max=vocab - 1), vocab)
        return logits + self.strength * favoured * there


class SteeredPolicy:
    """Responses of exactly T independent tokens to Q questions; see the module's text for steered prompts."""

    def __init__(self, logits: Float[Tensor, "Q T V"], strength: float) -> None:
        self.core = SteeredTable(logits, strength)
        self.module: nn.Module = self.core
        self.length = logits.shape[1]

    @property
    def device(self) -> torch.device:
        return self.core.logits.device

    def add_value_head(self) -> None:
        """No method of these worlds uses one."""

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample; see `Policy`."""
        logits = self.core(prompts.ids, prompts.mask).repeat_interleave(prompts.samples, 0)
        ids, logprobs = draw(logits.flatten(0, 1), uniforms[:, : self.length].flatten(), sampling)
        ids, logprobs = ids.view(-1, self.length), logprobs.view(-1, self.length)
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
        """Score; see `Policy`. There are no value estimates."""
        logits = self.module(rollouts.prompt_ids, rollouts.prompt_mask)
        chosen, real = rollouts.response_ids.unsqueeze(-1), rollouts.response_attention
        logprobs = logits.log_softmax(-1)
        return Scores(
            logprobs=logprobs.gather(-1, chosen)[..., 0] * real,
            entropy=-(logprobs.exp() * logprobs).sum(-1) * real if entropy else None,
            tilted={tilt: (logits / tilt).log_softmax(-1).gather(-1, chosen)[..., 0] * real for tilt in tilts},
            terms=apply_terms(terms, logits, rollouts.response_ids, real),
        )

    @torch.no_grad()
    def right(self, targets: Int[Tensor, "Q T"]) -> Float[Tensor, "Q T"]:
        """Exact probability of the target token at every position, without guidance."""
        return self.core.logits.softmax(-1).gather(-1, targets.unsqueeze(-1))[..., 0]


def steered(prompts: Prompts, favoured: Int[Tensor, "Q T"]) -> Prompts:
    """The prompts with the favoured tokens in front of the question."""
    ids = torch.cat([favoured, prompts.ids[:, -1:]], 1)
    return replace(prompts, ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))


def below(seed: int, name: str, shape: tuple[int, int, int], scale: float, shift: float) -> tuple[Tensor, Tensor]:
    """Logits N(0, scale^2) with the target token's moved by ``shift``, and the targets [Q, T], uniform."""
    generator = seeds.torch_generator(seed, name)
    questions, length, vocab = shape
    logits = torch.randn(shape, generator=generator) * scale
    targets = torch.randint(vocab, (questions, length), generator=generator)
    return logits.scatter_add(2, targets.unsqueeze(-1), torch.full((questions, length, 1), shift)), targets


class DemonstratedPrompts(ContextPrompts):
    """Questions whose demonstration favours the target, or with probability ``wrong`` a random response."""

    def __init__(self, targets: Int[Tensor, "Q T"], vocab: int, wrong: float) -> None:
        super().__init__(len(targets))
        self.targets, self.vocab, self.wrong = targets, vocab, wrong

    def steer(self, prompts: Prompts, generator: torch.Generator) -> Prompts:
        """See `policydist.language.guided.Steering`."""
        targets = self.targets[prompts.ids[:, -1]]
        astray = torch.rand(len(prompts), 1, generator=generator) < self.wrong
        random = torch.randint(self.vocab, targets.shape, generator=generator)
        return steered(prompts, torch.where(astray, random, targets))


@dataclass(frozen=True)
class ClosedTask:
    """A response is right only if all its tokens are: the policy alone hardly ever finds one, a good demonstration does."""

    policy: SteeredPolicy
    source: DemonstratedPrompts

    @classmethod
    def draw(
        cls,
        seed: int,
        questions: int = 12,
        length: int = 3,
        vocab: int = 10,
        strength: float = 3.0,
        wrong: float = 0.3,
        shift: float = -0.7,
    ) -> ClosedTask:
        """Logits 0.5 N(0, 1), the target's ``shift`` lower; a demonstration adds ``strength``."""
        logits, targets = below(seed, "closed-task", (questions, length, vocab), 0.5, shift)
        return cls(SteeredPolicy(logits, strength), DemonstratedPrompts(targets, vocab, wrong))

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        right = (rollouts.response_ids == self.source.targets[rollouts.prompt_ids[:, -1]]).all(1)
        return replace(rollouts, rewards=right.float())

    def setting(self, samples: int) -> Setting:
        return Setting(self.source, self.judge, Sampling(self.policy.length), len(self.source), samples)

    def success(self) -> float:
        """Exact probability of a right response without demonstration, averaged over questions."""
        return float(self.policy.right(self.source.targets).prod(1).mean())


class ChecklistPrompts(ContextPrompts):
    """Questions that ask for one given token at every position: the criteria of a rubric. Revises drafts by hindsight."""

    def __init__(self, targets: Int[Tensor, "Q T"]) -> None:
        super().__init__(len(targets))
        self.targets = targets

    def verdicts(self, rollouts: Rollouts) -> Bool[Tensor, "N T"]:
        """Which criteria each response meets."""
        return rollouts.response_ids == self.targets[rollouts.prompt_ids[:, -1]]

    def met(self, rollouts: Rollouts) -> Int[Tensor, " N"]:
        """See `policydist.language.revision.Reviser`."""
        return self.verdicts(rollouts).sum(1)

    def revision_prompts(self, drafts: Rollouts, diagnosis: bool) -> Prompts:
        """See `policydist.language.revision.Reviser`: with a diagnosis the target is favoured where it was missed
        and the draft where it was met; without one, the draft everywhere."""
        place = drafts.prompt_ids[:, -1]
        favoured = drafts.response_ids
        if diagnosis:
            favoured = torch.where(self.verdicts(drafts), favoured, self.targets[place])
        return steered(self.take(place, 1), favoured)


@dataclass(frozen=True)
class Checklist:
    """The reward is the share of a question's criteria that the response meets, one a position."""

    policy: SteeredPolicy
    source: ChecklistPrompts

    @classmethod
    def draw(
        cls, seed: int, questions: int = 8, length: int = 6, vocab: int = 12, strength: float = 7.0, shift: float = -4.0
    ) -> Checklist:
        """Logits 0.3 N(0, 1), the target's ``shift`` lower; guidance adds ``strength``."""
        logits, targets = below(seed, "checklist", (questions, length, vocab), 0.3, shift)
        return cls(SteeredPolicy(logits, strength), ChecklistPrompts(targets))

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        return replace(rollouts, rewards=self.source.verdicts(rollouts).float().mean(1))

    def setting(self, samples: int) -> Setting:
        return Setting(self.source, self.judge, Sampling(self.policy.length), len(self.source), samples)

    def success(self) -> float:
        """Exact probability of a target token without guidance, averaged over positions and questions."""
        return float(self.policy.right(self.source.targets).mean())


class ExpertPrompts(ContextPrompts):
    """Questions with one expert response each."""

    def __init__(self, responses: Int[Tensor, "Q T"]) -> None:
        super().__init__(len(responses))
        self.responses = responses

    def experts(self, prompts: Prompts) -> Sequence[Int[Tensor, " T"]]:
        """See `policydist.language.guided.ExpertSource`."""
        return list(self.responses[prompts.ids[:, -1]])


@dataclass(frozen=True)
class ExpertTree:
    """A table over whole responses: some are right, and the expert's is one of them."""

    policy: TabularPolicy
    correct: Bool[Tensor, "Q M"]
    source: ExpertPrompts

    @classmethod
    def draw(cls, seed: int, questions: int = 8, length: int = 3, vocab: int = 6, right: int = 6) -> ExpertTree:
        """Logits 0.5 N(0, 1) per prefix; ``right`` of the vocab ** length responses are right, drawn at random."""
        generator = seeds.torch_generator(seed, "expert-tree")
        rows = (vocab**length - 1) // (vocab - 1)
        init = 0.5 * torch.randn(questions, rows, vocab, generator=generator)
        policy = TabularPolicy(questions, length, vocab, prefix=True, init=init)
        picks = torch.rand(questions, vocab**length, generator=generator).argsort(1)[:, :right]
        correct = torch.zeros(questions, vocab**length, dtype=torch.bool).scatter(1, picks, True)
        return cls(policy, correct, ExpertPrompts(policy.sequences()[picks[:, 0]]))

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        powers = self.policy.vocab ** torch.arange(self.policy.length - 1, -1, -1)
        number = (rollouts.response_ids * powers).sum(1)
        return replace(rollouts, rewards=self.correct[rollouts.prompt_ids[:, -1], number].float())

    def setting(self, samples: int) -> Setting:
        return Setting(self.source, self.judge, Sampling(self.policy.length), len(self.source), samples)

    @torch.no_grad()
    def exact(self) -> dict[str, float]:
        """By enumeration, averaged over questions: accuracy, entropy of the responses in nats, and coverage, the
        exponential of the entropy within the right responses."""
        probabilities = self.policy.probabilities()
        mass = (probabilities * self.correct).sum(1, keepdim=True)
        within = probabilities * self.correct / mass
        return {
            "accuracy": float(mass.mean()),
            "entropy": float(torch.special.entr(probabilities).sum(1).mean()),
            "coverage": float(torch.special.entr(within).sum(1).exp().mean()),
        }


def traced(
    slug: str,
    knobs: Mapping[str, Any],
    policy: Any,
    setting: Setting,
    config: TrainConfig,
    measure: Callable[[], Mapping[str, float]],
) -> list[Row]:
    """Train ``policy`` in place by a method's own recipe; every step's metrics with ``measure`` after it."""
    method = methods.load(slug)
    trainer = Trainer(policy, method.build(method.Config(**knobs), setting), config)
    return [trainer.step() | dict(measure()) for _ in range(config.steps)]
