"""TRL's model, batches and processes in the words of the language spine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from trl.models.utils import disable_gradient_checkpointing

from policydist.errors import UsageError
from policydist.functional import tilted_logprobs
from policydist.language.types import Generation, Policy, Prompts, Rollouts, Sampling, Scores, TokenTerms
from policydist.language.world import World


class TrlPolicy:
    """Scores responses with TRL's own forward pass: log-probabilities at GRPOConfig's sampling temperature."""

    def __init__(self, trainer: Any, model: Any) -> None:
        self.trainer, self.module = trainer, model

    @property
    def device(self) -> torch.device:
        return torch.device(self.trainer.accelerator.device)

    def add_value_head(self) -> None:
        raise UsageError("TRL's GRPO trainer has no value head")

    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        raise UsageError("TRL samples by itself; a hosted recipe cannot")

    def score(
        self,
        rollouts: Rollouts,
        *,
        entropy: bool = False,
        tilts: Sequence[float] = (),
        values: bool = False,
        terms: TokenTerms | None = None,
    ) -> Scores:
        """Score the responses: with gradient in one pass, without in passes of TRL's micro-batch size.

        Raises:
            UsageError: values or terms of whole distributions are asked for.
        """
        if values:
            self.add_value_head()
        if terms is not None:
            raise UsageError("TRL's trainer gives log-probabilities of the chosen tokens only")
        if torch.is_grad_enabled():
            return self._score(rollouts, entropy, tilts)
        parts = []
        with disable_gradient_checkpointing(self.trainer.model, self.trainer.args.gradient_checkpointing_kwargs):
            for piece in rollouts.split(self.trainer.args.per_device_train_batch_size):
                parts.append(self._score(piece, entropy, tilts))
        entropies = [part.entropy for part in parts if part.entropy is not None]
        return Scores(
            torch.cat([part.logprobs for part in parts]),
            torch.cat(entropies) if entropies else None,
            {tilt: torch.cat([part.tilted[tilt] for part in parts]) for tilt in tilts},
        )

    def _score(self, rollouts: Rollouts, entropy: bool, tilts: Sequence[float]) -> Scores:
        ids = torch.cat([rollouts.prompt_ids, rollouts.response_ids], 1)
        attention = torch.cat([rollouts.prompt_mask, rollouts.response_attention], 1).long()
        width, real = rollouts.response_ids.shape[1], rollouts.response_attention
        logprobs, entropies, _ = self.trainer._get_per_token_logps_and_entropies(
            self.module, ids, attention, width, compute_entropy=entropy
        )
        tilted = {}
        if tilts:
            with self.trainer.accelerator.autocast():
                out = self.module(input_ids=ids, attention_mask=attention, logits_to_keep=width + 1, use_cache=False)
            logits = out.logits[:, -width - 1 : -1]
            tilted = {t: tilted_logprobs(logits, rollouts.response_ids, t).masked_fill(~real, 0.0) for t in tilts}
        return Scores(logprobs.masked_fill(~real, 0.0), entropies.masked_fill(~real, 0.0) if entropy else None, tilted)


@dataclass(frozen=True)
class TrlWorld(World):
    """Processes that each hold an equal part of ``everything``, in rank order.

    Scores of some rows are taken from the scores of all rows: every process thus makes the same number of forward
    passes, which sharded models (FSDP, ZeRO-3) need.
    """

    everything: Rollouts | None = None

    def score(self, policy: Policy, rollouts: Rollouts, **options: Any) -> Scores:
        if self.size == 1 or self.everything is None:
            return super().score(policy, rollouts, **options)
        scores, rows = super().score(policy, self.everything, **options), rollouts.extras["row"]
        entropy = None if scores.entropy is None else scores.entropy[rows]
        return Scores(scores.logprobs[rows], entropy, {tilt: found[rows] for tilt, found in scores.tilted.items()})


def from_trl(batch: dict[str, Any]) -> Rollouts:
    """One of TRL's batches as rollouts, by rows of its own process; groups are not in it, each row stands alone.

    Weights that correct for a sampler other than the policy (vLLM) scale the advantages, which is what scaling a
    clipped surrogate comes to.
    """
    ids, attention = batch["completion_ids"], batch["completion_mask"].bool()
    mask = attention & batch["tool_mask"].bool() if "tool_mask" in batch else attention
    count = torch.arange(len(ids), device=ids.device)
    extras = {"reference_logprobs": batch["ref_per_token_logps"]} if "ref_per_token_logps" in batch else {}
    advantages = batch.get("advantages")
    if advantages is not None and advantages.dim() == 1:
        advantages = advantages.unsqueeze(1) * mask
    if advantages is not None and "importance_sampling_ratio" in batch:
        advantages = advantages * batch["importance_sampling_ratio"]
    return Rollouts(
        prompt_ids=batch["prompt_ids"],
        prompt_mask=batch["prompt_mask"].bool(),
        response_ids=ids,
        response_attention=attention,
        response_mask=mask,
        group=count,
        index=count,
        behavior_logprobs=torch.full(ids.shape, torch.nan, device=ids.device),
        old_logprobs=batch.get("old_per_token_logps"),
        advantages=advantages,
        extras=extras,
    )
