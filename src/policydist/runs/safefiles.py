"""Reading tensors of safetensors checkpoints piece by piece: the header says where each lies, so nothing else is loaded.

The library's own reader maps whole files into memory, which then counts as used; here memory is what is asked for.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from policydist.errors import UsageError

INDEX = "model.safetensors.index.json"
SINGLE = ("model.safetensors", "adapter_model.safetensors")
TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
}  # fmt: skip
"""Stored types that are weights; tensors of other types (indices, quantised blocks) are not compared."""
LONGEST_HEADER = 100_000_000  # as the library itself allows


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: file, first byte, shape, stored type."""

    file: Path
    start: int
    shape: tuple[int, ...]
    kind: str

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """Bytes of one entry."""
        return TYPES[self.kind].itemsize

    def read(self, first: int = 0, count: int | None = None, room: Tensor | None = None) -> Tensor:
        """``count`` entries from ``first`` on, flat; with ``room``, bytes enough for them, they lie in it.

        Raises:
            UsageError: the file ended early.
        """
        count = self.size - first if count is None else count
        kind = TYPES[self.kind]
        buffer = torch.empty(count, dtype=kind) if room is None else room[: count * self.width].view(kind)
        if count == 0:
            return buffer
        view = buffer.view(torch.uint8).numpy().data
        handle = os.open(self.file, os.O_RDONLY)
        try:
            place = self.start + first * self.width
            while view:
                done = os.preadv(handle, [view], place)
                if done == 0:
                    raise UsageError(f"{self.file}: the file ends in the middle of its tensors; fetch it again")
                view, place = view[done:], place + done
        finally:
            os.close(handle)
        return buffer


def checkpoint(path: Path) -> dict[str, Entry]:
    """The tensors of a checkpoint: a safetensors file, a folder of a Hugging Face model (one file or shards with an
    index), a run of this library (its trained model) or one of its checkpoints.

    Of tied embeddings stored twice only the input side is taken, where the model's config says that they are tied.

    Raises:
        UsageError: nothing there, no safetensors in it, a shard that is missing, or a file that is damaged.
    """
    if not path.exists():
        raise UsageError(
            f"{path}: no such file or folder; a model of the Hub must be fetched first (hf download NAME --local-dir DIR)"
        )
    if path.is_file():
        return entries(path)
    if not any((path / name).is_file() for name in (INDEX, *SINGLE)) and (path / "model").is_dir():
        path = path / "model"
    if (path / INDEX).is_file():
        found = sharded(path)
    else:
        files = [path / name for name in SINGLE if (path / name).is_file()]
        if not files:
            raise UsageError(
                f"{path}: no model.safetensors and no {INDEX} in it; name a safetensors file or its folder"
            )
        found = entries(files[0])
    return untied(found, path)


def sharded(path: Path) -> dict[str, Entry]:
    """All tensors of the shards that an index lists."""
    table = _json((path / INDEX).read_bytes(), path / INDEX).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UsageError(f"{path / INDEX}: not an index of shards (no weight_map)")
    found: dict[str, Entry] = {}
    for shard in sorted(set(table.values())):
        if not (path / shard).is_file():
            raise UsageError(f"{path}: shard {shard} is missing, which {INDEX} lists; fetch it")
        found |= entries(path / shard)
    absent = sorted(table.keys() - found.keys())
    if absent:
        raise UsageError(f"{path}: {absent[0]} is not in {table[absent[0]]}, where {INDEX} says it is")
    return {name: found[name] for name in table}


def untied(found: dict[str, Entry], path: Path) -> dict[str, Entry]:
    """Without the output embedding where the config ties it to the input's."""
    config = path / "config.json"
    tied = config.is_file() and _json(config.read_bytes(), config).get("tie_word_embeddings", False)
    return {name: entry for name, entry in found.items() if not (tied and name.endswith("lm_head.weight"))}


def entries(file: Path) -> dict[str, Entry]:
    """The tensors of one file, from its header.

    Raises:
        UsageError: the file is no safetensors file or shorter than its header says.
    """
    total = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if total < 8 or length > min(total - 8, LONGEST_HEADER):
            raise UsageError(f"{file}: not a safetensors file, or cut off in its header")
        header = _json(handle.read(length), file)
    header.pop("__metadata__", None)
    found = {}
    for name, about in header.items():
        try:
            kind, shape, (start, stop) = about["dtype"], tuple(map(int, about["shape"])), about["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise UsageError(f"{file}: the header's entry for {name} is damaged") from None
        entry = Entry(file, 8 + length + start, shape, kind)
        if 8 + length + stop > total:
            raise UsageError(f"{file}: cut off: {name} ends at byte {8 + length + stop}, the file at {total}")
        if kind in TYPES and entry.size * entry.width != stop - start:
            raise UsageError(f"{file}: the header's entry for {name} contradicts itself")
        found[name] = entry
    return found


def _json(text: bytes, file: Path) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError:
        raise UsageError(f"{file}: not a safetensors header or index (no valid JSON in it)") from None
    if not isinstance(data, dict):
        raise UsageError(f"{file}: not a safetensors header or index")
    return data
