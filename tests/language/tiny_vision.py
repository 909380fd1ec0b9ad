"""Tiny random vision-language models of three families with their processors, pictures, and ragged prompts about these."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from policydist.language.policies.vision import VisionPolicy
from policydist.language.prompts import TextPrompts
from policydist.language.types import Prompts

WORDS = 40
MARKS = ("start", "stop", "soft", "image", "|image_pad|", "|video_pad|", "|vision_start|", "|vision_end|")
AT = {name.strip("|"): WORDS + number for number, name in enumerate(MARKS)}
"""Ids of the special tokens."""
TEXT: dict[str, Any] = {
    "vocab_size": WORDS + len(MARKS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 160, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
VISION: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "initializer_range": 0.3, "patch_size": 4}
LAYERS: dict[str, Any] = {**VISION, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16}
QWEN = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
KINDS = ("llava", "qwen", "gemma")
CHAT = (
    "{% for m in messages %}<start>{{ m.role }} {% for p in m.content %}{% if p.type == 'image' %}<|vision_start|><|image_pad|>"
    "<|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}<stop>{% endfor %}"
    "{% if add_generation_prompt %}<start>assistant {% endif %}"
)


def tokenizer(kind: str = "llava") -> Any:
    """Words w2 … and the image tokens of all families; a Gemma's tokenizer knows what they are for."""
    words = {"<pad>": 0, "<end>": 1} | {f"w{i}": i for i in range(2, WORDS)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    soft = "image_token" if kind == "gemma" else "soft_token"
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<end>",
        extra_special_tokens={"boi_token": "<start>", "eoi_token": "<stop>", soft: "<soft>"},
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": [f"<{name}>" for name in MARKS]})
    return made


def build(kind: str) -> tuple[Any, Any]:
    """Model and processor. A Llava sees 16 patches of every image, a Qwen2.5-VL a number that follows its size, with
    positions in three dimensions; in a Gemma 3 image tokens see each other."""
    torch.manual_seed(0)
    model, processor = {"llava": llava, "qwen": qwen, "gemma": gemma}[kind](tokenizer(kind))
    return model.eval(), processor


def llava(words: Any) -> tuple[Any, Any]:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    vision = {**LAYERS, "model_type": "clip_vision_model", "projection_dim": 16}
    text = {**TEXT, "model_type": "llama"}
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=AT["image"], vision_feature_layer=-1)
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        images, words, patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1
    )
    return LlavaForConditionalGeneration(config), processor


class StillQwen(Qwen2_5_VLProcessor):
    """Without its part for videos, which needs torchvision."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


StillQwen.__name__ = "Qwen2_5_VLProcessor"


def qwen(words: Any) -> tuple[Any, Any]:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = {
        **VISION, "depth": 2, "num_heads": 2, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 32,
        "fullatt_block_indexes": [1], "window_size": 16,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}
    tokens = {f"{name}_token_id": AT[at] for name, at in QWEN.items()}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, "rope_parameters": rope}, **tokens)
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=32 * 32
    )
    return Qwen2_5_VLForConditionalGeneration(config), StillQwen(images, words)


def gemma(words: Any) -> tuple[Any, Any]:
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    text = {**TEXT, "head_dim": 8, "sliding_window": 64}
    config = Gemma3Config(
        vision_config={**LAYERS, "vision_use_head": False}, text_config=text, mm_tokens_per_image=4,
        boi_token_index=AT["start"], image_token_index=AT["soft"], eoi_token_index=AT["stop"],
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    model = Gemma3ForConditionalGeneration(config)
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)  # else zero: blind
    return model, Gemma3Processor(images, words, image_seq_length=4)


def policy(kind: str) -> VisionPolicy:
    return VisionPolicy(*build(kind))


def picture(seed: int, height: int = 16, width: int = 16) -> Image.Image:
    """Noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


ROWS: list[dict[str, Any]] = [
    {"prompt": "w2 <image> w3", "image": picture(0, 20, 12)},
    {"prompt": "w5 w6 w7 w8 w9"},
    {"prompt": "w2 <image> w4 <image> w9 w10", "images": [picture(1), picture(2, 40, 12)]},
    {"prompt": "w2 <image> w3", "image": picture(3, 20, 12)},
    {"prompt": "w11", "image": picture(4, 8, 30)},
]
"""Rows 0 and 3 say the same about different images of one size; row 4 has its image in front."""
SAMPLES = torch.tensor([3, 2, 3, 2, 1])


def prompts(policy: VisionPolicy, rows: list[dict[str, Any]] = ROWS) -> Prompts:
    source = TextPrompts(rows, policy.tokenizer, 120)
    return source.take(torch.arange(len(rows)), SAMPLES[: len(rows)])


def uniforms(count: int = 11, width: int = 12) -> torch.Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(1))
