"""Any transformers vision-language model as a `Policy`."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from policydist.errors import PolicydistError, UsageError
from policydist.language.images import MARK, fingerprint, images_of
from policydist.language.policies import attention
from policydist.language.policies.hf import LanguageModule, TransformersPolicy
from policydist.language.policies.packing import Pack, pack, pack_prompts
from policydist.language.policies.plain import PlainDecoder, Sight, plain_pack
from policydist.language.policies.processing import ImageTokenizer
from policydist.language.types import Prompts, Rollouts
from policydist.runs.seeds import numpy_generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

NEVER = -1e4
"""Logit of a token that is never said: its probability is zero in every precision, and its product with it too."""


class VisionModule(LanguageModule):
    """With several processes every parameter must take part in every pass, image encoders too where there is no image."""

    def forward(self, *args: Any, **options: Any) -> dict[str, Tensor]:
        found = super().forward(*args, **options)
        if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
            idle = [parameter.sum() * 0 for parameter in self.parameters() if parameter.requires_grad]
            found["logprobs"] = found["logprobs"] + torch.stack(idle).sum()
        return found


class VisionPolicy(TransformersPolicy):
    """A vision-language model and its processor: its prompts' images come from their rows (`policydist.language.images`).

    Each prompt's images pass through the image encoder once a pass, however many responses it has, where the language part
    can be packed (a trial with an image decides); elsewhere once a response when scored. Image tokens are never sampled, and
    have no probability for the scorer either.

    Raises:
        UsageError: as `TransformersPolicy`; and if the processor does not fit the model, or sampling and scoring cannot agree.
    """

    module_type = VisionModule

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.reader = ImageTokenizer(processor, model)
        config = model.config.get_text_config()
        before = config._attn_implementation
        super().__init__(model, self.reader)  # type: ignore[arg-type]
        model.get_output_embeddings().register_forward_hook(_Never(self.reader.placeholders))
        # A trial might not show that image tokens see each other: such models say so, by what they take or are set to.
        mutual = "token_type_ids" in self.reader.names or bool(getattr(config, "use_bidirectional_attention", None))
        if self.packing and (mutual or not self._packs_images()):
            self.packing, config._attn_implementation = False, before
        if not self.packing and not self._agrees():
            raise UsageError(
                f"{type(model).__name__} gives a text other probabilities when it is sampled than when it is scored (its prompts "
                "are read in both directions): it cannot be trained here"
            )

    def _sight(self, ids: Int[Tensor, "Q P"], mask: Bool[Tensor, "Q P"], items: Sequence[Mapping[str, Any]]) -> Sight:
        """The images of the sequences' rows, in order, and the positions that the model gives tokens around them."""
        shown = self._places(ids) & mask
        if bool(shown.any()) and not items:
            raise PolicydistError("prompts with places for images came without the rows that hold them")
        found = [self.reader.pixels(item, "a row") for item in items]
        inputs = {name: tensor.to(ids.device) for name, tensor in join([each for each in found if each]).items()}
        kinds = {"mm_token_type_ids": shown.long(), "token_type_ids": shown.long()}
        rope = next((part.get_rope_index for part in self.model.modules() if hasattr(part, "get_rope_index")), None)
        own = {} if self.packing else {name: kind for name, kind in kinds.items() if name in self.reader.names}
        if rope is None:
            return Sight({**inputs, **own})
        given = {**kinds, "attention_mask": mask.long(), **inputs}
        wanted = inspect.signature(rope).parameters
        positions, shift = rope(ids, **{name: tensor for name, tensor in given.items() if name in wanted})
        return Sight({**inputs, **own}, positions, shift[:, 0])

    def _packs(self, rollouts: Rollouts) -> Iterator[Pack]:
        self._refuse_said_images(rollouts)
        if self.packing:
            for item in pack(rollouts, self.pass_tokens, _seen(rollouts)):
                rows = torch.tensor(item.rows, device=rollouts.prompt_ids.device)
                mask = rollouts.prompt_mask[rows]
                sight = self._sight(rollouts.prompt_ids[rows], mask, _items(rollouts, item))
                yield replace(item, inputs=sight.inputs, positions=_positions(item, sight, mask))
            return
        for item in plain_pack(rollouts, self.pass_tokens):
            assert item.mask is not None
            sight = self._sight(item.ids, item.mask.bool(), _items(rollouts, item))
            own = {} if sight.positions is None else {"position_ids": sight.positions}
            yield replace(item, inputs={**sight.inputs, **own})

    def _places(self, ids: Tensor) -> Tensor:
        return torch.isin(ids, torch.tensor(self.reader.placeholders, device=ids.device))

    def _refuse_said_images(self, rollouts: Rollouts) -> None:
        said = (self._places(rollouts.response_ids) & rollouts.response_attention).any(1)
        if bool(said.any()):
            row = int(rollouts.index[said][0])
            raise PolicydistError(
                f"a response to row {row} holds an image token; responses are texts: take it out of the row's response"
            )

    @torch.no_grad()
    def _packs_images(self) -> bool:
        """Whether a packed pass over an image gives what an ordinary one does."""
        row, ids, mask = self._trial()
        self.packing = False
        expected = self._logits(ids, mask, row)
        self.packing = True
        sight = self._sight(ids, mask, [row])
        plan, counted = pack_prompts(mask.sum(1))
        places = counted[None] if sight.positions is None else sight.positions
        try:
            found = self.core.run(ids, places, plan, torch.arange(ids.shape[1], device=self.device), sight.inputs)[0]
        except (TypeError, ValueError, RuntimeError, AttributeError):  # see `attention.adopt`
            return False
        return torch.allclose(found, expected, rtol=0.0, atol=attention.tolerance(expected))

    @torch.no_grad()
    def _agrees(self) -> bool:
        """Whether token by token, as it is sampled, a text has the probabilities that it has in one pass, as it is scored."""
        row, ids, mask = self._trial()
        start = Prompts(ids[:, :-2], mask[:, :-2], torch.ones(1), torch.zeros(1, dtype=torch.long), (row,))
        owner = torch.zeros(1, dtype=torch.long, device=self.device)
        decoder = PlainDecoder(self.model, start, owner, self._sight(start.ids, start.mask, [row]))
        found = torch.cat([decoder.first(), decoder.next(ids[:, -2]), decoder.next(ids[:, -1])])
        expected = self._logits(ids, mask, row)[-3:]
        return torch.allclose(found, expected, rtol=0.0, atol=attention.tolerance(expected))

    def _trial(self) -> tuple[Mapping[str, Any], Tensor, Tensor]:
        """An image of noise, and its tokens with three more behind them."""
        from PIL import Image

        noise = numpy_generator(0, "trial image").integers(0, 256, (64, 64, 3), dtype=np.uint8)
        row = {"prompt": MARK, "image": Image.fromarray(noise)}
        known = [token for token in range(3 + len(self.reader.placeholders)) if token not in self.reader.placeholders]
        ids = torch.tensor([[*self.reader.prompt_ids(row, "the trial"), *known[:3]]], device=self.device)
        return row, ids, torch.ones_like(ids, dtype=torch.bool)

    def _logits(self, ids: Tensor, mask: Tensor, row: Mapping[str, Any]) -> Tensor:
        """Of one sequence, in an ordinary pass."""
        sight = self._sight(ids, mask, [row])
        own = {} if sight.positions is None else {"position_ids": sight.positions}
        out = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False, **own, **sight.inputs)
        logits: Tensor = out.logits[0]
        return logits


class _Never:
    """Takes all probability from tokens: a hook of the head, so that sampler and scorer agree about it."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = torch.tensor(tokens)

    def __call__(self, head: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        return logits.index_fill(-1, self.tokens.to(logits.device), NEVER)


def join(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Several rows' pixels as one batch: one after the other, smaller ones filled up with zeros, as processors do it."""
    return {name: _stack([part[name] for part in parts]) for name in (parts[0] if parts else ())}


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    sizes = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    filled = []
    for tensor in tensors:
        missing = [(0, size - own) for size, own in zip(sizes, tensor.shape[1:], strict=True)]
        filled.append(nn.functional.pad(tensor, [side for pair in reversed(missing) for side in pair]))
    return torch.cat(filled)


def _items(rollouts: Rollouts, item: Pack) -> list[Mapping[str, Any]]:
    return [rollouts.items[row] for row in item.rows] if rollouts.items else []


def _seen(rollouts: Rollouts) -> list[Hashable]:
    """What each row shows: prompts of the same words about different images are different prompts."""
    known: dict[int, Hashable] = {}
    for item in rollouts.items:
        if id(item) not in known:
            known[id(item)] = tuple(fingerprint(image, "a row") for image in images_of(item, "a row"))
    return [known[id(item)] for item in rollouts.items]


def _positions(item: Pack, sight: Sight, mask: Bool[Tensor, "Q P"]) -> Tensor | None:
    """Every flat token's position: the model's own for the prompts, counted on from these for the responses."""
    if sight.positions is None or sight.shift is None or item.positions is None or item.owner is None:
        return item.positions
    places = (item.positions + sight.shift[item.owner]).repeat(3, 1)
    places[:, : int(mask.sum())] = sight.positions[:, mask]
    return places
