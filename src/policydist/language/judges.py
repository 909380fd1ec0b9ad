"""The judge part of a recipe: rewards from a task's graders or straight from the tensors; and prompts as token ids.

A grader is often somebody's own code. Whatever it gives back is checked here before any of it reaches a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import PolicydistError, UsageError, nearest
from policydist.language.images import COLUMNS, images_of
from policydist.language.tasks.base import Grader, Row, Task
from policydist.language.tasks.rewards import UserReward
from policydist.language.types import Rollouts


class TaskJudge:
    """Decodes responses and lets every grader of a task see the whole batch once.

    The reward is the weighted sum over components, r_i = sum_c w_c g_c(i); each g_c [N] is also kept, unweighted, as
    ``extras["reward/<component>"]`` and its mean is logged under the same name.

    Raises:
        UsageError: when the task has no grader, or weights a component that has none.
        PolicydistError: on a call, when a grader raises, or returns a wrong length or type, NaN or an infinity.
    """

    def __init__(self, task: Task, tokenizer: Any) -> None:
        if not task.graders:
            raise UsageError(f"task {task.name} has no grader")
        for name in task.weights or {}:
            if name not in task.graders:
                raise UsageError(
                    f"task {task.name} weights {name!r}, which has no grader: {nearest(name, task.graders)}"
                )
        self.task, self.tokenizer = task, tokenizer
        self.weights = {name: float((task.weights or {}).get(name, 1.0)) for name in task.graders}

    def __call__(self, rollouts: Rollouts, ctx: Any) -> Rollouts:
        responses = decode(rollouts, self.tokenizer)
        if len(rollouts.items) != len(responses):
            raise PolicydistError(
                f"{len(responses)} responses came with {len(rollouts.items)} rows of task {self.task.name}"
            )
        device = rollouts.response_ids.device
        rewards = torch.zeros(len(responses), device=device)
        parts: dict[str, Tensor] = {}
        for name, grader in self.task.graders.items():
            scores = torch.tensor(grade(name, grader, responses, rollouts.items), dtype=torch.float32, device=device)
            rewards = rewards + self.weights[name] * scores
            parts[f"reward/{name}"] = scores
            if len(scores):
                ctx.log(f"reward/{name}", scores.mean())
        return replace(rollouts, rewards=rewards, extras={**rollouts.extras, **parts})


@dataclass(frozen=True)
class TensorJudge:
    """A judge for small worlds: ``fn(rollouts)`` gives the rewards [N] straight from the tensors; nothing is decoded.

    Raises:
        PolicydistError: on a call, when the result is no float tensor [N] or holds NaN or an infinity.
    """

    fn: Callable[[Rollouts], Float[Tensor, " N"]]

    def __call__(self, rollouts: Rollouts, ctx: Any) -> Rollouts:
        rewards = self.fn(rollouts)
        name = _name(self.fn)
        if not isinstance(rewards, Tensor) or rewards.shape != (len(rollouts),) or not rewards.is_floating_point():
            got = f"{rewards.dtype} {tuple(rewards.shape)}" if isinstance(rewards, Tensor) else type(rewards).__name__
            raise PolicydistError(f"reward {name}: expected a float tensor of shape ({len(rollouts)},), got {got}")
        bad = ~torch.isfinite(rewards)
        if bad.any():
            sample = int(bad.nonzero()[0])
            raise PolicydistError(
                f"reward {name}: sample {sample} has reward {float(rewards[sample])}; it must be finite"
            )
        return replace(rollouts, rewards=rewards)


def decode(rollouts: Rollouts, tokenizer: Any) -> list[str]:
    """The text of every response: its real tokens, without special ones."""
    pairs = zip(rollouts.response_ids.tolist(), rollouts.response_attention.tolist(), strict=True)
    return [
        tokenizer.decode([token for token, real in zip(ids, kept, strict=True) if real], skip_special_tokens=True)
        for ids, kept in pairs
    ]


def grade(name: str, grader: Grader, responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """A grader's rewards for the batch, one finite float a response.

    Raises:
        PolicydistError: when the grader raises (the sample is found by grading one at a time), or returns a wrong
            length or type, NaN or an infinity; the text names component (a user's function by its
            ``module:function``), sample and value.
    """
    if not responses:
        return []
    if isinstance(grader, UserReward):
        name = grader.spec
    try:
        given = grader(responses, rows)
    except PolicydistError:
        raise
    except Exception as error:
        where = _culprit(grader, responses, rows)
        raise PolicydistError(f"reward {name} raised {type(error).__name__}: {error} ({where})") from error
    return _finite(name, _listed(name, given, len(responses)), responses)


def encode_prompts(
    rows: Sequence[Row], tokenizer: Any, max_prompt_tokens: int, *, chat_strings: bool = False
) -> tuple[Int[Tensor, "Q P"], Bool[Tensor, "Q P"]]:
    """Token ids of the rows' prompts, padded on the left, and the mask of real tokens.

    A list of chat messages goes through the tokenizer's chat template, ending where the assistant speaks; a string is
    taken as it is, or with ``chat_strings`` as a single message of the user. A vision-language model's tokenizer puts
    places for the row's images in (`ImageTokenizer`).

    Raises:
        UsageError: for no rows, a prompt of no tokens, one longer than ``max_prompt_tokens``, a chat template that
            is absent or refuses the messages, an image that the tokenizer cannot read, or one for a model of texts;
            the text names the row.
    """
    if not rows:
        raise UsageError("there are no prompts to encode")
    pad = pad_id(tokenizer)
    read = getattr(tokenizer, "prompt_ids", None)
    encoded = [
        read(row, f"row {number}", chat_strings) if read else _encode(number, row, tokenizer, chat_strings)
        for number, row in enumerate(rows)
    ]
    for number, tokens in enumerate(encoded):
        if not tokens:
            raise UsageError(f"the prompt of row {number} has no tokens")
        if len(tokens) > max_prompt_tokens:
            pictures = images_of(rows[number], f"row {number}")
            mend = (
                "set rollout.max_prompt_tokens higher, make its images smaller, "
                if pictures
                else "shorten or drop it, "
            )
            raise UsageError(
                f"the prompt of row {number} has {len(tokens)} tokens{' with its images' if pictures else ''}, more than the "
                f"{max_prompt_tokens} that fit; {mend}or ask for fewer new tokens"
            )
    width = max(map(len, encoded))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in encoded])
    lengths = torch.tensor([len(row) for row in encoded])
    return ids, torch.arange(width).unsqueeze(0) >= (width - lengths).unsqueeze(1)


def pad_id(tokenizer: Any) -> int:
    """The id that fills up rows: the tokenizer's pad token, else its end token.

    Masks say everywhere which tokens are real, so an end token that pads is never read as an end.

    Raises:
        UsageError: when the tokenizer has neither.
    """
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None:
            return int(found)
    raise UsageError("the tokenizer has neither a pad nor an end token; set tokenizer.pad_token")


def _encode(number: int, row: Row, tokenizer: Any, chat_strings: bool) -> list[int]:
    prompt = row["prompt"]
    if images_of(row, f"row {number}"):
        raise UsageError(
            f"row {number} has an image, but the model reads text only: choose a vision-language model (--model), or drop "
            f"the column {next(name for name in COLUMNS if row.get(name) is not None)}"
        )
    if isinstance(prompt, str) and not chat_strings:
        return list(tokenizer(prompt)["input_ids"])
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not tokenizer.chat_template:
        raise UsageError(
            f"the prompt of row {number} is a chat, but the tokenizer has no chat template; write it as a text"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates raise errors of their own for roles or orders that they do not know
        raise UsageError(f"the chat template refuses the prompt of row {number}: {error}") from error
    # The template writes its own special tokens, so the tokenizer must not add them again.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _listed(name: str, given: Any, count: int) -> list[Any]:
    """A grader's result as a list of ``count`` items."""
    if hasattr(given, "tolist"):
        given = given.tolist()
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence):
        raise PolicydistError(
            f"reward {name} returned a {type(given).__name__}; it must return a list of {count} numbers"
        )
    if len(given) != count:
        raise PolicydistError(f"reward {name} returned {len(given)} rewards for {count} responses")
    return list(given)


def _finite(name: str, given: Sequence[Any], responses: Sequence[str]) -> list[float]:
    rewards = []
    for sample, value in enumerate(given):
        if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
            value = value.item()
        if not isinstance(value, int | float):
            raise PolicydistError(
                f"reward {name}: sample {sample} got {value!r} ({type(value).__name__}), not a number"
            )
        if not abs(value) < 3.4e38:
            raise PolicydistError(
                f"reward {name}: sample {sample} has reward {value}; it must be finite ({_quote(responses[sample])})"
            )
        rewards.append(float(value))
    return rewards


def _culprit(grader: Grader, responses: Sequence[str], rows: Sequence[Row]) -> str:
    """Which sample a failing grader fails on, asked one at a time."""
    for sample, (response, row) in enumerate(zip(responses, rows, strict=True)):
        try:
            grader([response], [row])
        except Exception:
            return f"sample {sample}, {_quote(response)}"
    return f"on the batch of {len(responses)}; no sample fails alone"


def _quote(response: str) -> str:
    return f"response {response if len(response) <= 60 else response[:57] + '...'!r}"


def _name(fn: Callable[..., Any]) -> str:
    return getattr(fn, "__name__", type(fn).__name__)
