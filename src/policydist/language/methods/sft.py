"""SFT: cross-entropy on the data's own completions, in the same loop; the baseline of every supervised token loss."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from policydist.errors import UsageError
from policydist.language.objectives import LossConfig, PolicyGradient
from policydist.language.recipe import Context, Recipe, Setting, Shuffled
from policydist.language.types import Generation, Policy, Prompts, Rollouts
from policydist.language.world import to_rollouts


@dataclass(frozen=True)
class Config(LossConfig):
    """``completion_column``: where the rows hold the text to imitate."""

    completion_column: str = "completion"


class Demonstrations:
    """Responses read from the data instead of sampled: tokens, an end token, nothing drawn.

    Raises:
        UsageError: for a task without text, or a row without a completion.
    """

    def __init__(self, setting: Setting, column: str) -> None:
        self.setting, self.column = setting, column
        tokenizer = getattr(setting.source, "tokenizer", None)
        if tokenizer is None:
            raise UsageError("sft trains on text; give it a task with completions")
        self.tokenizer = tokenizer
        for index, item in enumerate(getattr(setting.source, "rows", ())):
            if not isinstance(item.get(column), str):
                raise UsageError(f"sft: row {index} has no text in column {column!r} (it has {', '.join(item)})")

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        """The prompts' completions, cut at the longest response allowed."""
        limit = self.setting.sampling.max_new_tokens
        rows = []
        for item in prompts.items:
            ids = self.tokenizer(item[self.column], add_special_tokens=False)["input_ids"]
            rows.append(torch.tensor([*ids, self.tokenizer.eos_token_id][:limit]))
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        generation = Generation(ids, mask, torch.zeros(ids.shape))
        once = replace(prompts, samples=torch.ones_like(prompts.samples))
        return to_rollouts(once, generation).to(ctx.policy.device)


def imitate(rollouts: Rollouts, ctx: Context) -> Rollouts:
    """Advantage 1 on every token: the policy gradient of which is the cross-entropy's."""
    return replace(rollouts, advantages=rollouts.response_mask.float())


@dataclass(frozen=True)
class CrossEntropy:
    """Mean of -log p over the tokens of the mini-batch."""

    config: LossConfig
    sparse = False

    def __call__(self, policy: Policy, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        base = PolicyGradient(self.config)
        loss = base.total(-policy.score(batch).logprobs, batch, self.config.aggregation, ctx)
        return loss, {"entropy": loss.detach()}


def unjudged(rollouts: Rollouts, ctx: Context) -> Rollouts:
    """Demonstrations are right by definition."""
    return replace(rollouts, rewards=torch.ones(len(rollouts), device=rollouts.group.device))


def build(config: Config, setting: Setting) -> Recipe:
    return Recipe(
        curriculum=Shuffled(setting.source, setting.prompts_per_step, 1),
        sampler=Demonstrations(setting, config.completion_column),
        judge=unjudged,
        credit=imitate,
        objective=CrossEntropy(config),
    )
