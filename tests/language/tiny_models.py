"""Tiny random language models of several architectures, a tokenizer, and ragged prompts."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from policydist.language.policies.hf import TransformersPolicy
from policydist.language.types import Generation, Prompts, Rollouts
from policydist.language.world import to_rollouts

VOCAB, END = 40, 1
SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 96,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": END,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 96, "initializer_range": 0.3}
SPECIAL = {"bos_token_id": 0, "eos_token_id": END, "pad_token_id": 0}


def tiny(kind: str) -> Any:
    """A random model in evaluation mode; see `_build`."""
    return _build(kind).eval()


def _build(kind: str) -> Any:
    """Gemma-2 has a window of five tokens and soft caps, BLOOM has ALiBi and cannot be packed."""
    torch.manual_seed(0)
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHARED, num_key_value_heads=2))
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SHARED, num_key_value_heads=4))
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(**GPT2, **SPECIAL))
    if kind == "gemma2":
        return Gemma2ForCausalLM(Gemma2Config(**SHARED, num_key_value_heads=2, head_dim=8, sliding_window=5))
    bloom = {"vocab_size": VOCAB, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    return BloomForCausalLM(BloomConfig(**bloom, **SPECIAL))


def tokenizer(size: int = VOCAB) -> PreTrainedTokenizerFast:
    """Words w2 … with a padding and an end token."""
    words = {"<pad>": 0, "<end>": END} | {f"w{i}": i for i in range(2, size)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")


def policy(kind: str = "qwen2") -> TransformersPolicy:
    return TransformersPolicy(tiny(kind), tokenizer())


def prompts() -> Prompts:
    """Five left-padded prompts of 7, 5, 4, 7 and 1 tokens that want 3, 1, 4, 2 and 6 responses."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCAB, (5, 7), generator=generator)
    mask = torch.arange(7) >= torch.tensor([0, 2, 3, 0, 6])[:, None]
    return Prompts(ids * mask, mask, torch.tensor([3, 1, 4, 2, 6]), torch.arange(5))


def uniforms(count: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(2))


def rollouts(generation: Generation) -> Rollouts:
    return to_rollouts(prompts(), generation)


def reference_logprobs(model: Any, rows: Rollouts) -> torch.Tensor:
    """Response log-probabilities [N, T], one unpadded forward pass a response."""
    found = torch.zeros(rows.response_ids.shape)
    for i in range(len(rows)):
        prompt = rows.prompt_ids[i][rows.prompt_mask[i]]
        count = int(rows.lengths[i])
        ids = torch.cat([prompt, rows.response_ids[i, :count]])
        logprobs = model(input_ids=ids[None], use_cache=False).logits[0].log_softmax(-1)
        steps = torch.arange(count)
        found[i, :count] = logprobs[len(prompt) - 1 + steps, ids[len(prompt) + steps]]
    return found
