"""Who answers with an analysis at hand: a frozen copy of the policy, or a model behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.language.guided import given_rows
from policydist.language.images import MARK, data_url, images_of, pieces
from policydist.language.judges import pad_id
from policydist.language.recipe import Context
from policydist.language.service import Service
from policydist.language.types import Policy, Prompts, Rollouts, Sampling


class Solver(Protocol):
    """Answers prompts; never trained, never the live policy."""

    def begin(self, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
        """Once, with the initial weights."""
        ...

    def renew(self, ctx: Context) -> None:
        """At the start of every round."""
        ...

    def answer(self, prompts: Prompts, sampling: Sampling, ctx: Context) -> Rollouts:
        """``prompts.samples`` answers to each prompt; group q is prompt q."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for the Solver to be the same after a resume."""
        ...


class FrozenCopy:
    """The policy as it was at the start of the round. It is copied once and later overwritten in place."""

    def __init__(self) -> None:
        self.policy: Policy | None = None

    def begin(self, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
        self.names = [name for name, parameter in policy.module.named_parameters() if parameter.requires_grad]
        self.policy = copy.deepcopy(policy)
        self.policy.module.requires_grad_(False)

    def own(self) -> Policy:
        """The copy.

        Raises:
            PolicydistError: before `begin`.
        """
        if self.policy is None:
            raise PolicydistError("the frozen Solver was not made; run the recipe with its extensions in the trainer")
        return self.policy

    @torch.no_grad()
    def renew(self, ctx: Context) -> None:
        accelerator, module = ctx.world.accelerator, ctx.policy.module
        live = dict((accelerator.unwrap_model(module) if accelerator else module).named_parameters())
        for name, tensor in self.tensors().items():
            tensor.copy_(live[name])

    def answer(self, prompts: Prompts, sampling: Sampling, ctx: Context) -> Rollouts:
        total = int(prompts.samples.sum())
        uniforms = torch.rand(total, sampling.max_new_tokens, generator=ctx.generator("solver"))
        rollouts = ctx.world.generate(self.own(), prompts, sampling, uniforms)
        ctx.generated += int(rollouts.response_attention.sum())
        ctx.responses += len(rollouts)
        return rollouts

    def tensors(self) -> dict[str, Tensor]:
        held = dict(self.own().module.named_parameters())
        return {name: held[name].data for name in self.names}


@dataclass(frozen=True)
class EndpointConfig:
    """``url``: base address, such as ``http://127.0.0.1:8000/v1``; ``timeout`` seconds for one request, ``retries`` further
    tries after it, with ``pause`` seconds before the first and twice as many before each next; ``parallel`` requests at once.
    The key is read from the environment variable ``key_variable``, if it is set."""

    url: str
    model: str
    timeout: float = 120.0
    retries: int = 3
    pause: float = 1.0
    parallel: int = 16
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if not self.model:
            raise UsageError(f"name the model that the Solver at {self.url} is to use")
        if self.parallel < 1:
            raise UsageError(f"the Solver's parallel is {self.parallel}; it must be at least 1")


class Endpoint:
    """Chat completions of another process; prompts are sent as their rows' ``prompt``, a text or a chat.

    An endpoint that stays silent or refuses ends the run: no answer is ever made up or skipped.

    Raises:
        UsageError: for an address, timeout or retries that make no sense, see `Service`.
    """

    def __init__(self, config: EndpointConfig, tokenizer: Any) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.service = Service(
            config.url.rstrip("/") + "/chat/completions", self.named(), "check that it runs, then resume the run",
            config.timeout, config.retries, config.pause,
            {"Authorization": f"Bearer {key}"} if (key := os.environ.get(config.key_variable)) else {},
        )  # fmt: skip

    def begin(self, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
        """Nothing to copy."""

    def renew(self, ctx: Context) -> None:
        """A served model stays what it is."""

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def answer(self, prompts: Prompts, sampling: Sampling, ctx: Context) -> Rollouts:
        counts = prompts.samples.tolist()
        named = zip(prompts.items, counts, prompts.index.tolist(), strict=True)
        asked = [(spoken(item, f"row {row}"), count) for item, count, row in named]
        mine = asked[ctx.world.share(len(asked))]
        with ThreadPoolExecutor(self.config.parallel) as pool:
            found = list(pool.map(lambda each: self.complete(each[0], each[1], sampling), mine))
        texts = [text for part in ctx.world.gather(found) for several in part for text in several]
        owner = torch.arange(len(prompts)).repeat_interleave(prompts.samples)
        ids = [self.encoded(text, sampling.max_new_tokens) for text in texts]
        rows = given_rows(prompts.select(owner), ids, pad_id(self.tokenizer), ctx.policy.device)
        ctx.generated += int(rows.response_attention.sum())
        ctx.responses += len(rows)
        return replace(rows, group=owner.to(rows.group.device))

    def encoded(self, text: str, limit: int) -> Tensor:
        """The answer's tokens, and the end token, so that an empty answer has one too."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])[:limit]
        return torch.tensor([*ids, self.tokenizer.eos_token_id])

    def complete(self, messages: Sequence[Mapping[str, Any]], count: int, sampling: Sampling) -> list[str]:
        """``count`` answers to one chat; servers that give fewer at a time are asked again for the rest."""
        texts: list[str] = []
        while len(texts) < count:
            body = {
                "model": self.config.model, "messages": list(messages), "n": count - len(texts),
                "temperature": sampling.temperature, "top_p": sampling.top_p, "max_tokens": sampling.max_new_tokens,
            }  # fmt: skip
            texts += self.texts_of(self.service.post(body))
        return texts[:count]

    def texts_of(self, answer: Any) -> list[str]:
        """The choices' texts.

        Raises:
            PolicydistError: if there are none, or the answer has another shape.
        """
        try:
            texts = [choice["message"]["content"] or "" for choice in answer["choices"]]
        except (KeyError, TypeError) as error:
            raise PolicydistError(f"{self.named()} answered without choices: {str(answer)[:200]}") from error
        if not texts:
            raise PolicydistError(f"{self.named()} answered with no choice")
        return texts

    def named(self) -> str:
        return f"the Solver at {self.config.url} ({self.config.model})"


def spoken(row: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """A row's prompt as the messages of a chat completion; its images become data URLs in parts of their own, where the text
    marks them, else before the last words of the user.

    Raises:
        UsageError: naming ``where``, for an image that cannot be read, or marks that do not match the images.
    """
    prompt, held = row["prompt"], images_of(row, where)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    if not held:
        return messages
    marked = [turn["content"].count(MARK) for turn in messages]
    if not any(marked):
        last = max((n for n, turn in enumerate(messages) if turn["role"] == "user"), default=len(messages) - 1)
        marked[last] = len(held)
    elif sum(marked) != len(held):
        pieces("".join(turn["content"] for turn in messages), len(held), where)
    urls = iter([data_url(image, where) for image in held])
    for turn, count in zip(messages, marked, strict=True):
        if count:
            texts = pieces(turn["content"], count, where)
            shown = [{"type": "image_url", "image_url": {"url": next(urls)}} for _ in texts[1:]]
            words = [[{"type": "text", "text": text}] if text else [] for text in texts]
            turn["content"] = words[0] + [
                part for url, word in zip(shown, words[1:], strict=True) for part in (url, *word)
            ]
    return messages
