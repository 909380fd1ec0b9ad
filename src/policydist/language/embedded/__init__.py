"""The small language model that comes with the package: partly able on every procedural task, and quick to improve."""

from __future__ import annotations

from pathlib import Path


def path() -> Path:
    """The directory of the shipped model: configuration, safetensors, tokenizer, training log and model card."""
    return Path(__file__).parent / "model"


def search_path() -> Path:
    """The directory of the shipped model that can search (``embedded-search``)."""
    return Path(__file__).parent / "search_model"


def vision_path() -> Path:
    """The directory of the shipped model that sees (``embedded-vision``)."""
    return Path(__file__).parent / "vision_model"
