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

from policydist.errors import PolicydistError
from policydist.language.images import MARK, fingerprint, images_of
from policydist.language.policies import attention
from policydist.language.policies.hf import TransformersPolicy
from policydist.language.policies.packing import Pack, pack, pack_prompts
from policydist.language.policies.plain import Sight, plain_pack
from policydist.language.policies.processing import ImageTokenizer
from policydist.language.types import Rollouts
from policydist.runs.seeds import numpy_generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

NEVER = -1e4
"""Logit of a token that is never said: its probability is zero in every precision, and its product with it too."""


class VisionPolicy(TransformersPolicy):
    """A vision-language model and its processor: its prompts' images come from their rows (`policydist.language.images`).

    Each prompt's images pass through the image encoder once a pass, however many responses it has, where the language part
    can be packed (a trial with an image decides); elsewhere once a response when scored. Image tokens are never sampled, and
    have no probability for the scorer either.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.reader = ImageTokenizer(processor, model)
        config = model.config.get_text_config()
        before = config._attn_implementation
        super().__init__(model, self.reader)  # type: ignore[arg-type]
        model.get_output_embeddings().register_forward_hook(_Never(self.reader.placeholders))
        if self.packing and not self._packs_images():
            self.packing, config._attn_implementation = False, before

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
        """Whether a packed pass over an image gives what an ordinary one does: not where image tokens see each other."""
        from PIL import Image

        noise = numpy_generator(0, "trial image").integers(0, 256, (64, 64, 3), dtype=np.uint8)
        row = {"prompt": MARK, "image": Image.fromarray(noise)}
        ids = torch.tensor([self.reader.prompt_ids(row, "the trial")], device=self.device)
        mask = torch.ones_like(ids, dtype=torch.bool)
        plan, counted = pack_prompts(mask.sum(1))
        self.packing = False
        sight = self._sight(ids, mask, [row])
        own = {} if sight.positions is None else {"position_ids": sight.positions}
        expected = self.model(input_ids=ids, attention_mask=mask.long(), use_cache=False, **own, **sight.inputs).logits[
            0
        ]
        self.packing = True
        inputs, places = self._sight(ids, mask, [row]).inputs, own.get("position_ids", counted[None])
        try:
            found = self.core.run(ids, places, plan, torch.arange(ids.shape[1], device=self.device), inputs)[0]
        except (TypeError, ValueError, RuntimeError, AttributeError):  # see `attention.adopt`
            return False
        return torch.allclose(found, expected, rtol=0.0, atol=attention.tolerance(expected))


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
