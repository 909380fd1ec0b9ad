"""Small worlds with given answers: contexts that carry labels, and a policy that is to keep what it knew while learning."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from policydist.language.policies.linear import LinearPolicy
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Setting
from policydist.language.supervised import unjudged
from policydist.language.types import Generation, Prompts, Sampling
from policydist.runs import seeds


class LabelledContexts(ContextPrompts):
    """Contexts 0 to C - 1 and the label of each [C]: the completion that supervised methods imitate."""

    def __init__(self, labels: Int[Tensor, " C"]) -> None:
        super().__init__(len(labels))
        self.labels = labels

    def demonstrate(self, prompts: Prompts) -> Generation:
        ids = self.labels[prompts.index][:, None]
        return Generation(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros(ids.shape))


@dataclass(frozen=True)
class ShiftedDomain:
    """A linear policy that is perfect on domain A and is trained on few, partly mislabelled items of domain B.

    A: features N(0, I), label the argmax of a linear map W_A, at a multiple of which the policy starts. B: features
    N(mu, I), label the argmax of W_A plus noise; a share of the training labels is uniformly random.
    """

    policy: LinearPolicy
    labels: Int[Tensor, " C"]
    truth: Int[Tensor, " C"]
    train: int
    test: int

    @classmethod
    def draw(
        cls,
        seed: int,
        noise: float,
        *,
        dim: int = 24,
        answers: int = 16,
        train: int = 400,
        test: int = 2000,
        shift: float = 0.8,
        scale: float = 1.0,
        mean: float = 0.5,
    ) -> ShiftedDomain:
        """``noise``: share of random training labels; ``shift``: how far B's map is from A's; ``scale``: how sure the policy
        starts; ``mean``: standard deviation of the entries of mu."""
        generator = seeds.torch_generator(seed, "shifted-domain")
        first = torch.randn(dim, answers, generator=generator)
        second = first + shift * torch.randn(dim, answers, generator=generator)
        mu = mean * torch.randn(dim, generator=generator)
        b = torch.randn(train + test, dim, generator=generator) + mu
        a = torch.randn(test, dim, generator=generator)
        truth = torch.cat([(b @ second).argmax(1), (a @ first).argmax(1)])
        random = torch.randint(answers, (train,), generator=generator)
        wrong = torch.rand(train, generator=generator) < noise
        labels = torch.where(wrong, random, truth[:train])
        policy = LinearPolicy(torch.cat([b, a]), answers)
        with torch.no_grad():
            policy.core.weights.copy_(scale * first)
        return cls(policy, labels, truth, train, test)

    def setting(self, prompts: int) -> Setting:
        return Setting(LabelledContexts(self.labels), unjudged, Sampling(1), prompts, 1)

    @torch.no_grad()
    def accuracy(self) -> tuple[float, float]:
        """Share of held-out items of B, and of items of A, whose most probable answer is right."""
        right = (self.policy.probabilities().argmax(1) == self.truth).float()
        return float(right[self.train : self.train + self.test].mean()), float(right[self.train + self.test :].mean())
