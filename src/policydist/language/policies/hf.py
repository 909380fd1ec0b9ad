"""Any transformers causal language model as a `Policy`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from policydist.errors import PolicydistError, UsageError
from policydist.language.generation import Decoder, decode
from policydist.language.policies import attention
from policydist.language.policies.cache import CachedDecoder
from policydist.language.policies.packing import Pack, pack
from policydist.language.policies.plain import PlainDecoder, Sight, inputs_of, plain_pack
from policydist.language.types import Generation, Prompts, Rollouts, Sampling, Scores, TokenTerms

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DECODE_ROWS = 1024
"""Responses decoded at a time."""
PASS_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of one scoring pass: on a CPU, activations that stay in the cache are worth more than large matrices."""
VALUE_HEAD = "value_head.safetensors"


class LanguageModule(nn.Module):
    """The trainable part: a causal language model and, for those who need it, a value head on its last hidden state.

    ``forward`` scores packs, so that a wrapper that synchronises gradients sees exactly one call per backward pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model: Any = model
        self.config: Any = model.config.get_text_config()
        self.value_head: nn.Linear | None = None
        self.cuts_logits = "logits_to_keep" in inputs_of(model)
        silence_dropout(model)

    def run(
        self, ids: Tensor, positions: Tensor, plan: attention.Plan, keep: Tensor | int, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """Logits at ``keep`` under an attention plan, with whatever ``inputs`` the model takes besides. The mask is a
        placeholder: the plan alone decides who sees whom."""
        if self.config._attn_implementation != attention.NAME:
            raise PolicydistError(
                f"the model's attention was switched to {self.config._attn_implementation!r} after the policy was made "
                "(does another model share its configuration object?): give each model a configuration of its own"
            )
        nothing = torch.empty(1, 1, 1, 1, dtype=torch.bool, device=ids.device)
        out = self.model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=nothing,
            use_cache=False,
            logits_to_keep=keep,
            plan=plan,
            **inputs,
        )
        logits: Tensor = out.logits
        return logits

    def forward(
        self,
        packs: Sequence[Pack],
        entropy: bool,
        tilts: Sequence[float],
        values: bool,
        terms: TokenTerms | None = None,
    ) -> dict[str, Tensor]:
        """Per response token r of all packs, in their order: log-probability and whatever else was asked for."""
        parts = [self._score(item, entropy, tilts, values, terms) for item in packs]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _score(
        self, item: Pack, entropy: bool, tilts: Sequence[float], values: bool, terms: TokenTerms | None
    ) -> dict[str, Tensor]:
        with _HeadInput(self.model) as head:
            if item.plan is None or item.positions is None:
                options = {"logits_to_keep": item.last} if self.cuts_logits else {}
                out = self.model(
                    input_ids=item.ids, attention_mask=item.mask, use_cache=False, **options, **item.inputs
                )
                logits = out.logits[:, -item.last :].flatten(0, 1)[item.keep].float()
            else:
                places = item.positions.unsqueeze(-2)
                logits = self.run(item.ids[None], places, item.plan, item.keep, item.inputs)[0].float()
        found = {"logprobs": _chosen(logits, item)}
        for tilt in tilts:
            found[f"tilt {tilt}"] = _chosen(logits / tilt, item)
        if entropy:
            logprobs = logits.log_softmax(-1)
            found["entropy"] = -(logprobs.exp() * logprobs).sum(-1)[item.source]
        if values:
            assert self.value_head is not None
            hidden = head.hidden if item.plan is not None else head.hidden[:, -item.last :]
            hidden = hidden.flatten(0, -2)
            hidden = hidden[item.keep] if item.plan is None else hidden
            found["values"] = self.value_head(hidden.to(self.value_head.weight.dtype))[:, 0].float()[item.source]
        if terms is not None:
            found |= {f"term {name}": x for name, x in terms(_of_tokens(logits, item), item.target, item.place).items()}
        return found


def _of_tokens(logits: Tensor, item: Pack) -> Tensor:
    """One row of logits a response token; no copy where no two tokens share a row."""
    own = torch.arange(len(logits), device=item.source.device)
    return logits if torch.equal(item.source, own) else logits[item.source]


def _chosen(logits: Tensor, item: Pack) -> Tensor:
    return logits[item.source, item.target] - logits.logsumexp(-1)[item.source]


class _HeadInput:
    """Catches what enters the language-model head: the last hidden state at the positions that were kept."""

    def __init__(self, model: Any) -> None:
        self.handle = model.get_output_embeddings().register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.hidden = args[0]

    def __enter__(self) -> _HeadInput:
        return self

    def __exit__(self, *error: object) -> None:
        self.handle.remove()


class TransformersPolicy:
    """A causal language model and its tokenizer. See `policydist.language.policies.loading.load_policy`.

    Architectures whose attention follows a plan (nearly all current ones; checked by a trial pass) are scored packed
    and decoded on our cache; any other is scored padded and decoded on its own cache, slower and with equal results.

    Raises:
        UsageError: if the tokenizer has no token that could pad or end a response, or knows more tokens than the model.
    """

    module_type: type[LanguageModule] = LanguageModule

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        check_vocabulary(model, tokenizer)
        self.tokenizer = tokenizer
        self.ends = end_tokens(model, tokenizer)
        self.pad = pad_token(tokenizer, self.ends)
        self.core = self.module_type(model)
        self.module: nn.Module = self.core
        self.packing = attention.adopt(model)
        self.pass_tokens = PASS_TOKENS.get(self.device.type, PASS_TOKENS["cuda"])

    @property
    def model(self) -> Any:
        """The transformers (or peft) model itself, free of wrappers."""
        return self.core.model

    @property
    def device(self) -> torch.device:
        return next(self.core.parameters()).device

    @property
    def context(self) -> int | None:
        """The most tokens the model can hold, if its configuration says."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)

    def add_value_head(self) -> None:
        """Give the policy a value estimate: one linear map of the last hidden state, starting at zero."""
        if self.core.value_head is None:
            head = self.model.get_output_embeddings()
            size = self.model.config.get_text_config().hidden_size
            self.core.value_head = nn.Linear(size, 1, dtype=torch.float32, device=head.weight.device)
            nn.init.zeros_(self.core.value_head.weight)
            nn.init.zeros_(self.core.value_head.bias)

    def generate(self, prompts: Prompts, sampling: Sampling, uniforms: Float[Tensor, "N L"]) -> Generation:
        """Sample ``prompts.samples[q]`` responses to each prompt q, rows ordered by prompt.

        Raises:
            UsageError: if the longest prompt and ``max_new_tokens`` together exceed the model's context.
        """
        self._check_length(prompts, sampling)
        device = self.device
        owner = torch.repeat_interleave(torch.arange(len(prompts)), prompts.samples.cpu())
        uniforms = uniforms.to(device)
        parts = []
        with torch.no_grad():
            for start in range(0, max(len(owner), 1), DECODE_ROWS):
                asked, inverse = torch.unique_consecutive(owner[start : start + DECODE_ROWS], return_inverse=True)
                decoder = self._decoder(prompts, asked, inverse.to(device), sampling.max_new_tokens)
                rows = uniforms[start : start + DECODE_ROWS]
                parts.append(decode(decoder, rows, sampling, (*self.ends, *sampling.stop), self.pad))
        return _join(parts, self.pad)

    def _check_length(self, prompts: Prompts, sampling: Sampling) -> None:
        longest = int(prompts.mask.sum(1).max()) if len(prompts) else 0
        limit = self.context
        if limit is not None and longest + sampling.max_new_tokens > limit:
            raise UsageError(
                f"a prompt of {longest} tokens and max_new_tokens {sampling.max_new_tokens} exceed the model's "
                f"context of {limit}: shorten the prompts or lower max_new_tokens"
            )

    def _decoder(self, prompts: Prompts, asked: Int[Tensor, " Q"], owner: Int[Tensor, " M"], room: int) -> Decoder:
        width = int(prompts.mask[asked].sum(1).max()) if len(asked) else 0
        ids, mask = (tensor[asked, -width:].to(self.device) for tensor in (prompts.ids, prompts.mask))
        some = Prompts(ids, mask, asked, asked)
        sight = self._sight(ids, mask, [prompts.items[q] for q in asked.tolist()] if prompts.items else ())
        if self.packing:
            return CachedDecoder(self.core.run, some, owner, room, sight)
        return PlainDecoder(self.model, some, owner, sight)

    def _sight(
        self, ids: Int[Tensor, "Q P"], mask: Bool[Tensor, "Q P"], items: Sequence[Mapping[str, Any]]
    ) -> Sight | None:
        """What the model takes beside the tokens of these prompts: of a text, nothing."""
        return None

    def _packs(self, rollouts: Rollouts) -> Iterator[Pack]:
        """The passes that score the rollouts."""
        return (pack if self.packing else plain_pack)(rollouts, self.pass_tokens)

    def score(
        self,
        rollouts: Rollouts,
        *,
        entropy: bool = False,
        tilts: Sequence[float] = (),
        values: bool = False,
        terms: TokenTerms | None = None,
    ) -> Scores:
        """Score the response tokens; differentiable. The prompt and every padded place cost nothing.

        Raises:
            UsageError: if ``values`` are asked of a policy without a value head.
        """
        if values and self.core.value_head is None:
            raise UsageError("this policy has no value head: call add_value_head() before training")
        shape = rollouts.response_ids.shape
        packs = list(self._packs(rollouts))
        if not packs:
            empty = torch.zeros(shape, device=rollouts.response_ids.device)
            return Scores(empty, empty if entropy else None, dict.fromkeys(tilts, empty), empty if values else None)
        place = torch.cat([item.place for item in packs])
        found = self.module(packs, entropy, tuple(tilts), values, terms)

        def spread(name: str) -> Tensor:
            flat = found[name].new_zeros(shape.numel())
            filled: Tensor = flat.index_put((place,), found[name])
            return filled.view(shape)

        return Scores(
            logprobs=spread("logprobs"),
            entropy=spread("entropy") if entropy else None,
            tilted={tilt: spread(f"tilt {tilt}") for tilt in tilts},
            values=spread("values") if values else None,
            terms={name[5:]: spread(name) for name in found if name.startswith("term ")},
        )

    def save(self, directory: str | Path) -> None:
        """Write the model (for LoRA: the adapter) as safetensors, the tokenizer, and the value head if there is one."""
        from safetensors.torch import save_file

        directory = Path(directory)
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
        if self.core.value_head is not None:
            state = {name: tensor.contiguous() for name, tensor in self.core.value_head.state_dict().items()}
            save_file(state, directory / VALUE_HEAD)


def _join(parts: list[Generation], pad: int) -> Generation:
    if len(parts) == 1:
        return parts[0]
    width = max(part.ids.shape[1] for part in parts)

    def widen(tensor: Tensor, value: float) -> Tensor:
        return nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)

    tilted = [widen(part.tilted, 0.0) for part in parts if part.tilted is not None]
    return Generation(
        torch.cat([widen(part.ids, pad) for part in parts]),
        torch.cat([widen(part.mask, False) for part in parts]),
        torch.cat([widen(part.logprobs, 0.0) for part in parts]),
        torch.cat(tilted) if tilted else None,
    )


def silence_dropout(model: nn.Module) -> None:
    """Set every dropout rate to zero: a policy's distribution must be the same when it is sampled and when it is
    scored."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The ids that end a response: the tokenizer's end token and those of the generation configuration."""
    config = getattr(model, "generation_config", None)
    configured: Any = getattr(config, "eos_token_id", None)
    listed = configured if isinstance(configured, list | tuple) else [configured]
    return tuple(sorted({int(end) for end in [*listed, tokenizer.eos_token_id] if end is not None}))


def pad_token(tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]) -> int:
    """The padding id: the tokenizer's own, else an end token (padding is masked, so its id never matters)."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    if not ends:
        raise UsageError(
            "the tokenizer has neither a pad token nor an end token: set tokenizer.eos_token before training"
        )
    if tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return ends[0]


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Every id the tokenizer can produce must have an embedding."""
    known = model.get_input_embeddings().num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= known:
        raise UsageError(
            f"the tokenizer produces ids up to {highest}, the model knows {known}: use the model's own tokenizer or "
            "resize its embeddings"
        )
