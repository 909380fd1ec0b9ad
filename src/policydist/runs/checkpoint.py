"""Checkpoints: weights in safetensors, optimiser state loadable with ``weights_only``, and a manifest of hashes.

A checkpoint is a folder ``step-00000100``; it is written under a temporary name and renamed once complete, so a run killed
at any moment leaves only whole ones.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from policydist.errors import PolicydistError, UsageError

FILES = {"model.safetensors", "optimiser.pt", "state.json"}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(
    root: Path, step: int, weights: dict[str, Tensor], optimiser: Any, state: dict[str, Any], keep: int = 2
) -> Path:
    """Write ``root/step-<step>`` and remove all but the last ``keep`` checkpoints. ``state`` must be JSON-able."""
    final, work = root / f"step-{step:08d}", root / f".step-{step:08d}.tmp"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, work / "model.safetensors"
    )
    torch.save(optimiser, work / "optimiser.pt")
    (work / "state.json").write_text(json.dumps({"step": step, **state}))
    manifest = {path.name: _hash(path) for path in sorted(work.iterdir())}
    (work / "manifest.json").write_text(json.dumps(manifest, indent=2))
    if final.exists():
        # Set aside, not removed: a kill in between must not leave half of it under the name of a whole one.
        aside = root / f".step-{step:08d}.old"
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        work.rename(final)
        shutil.rmtree(aside)
    else:
        work.rename(final)
    for old in complete(root)[:-keep]:
        shutil.rmtree(old)
    return final


def complete(root: Path) -> list[Path]:
    """The checkpoints under ``root``, oldest first."""
    return sorted(path for path in root.glob("step-*") if path.is_dir()) if root.is_dir() else []


def load(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Tensor], Any, dict[str, Any]]:
    """Read a checkpoint back: weights, optimiser state, and the JSON state.

    Raises:
        PolicydistError: naming the damaged file, and the newest earlier checkpoint that is whole, if there is one.
    """
    fault = damage(path)
    if fault:
        earlier = [other for other in complete(path.parent) if other.name < path.name and not damage(other)]
        mend = f"resume from the earlier {earlier[-1]}" if earlier else "no earlier checkpoint is whole; start again"
        raise PolicydistError(f"checkpoint {path} is damaged ({fault}); {mend}")
    optimiser = torch.load(path / "optimiser.pt", map_location=device, weights_only=True)
    return (
        load_file(path / "model.safetensors", device=str(device)),
        optimiser,
        json.loads((path / "state.json").read_text()),
    )


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        return "manifest.json is missing or unreadable"
    if not isinstance(manifest, dict) or not manifest.keys() >= FILES:
        return "manifest.json does not list all files"
    for name, expected in manifest.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _hash(path / name) != expected:
            return f"{name} is truncated or was changed"
    return None


def newest(root: Path) -> Path:
    """The last checkpoint of a run.

    Raises:
        UsageError: if there is none.
    """
    found = complete(root)
    if not found:
        raise UsageError(f"no checkpoint under {root}; the run stopped before its first one, start it again")
    return found[-1]
