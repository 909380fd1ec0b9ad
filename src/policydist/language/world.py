"""Processes: how rollouts are sampled, scored and judged by several of them and come out as with one.

Every process holds the same prompts and, after sampling, the same complete rollouts; only the work is divided. With one
process all of this is a direct call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from policydist.language.types import Generation, Policy, Prompts, Rollouts, Sampling, Scores

SCORE_ROWS = 1024


@dataclass(frozen=True)
class World:
    """The processes that train together; ``accelerator`` is None for one process without `accelerate`."""

    accelerator: Any = None

    @property
    def rank(self) -> int:
        return self.accelerator.process_index if self.accelerator else 0

    @property
    def size(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    @property
    def main(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> slice:
        """This process's consecutive part of ``count`` things; parts differ in size by at most one."""
        bounds = [count * rank // self.size for rank in range(self.size + 1)]
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def gather(self, mine: Any) -> list[Any]:
        """Every process's ``mine``, in rank order, on every process."""
        if self.size == 1:
            return [mine]
        gathered: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(gathered, mine)
        return gathered

    def generate(
        self, policy: Policy, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]
    ) -> Rollouts:
        """Sample every prompt's responses; process r takes the r-th part of the prompts and their rows of ``uniforms``."""
        share = self.share(len(prompts))
        first = int(prompts.samples[: share.start].sum())
        mine = prompts.select(torch.arange(share.start, share.stop))
        rows = uniforms[first : first + int(mine.samples.sum())]
        generation = policy.generate(mine, sampling, rows.to(policy.device))
        part = to_rollouts(mine, generation, first_group=share.start)
        if sampling.exact:
            part = replace(part, old_logprobs=part.behavior_logprobs)
        return self.join(part)

    def join(self, part: Rollouts) -> Rollouts:
        """All processes' parts as one, in rank order."""
        if self.size == 1:
            return part
        device = part.response_ids.device
        return Rollouts.cat([other.to(device) for other in self.gather(part.to("cpu"))])

    def map(self, change: Callable[[Rollouts], Rollouts], rollouts: Rollouts) -> Rollouts:
        """Apply a row-wise change, each process to its own part."""
        if self.size == 1:
            return change(rollouts)
        share = self.share(len(rollouts))
        return self.join(change(rollouts.select(torch.arange(share.start, share.stop))))

    def score(self, policy: Policy, rollouts: Rollouts, **options: Any) -> Scores:
        """Score all rows, each process its own part, at most `SCORE_ROWS` rows at a time."""
        share = self.share(len(rollouts))
        mine = rollouts if self.size == 1 else rollouts.select(torch.arange(share.start, share.stop))
        parts = [policy.score(piece, **options) for piece in mine.split(SCORE_ROWS)]
        if self.size > 1:
            gathered = self.gather([_scores_to(part, "cpu") for part in parts])
            parts = [_scores_to(part, rollouts.response_ids.device) for other in gathered for part in other]
        return parts[0] if len(parts) == 1 else _cat_scores(parts)


def to_rollouts(prompts: Prompts, generation: Generation, first_group: int = 0) -> Rollouts:
    """Pair each response with its prompt; rows follow the prompts' order."""
    owner = torch.repeat_interleave(torch.arange(len(prompts)), prompts.samples)
    device = generation.ids.device
    items = tuple(prompts.items[i] for i in owner.tolist()) if prompts.items else ()
    return Rollouts(
        prompt_ids=prompts.ids[owner].to(device),
        prompt_mask=prompts.mask[owner].to(device),
        response_ids=generation.ids,
        response_attention=generation.mask,
        response_mask=generation.mask,
        group=(owner + first_group).to(device),
        index=prompts.index[owner].to(device),
        behavior_logprobs=generation.logprobs,
        extras={} if generation.tilted is None else {"tilted_logprobs": generation.tilted},
        items=items,
    )


def _scores_to(scores: Scores, device: torch.device | str) -> Scores:
    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    tilted = {temperature: tensor.to(device) for temperature, tensor in scores.tilted.items()}
    return Scores(scores.logprobs.to(device), move(scores.entropy), tilted, move(scores.values))


def _cat_scores(parts: list[Scores]) -> Scores:
    def join(tensors: list[Tensor | None]) -> Tensor | None:
        present = [tensor for tensor in tensors if tensor is not None]
        return torch.cat(present) if present else None

    return Scores(
        torch.cat([part.logprobs for part in parts]),
        join([part.entropy for part in parts]),
        {temperature: torch.cat([part.tilted[temperature] for part in parts]) for temperature in parts[0].tilted},
        join([part.values for part in parts]),
    )
