"""A small world with a network of stored weights: which of them does training change?

The weights are bfloat16 values held in float32, as after loading a published checkpoint; training moves the float32 copy.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from policydist.errors import UsageError
from policydist.functional.sparsity import round_bf16
from policydist.language.policies.linear import LinearPolicy
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Setting
from policydist.language.trainer import TrainConfig
from policydist.language.types import Prompts, Rollouts, Sampling
from policydist.language.worlds import run
from policydist.language.worlds.supervised import LabelledContexts
from policydist.runs import seeds

Task = Literal["reward", "labels", "other_reward"]


class Network(nn.Module):
    """``logits = W2 tanh(W1 x + b1) + b2`` for the contexts' fixed features x [C, D]."""

    features: Tensor

    def __init__(self, features: Float[Tensor, "C D"], hidden: int, actions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("features", features, persistent=False)
        self.first = nn.Linear(features.shape[1], hidden)
        self.second = nn.Linear(hidden, actions)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
                layer.bias.zero_()

    def forward(self, context: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N A"], Float[Tensor, " N"]]:
        """Logits, and values that are zero: this network estimates none."""
        logits: Tensor = self.second(torch.tanh(self.first(self.features[context])))
        return logits, logits.new_zeros(len(logits))


class NetworkPolicy(LinearPolicy):
    """`LinearPolicy` with a hidden layer instead of a linear map."""

    def __init__(self, features: Float[Tensor, "C D"], hidden: int, actions: int, generator: torch.Generator) -> None:
        super().__init__(features, actions)
        self.core = Network(features, hidden, actions, generator)  # type: ignore[assignment]
        self.module = self.core

    def add_value_head(self) -> None:
        raise UsageError("this network estimates no values")


@dataclass(frozen=True)
class StoredNetwork:
    """A pretrained network and two tasks on its contexts: a reward it half knows, and labels that contradict it.

    The reward is 1 for the top two of a *shifted* scorer; the labels are those of an unrelated one. The second half of the
    contexts is "other data" of the same kind.
    """

    policy: NetworkPolicy
    right: Bool[Tensor, "C A"]
    labels: Int[Tensor, " C"]

    @classmethod
    def draw(
        cls,
        seed: int,
        *,
        contexts: int = 2000,
        dim: int = 32,
        hidden: int = 128,
        actions: int = 24,
        shift: float = 0.5,
        noise: float = 1.0,
        pretraining: int = 600,
    ) -> StoredNetwork:
        """``shift``: how far the reward's scorer is from the one pretrained on; ``noise``: of the scores whose argmax the
        pretraining labels are, relative to the scores' own spread."""
        generator = seeds.torch_generator(seed, "stored-network")
        features = torch.randn(2 * contexts, dim, generator=generator)
        scorer = torch.randn(dim, actions, generator=generator)
        shifted = scorer + shift * torch.randn(dim, actions, generator=generator)
        unrelated = torch.randn(dim, actions, generator=generator)
        scores = features @ scorer
        noisy = (scores + noise * dim**0.5 * torch.randn(scores.shape, generator=generator)).argmax(1)
        top = (features @ shifted).topk(2).indices
        right = torch.zeros_like(scores, dtype=torch.bool).scatter(1, top, True)
        policy = NetworkPolicy(features, hidden, actions, generator)
        world = cls(policy, right, (features @ unrelated).argmax(1))
        source = LabelledContexts(noisy)
        config = TrainConfig(steps=pretraining, lr=2e-3, grad_clip=0, seed=seed)
        run("sft", {}, policy, Setting(source, world.judge, Sampling(1), 128, 1), config)
        with torch.no_grad():
            for parameter in policy.module.parameters():
                parameter.copy_(round_bf16(parameter))
        return world

    def fresh(self) -> StoredNetwork:
        """The same world with a network of its own at the pretrained weights."""
        return replace(self, policy=copy.deepcopy(self.policy))

    def judge(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        return replace(rollouts, rewards=self.right[rollouts.prompt_ids[:, 0], rollouts.response_ids[:, 0]].float())

    def setting(self, task: Task, prompts: int, samples: int) -> Setting:
        half = len(self.labels) // 2
        sources = {
            "reward": ContextPrompts(half),
            "labels": LabelledContexts(self.labels[:half]),
            "other_reward": Offset(half),
        }
        return Setting(sources[task], self.judge, Sampling(1), prompts, samples)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the parameters by name."""
        return {name: p.detach().clone() for name, p in self.policy.module.named_parameters()}

    @torch.no_grad()
    def reward(self) -> float:
        """Exact expected reward over the first half of the contexts."""
        mass = (self.policy.probabilities() * self.right).sum(1)
        return float(mass[: len(mass) // 2].mean())


class Offset(ContextPrompts):
    """The contexts after the first ``contexts``."""

    def take(self, rows: Int[Tensor, " Q"], samples: int | Int[Tensor, " Q"]) -> Prompts:
        return super().take(rows + self.contexts, samples)
