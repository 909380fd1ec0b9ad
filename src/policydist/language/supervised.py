"""Training on given responses: where they come from, and one objective for every supervised token loss.

A method of this kind is a `Loss`: what it makes of the logits before each target token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import Aggregation, aggregate
from policydist.functional.supervised import Terms, by_rows
from policydist.language.recipe import Context, PromptSource, Recipe, Setting, Shuffled
from policydist.language.types import Generation, Policy, Prompts, Rollouts
from policydist.language.world import to_rollouts

TokenLoss = Callable[
    [Float[Tensor, "R V"], Int[Tensor, " R"], Int[Tensor, " R"], Int[Tensor, " R"]],
    Terms,
]
"""From logits [R, V], targets [R], and each token's response [R] and position in it [R] to ``loss`` and numbers to log,
one a token."""
Loss = Callable[[Rollouts], TokenLoss]
"""The token loss of a batch, which may look at the whole batch once."""


@dataclass(frozen=True)
class SupervisedConfig:
    """``aggregation``: how token losses become one number; ``entropy_coef``: weight of an exact-entropy bonus;
    ``completion_column``: where the rows hold the text to imitate; ``long_completion``: refuse rows whose text exceeds
    rollout.max_new_tokens, or cut it there."""

    aggregation: Aggregation = "token-mean"
    entropy_coef: float = 0.0
    completion_column: str = "completion"
    long_completion: Literal["error", "cut"] = "error"


@runtime_checkable
class Demonstrates(Protocol):
    """A source of prompts that knows responses to them, such as the labelled contexts of a small world."""

    def demonstrate(self, prompts: Prompts) -> Generation: ...


class TextDemonstrations:
    """The completions of a task's rows: their tokens and an end token.

    Raises:
        UsageError: for a task without text, or a row without a completion, or (unless they are to be ``cut``) with one of more
            than ``limit`` tokens.
    """

    def __init__(self, source: PromptSource, column: str, limit: int, cut: bool = False) -> None:
        self.column, self.limit = column, limit
        self.tokenizer: Any = getattr(source, "tokenizer", None)
        if self.tokenizer is None:
            raise UsageError("supervised losses train on text; give a task with completions")
        for index, item in enumerate(getattr(source, "rows", ())):
            if not isinstance(item.get(column), str) or not item[column]:
                raise UsageError(
                    f"row {index} has no text in column {column!r} (it has {', '.join(item)}); set completion_column, "
                    "or give rows with prompt and completion, or with messages"
                )
            if not cut and len(ids := self.tokens(item)) > limit:
                raise UsageError(
                    f"the completion of row {index} has {len(ids)} tokens with its end, more than the {limit} of a response; raise "
                    "rollout.max_new_tokens, or set knobs.long_completion=cut"
                )

    def tokens(self, item: Mapping[str, Any]) -> list[int]:
        """The whole completion and its end."""
        ids = self.tokenizer(item[self.column], add_special_tokens=False)["input_ids"]
        return [*ids, self.tokenizer.eos_token_id]

    def demonstrate(self, prompts: Prompts) -> Generation:
        """Completions cut at the longest response allowed."""
        rows = [torch.tensor(self.tokens(item)[: self.limit]) for item in prompts.items]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        return Generation(ids, torch.arange(ids.shape[1]) < lengths.unsqueeze(1), torch.zeros(ids.shape))


class Demonstrations:
    """The sampler of supervised methods: responses are given, nothing is drawn from the policy.

    Every row gets a stream number, ``extras["stream"]``, from which a loss that samples takes its random numbers.
    """

    def __init__(self, setting: Setting, config: SupervisedConfig) -> None:
        source: Any = setting.source
        limit, cut = setting.sampling.max_new_tokens, config.long_completion == "cut"
        self.teacher: Demonstrates = (
            source
            if isinstance(source, Demonstrates)
            else TextDemonstrations(source, config.completion_column, limit, cut)
        )

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        once = replace(prompts, samples=torch.ones_like(prompts.samples))
        rollouts = to_rollouts(once, self.teacher.demonstrate(once)).to(ctx.policy.device)
        return replace(rollouts, extras={**rollouts.extras, "stream": streams(len(rollouts), ctx)})


def streams(count: int, ctx: Context) -> Int[Tensor, " N"]:
    """One stream number a row, the same on every process and after a resume."""
    return torch.randint(2**62, (count,), generator=ctx.generator("stream")).to(ctx.policy.device)


def unjudged(rollouts: Rollouts, ctx: Context) -> Rollouts:
    """Demonstrations are right by definition."""
    return replace(rollouts, rewards=torch.ones(len(rollouts), device=rollouts.group.device))


def imitate(rollouts: Rollouts, ctx: Context) -> Rollouts:
    """Advantage 1 on every token: the policy gradient of which is the cross-entropy's."""
    return replace(rollouts, advantages=rollouts.response_mask.float())


@dataclass(frozen=True)
class SupervisedObjective:
    """The mean of a token loss over the mini-batch; ``name`` goes before what the loss logs."""

    name: str
    config: SupervisedConfig
    loss: Loss
    sparse = False

    def __call__(self, policy: Policy, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        width = batch.response_ids.shape[1]
        token_loss = self.loss(batch)

        def terms(logits: Tensor, targets: Tensor, places: Tensor) -> Mapping[str, Tensor]:
            return by_rows(token_loss, logits, targets, places // width, places % width)

        scores = policy.score(batch, entropy=self.config.entropy_coef != 0, terms=terms)
        found = dict(scores.terms)
        losses = found.pop("loss")
        numbers = {f"{self.name}/{name}": self.mean(values, batch, ctx) for name, values in found.items()}
        numbers["entropy"] = self.mean(-scores.logprobs, batch, ctx)
        if scores.entropy is not None:
            numbers["exact_entropy"] = self.mean(scores.entropy, batch, ctx)
            losses = losses - self.config.entropy_coef * scores.entropy
        total = aggregate(
            losses, batch.response_mask, self.config.aggregation,
            tokens=ctx.norm.tokens, sequences=ctx.norm.sequences, max_length=ctx.norm.max_length,
        )  # fmt: skip
        return total, numbers

    def mean(self, values: Float[Tensor, "N T"], batch: Rollouts, ctx: Context) -> Float[Tensor, ""]:
        """Over the tokens of the whole mini-batch, without gradient."""
        return aggregate(values.detach(), batch.response_mask, "token-mean", tokens=ctx.norm.tokens)


def supervised(name: str, config: SupervisedConfig, loss: Loss, setting: Setting) -> Recipe:
    """Shuffled rows, their own completions, a token loss: the recipe of every supervised method."""
    return Recipe(
        curriculum=Shuffled(setting.source, setting.prompts_per_step, 1),
        sampler=Demonstrations(setting, config),
        judge=unjudged,
        credit=imitate,
        objective=SupervisedObjective(name, config, loss),
    )
