"""Parts of vision-language models: which models are ones, their processors, their image encoders and language layers."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from torch import nn

from policydist.errors import MissingExtraError, UsageError

FILES = ("processor_config.json", "preprocessor_config.json")


def vision_config(source: str, options: dict[str, Any]) -> Any:
    """The configuration of a model that transformers knows as one of images and text; None for any other.

    A configuration that cannot be read is left to the loading of the model, which says why.
    """
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, AutoConfig

    try:
        config = AutoConfig.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError):
        return None
    return config if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else None


def load_processor(source: str, config: Any, tokenizer: Any, options: dict[str, Any]) -> Any:
    """The processor beside a model of this configuration, around ``tokenizer``. Its part for videos, which needs torchvision,
    is left out; where torchvision is absent Pillow scales the images.

    Raises:
        UsageError: if there is none beside the model, or it cannot be loaded.
        MissingExtraError: without Pillow.
    """
    if importlib.util.find_spec("PIL") is None:
        raise MissingExtraError("Pillow", "vision")
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in FILES):
        raise UsageError(
            f"{source} holds a vision-language model but no processor ({' or '.join(FILES)}): save one there with "
            "processor.save_pretrained"
        )
    try:
        processor = _assembled(source, config, tokenizer, options)
    except (OSError, ValueError, ImportError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"cannot load a processor from {source}: {reason}") from error
    if getattr(processor, "image_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        raise UsageError(f"the processor of {source} does not join images and text; save the model's own there")
    return processor


def _assembled(source: str, config: Any, tokenizer: Any, options: dict[str, Any]) -> Any:
    from transformers import AutoProcessor

    kind: Any = _kind(source, config, tokenizer, options)
    if kind is None:
        return AutoProcessor.from_pretrained(source, **options)

    class Pictures(kind):
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in kind.get_attributes() if name != "video_processor"]

        @classmethod
        def _load_tokenizer_from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
            return tokenizer

    Pictures.__name__ = kind.__name__  # under which it is saved
    processor = Pictures.from_pretrained(source, **options)
    settings = _video_settings(source, options) if "video_processor" in kind.get_attributes() else None
    if settings is not None:
        processor.video_processor = settings  # saved as they came, for those who read videos
    return processor


def _kind(source: str, config: Any, tokenizer: Any, options: dict[str, Any]) -> Any:
    """The processor's class, as its files name it, else the usual one of the model; None if transformers has none."""
    from transformers import ProcessorMixin
    from transformers.image_processing_base import ImageProcessingMixin
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING, processor_class_from_name

    stored = (
        ProcessorMixin.get_processor_dict(source, **options)[0].get("processor_class")
        or ImageProcessingMixin.get_image_processor_dict(source, **options)[0].get("processor_class")
        or tokenizer.init_kwargs.get("processor_class")
    )
    named = processor_class_from_name(stored) if stored else None
    return named or PROCESSOR_MAPPING.get(type(config), None)


def _video_settings(source: str, options: dict[str, Any]) -> dict[str, Any] | None:
    from transformers.video_processing_utils import BaseVideoProcessor

    try:
        found: dict[str, Any] = BaseVideoProcessor.get_video_processor_dict(source, **options)[0]
    except OSError:
        return None
    return found


def freeze(model: Any) -> None:
    """Keep the image encoder as it is.

    Raises:
        UsageError: if transformers cannot tell which part that is.
    """
    encoder = model.get_encoder("image")
    if encoder is model or encoder is model.base_model:
        raise UsageError(f"model.freeze_vision: {type(model).__name__} has no image encoder that could be told apart")
    encoder.requires_grad_(False)


def language_layers(model: Any) -> str:
    """A pattern of the names of the linear layers of the language part, for LoRA."""
    language = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is language)
    last = {name.rpartition(".")[2] for name, module in language.named_modules() if isinstance(module, nn.Linear)}
    return rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(last))})"
