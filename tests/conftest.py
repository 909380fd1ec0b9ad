"""A tiny random Qwen2 in a Hugging Face directory and a file of sums: every command runs on them without the embedded model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHARACTERS = "0123456789+= "


@dataclass(frozen=True)
class Tiny:
    """Where the model and the sums lie, and the settings of a run that takes a second."""

    model: Path
    sums: Path

    @property
    def task(self) -> str:
        return f"jsonl:{self.sums}"

    @property
    def words(self) -> list[str]:
        return [
            "model.device=cpu", "rollout.prompts=4", "rollout.samples=4", "rollout.max_new_tokens=3", "train.lr=1e-2",
            "eval.rows=4", "eval.samples=2", "task.grader=tiny_rewards:has_digit", "trackers=[]",
        ]  # fmt: skip

    def train(self, slug: str = "grpo", steps: int = 2, *more: str) -> list[str]:
        """The words of ``policydist train``."""
        sets = [part for word in self.words for part in ("--set", word)]
        return ["train", slug, "--task", self.task, "--model", str(self.model), "--steps", str(steps), *sets, *more]


def character_tokenizer(**special: str) -> Any:
    """One token a character; pad, end and unknown tokens unless ``special`` says which."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(("<pad>", "<end>", "<unk>", *CHARACTERS))}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    special = special or {"pad_token": "<pad>", "eos_token": "<end>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, padding_side="left", **special)


def write_model(folder: Path) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, eos_token_id=1,
        bos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)


def sums() -> Iterator[dict[str, Any]]:
    for a in range(6):
        for b in range(4):
            yield {"prompt": f"{a}+{b}=", "answer": str(a + b), "completion": str(a + b)}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder / "model")
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums()))
    return Tiny(folder / "model", folder / "sums.jsonl")
