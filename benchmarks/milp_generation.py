"""Instances a second on one core, of every registered distribution: drawn, and drawn and written as MPS text.

    OMP_NUM_THREADS=1 python benchmarks/milp_generation.py [--seconds 3] [gisp/easy …]

Processor time is counted, so that other programs on the machine matter less.
"""

from __future__ import annotations

import argparse
import itertools
import time

from policydist.estimation.milp.registry import DISTRIBUTIONS, MILPDistribution, get


def speed(distribution: MILPDistribution, seconds: float, write: bool) -> float:
    """Instances a second of processor time."""
    distribution.sample(0).to_mps()  # imports and first-call costs
    start, count = time.process_time(), 0
    for seed in itertools.count(1):
        milp = distribution.sample(seed)
        if write:
            milp.to_mps()
        count = seed
        if time.process_time() - start > seconds:
            break
    return count / (time.process_time() - start)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("names", nargs="*", default=list(DISTRIBUTIONS))
    words.add_argument("--seconds", type=float, default=3.0)
    asked = words.parse_args()
    print(f"{'distribution':14s} {'variables':>9s} {'rows':>7s} {'drawn/s':>9s} {'with MPS/s':>11s}")
    for name in asked.names:
        distribution = get(name)
        milp = distribution.sample(0)
        drawn, written = (speed(distribution, asked.seconds, write) for write in (False, True))
        print(f"{name:14s} {milp.n_variables:9d} {milp.n_rows:7d} {drawn:9.1f} {written:11.1f}")


if __name__ == "__main__":
    main()
