"""Independent random streams derived from one root seed and a name, equal on every machine."""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def derive(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream ``names`` of root ``seed``: a hash, so streams are independent and order-free."""
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def torch_generator(seed: int, *names: object) -> torch.Generator:
    """A CPU generator for the stream ``names`` of root ``seed``."""
    return torch.Generator().manual_seed(derive(seed, *names))


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """A NumPy generator for the stream ``names`` of root ``seed``."""
    return np.random.default_rng(derive(seed, *names))
