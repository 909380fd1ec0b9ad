"""Load a language-model policy from a directory, the Hub, or the package itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from policydist.errors import UsageError
from policydist.language.policies.hf import VALUE_HEAD, TransformersPolicy
from policydist.language.policies.processors import freeze, language_layers, load_processor, vision_config
from policydist.language.policies.vision import VisionPolicy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = {"embedded": "path", "embedded-search": "search_path", "embedded-vision": "vision_path"}
"""The models that come with the package, by name."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (arXiv 2106.09685) of every linear layer but the head, trained in place of the model."""

    rank: int = 16
    alpha: int = 32
    targets: str = "all-linear"


def load_policy(
    name_or_path: str | Path,
    *,
    dtype: str = "float32",
    device: torch.device | str = "cpu",
    lora: Lora | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    freeze_vision: bool = False,
) -> TransformersPolicy:
    """A policy from the package (`EMBEDDED`), a local Hugging Face directory, or the name of a model on the Hub.

    A model that transformers knows as one of images and text becomes a `VisionPolicy`; ``freeze_vision`` keeps its image
    encoder as it is. A directory that holds a LoRA adapter is loaded as its base model with the adapter, which stays
    trainable. Asking for an ``attn_implementation`` other than sdpa or eager turns packing off.

    Raises:
        UsageError: if there is no such model, no tokenizer (or processor) beside it, or the two do not fit together.
    """
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    source = _source(name_or_path)
    adapter = _adapter_base(source)
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    tokenizer = _tokenizer(source, options)
    config = vision_config(adapter or source, options)
    sees = config is not None
    if freeze_vision and not sees:
        raise UsageError(f"model.freeze_vision is set, but {name_or_path} has no image encoder; leave it out")
    processor: Any = load_processor(source, config, tokenizer, options) if sees else None
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    model: Any = _model(adapter or source, options | {"dtype": DTYPES[dtype]}, sees)
    if freeze_vision:
        freeze(model)
    if adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, source, is_trainable=True)
    if lora is not None:
        model = _with_lora(model, replace(lora, targets=language_layers(model)) if sees else lora)
    model = model.to(device)
    policy = VisionPolicy(model, processor) if sees else TransformersPolicy(model, tokenizer)
    _load_value_head(policy, Path(source) / VALUE_HEAD)
    return policy


def _source(name_or_path: str | Path) -> str:
    if str(name_or_path) in EMBEDDED:
        from policydist.language import embedded

        return str(getattr(embedded, EMBEDDED[str(name_or_path)])())
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise UsageError(f"{path} holds no config.json: it is not a Hugging Face model directory")
        return str(path)
    if path.is_absolute() or str(name_or_path).startswith((".", "~", "runs/")) or str(name_or_path).count("/") > 1:
        raise UsageError(f"no model directory {path}")
    return str(name_or_path)


def _adapter_base(source: str) -> str | None:
    if not (Path(source) / "adapter_config.json").is_file():
        return None
    from peft import PeftConfig

    return str(PeftConfig.from_pretrained(source).base_model_name_or_path)


def _tokenizer(source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    held = Path(source)
    if held.is_dir() and not any((held / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        raise UsageError(f"{source} holds no tokenizer: save one there with tokenizer.save_pretrained")
    # AutoTokenizer goes by the model's architecture and would put that family's own class in a general one's place.
    loader = PreTrainedTokenizerFast if _general_tokenizer(held) else AutoTokenizer
    try:
        return loader.from_pretrained(source, padding_side="left", **options)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"cannot load a tokenizer from {source}: {_first_line(error)}") from error


def _general_tokenizer(directory: Path) -> bool:
    file = directory / "tokenizer_config.json"
    if not file.is_file() or not (directory / "tokenizer.json").is_file():
        return False
    try:
        named = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class")
    except (ValueError, AttributeError) as error:
        raise UsageError(f"{file} is not a JSON object: save the tokenizer again") from error
    return named in ("TokenizersBackend", "PreTrainedTokenizerFast")


def _model(source: str, options: dict[str, Any], sees: bool) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    loader = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    kind = "vision-language" if sees else "causal language"
    try:
        return loader.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UsageError(f"cannot load a {kind} model from {source}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _with_lora(model: PreTrainedModel, lora: Lora) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def _load_value_head(policy: TransformersPolicy, file: Path) -> None:
    if file.is_file():
        from safetensors.torch import load_file

        policy.add_value_head()
        assert policy.core.value_head is not None
        policy.core.value_head.load_state_dict(load_file(file))
