"""A two-layer Qwen2, a tokenizer of single characters, and reward functions that need no learning to differ."""

from __future__ import annotations

from typing import Any

import torch

PROMPTS = ["ab", "abcde", "e", "cdc"]
LETTERS = "abcde"


def tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(("<pad>", "<eos>", "<unk>", *LETTERS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def model(seed: int = 0) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.4,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        attention_dropout=0.0,
        tie_word_embeddings=False,
    )
    return Qwen2ForCausalLM(config)


def dataset() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"prompt": PROMPTS * 4})


def has_a(completions: list[str], **columns: Any) -> list[float]:
    """1 for a completion with the letter a in it."""
    return [float("a" in text) for text in completions]


def short(completions: list[str], **columns: Any) -> list[float]:
    """1 for at most three letters."""
    return [float(len(text) <= 3) for text in completions]
