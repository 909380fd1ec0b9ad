"""Subnetworks: watch how few stored weights an RL run changes, and train those alone (arXiv 2505.11711).

Any method can be watched and confined: both are extensions of its recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from policydist.errors import UsageError
from policydist.functional.sparsity import TOLERANCE, Masks, Precision, count_changes, round_bf16
from policydist.language import methods
from policydist.language.recipe import Context, Extension, Recipe, Setting
from policydist.language.types import Policy
from policydist.runs import config as configs
from policydist.runs.difference import PREFIX

DIFFERENCES = (
    "The released script prints, per layer, the share of entries that changed under the heading of sparsity; here that is "
    "called density, and sparsity is always the share that did not.",
    "The script skips parameters whose shapes differ without a word; here every parameter left out is reported.",
    "The paper masks the gradient. Decoupled weight decay would still move the weights outside the mask, so here they are "
    "put back after every optimiser step.",
    "Chance level of an overlap: the paper takes a uniformly random mask. A null that is matched to the weights' magnitude "
    "is reported next to it, because small weights change more easily in bfloat16 whatever the update.",
)


@dataclass(frozen=True)
class Config:
    """``base``: the method that trains, ``settings`` its knobs as key=value words; ``mask``: a safetensors file of boolean
    tensors (``policydist diff … --mask``) outside which no weight moves; ``every``: steps between two measurements of the
    update's sparsity so far (0: none), at ``precision`` and ``tolerance``."""

    base: str = "grpo"
    settings: tuple[str, ...] = ()
    mask: str | None = None
    every: int = 1
    precision: Precision = "bf16"
    tolerance: float = TOLERANCE

    def __post_init__(self) -> None:
        if self.base == "subnetworks":
            raise UsageError("base is subnetworks itself; name the method that trains, such as grpo")
        if self.every < 0:
            raise UsageError(f"every is {self.every}; it must be 0 (never) or positive")
        if not self.tolerance >= 0:
            raise UsageError(f"tolerance is {self.tolerance}; it must not be negative")


class SparsityLog:
    """Logs, every so many steps, the share of trained weights whose stored value is still the initial one."""

    def __init__(self, every: int, precision: Precision = "bf16", tolerance: float = TOLERANCE) -> None:
        self.every, self.precision, self.tolerance = every, precision, tolerance
        self.start: list[tuple[Tensor, nn.Parameter]] = []

    def begin(self, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
        trained = [p for p in policy.module.parameters() if p.requires_grad]
        self.start = [(self.stored(p).clone(), p) for p in trained]

    def stored(self, parameter: Tensor) -> Tensor:
        value = parameter.detach().cpu()
        return round_bf16(value) if self.precision == "bf16" else value

    def observe(self, ctx: Context) -> None:
        if (ctx.step + 1) % self.every:
            return
        tolerances = (0.0, self.tolerance)
        counts = [count_changes(old, self.stored(p), tolerances, self.precision) for old, p in self.start]
        size = sum(old.numel() for old, _ in self.start)
        exact, beyond = (sum(column) for column in zip(*counts, strict=True))
        ctx.log("subnetworks/sparsity", 1 - beyond / size)
        ctx.log("subnetworks/unchanged", 1 - exact / size)


class Confine:
    """Trains the entries inside ``masks`` and no others."""

    def __init__(self, masks: Masks) -> None:
        self.masks = masks

    def begin(self, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
        confine(policy.module.named_parameters(), optimiser, self.masks)

    def observe(self, ctx: Context) -> None:
        """Nothing to do: the hooks have done it."""


def confine(parameters: Iterable[tuple[str, nn.Parameter]], optimiser: torch.optim.Optimizer, masks: Masks) -> None:
    """Let ``optimiser`` move only the entries of ``parameters`` that are true in ``masks``: ``g <- m g`` as gradients come
    in, so before they are clipped; what weight decay or old momentum moves besides is put back after each step.

    With a mask of every entry that ever gets a gradient, training is bit for bit that without a mask.

    Raises:
        UsageError: a parameter without a mask, or with one of another shape.
    """
    held = []
    for name, parameter in parameters:
        if not parameter.requires_grad:
            continue
        mask = masks.get(name, masks.get(name.removeprefix(PREFIX)))
        if mask is None:
            raise UsageError(f"the mask has no entry for {name} (it has {', '.join(list(masks)[:3])}, …)")
        if mask.shape != parameter.shape:
            raise UsageError(f"the mask of {name} has shape {list(mask.shape)}, the weight {list(parameter.shape)}")
        outside = ~mask.to(parameter.device)
        parameter.register_hook(lambda grad, outside=outside: grad.masked_fill(outside, 0.0))
        held.append((parameter, outside, parameter.detach()[outside].clone()))

    def put_back(*_: Any) -> None:
        with torch.no_grad():
            for parameter, outside, values in held:
                parameter.masked_scatter_(outside, values)

    optimiser.register_step_post_hook(put_back)


def read_masks(path: Path) -> Mapping[str, Tensor]:
    """Boolean tensors by parameter name.

    Raises:
        UsageError: no such file, no safetensors file, or a tensor that is not boolean.
    """
    try:
        masks = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise UsageError(f"mask {path} cannot be read: {str(problem).splitlines()[0]}") from None
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise UsageError(
                f"mask {path}: {name} is of type {mask.dtype}, not bool; write it by policydist diff --mask"
            )
    return masks


def build(config: Config, setting: Setting) -> Recipe:
    method: Any = methods.load(config.base)
    options: dict[str, Any] = {}
    configs.assign(options, config.settings, {"knobs": method.Config})
    recipe: Recipe = method.build(configs.build(method.Config, options.get("knobs", {}), "knobs"), setting)
    return extended(
        recipe,
        masks=read_masks(Path(config.mask)) if config.mask else None,
        log=SparsityLog(config.every, config.precision, config.tolerance) if config.every else None,
    )


def extended(recipe: Recipe, masks: Masks | None = None, log: SparsityLog | None = None) -> Recipe:
    """The recipe, confined to ``masks`` and watched by ``log``."""
    added: list[Extension] = [*([Confine(masks)] if masks is not None else []), *([log] if log else [])]
    return replace(recipe, extensions=(*recipe.extensions, *added))
