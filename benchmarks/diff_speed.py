"""How fast ``policydist diff`` is against reading the same files and doing nothing with them.

Two bfloat16 checkpoints of random weights, three shards each, of which a given share differs. Each is timed with files
that lie in the page cache and with files that were dropped from it, in turn, so that a busy machine hits both alike;
processor seconds count the cores' work, the kernel's for this process included, and hardly depend on who else waits for
them. Memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file

from policydist.runs.difference import compare
from policydist.runs.safefiles import INDEX, checkpoint

PIECE = 2**23


def write(folder: Path, gigabytes: float, share: float, seed: int) -> None:
    """A checkpoint in three shards; with ``share`` 0 the unchanged one."""
    folder.mkdir()
    rows = int(gigabytes * 1e9 / 2 / 3 / 4 / 4096)
    table: dict[str, str] = {}
    for shard in range(3):
        generator = torch.Generator().manual_seed(seed + shard)
        name = f"model-{shard}.safetensors"
        tensors = {}
        for layer in range(4):
            x = 0.02 * torch.randn(rows, 4096, generator=generator)
            moved = torch.rand(rows, 4096, generator=generator) < share
            tensors[f"model.layers.{4 * shard + layer}.weight"] = (x * (1 + 0.02 * moved)).bfloat16()
        save_file(tensors, folder / name)
        table |= dict.fromkeys(tensors, name)
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))


def files(*folders: Path) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob("*.safetensors"))]


def drop(*folders: Path) -> None:
    """Take the files out of the page cache (clean pages only, hence the sync)."""
    for file in files(*folders):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read(first: Path, second: Path) -> None:
    """All bytes of both, by as many threads as the comparison takes, into buffers that are used again."""

    def one(file: Path) -> None:
        buffer = bytearray(PIECE)
        with file.open("rb", buffering=0) as handle:
            while handle.readinto(buffer):
                pass

    with ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        list(pool.map(one, files(first, second)))


def timed(action: Callable[[Path, Path], object], first: Path, second: Path, cold: bool) -> tuple[float, float]:
    """Seconds on the clock and of the processor."""
    if cold:
        drop(first, second)
    start, busy = time.perf_counter(), time.process_time()
    action(first, second)
    return time.perf_counter() - start, time.process_time() - busy


GROWTH = """
import re, sys
from pathlib import Path
from policydist.runs.difference import compare
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
compare(Path(sys.argv[1]), Path(sys.argv[2]))
print(peak() - before)
"""


def growth(first: Path, second: Path) -> float:
    """MiB by which the peak memory of a fresh process grows in the comparison (on Linux; getrusage would count its parent's)."""
    command = [sys.executable, "-c", GROWTH, str(first), str(second)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def main() -> None:
    """Print GB/s and processor seconds of both, their ratio, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="size of each checkpoint")
    parser.add_argument("--share", type=float, default=0.3, help="share of entries that differ")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder, "a"), Path(folder, "b")
        write(first, asked.gigabytes, 0.0, 0)
        write(second, asked.gigabytes, asked.share, 0)
        size = sum(file.stat().st_size for file in files(first, second)) / 1e9
        load = os.getloadavg()[0]
        print(f"{size:.2f} GB in two, {asked.share:.0%} of entries changed, {os.cpu_count()} cores, load {load:.1f}")
        for cold in (True, False):
            rounds = [
                (*timed(read, first, second, cold), *timed(compare, first, second, cold)) for _ in range(asked.repeats)
            ]
            plain, kernel, ours, busy = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(diff / reading for reading, _, diff, _ in rounds)
            print(
                f"{'from disk ' if cold else 'from cache'}  read {size / plain:5.2f} GB/s, {kernel / size:.2f} processor s/GB"
                f"   diff {size / ours:5.2f} GB/s, {busy / size:.2f} processor s/GB   diff takes {ratio:.2f} x reading"
            )
        largest = max(entry.size * entry.width for entry in checkpoint(first).values()) / 2**20
        grown = growth(first, second)
        print(
            f"memory grows by {grown:.0f} MiB at its peak, {grown / largest:.2f} of the largest tensor ({largest:.0f} MiB)"
        )


if __name__ == "__main__":
    main()
