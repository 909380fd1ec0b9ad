"""Small worlds: policies without a language model, on which the real recipes run in the real trainer within seconds.

Each world is drawn from one seed; its arms share it. Exact expectations are by enumeration, without sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.language import methods
from policydist.language.policies.linear import LinearPolicy
from policydist.language.policies.tabular import TabularPolicy
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Setting
from policydist.language.trainer import Row, TrainConfig, Trainer
from policydist.language.types import Policy, Rollouts, Sampling
from policydist.runs import seeds


def run(slug: str, knobs: Mapping[str, Any], policy: Policy, setting: Setting, config: TrainConfig) -> list[Row]:
    """Train ``policy`` in place by a method's own recipe; returns the metrics of every step."""
    method = methods.load(slug)
    return Trainer(policy, method.build(method.Config(**knobs), setting), config).train()


@dataclass(frozen=True)
class ModularSum:
    """A table over ``length`` symbols; a response is right iff the sum of its symbols is the prompt's target modulo ``modulus``.

    Many responses are right, and rows of the table share nothing, so entropy is free to go anywhere.
    """

    policy: TabularPolicy
    targets: Int[Tensor, " Q"]
    modulus: int

    @classmethod
    def draw(
        cls, seed: int, prompts: int = 32, length: int = 3, vocab: int = 8, modulus: int = 4, scale: float = 1.0
    ) -> ModularSum:
        """Initial logits N(0, scale^2), targets uniform."""
        generator = seeds.torch_generator(seed, "modular-sum")
        init = torch.randn(prompts, length, vocab, generator=generator) * scale
        targets = torch.randint(modulus, (prompts,), generator=generator)
        return cls(TabularPolicy(prompts, length, vocab, init=init), targets, modulus)

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        right = rollouts.response_ids.sum(1) % self.modulus == self.targets[rollouts.prompt_ids[:, 0]]
        return replace(rollouts, rewards=right.float())

    def setting(self, prompts: int, samples: int) -> Setting:
        return Setting(ContextPrompts(len(self.targets)), self.judge, Sampling(self.policy.length), prompts, samples)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Exact probability of a right response, averaged over prompts."""
        right = self.policy.sequences().sum(1) % self.modulus == self.targets.unsqueeze(1)
        return float((self.policy.probabilities() * right).sum(1).mean())


@dataclass(frozen=True)
class LinearBandit:
    """A linear softmax policy over answers; ``right`` [C, A] are the right ones in each context. Contexts from ``train`` on are
    held out. ``components`` [K, C, A] are further rewards, logged and summed with accuracy where there are some."""

    policy: LinearPolicy
    right: Bool[Tensor, "C A"]
    train: int
    components: Mapping[str, Float[Tensor, "C A"]]

    @classmethod
    def best_answer(cls, seed: int, contexts: int = 512, dim: int = 32, answers: int = 10) -> LinearBandit:
        """One right answer a context, the argmax of a random linear map; nothing held out. Features N(0, 4/dim)."""
        generator = seeds.torch_generator(seed, "best-answer")
        features = torch.randn(contexts, dim, generator=generator) * 2 / dim**0.5
        scores = features @ torch.randn(dim, answers, generator=generator)
        right = torch.nn.functional.one_hot(scores.argmax(1), answers).bool()
        return cls(LinearPolicy(features, answers), right, contexts, {})

    @classmethod
    def several_answers(
        cls,
        seed: int,
        train: int = 256,
        test: int = 512,
        dim: int = 24,
        answers: int = 24,
        count: int = 4,
        noise: float = 2.0,
    ) -> LinearBandit:
        """``count`` right answers a context, the top ones of a random linear map plus N(0, noise^2): not learnable exactly."""
        generator = seeds.torch_generator(seed, "several-answers")
        features = torch.randn(train + test, dim, generator=generator) * 2 / dim**0.5
        scores = features @ torch.randn(dim, answers, generator=generator)
        scores = scores + noise * torch.randn(scores.shape, generator=generator)
        right = torch.zeros_like(scores, dtype=torch.bool).scatter(1, scores.topk(count).indices, True)
        return cls(LinearPolicy(features, answers), right, train, {})

    def with_parity(self) -> LinearBandit:
        """A second, easy reward: the answer's number is even."""
        even = (torch.arange(self.right.shape[1]) % 2 == 0).float().expand(self.right.shape)
        return replace(self, components={"accuracy": self.right.float(), "parity": even})

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        place = rollouts.prompt_ids[:, 0], rollouts.response_ids[:, 0]
        if not self.components:
            return replace(rollouts, rewards=self.right[place].float())
        parts = {f"reward/{name}": table[place] for name, table in self.components.items()}
        return replace(rollouts, rewards=torch.stack(list(parts.values())).sum(0), extras={**rollouts.extras, **parts})

    def setting(self, prompts: int, samples: int) -> Setting:
        return Setting(ContextPrompts(self.train), self.judge, Sampling(1), prompts, samples)

    @torch.no_grad()
    def mass(self, held_out: bool) -> Float[Tensor, " C"]:
        """Exact probability of a right answer in each training or held-out context."""
        mass = (self.policy.probabilities() * self.right).sum(1)
        return mass[self.train :] if held_out else mass[: self.train]

    @torch.no_grad()
    def entropy(self, held_out: bool) -> float:
        """Mean exact entropy of the policy, in nats."""
        probabilities = self.policy.probabilities()
        entropy = torch.special.entr(probabilities).sum(1)
        return float((entropy[self.train :] if held_out else entropy[: self.train]).mean())


def pass_at(mass: Float[Tensor, " C"], k: int) -> float:
    """Mean over contexts of ``1 - (1 - mass)^k``: some of ``k`` samples is right."""
    return float((1 - (1 - mass).pow(k)).mean())
