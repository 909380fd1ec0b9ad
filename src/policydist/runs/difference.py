"""What an update changed between two checkpoints on disk, read piece by piece by all cores.

Memory is a few pieces per core whatever the checkpoints' size; only the rank, where it is asked for, loads one tensor of
each at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional.sparsity import (
    TOLERANCE,
    Density,
    Overlap,
    Precision,
    UpdateSparsity,
    changed,
    count_changes,
    difference_rank,
    has_rank,
    magnitude_counts,
    match,
    overlap_of_counts,
    summarise,
)
from policydist.runs.safefiles import TYPES, Entry, checkpoint

PIECE = 2**21
"""Entries read at a time."""
PREFIX = "model."
"""What checkpoints of our own trainer have before every name of the model inside."""
Tick = Callable[[int], None]


class Rooms(threading.local):
    """Memory into which one thread reads, again and again: the kernel takes longer to hand out new pages than to fill them."""

    def __init__(self) -> None:
        self.rooms = [torch.empty(PIECE * 8, dtype=torch.uint8) for _ in range(3)]


@dataclass(frozen=True)
class Difference:
    """``sparsity`` at the main tolerance; ``at``: S at every tolerance asked for; ``ranks``: rank over full rank per
    matrix, if asked for; ``overlap`` with a second update from the same start, likewise; ``notes``: what a reader must
    know about how the two were matched."""

    sparsity: UpdateSparsity
    at: Mapping[float, float]
    parameters: int
    bytes_read: int
    ranks: Mapping[str, float] = field(default_factory=dict)
    overlap: Overlap | None = None
    notes: Sequence[str] = ()

    @property
    def rank(self) -> float:
        """Mean over matrices of rank / full rank; NaN if it was not asked for."""
        return sum(self.ranks.values()) / len(self.ranks) if self.ranks else float("nan")


@dataclass(frozen=True)
class Pair:
    """One parameter in both checkpoints, and in a third one."""

    name: str
    before: Entry
    after: Entry
    other: Entry | None = None


def compare(
    first: Path,
    second: Path,
    *,
    other: Path | None = None,
    precision: Precision = "bf16",
    tolerances: Sequence[float] = (0.0, TOLERANCE),
    rank: bool = False,
    workers: int | None = None,
    on_bytes: Tick | None = None,
) -> Difference:
    """Sparsity of the update from ``first`` to ``second``, at the stored precision or any other.

    ``other``: a second update from ``first``; the overlap of the entries that the two changed is measured too, with
    chance and the magnitude-matched null, whose bins are those of the whole checkpoint.

    Raises:
        UsageError: a checkpoint that cannot be read, nothing in common, two stored types at ``fp32``, bad tolerances.
    """
    if any(not tol >= 0 for tol in tolerances):
        raise UsageError(f"tolerances are {list(tolerances)}; none may be negative")
    pairs, skipped, notes = matched(checkpoint(first), checkpoint(second), checkpoint(other) if other else None)
    check_types(pairs, precision)
    wanted = list(dict.fromkeys([0.0, TOLERANCE, *tolerances]))
    counts = {pair.name: [0] * len(wanted) for pair in pairs}
    magnitudes: Tensor | None = None
    own = Rooms()

    def work(job: tuple[Pair, int, int]) -> tuple[str, list[int], Tensor | None]:
        pair, start, count = job
        old, new = pair.before.read(start, count, own.rooms[0]), pair.after.read(start, count, own.rooms[1])
        table = None
        if pair.other is not None:
            third = pair.other.read(start, count, own.rooms[2])
            table = magnitude_counts(old, changed(old, new, precision, 0.0), changed(old, third, precision, 0.0))
        found = count_changes(old, new, wanted, precision)
        if on_bytes:
            on_bytes(count * (pair.before.width + pair.after.width))
        return pair.name, found, table

    for name, found, table in spread(work, pieces(pairs), workers):
        counts[name] = [total + more for total, more in zip(counts[name], found, strict=True)]
        if table is not None:
            magnitudes = table if magnitudes is None else magnitudes + table
    sizes = {pair.name: pair.before.size for pair in pairs}
    densities = {name: Density(sizes[name], found[0], found[wanted.index(TOLERANCE)]) for name, found in counts.items()}
    sparsity = summarise(densities, [pair.name for pair in pairs if len(pair.before.shape) >= 2], skipped)
    size = sum(sizes.values())
    return Difference(
        sparsity=sparsity,
        at={tol: 1 - sum(found[wanted.index(tol)] for found in counts.values()) / size for tol in tolerances},
        parameters=size,
        bytes_read=sum(pair.before.size * (pair.before.width + pair.after.width) for pair in pairs),
        ranks=ranks(pairs, precision) if rank else {},
        overlap=None if magnitudes is None else overlap_of_counts(magnitudes),
        notes=notes,
    )


def spread(
    work: Callable[[tuple[Pair, int, int]], tuple[str, list[int], Tensor | None]],
    jobs: Iterator[tuple[Pair, int, int]],
    workers: int | None,
) -> Iterator[tuple[str, list[int], Tensor | None]]:
    """All jobs by a few threads (reading and counting both release the interpreter), results in order, no backlog."""
    count = workers or min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(count) as pool:
        waiting = []
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) >= 2 * count:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def pieces(pairs: Sequence[Pair]) -> Iterator[tuple[Pair, int, int]]:
    """Parameters cut into pieces, in the order in which the first checkpoint's files store them."""
    for pair in sorted(pairs, key=lambda pair: (pair.before.file, pair.before.start)):
        for start in range(0, pair.before.size, PIECE):
            yield pair, start, min(PIECE, pair.before.size - start)


def ranks(pairs: Sequence[Pair], precision: Precision) -> dict[str, float]:
    """Rank over full rank of every matrix's difference."""
    found = {}
    for pair in pairs:
        shape = pair.before.shape
        if has_rank(pair.name, shape) and pair.before.size:
            old, new = pair.before.read().view(shape), pair.after.read().view(shape)
            found[pair.name] = difference_rank(old, new, precision) / min(old.flatten(1).shape)
    return found


def matched(
    first: dict[str, Entry], second: dict[str, Entry], third: dict[str, Entry] | None
) -> tuple[list[Pair], dict[str, str], list[str]]:
    """Parameters in common, the others with the reason, and notes.

    Raises:
        UsageError: nothing in common.
    """
    notes: list[str] = []
    second = same_names(first, second, "second", notes)
    third = None if third is None else same_names(first, third, "third", notes)
    names, skipped = match({n: e.shape for n, e in first.items()}, {n: e.shape for n, e in second.items()})
    pairs = []
    for name in names:
        before, after, other = first[name], second[name], None if third is None else third.get(name)
        kinds = [entry.kind for entry in (before, after, other) if entry is not None]
        if odd := [kind for kind in kinds if kind not in TYPES]:
            skipped[name] = f"stored as {odd[0]}, which is not a weight"
        elif third is not None and (other is None or other.shape != before.shape):
            skipped[name] = "not in the third, or there of another shape"
        else:
            pairs.append(Pair(name, before, after, other))
    if not pairs:
        example = next(iter(skipped.items()), ("nothing", "both are empty"))
        raise UsageError(f"the checkpoints have no weights of one name and shape in common (e.g. {': '.join(example)})")
    mixed = {(pair.before.kind, pair.after.kind) for pair in pairs if pair.before.kind != pair.after.kind}
    notes += [f"{old} is compared with {new}, both rounded first" for old, new in sorted(mixed)]
    return pairs, skipped, notes


def same_names(first: Mapping[str, Entry], second: dict[str, Entry], which: str, notes: list[str]) -> dict[str, Entry]:
    """The second's entries under the first's names: our trainer's checkpoints put a prefix before the model's own."""
    options = (
        second,
        {name.removeprefix(PREFIX): entry for name, entry in second.items()},
        {PREFIX + name: entry for name, entry in second.items()},
    )
    best = max(options, key=lambda names: len(first.keys() & names.keys()))
    if best is not second:
        notes.append(f"the {which} checkpoint's names differ by {PREFIX!r} at their beginning")
    return best


def check_types(pairs: Sequence[Pair], precision: Precision) -> None:
    """At fp32 both must have been stored as such: against a rounded copy every weight differs.

    Raises:
        UsageError: naming a parameter.
    """
    for pair in pairs:
        kinds = {entry.kind for entry in (pair.before, pair.after, pair.other) if entry is not None}
        if precision == "fp32" and len(kinds) > 1:
            raise UsageError(
                f"{pair.name} is stored as {' and '.join(sorted(kinds))}: at fp32 that measures the rounding; use bf16"
            )


def write_mask(first: Path, second: Path, out: Path, precision: Precision = "bf16") -> float:
    """Write the mask of changed entries, one boolean tensor a parameter, under the second checkpoint's names; returns its
    density. Unlike `compare` this holds the whole mask, a byte an entry.

    Raises:
        UsageError: as `compare`.
    """
    from safetensors.torch import save_file

    pairs, _, _ = matched(checkpoint(first), checkpoint(second), None)
    check_types(pairs, precision)
    masks = {
        pair.name: torch.cat(
            [
                changed(pair.before.read(start, count), pair.after.read(start, count), precision, 0.0)
                for _, start, count in pieces([pair])
            ]
        ).view(pair.before.shape)
        for pair in pairs
    }
    part = out.with_name(f".{out.name}.tmp")
    save_file(masks, part)
    part.replace(out)
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
