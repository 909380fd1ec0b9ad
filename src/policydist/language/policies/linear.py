"""A softmax policy that is linear in given features: one action per context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policydist.errors import UsageError
from policydist.language.generation import draw
from policydist.language.types import Generation, Prompts, Rollouts, Sampling, Scores, TokenTerms, apply_terms


class Linear(nn.Module):
    """``weights`` [D, A] of the policy and ``value_weights`` [D] of the value estimate, both from zero and without
    bias."""

    features: Tensor

    def __init__(self, features: Float[Tensor, "C D"], actions: int) -> None:
        super().__init__()
        self.register_buffer("features", features)
        self.weights = nn.Parameter(features.new_zeros(features.shape[1], actions))
        self.value_weights = nn.Parameter(features.new_zeros(features.shape[1]))

    def forward(self, context: Int[Tensor, " N"]) -> tuple[Float[Tensor, "N A"], Float[Tensor, " N"]]:
        """Logits ``x W`` and values ``x w`` of the contexts' features x."""
        chosen = self.features[context]
        return chosen @ self.weights, chosen @ self.value_weights


class LinearPolicy:
    """``softmax(x W)`` over ``actions`` for the context features x; a response is one token, the action.

    ``features`` [C, D]: one row a context, fixed; its dtype is the policy's. A prompt is its context's number: [Q, 1].

    Raises:
        UsageError: if ``features`` is not a matrix of floats.
    """

    def __init__(self, features: Float[Tensor, "C D"], actions: int) -> None:
        if features.dim() != 2 or not features.is_floating_point():
            raise UsageError(
                f"features must be a float matrix [contexts, D], not {features.dtype} {tuple(features.shape)}"
            )
        self.core = Linear(features.detach(), actions)
        self.module: nn.Module = self.core

    @property
    def device(self) -> torch.device:
        return self.core.features.device

    def add_value_head(self) -> None:
        """The map always has values."""

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample; see `Policy`."""
        context = torch.repeat_interleave(prompts.ids[:, -1], prompts.samples).to(self.device)
        ids, logprobs = draw(self.core(context)[0], uniforms[:, 0], sampling)
        return Generation(ids[:, None], torch.ones_like(ids, dtype=torch.bool)[:, None], logprobs[:, None])

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
        logits, estimates = self.module(rollouts.prompt_ids[:, -1])
        logprobs = logits.log_softmax(-1)
        return Scores(
            logprobs=logprobs.gather(1, ids) * real,
            entropy=-(logprobs.exp() * logprobs).sum(-1, keepdim=True) * real if entropy else None,
            tilted={tilt: (logits / tilt).log_softmax(-1).gather(1, ids) * real for tilt in tilts},
            values=estimates[:, None] * real if values else None,
            terms=apply_terms(terms, logits[:, None], ids, real),
        )

    def probabilities(self) -> Float[Tensor, "C A"]:
        """Exact probability of every action in every context; differentiable."""
        logits: Tensor = self.core(torch.arange(len(self.core.features), device=self.device))[0]
        return logits.softmax(-1)
