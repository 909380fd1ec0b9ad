"""A policy that is a table of logits: the small world in which every expectation can be written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from policydist.errors import UsageError
from policydist.language.generation import draw
from policydist.language.types import Generation, Prompts, Rollouts, Sampling, Scores, TokenTerms, apply_terms

MOST_SEQUENCES = 1_000_000


class Table(nn.Module):
    """``logits`` [Q, rows, V] and ``values`` [Q, rows]; a row is a position, or with ``prefix`` a response prefix."""

    def __init__(self, logits: Float[Tensor, "Q R V"]) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.values = nn.Parameter(torch.zeros_like(logits[..., 0]))

    def forward(
        self, prompt: Int[Tensor, " N"], row: Int[Tensor, "N T"], ids: Int[Tensor, "N T"], tilts: Sequence[float]
    ) -> tuple[Tensor, ...]:
        """Log-probabilities [N, T, V], those of ``ids`` [N, T] and values [N, T]; then tilted ones of ``ids``."""
        logits = self.logits[prompt[:, None], row]
        chosen = ids[..., None]
        logprobs = logits.log_softmax(-1)
        tilted = [(logits / tilt).log_softmax(-1).gather(-1, chosen)[..., 0] for tilt in tilts]
        return logprobs, logprobs.gather(-1, chosen)[..., 0], self.values[prompt[:, None], row], *tilted


class TabularPolicy:
    """Responses of exactly ``length`` tokens to each of ``prompts`` contexts, softmax over a table of logits.

    A prompt is its context's number: ``prompts.ids`` [Q, 1]. With ``prefix`` every response prefix has logits of its
    own, so the table holds any distribution over sequences; without, the tokens of a response are independent.

    Raises:
        UsageError: if ``init`` does not have the table's shape [prompts, rows, vocab].
    """

    def __init__(
        self,
        prompts: int,
        length: int,
        vocab: int,
        *,
        prefix: bool = False,
        init: Float[Tensor, "Q R V"] | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.length, self.vocab, self.prefix = length, vocab, prefix
        starts = [(vocab**t - 1) // max(vocab - 1, 1) if vocab > 1 else t for t in range(length + 1)]
        self.starts = starts if prefix else list(range(length + 1))
        shape = (prompts, self.starts[length], vocab)
        if init is not None and tuple(init.shape) != shape:
            raise UsageError(f"init has shape {tuple(init.shape)}; this table needs {shape}")
        self.core = Table(torch.zeros(shape, dtype=dtype) if init is None else init.detach().clone().to(dtype))
        self.module: nn.Module = self.core

    @property
    def device(self) -> torch.device:
        return self.core.logits.device

    def add_value_head(self) -> None:
        """The table always has values."""

    def rows(self, ids: Int[Tensor, "N T"]) -> Int[Tensor, "N T"]:
        """The table row that gives each token's distribution: its position, or the number of the prefix before it."""
        steps = torch.arange(ids.shape[1], device=ids.device)
        if not self.prefix:
            return steps.expand(ids.shape)
        number = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
        found = []
        for step in range(ids.shape[1]):
            found.append(number + self.starts[step])
            number = number * self.vocab + ids[:, step]
        return torch.stack(found, 1) if found else torch.empty_like(ids)

    @torch.no_grad()
    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample; see `Policy`. ``sampling.max_new_tokens`` shortens the responses where it is below ``length``."""
        if sampling.stop:
            raise UsageError("a table's responses all have the same length; stop tokens cannot end them")
        prompt = torch.repeat_interleave(prompts.ids[:, -1], prompts.samples).to(self.device)
        steps = min(self.length, sampling.max_new_tokens)
        number = torch.zeros_like(prompt)
        logits = self.core.logits
        if not self.prefix:
            flat = logits[prompt, :steps].flatten(0, 1)
            ids, logprobs = draw(flat, uniforms[:, :steps].flatten(), sampling)
            ids, logprobs = ids.view(-1, steps), logprobs.view(-1, steps)
            return Generation(ids, torch.ones_like(ids, dtype=torch.bool), logprobs)
        drawn = []
        for step in range(steps):
            drawn.append(draw(logits[prompt, number + self.starts[step]], uniforms[:, step], sampling))
            number = number * self.vocab + drawn[-1][0]
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
        """Score; see `Policy`."""
        ids, real = rollouts.response_ids, rollouts.response_attention
        prompt = rollouts.prompt_ids[:, -1]
        everything, chosen, estimates, *tilted = self.module(prompt, self.rows(ids), ids, tuple(tilts))
        return Scores(
            logprobs=chosen * real,
            entropy=-(everything.exp() * everything).sum(-1) * real if entropy else None,
            tilted={tilt: tensor * real for tilt, tensor in zip(tilts, tilted, strict=True)},
            values=estimates * real if values else None,
            terms=apply_terms(terms, everything, ids, real),  # log-probabilities are logits too
        )

    def sequences(self) -> Int[Tensor, "M T"]:
        """All ``vocab ** length`` responses, in lexicographic order.

        Raises:
            UsageError: if there are more than a million.
        """
        if self.vocab**self.length > MOST_SEQUENCES:
            raise UsageError(f"{self.vocab}**{self.length} sequences are too many to enumerate")
        count = torch.arange(self.vocab**self.length, device=self.device)
        powers = [self.vocab**k for k in reversed(range(self.length))]
        return torch.stack([count // power % self.vocab for power in powers], 1)

    def probabilities(self) -> Float[Tensor, "Q M"]:
        """Exact probability of every response of `sequences` to every prompt; differentiable."""
        ids = self.sequences()
        logprobs = self.core.logits.log_softmax(-1)
        return logprobs[:, self.rows(ids), ids].sum(-1).exp()
