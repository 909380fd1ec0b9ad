"""The words of the language spine: prompts, rollouts, sampling settings, scores and the `Policy` protocol.

Axis letters, here and everywhere: N responses, P prompt tokens, T response tokens, V vocabulary, Q prompts.
Prompts are padded on the left, responses on the right, so that position ``P`` is always the first response token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import PolicydistError


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: ``softmax(logits / temperature)``, optionally cut to the ``top_k`` / ``top_p`` head.

    ``stop``: token ids that end a response besides the policy's own end tokens; like these they are part of it. ``tilt``: a
    temperature under which the drawn tokens' log-probabilities are wanted too, from a policy that can tell them in passing.
    """

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[int, ...] = ()
    tilt: float | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise PolicydistError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if self.temperature < 0:
            raise PolicydistError(f"temperature is {self.temperature}; it must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise PolicydistError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.tilt is not None and not self.tilt > 0:
            raise PolicydistError(f"tilt is {self.tilt}; it must be positive, or null for none")

    @property
    def exact(self) -> bool:
        """Whether the sampled distribution is the policy itself (temperature 1, no cut)."""
        return self.temperature == 1.0 and self.top_p == 1.0 and self.top_k == 0


@dataclass(frozen=True)
class Prompts:
    """Q prompts and how many responses each is to get.

    ``ids`` [Q, P] left-padded token ids (for a tabular or linear policy: the context's number, P = 1);
    ``mask`` [Q, P] true on real tokens; ``samples`` [Q] responses wanted; ``index`` [Q] row in the data set;
    ``items`` the data rows (prompt text, answer, …) that a judge needs.
    """

    ids: Int[Tensor, "Q P"]
    mask: Bool[Tensor, "Q P"]
    samples: Int[Tensor, " Q"]
    index: Int[Tensor, " Q"]
    items: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows: Int[Tensor, " K"] | Bool[Tensor, " Q"]) -> Prompts:
        """The given prompts, in the given order."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        items = tuple(self.items[i] for i in rows.tolist()) if self.items else ()
        return Prompts(self.ids[rows], self.mask[rows], self.samples[rows], self.index[rows], items)


@dataclass(frozen=True)
class Generation:
    """What a policy sampled: token ids [N, T] right-padded, ``mask`` true up to and including the end token, and the
    log-probability [N, T] of every token under the distribution it was really drawn from (temperature and cuts included).
    ``tilted`` [N, T]: that under ``softmax(logits / sampling.tilt)``, if asked for; None from policies that must be asked again
    (``Policy.score``)."""

    ids: Int[Tensor, "N T"]
    mask: Bool[Tensor, "N T"]
    logprobs: Float[Tensor, "N T"]
    tilted: Float[Tensor, "N T"] | None = None


@dataclass(frozen=True)
class Scores:
    """Log-probabilities [N, T] of the response tokens under the policy at temperature 1, zero where the response is padding.

    ``tilted[T]``: the same under ``softmax(logits / T)``. ``entropy`` [N, T]: exact entropy of the next-token distribution
    in nats. ``values`` [N, T]: the value head's estimate before each token, for policies that have one. ``terms``: what
    `TokenTerms` made of each token's logits, zero where the response is padding.
    """

    logprobs: Float[Tensor, "N T"]
    entropy: Float[Tensor, "N T"] | None = None
    tilted: Mapping[float, Float[Tensor, "N T"]] = field(default_factory=dict)
    values: Float[Tensor, "N T"] | None = None
    terms: Mapping[str, Float[Tensor, "N T"]] = field(default_factory=dict)


class TokenTerms(Protocol):
    """Per-token numbers that need the whole next-token distribution; called where the logits are, so that these need
    not be kept for a whole batch.

    Of R response tokens it gets the logits [R, V] before them, their ids [R] and their places [R] in the flattened
    [N, T] of the rollouts that are scored, in any order and in any number of calls. It returns one number a token
    under each of its names. Only `Policy.score` takes it: spread over processes the places would have no meaning.
    """

    def __call__(
        self, logits: Float[Tensor, "R V"], targets: Int[Tensor, " R"], places: Int[Tensor, " R"]
    ) -> Mapping[str, Float[Tensor, " R"]]: ...


def apply_terms(
    terms: TokenTerms | None,
    logits: Float[Tensor, "N T V"],
    ids: Int[Tensor, "N T"],
    real: Bool[Tensor, "N T"],
) -> dict[str, Float[Tensor, "N T"]]:
    """`TokenTerms` on all real tokens at once, for policies that hold all logits anyway."""
    if terms is None:
        return {}
    found = terms(logits[real], ids[real], real.flatten().nonzero()[:, 0])
    return {name: values.new_zeros(real.shape).masked_scatter(real, values) for name, values in found.items()}


PER_TOKEN = {"response_attention", "response_mask", "behavior_logprobs", "old_logprobs", "token_rewards", "advantages"}


@dataclass(frozen=True)
class Rollouts:
    """N responses as flat tensors; ``group`` says which prompt each answers (ragged: any number per group).

    ``response_mask`` is true on the tokens that the policy itself chose (the ones that carry gradient), a subset of
    ``response_attention``, which is true on every real token. ``extras`` holds what a method needs, one row a response.
    """

    prompt_ids: Int[Tensor, "N P"]
    prompt_mask: Bool[Tensor, "N P"]
    response_ids: Int[Tensor, "N T"]
    response_attention: Bool[Tensor, "N T"]
    response_mask: Bool[Tensor, "N T"]
    group: Int[Tensor, " N"]
    index: Int[Tensor, " N"]
    behavior_logprobs: Float[Tensor, "N T"]
    old_logprobs: Float[Tensor, "N T"] | None = None
    rewards: Float[Tensor, " N"] | None = None
    token_rewards: Float[Tensor, "N T"] | None = None
    advantages: Float[Tensor, "N T"] | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    items: Sequence[Mapping[str, Any]] = ()

    def __len__(self) -> int:
        return len(self.response_ids)

    @property
    def lengths(self) -> Int[Tensor, " N"]:
        """Real response tokens of each row."""
        return self.response_attention.sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor field that is set, and the extras under ``extras.<name>``."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return found | {f"extras.{name}": value for name, value in self.extras.items()}

    def map(self, change: Any) -> Rollouts:
        """Apply ``change`` to every tensor; the rows' order and count must stay the same for all of them."""
        new: dict[str, Any] = {
            f.name: change(v) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        return replace(self, **new, extras={name: change(value) for name, value in self.extras.items()})

    def select(self, rows: Int[Tensor, " K"] | Bool[Tensor, " N"]) -> Rollouts:
        """The given responses, in the given order."""
        rows = rows.nonzero().flatten() if rows.dtype == torch.bool else rows
        items = tuple(self.items[i] for i in rows.tolist()) if self.items else ()
        return replace(self.map(lambda tensor: tensor[rows]), items=items)

    def to(self, device: torch.device | str) -> Rollouts:
        """The same rollouts on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def split(self, count: int) -> Iterator[Rollouts]:
        """Consecutive pieces of at most ``count`` responses."""
        if count >= len(self) > 0:
            yield self
            return
        for start in range(0, len(self), count):
            yield self.select(torch.arange(start, min(start + count, len(self)), device=self.response_ids.device))

    def trimmed(self) -> Rollouts:
        """Without the prompt and response columns that are padding in every row."""
        keep_prompt = self.prompt_mask.any(0)
        width = int(self.response_attention.any(0).sum())
        total = self.response_ids.shape[1]
        if width == total and bool(keep_prompt.all()):
            return self

        def cut(name: str, tensor: Tensor) -> Tensor:
            if name in ("prompt_ids", "prompt_mask"):
                return tensor[:, keep_prompt]
            return tensor[:, :width] if tensor.dim() > 1 and tensor.shape[1] == total else tensor

        own = {name: tensor for name, tensor in self.tensors().items() if not name.startswith("extras.")}
        new: dict[str, Any] = {name: cut(name, tensor) for name, tensor in own.items()}
        return replace(self, **new, extras={name: cut(name, tensor) for name, tensor in self.extras.items()})

    def validate(self) -> Rollouts:
        """Check shapes, subset masks and finiteness.

        Raises:
            PolicydistError: naming the field and the first offending sample.
        """
        count, width = self.response_ids.shape
        for name, tensor in self.tensors().items():
            if len(tensor) != count:
                raise PolicydistError(f"rollouts: {name} has {len(tensor)} rows, response_ids has {count}")
            if name in PER_TOKEN and tuple(tensor.shape) != (count, width):
                raise PolicydistError(f"rollouts: {name} has shape {tuple(tensor.shape)}, expected {(count, width)}")
            if tensor.is_floating_point():
                bad = ~torch.isfinite(tensor.reshape(count, -1)).all(1)
                if bad.any():
                    raise PolicydistError(f"rollouts: {name} of sample {int(bad.nonzero()[0])} is NaN or infinite")
        outside = (self.response_mask & ~self.response_attention).any(1)
        if outside.any():
            raise PolicydistError(f"rollouts: response_mask of sample {int(outside.nonzero()[0])} covers padding")
        return self

    @staticmethod
    def cat(parts: Sequence[Rollouts]) -> Rollouts:
        """Join rollouts row-wise, padding prompts on the left and responses on the right to common widths.

        Groups are kept as they are: give parts that must not share a group different numbers first.
        Optional fields and extras must be set in all parts or in none.
        """
        prompt_width = max(part.prompt_ids.shape[1] for part in parts)
        width = max(part.response_ids.shape[1] for part in parts)

        def widen(name: str, tensor: Tensor, own: int) -> Tensor:
            if name in ("prompt_ids", "prompt_mask"):
                return torch.nn.functional.pad(tensor, (prompt_width - tensor.shape[1], 0))
            if tensor.dim() > 1 and tensor.shape[1] == own:
                return torch.nn.functional.pad(tensor, (0, width - own))
            return tensor

        names = parts[0].tensors().keys()
        for part in parts[1:]:
            if part.tensors().keys() != names:
                raise PolicydistError(
                    f"rollouts: cannot join parts with fields {sorted(part.tensors())} and {sorted(names)}"
                )
        joined = {
            name: torch.cat([widen(name, part.tensors()[name], part.response_ids.shape[1]) for part in parts])
            for name in names
        }
        plain: dict[str, Any] = {name: tensor for name, tensor in joined.items() if not name.startswith("extras.")}
        extras = {name.removeprefix("extras."): tensor for name, tensor in joined.items() if name.startswith("extras.")}
        items = tuple(item for part in parts for item in part.items)
        return replace(parts[0], **plain, extras=extras, items=items)


@runtime_checkable
class Policy(Protocol):
    """Anything that can sample responses and score them: a causal language model, a table, a linear map of features.

    ``uniforms`` [N, max_new_tokens] in [0, 1) are the only randomness of ``generate``: token t of response i is the inverse
    CDF of its distribution at ``uniforms[i, t]``. Samples therefore do not depend on batching, on the order in which
    sequences finish, or on how responses are spread over processes.
    """

    module: torch.nn.Module
    """The trainable module, as given to an optimiser or to ``accelerate``, whose wrapper the trainer puts in its place."""

    @property
    def device(self) -> torch.device: ...

    def add_value_head(self) -> None:
        """Give the policy a value estimate, if it has none yet."""
        ...

    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample ``prompts.samples[q]`` responses to each prompt q, rows ordered by prompt."""
        ...

    def score(
        self,
        rollouts: Rollouts,
        *,
        entropy: bool = False,
        tilts: Sequence[float] = (),
        values: bool = False,
        terms: TokenTerms | None = None,
    ) -> Scores:
        """Score the responses; differentiable in the policy's parameters unless called under ``torch.no_grad()``."""
        ...
