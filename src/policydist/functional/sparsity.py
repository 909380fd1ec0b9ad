"""How much of a network an update changed: sparsity, rank, and the overlap of two updates with what chance would give.

Everything is measured at a stated precision (arXiv 2505.11711 stores weights in bfloat16): at float32 nearly every
weight moves, whatever the training. Parameters are mappings from name to tensor; n is the number of their entries.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from policydist.errors import UsageError

Precision = Literal["bf16", "fp32"]
Weights = Mapping[str, Tensor]
Masks = Mapping[str, Bool[Tensor, "..."]]

TOLERANCE = 1e-5
"""Two entries are equal if they differ by no more than this (absolute; a relative part would vanish against zero)."""
MAGNITUDES = 2**15
"""Distinct absolute values of a bfloat16, in the order of their bits."""
_PIECE = 2**18
"""Entries counted at a time: few enough for a core's cache, enough for threads that each of numpy's calls keeps busy to seldom
wait for each other at the interpreter."""


def round_bf16(x: Float[Tensor, "..."]) -> Tensor:
    """Nearest bfloat16, ties to even. Near w its values lie ``2^(floor(log2 |w|) - 7)`` apart: smaller steps vanish."""
    return x.to(torch.bfloat16)


def at_precision(x: Float[Tensor, "..."], precision: Precision) -> Float[Tensor, "..."]:
    """The values that would be stored, in float32, in which differences of two bfloat16 are compared.

    Raises:
        UsageError: unknown precision.
    """
    if precision not in ("bf16", "fp32"):
        raise UsageError(f"precision is {precision!r}; it must be bf16 or fp32")
    return (round_bf16(x) if precision == "bf16" else x).float()


def changed(
    before: Float[Tensor, "*n"],
    after: Float[Tensor, "*n"],
    precision: Precision = "bf16",
    tol: float = TOLERANCE,
) -> Bool[Tensor, "*n"]:
    """Where the stored values differ by more than ``tol`` (0: at all). NaN counts as changed."""
    return ~((at_precision(before, precision) - at_precision(after, precision)).abs() <= tol)


def count_changes(
    before: Float[Tensor, "*n"],
    after: Float[Tensor, "*n"],
    tolerances: Sequence[float],
    precision: Precision = "bf16",
) -> list[int]:
    """Entries that `changed` at each tolerance, counted in pieces that stay in a core's cache: several times faster.

    One difference to `changed` at bf16: what is not finite and did not change by a bit is not counted.
    """
    if precision == "fp32":
        exact = (before.float() - after.float()).abs()
        return [int(exact.numel() - (exact <= tol).sum()) for tol in tolerances]
    old, new = _pairs(before), _pairs(after)
    total = np.zeros(len(tolerances), dtype=np.int64)
    rooms, flags = np.empty((2, _PIECE), dtype=np.uint32), np.empty(_PIECE, dtype=bool)
    for start in range(0, len(old), _PIECE // 2):
        words = new[start : start + _PIECE // 2]
        x, gap = _floats(old[start : start + _PIECE // 2], rooms[0]), _floats(words, rooms[1])
        flag = flags[: len(gap)]
        with np.errstate(over="ignore", invalid="ignore"):
            np.abs(np.subtract(x, gap, out=gap), out=gap)
        total += [np.count_nonzero(np.greater(gap, tol, out=flag)) for tol in tolerances]
        if np.isnan(gap.max()):
            moved = x.view(np.uint32) != _floats(words, np.empty_like(rooms[1])).view(np.uint32)
            total += np.count_nonzero(np.isnan(gap) & moved)
    return [int(count) for count in total]


Words = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]


def _pairs(x: Tensor) -> Words:
    """Bits of two bfloat16 a word; an odd last one stands beside a zero."""
    bits = round_bf16(x.detach()).contiguous().view(torch.int16).numpy().view(np.uint16).reshape(-1)
    return (np.append(bits, np.uint16(0)) if len(bits) % 2 else bits).view(np.uint32)


def _floats(words: Words, room: Words) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The values, one half of each word first, then the other: a bfloat16 is the upper half of a float32."""
    count = len(words)
    np.bitwise_and(words, np.uint32(0xFFFF0000), out=room[:count])
    np.left_shift(words, np.uint32(16), out=room[count : 2 * count])
    return room[: 2 * count].view(np.float32)


def _magnitude(x: Tensor) -> Int[Tensor, " n"]:
    """The bits of |x| as bfloat16, which sort as the magnitudes do."""
    return round_bf16(x.detach()).flatten().view(torch.int16).int() & 0x7FFF


@dataclass(frozen=True)
class Density:
    """One parameter's entries, and how many of them changed: at all, and beyond the tolerance."""

    size: int
    changed: int
    beyond: int

    @property
    def density(self) -> float:
        """Share of entries that changed at all."""
        return self.changed / self.size if self.size else 0.0


@dataclass(frozen=True)
class UpdateSparsity:
    """``total``: S = 1 - (entries beyond the tolerance) / n; ``exact``: the same for any change at all; ``per_layer``: mean
    over the layer's matrices of their densities, unweighted; ``skipped``: parameters left out, with the reason."""

    total: float
    exact: float
    per_param: Mapping[str, Density]
    per_layer: Mapping[str, float]
    skipped: Mapping[str, str]


def summarise(per_param: Mapping[str, Density], matrices: Sequence[str], skipped: Mapping[str, str]) -> UpdateSparsity:
    """Totals from the parameters' counts; ``matrices`` names those with two dimensions or more.

    Raises:
        UsageError: there is nothing to compare.
    """
    size = sum(entry.size for entry in per_param.values())
    if size == 0:
        raise UsageError("the two have no parameter of the same name and shape in common")
    layers: dict[str, list[float]] = {}
    for name in matrices:
        layers.setdefault(layer_of(name), []).append(per_param[name].density)
    return UpdateSparsity(
        total=1 - sum(entry.beyond for entry in per_param.values()) / size,
        exact=1 - sum(entry.changed for entry in per_param.values()) / size,
        per_param=per_param,
        per_layer={layer: sum(values) / len(values) for layer, values in layers.items()},
        skipped=skipped,
    )


def update_sparsity(
    before: Weights, after: Weights, precision: Precision = "bf16", tol: float = TOLERANCE
) -> UpdateSparsity:
    """``S(before, after) = 1 - |{i : |after_i - before_i| > tol}| / n`` at the given precision (arXiv 2505.11711, section 2).

    Parameters that only one side has or whose shapes differ are skipped and reported.

    Raises:
        UsageError: nothing in common.
    """
    common, skipped = match(
        {name: tuple(x.shape) for name, x in before.items()}, {name: tuple(x.shape) for name, x in after.items()}
    )
    found = {}
    for name in common:
        exact, beyond = count_changes(before[name].cpu(), after[name].cpu(), (0.0, tol), precision)
        found[name] = Density(before[name].numel(), exact, beyond)
    return summarise(found, [name for name in common if before[name].dim() >= 2], skipped)


def match(
    before: Mapping[str, tuple[int, ...]], after: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], dict[str, str]]:
    """Names with equal shapes on both sides, and the others with why they are left out."""
    skipped = dict.fromkeys(before.keys() - after.keys(), "only in the first")
    skipped |= dict.fromkeys(after.keys() - before.keys(), "only in the second")
    skipped |= {
        name: f"shape {list(before[name])} against {list(after[name])}"
        for name in before.keys() & after.keys()
        if before[name] != after[name]
    }
    return [name for name in before if name in after and name not in skipped], dict(sorted(skipped.items()))


def layer_of(name: str) -> str:
    """A parameter's layer: its name up to the first number (``model.layers.3``), else all but its last word."""
    numbered = re.match(r"(.*?\.\d+)(?:\.|$)", name)
    return numbered[1] if numbered else name.rpartition(".")[0] or name


NORMS = ("layernorm", "norm")
"""Words in the names of parameters whose rank says nothing."""


def difference_rank(
    before: Float[Tensor, "m ..."], after: Float[Tensor, "m ..."], precision: Precision = "bf16"
) -> int:
    """Numerical rank of the difference of the stored values: float32 SVD, tolerance ``S_max max(m, n) eps``.

    Both the type and the tolerance are part of the definition. More than two dimensions are flattened to two.
    """
    gap = at_precision(after, precision) - at_precision(before, precision)
    return int(torch.linalg.matrix_rank(gap.flatten(1)))


def has_rank(name: str, shape: Sequence[int], skip: Sequence[str] = NORMS) -> bool:
    """Whether a parameter is a matrix whose rank is reported."""
    return len(shape) >= 2 and not any(word in name.lower() for word in skip)


@dataclass(frozen=True)
class UpdateRank:
    """Rank over ``min(m, n)`` of each matrix's difference, and the mean over matrices."""

    per_param: Mapping[str, float]
    mean_ratio: float


def update_rank(
    before: Weights, after: Weights, skip: Sequence[str] = NORMS, precision: Precision = "bf16"
) -> UpdateRank:
    """`difference_rank` of every matrix that both have in one shape.

    Raises:
        UsageError: no matrix in common.
    """
    ratios = {
        name: difference_rank(x, after[name], precision) / min(x.flatten(1).shape)
        for name, x in before.items()
        if has_rank(name, x.shape, skip) and name in after and after[name].shape == x.shape
    }
    if not ratios:
        raise UsageError("the two have no matrix of the same name and shape in common")
    return UpdateRank(ratios, sum(ratios.values()) / len(ratios))


def subnetwork_mask(
    before: Weights, after: Weights, precision: Precision = "bf16", tol: float = 0.0
) -> dict[str, Bool[Tensor, "..."]]:
    """``m_i = 1`` where the stored value changed."""
    common = [name for name in before if name in after and after[name].shape == before[name].shape]
    return {name: changed(before[name], after[name], precision, tol) for name in common}


def equal_fraction(first: Weights, second: Weights, tol: float = TOLERANCE, precision: Precision = "bf16") -> float:
    """Share of entries that are equal up to ``tol``: another name of S, for two end points instead of a start and an end."""
    return update_sparsity(first, second, precision, tol).total


def temporal_split(checkpoints: Sequence[Weights], precision: Precision = "bf16") -> dict[str, float]:
    """Shares of weights by their history over checkpoints, the first being the start.

    ``never``: equal to the start at every checkpoint; ``cancelled``: changed at one, back at the start in the last;
    ``updated``: different in the last. They add up to 1.
    """
    start, rest = checkpoints[0], checkpoints[1:]
    size = sum(x.numel() for x in start.values())
    ever = cancelled = updated = 0
    for name, x in start.items():
        moved = torch.stack([changed(x, other[name], precision, 0.0) for other in rest])
        ever += int(moved.any(0).sum())
        updated += int(moved[-1].sum())
        cancelled += int((moved.any(0) & ~moved[-1]).sum())
    return {"never": 1 - ever / size, "cancelled": cancelled / size, "updated": updated / size}


@dataclass(frozen=True)
class Overlap:
    """``o1`` = |I1 and I2| / |I1|, ``o2`` = |I1 and I2| / |I2|; ``chance``: what independent masks of the same sizes give;
    ``matched``: what masks that are independent *given the weight's magnitude* give, if it was asked for."""

    o1: float
    o2: float
    chance1: float
    chance2: float
    matched1: float = math.nan
    matched2: float = math.nan


def overlap(first: Masks, second: Masks, before: Weights | None = None, bins: int = 20) -> Overlap:
    """Overlap of two updated index sets, with chance; with ``before`` also the magnitude-matched null (our addition).

    Small weights change more easily in bfloat16, whatever the update, so a uniformly random mask is too weak a null.

    Raises:
        UsageError: the masks are not of the same parameters, or one of them is empty.
    """
    if first.keys() != second.keys():
        raise UsageError(f"the masks differ in {sorted(first.keys() ^ second.keys())[0]}")
    if before is None:
        a, b = _flat(first), _flat(second)
        return overlap_of(len(a), int(a.sum()), int(b.sum()), int((a & b).sum()))
    return overlap_of_counts(magnitude_counts(_flat(before, first), _flat(first), _flat(second)), bins)


def overlap_of(size: int, first: int, second: int, both: int, expected: float = math.nan) -> Overlap:
    """From the sizes of everything, of the two sets, of their intersection, and its expected size under a null.

    Raises:
        UsageError: an empty set.
    """
    if not (first and second):
        raise UsageError("nothing changed in one of the two updates: there is no overlap to measure")
    return Overlap(both / first, both / second, second / size, first / size, expected / first, expected / second)


def magnitude_counts(
    before: Float[Tensor, " n"], first: Bool[Tensor, " n"], second: Bool[Tensor, " n"]
) -> Int[Tensor, "4 M"]:
    """How many weights have each bfloat16 magnitude: of all, of the first set, of the second, of both. Adds up over pieces."""
    label = _magnitude(before)  # added to in place: four bytes an entry instead of eight, and no new memory
    label.add_(first.flatten(), alpha=2 * MAGNITUDES).add_(second.flatten(), alpha=MAGNITUDES)
    neither, only_second, only_first, both = torch.bincount(label, minlength=4 * MAGNITUDES).view(4, MAGNITUDES)
    return torch.stack([neither + only_second + only_first + both, only_first + both, only_second + both, both])


def overlap_of_counts(counts: Int[Tensor, "4 M"], bins: int = 20) -> Overlap:
    """`overlap` with its magnitude-matched null, from `magnitude_counts`: ``E|I1 and I2| = sum_b n1_b n2_b / N_b`` over
    ``bins`` quantile bins of |w|."""
    size, first, second, both = (int(row.sum()) for row in counts)
    place = quantile_bins(counts[0], bins)
    grouped = torch.zeros(4, bins, dtype=torch.float64).index_add(1, place, counts.double())
    expected = grouped[1] * grouped[2] / grouped[0].clamp(min=1)
    return overlap_of(size, first, second, both, float(expected.sum()))


def quantile_bins(counts: Int[Tensor, " M"], bins: int) -> Int[Tensor, " M"]:
    """The bin, 0 to bins - 1, of every magnitude, so that bins hold about equally many weights; ties stay together."""
    middle = counts.cumsum(0) - counts.double() / 2
    return (middle * bins / counts.sum().clamp(min=1)).long().clamp(0, bins - 1)


def random_mask_like(mask: Masks, generator: torch.Generator) -> dict[str, Bool[Tensor, "..."]]:
    """As many ones, anywhere in the whole parameter vector with equal chance."""
    flat = _flat(mask)
    drawn = torch.zeros_like(flat)
    drawn[torch.randperm(len(flat), generator=generator)[: int(flat.sum())]] = True
    return _unflat(drawn, mask)


def magnitude_matched_random_mask(
    mask: Masks, before: Weights, generator: torch.Generator, bins: int = 20
) -> dict[str, Bool[Tensor, "..."]]:
    """As many ones in every quantile bin of |w|, anywhere within the bin with equal chance."""
    flat, code = _flat(mask), _magnitude(_flat(before, mask))
    place = quantile_bins(torch.bincount(code, minlength=MAGNITUDES), bins)[code]
    drawn = torch.zeros_like(flat)
    for number in range(bins):
        members = (place == number).nonzero()[:, 0]
        order = torch.randperm(len(members), generator=generator)
        drawn[members[order[: int(flat[members].sum())]]] = True
    return _unflat(drawn, mask)


def _flat(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in (like or tensors)])


def _unflat(flat: Bool[Tensor, " n"], like: Masks) -> dict[str, Bool[Tensor, "..."]]:
    parts = flat.split([x.numel() for x in like.values()])
    return {name: part.view(x.shape) for part, (name, x) in zip(parts, like.items(), strict=True)}
