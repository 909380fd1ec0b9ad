"""Start-up times, medians of fresh processes: ``import policydist`` (aim 0.3 s), ``policydist --help`` (aim 0.6 s)."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

CASES = {
    "import policydist": ([sys.executable, "-c", "import policydist"], 0.3),
    "policydist --help": ([sys.executable, "-m", "policydist.cli.main", "--help"], 0.6),
}
REPEATS = 7


def seconds(words: list[str]) -> float:
    """Wall time of one process."""
    start = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> int:
    """Print the medians; 1 if one misses its aim."""
    missed = 0
    for name, (words, aim) in CASES.items():
        median = statistics.median(seconds(words) for _ in range(REPEATS))
        missed += median >= aim
        print(f"{name:20s} {median:.3f} s   aim {aim} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
