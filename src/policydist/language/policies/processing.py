"""From text and images to what a vision-language model reads: token ids with places for images, and pixels to put there.

A transformers processor does the work, whatever the model: it writes as many placeholder tokens for an image as the model makes
of it. Images are read and scaled once and kept, at most `CACHE_BYTES` of them.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from policydist.errors import UsageError
from policydist.language import images
from policydist.language.images import MARK
from policydist.language.policies.plain import inputs_of

CACHE_BYTES = 1 << 30
"""Bytes of pixels kept in memory; the images used longest ago leave first."""


class ImageTokenizer:
    """A processor's tokenizer, in every respect, that also encodes rows with images (`prompt_ids`, `pixels`).

    Copies share it, and with it the images at hand.

    Raises:
        UsageError: if the processor has no placeholder for images, or the model does not read them as tokens.
    """

    def __init__(self, processor: Any, model: Any) -> None:
        if getattr(processor, "image_token", None) is None:
            raise UsageError(
                f"{type(processor).__name__} has no image token: this model's images cannot be placed in text"
            )
        self.processor, self.tokenizer = processor, processor.tokenizer
        self.names = inputs_of(model)
        if "cross_attention_mask" in self.names:
            raise UsageError(
                f"{type(model).__name__} looks at images by cross-attention, which is not supported; choose a model that reads "
                "them as tokens, such as Qwen2.5-VL"
            )
        self.placeholders = placeholders(processor, model)
        self.mark = mark_of(processor, model)
        self.kept: OrderedDict[Hashable, tuple[Mapping[str, Any], list[str]]] = OrderedDict()
        self.bytes = self.processed = 0
        self._reading = copy.copy(processor)
        self._reading._process_images = self._remembered
        self._key: Hashable = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("tokenizer", "processor"):
            raise AttributeError(name)
        return getattr(self.tokenizer, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Special tokens such as pad_token are set on the tokenizer, where they count.
        where = self.__dict__.get("tokenizer")
        if where is not None and name.endswith("_token"):
            setattr(where, name, value)
        else:
            object.__setattr__(self, name, value)

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.tokenizer(*args, **options)

    def __len__(self) -> int:
        return len(self.tokenizer)

    def __deepcopy__(self, memo: dict[int, Any]) -> ImageTokenizer:
        return self

    @property
    def chat_template(self) -> Any:
        return getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template

    def save_pretrained(self, directory: Any) -> None:
        """Write the whole processor."""
        self.processor.save_pretrained(directory)

    def prompt_ids(self, row: Mapping[str, Any], where: str, chat_strings: bool = False) -> list[int]:
        """Token ids of a row's prompt with the placeholders of its images in their places.

        Raises:
            UsageError: naming ``where``: an image that cannot be read or used, marks that do not match the images, the model's
                own image tokens in the text, or a chat without a chat template.
        """
        prompt, held = row["prompt"], images.images_of(row, where)
        if isinstance(prompt, str) and not chat_strings:
            self._refuse_own_tokens(prompt, where)
            text = self.mark.join(images.pieces(prompt, len(held), where))
            return self._encode(text, held, where, chat=False)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return self._encode(self._chat(messages, len(held), where), held, where, chat=True)

    def pixels(self, row: Mapping[str, Any], where: str) -> dict[str, Tensor]:
        """What the model takes beside the tokens of a row's images; nothing for a row without."""
        held = images.images_of(row, where)
        if not held:
            return {}
        key = tuple(images.fingerprint(image, where) for image in held)
        if key not in self.kept:
            self._encode(self.mark * len(held), held, where, chat=False)
        return {name: torch.as_tensor(value) for name, value in self._find(key)[0].items() if name in self.names}

    def _encode(self, text: str, held: Sequence[Any], where: str, *, chat: bool) -> list[int]:
        # A chat template writes the special tokens itself.
        options = {"add_special_tokens": False} if chat else {}
        if not held:
            return list(self.tokenizer(text, **options)["input_ids"])
        self._key = tuple(images.fingerprint(image, where) for image in held)
        # What is kept stands for the pictures; processors only count them then.
        pictures = self._pictures(held, where)
        try:
            found = self._reading(text=[text], images=[pictures], return_tensors="pt", **options)
        except (ValueError, TypeError, IndexError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
            raise UsageError(f"{where}: the model's processor refuses its images ({reason})") from error
        return found["input_ids"][0].tolist()

    def _pictures(self, held: Sequence[Any], where: str) -> list[Any]:
        if self._key in self.kept:
            from PIL import Image

            return [Image.new("RGB", (32, 32))] * len(held)
        return [images.opened(image, where) for image in held]

    def _remembered(self, pictures: Any, **options: Any) -> tuple[Any, list[str]]:
        """In the place of the processor's own: pixels, and the text that stands for each image, made once."""
        if self._key not in self.kept:
            self.processed += 1
            made, texts = type(self.processor)._process_images(self._reading, pictures, **options)
            self.kept[self._key] = dict(made), list(texts)
            self.bytes += _size(self.kept[self._key])
            while len(self.kept) > 1 and self.bytes > CACHE_BYTES:
                self.bytes -= _size(self.kept.popitem(last=False)[1])
        made, texts = self._find(self._key)
        return dict(made), texts

    def _find(self, key: Hashable) -> tuple[Mapping[str, Any], list[str]]:
        self.kept.move_to_end(key)
        return self.kept[key]

    def _chat(self, messages: Sequence[Mapping[str, str]], count: int, where: str) -> str:
        """The chat as one text, ending where the assistant speaks. Images without marks go before the last user's words."""
        if not self.chat_template:
            raise UsageError(f"the prompt of {where} is a chat, but the model has no chat template; write it as a text")
        marked = [str(message["content"]).count(MARK) for message in messages]
        last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=len(messages) - 1)
        if count and not sum(marked):
            marked[last] = count
        if sum(marked) != count:
            images.pieces(MARK * sum(marked), count, where)
        turns = []
        for message, images_here in zip(messages, marked, strict=True):
            self._refuse_own_tokens(message["content"], where)
            turns.append({**message, "content": _parts(images.pieces(message["content"], images_here, where))})
        render = self.processor if getattr(self.processor, "chat_template", None) else self.tokenizer
        try:
            return str(render.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise errors of their own for roles or orders that they do not know
            raise UsageError(f"the chat template refuses the prompt of {where}: {error}") from error

    def _refuse_own_tokens(self, text: str, where: str) -> None:
        for token in {self.processor.image_token, *self.tokenizer.convert_ids_to_tokens(list(self.placeholders))} - {
            MARK
        }:
            if token in text:
                raise UsageError(
                    f"{where}: the prompt holds {token}, a token of the model's own; write {MARK} where an image goes"
                )


def placeholders(processor: Any, model: Any) -> tuple[int, ...]:
    """Ids that stand for images (first) or videos: a policy never says them, for nothing could be put in their place.

    Raises:
        UsageError: if the model's configuration names no image token, or another one than the processor writes.
    """
    config = model.config
    own = getattr(config, "image_token_id", None)
    written = processor.image_token_ids if hasattr(processor, "image_token_ids") else [processor.image_token_id]
    if own is None or own not in written:
        raise UsageError(
            f"the model's image token is {own}, the processor's {written[0]}: use the processor that belongs to the model"
        )
    video = getattr(config, "video_token_id", None)
    known = model.get_input_embeddings().num_embeddings
    return tuple(token for token in (own, video) if token is not None and 0 <= token < known)


def mark_of(processor: Any, model: Any) -> str:
    """What a text has for an image, as the chat template writes it: the image token, with what goes around it."""
    token = processor.image_token
    if getattr(processor, "chat_template", None):
        word = {"type": "text", "text": "~"}
        with_image, without = (
            str(processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False))
            for parts in ([{"type": "image"}, word], [word])
        )
        start = next((i for i, (a, b) in enumerate(zip(with_image, without, strict=False)) if a != b), len(without))
        end = len(with_image) - (len(without) - start)
        found = with_image[start:end].strip()
        if found.count(token) == 1:
            return found
    ends = [getattr(model.config, f"vision_{side}_token_id", None) for side in ("start", "end")]
    around = [None if end is None else processor.tokenizer.convert_ids_to_tokens(end) for end in ends]
    return token if None in around else f"{around[0]}{token}{around[1]}"


def _parts(found: Sequence[str]) -> list[dict[str, str]]:
    """Pieces of text as the parts of a message, an image between every two of them."""
    parts: list[dict[str, str]] = []
    for number, text in enumerate(found):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return parts


def _size(entry: tuple[Mapping[str, Any], list[str]]) -> int:
    return sum(value.nbytes for value in entry[0].values() if hasattr(value, "nbytes"))
