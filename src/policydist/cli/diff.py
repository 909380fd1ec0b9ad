"""``policydist diff``."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from policydist.cli.main import show_json
from policydist.errors import UsageError

if TYPE_CHECKING:
    from policydist.cli.main import Diff
    from policydist.runs.difference import Difference


def diff(asked: Diff) -> int:
    """Compare, then print the table or JSON, and write what was asked for."""
    from policydist.runs import difference

    for path, ending in ((asked.out, ".png"), (asked.mask, ".safetensors")):
        if path is not None and path.suffix != ending:
            raise UsageError(f"{path}: its name must end in {ending}")
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"{path}: there is no folder {path.parent}")
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        task, lock = bars.add_task("comparing", total=None), threading.Lock()

        def tell(count: int) -> None:
            with lock:
                bars.advance(task, count)

        found = difference.compare(
            asked.before, asked.after, other=asked.other, precision=asked.precision,
            tolerances=asked.tolerances, rank=asked.rank, workers=asked.workers, on_bytes=tell,
        )  # fmt: skip
    seconds = time.perf_counter() - start
    data = plain(found) | {"before": str(asked.before), "after": str(asked.after), "precision": asked.precision}
    data["seconds"] = seconds
    if asked.mask is not None:
        difference.write_mask(asked.before, asked.after, asked.mask, asked.precision)
        data["mask"] = str(asked.mask)
    if asked.out is not None:
        from policydist.report import difference as figures

        figures.write(found, asked.out, f"{asked.before.name} → {asked.after.name} ({asked.precision})")
        data["figure"] = str(asked.out)
    if asked.json:
        show_json(data)
    else:
        show(found, data)
    return 0


def plain(found: Difference) -> dict[str, Any]:
    """The result as JSON-able data; shares are fractions of 1."""
    sparsity = found.sparsity
    per_param = {
        name: {
            "size": entry.size,
            "density": entry.density,
            **({"rank": found.ranks[name]} if name in found.ranks else {}),
        }
        for name, entry in sparsity.per_param.items()
    }
    return {
        "parameters": found.parameters,
        "sparsity": sparsity.total,
        "sparsity_exact": sparsity.exact,
        "sparsity_at": {f"{tol:g}": share for tol, share in found.at.items()},
        "rank": None if math.isnan(found.rank) else found.rank,
        "overlap": None if found.overlap is None else asdict(found.overlap),
        "layers": dict(sparsity.per_layer),
        "tensors": per_param,
        "skipped": dict(sparsity.skipped),
        "notes": list(found.notes),
        "bytes": found.bytes_read,
    }


def show(found: Difference, data: dict[str, Any]) -> None:
    """The table of layers and the lines below it."""
    table = Table(box=None, pad_edge=False)
    table.add_column("layer")
    for name in ("entries", "changed", *(["rank / full"] if found.ranks else [])):
        table.add_column(name, justify="right")
    for layer, density in found.sparsity.per_layer.items():
        from policydist.functional.sparsity import layer_of

        names = [name for name in found.sparsity.per_param if layer_of(name) == layer]
        size = sum(found.sparsity.per_param[name].size for name in names)
        ratios = [found.ranks[name] for name in names if name in found.ranks]
        rank = [f"{sum(ratios) / len(ratios):.4f}" if ratios else ""] if found.ranks else []
        table.add_row(layer, f"{size:,}", f"{density:.2%}", *rank)
    Console().print(table)
    print(f"sparsity {found.sparsity.total:.4f} at tolerance 1e-05, {found.parameters:,} weights, {data['precision']}")
    for tol, share in found.at.items():
        print(f"  unchanged {share:.4f} at tolerance {tol:g}")
    if found.ranks:
        print(f"rank of the update {found.rank:.4f} of full rank, mean over {len(found.ranks)} matrices")
    if found.overlap is not None:
        both = found.overlap
        print(
            f"overlap {both.o1:.4f} of the first update's entries; chance {both.chance1:.4f}, at equal |w| {both.matched1:.4f}"
        )
        print(
            f"overlap {both.o2:.4f} of the other update's entries; chance {both.chance2:.4f}, at equal |w| {both.matched2:.4f}"
        )
    for note in found.notes:
        print(f"note: {note}")
    for name, reason in list(found.sparsity.skipped.items())[:10]:
        print(f"left out: {name} ({reason})")
    if len(found.sparsity.skipped) > 10:
        print(f"left out: {len(found.sparsity.skipped) - 10} more; --json lists all")
    for name in ("mask", "figure"):
        if name in data:
            print(f"{name}: {data[name]}")
    print(f"{data['bytes'] / 1e9:.2f} GB in {data['seconds']:.1f} s")
