"""Time to share out a step's rollouts over many prompts, and to pick prompts from a large pool.

    python benchmarks/allocation.py [--repeats 10]

Best and worst of so many on one thread. The released KnapsackRL solver is a dynamic program over prompts, budget and counts;
ours in that form (``method="dp"``) is timed on 64 prompts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from policydist.functional import allocate_rollouts, info_gain, solve_knapsack, thompson_rates, top_rows
from policydist.runs.seeds import numpy_generator, torch_generator


def rates(prompts: int) -> torch.Tensor:
    """Success rates, logistic of N(-1.5, 3^2)."""
    return (torch.randn(prompts, generator=torch_generator(0, "rates"), dtype=torch.float64) * 3 - 1.5).sigmoid()


def show(name: str, prompts: int, work: Callable[[], object], repeats: int) -> None:
    """Print the best and the worst time in milliseconds."""
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append((time.perf_counter() - start) * 1e3)
    print(f"{name:<34}{prompts:>9,}{min(taken):>10.1f}{max(taken):>10.1f}")


def pick(counts: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The 256 prompts whose drawn rates promise the most."""
    return top_rows(info_gain(thompson_rates(counts, counts, rng)), 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeats", type=int, default=10, help="times that each is done (the dynamic program: at most 3)"
    )
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"{'':<34}{'prompts':>9}{'best ms':>10}{'worst ms':>10}")
    for prompts in (256, 1000, 10_000, 100_000):
        p, known = rates(prompts), torch.ones(prompts, dtype=torch.bool)
        show("knapsack, 8 rollouts a prompt", prompts, partial(allocate_rollouts, p, known, 8), repeats)
    p = rates(64)
    show("the same by dynamic programming", 64, partial(solve_knapsack, p, 64 * 8, method="dp"), min(3, repeats))
    for pool in (10_000, 100_000):
        counts = torch.rand(pool, dtype=torch.float64) * 10
        rng = numpy_generator(0, "draws")
        show("Thompson draws and the best 256", pool, partial(pick, counts, rng), repeats)


if __name__ == "__main__":
    main()
