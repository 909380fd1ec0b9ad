"""What a training step of each language method costs beside a step of GRPO, on the embedded model.

    python benchmarks/step_cost.py ["METHOD[:key=value …]" …] [--base grpo] [--set key=value …] [--steps 6]

All methods take their steps in turn, in an order drawn anew each time, in one process on one thread, on the same prompts
with the same random numbers and with a learning rate that leaves the model as it is. A method's cost is the median over
steps of its own step's processor time divided by that of the base's step in the same turn. Printed beside it: the tokens it
samples, in the base's, and the cost for equal tokens. Aim: at most 1.10 besides extra samples.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Iterable

from policydist.errors import PolicydistError, UsageError
from policydist.language import methods
from policydist.language.experiment import assemble, configure
from policydist.language.trainer import Trainer
from policydist.language.world import World

AIM = 1.10
Turn = tuple[float, float]
"""Processor seconds of one step, and the tokens sampled in it."""


def prepare(method: str, settings: Iterable[str], steps: int) -> Trainer:
    """A trainer of ``method``, with its defaults but for the ``settings`` and those behind a colon; it writes nothing."""
    slug, _, own = method.partition(":")
    words = [*settings, f"train.steps={steps}", "train.lr=1e-9", "model.device=cpu"]
    config = configure(slug, None, [*words, *own.split()])
    world = World()
    parts = assemble(config, world)
    return Trainer(parts.policy, parts.recipe, config.train, world=world)


def turn(trainer: Trainer) -> Turn:
    """One step."""
    before = trainer.ctx.generated
    start = time.process_time()
    trainer.step()
    return time.process_time() - start, float(trainer.ctx.generated - before)


def measure(names: Iterable[str], settings: Iterable[str], steps: int) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """The turns of every method, the first (warm) one left out; and why some could not take part."""
    trainers: dict[str, Trainer] = {}
    turns: dict[str, list[Turn]] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            trainers[name] = prepare(name, settings, steps + 1)
            turn(trainers[name])
            turns[name] = []
        except (UsageError, PolicydistError) as problem:
            trainers.pop(name, None)
            failed[name] = str(problem)
    order = random.Random(0)  # a step finds the caches as the one before it left them
    for _ in range(steps):
        for name in order.sample(list(trainers), len(trainers)):
            turns[name].append(turn(trainers[name]))
    return turns, failed


def main() -> None:
    """Parse the command line, measure, print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="default: all that are implemented")
    parser.add_argument(
        "--base", default="grpo", help="the method, and setting if any, that the others are measured by"
    )
    parser.add_argument("--set", action="append", default=["task.name=arithmetic"], help="a setting of all methods")
    parser.add_argument("--steps", type=int, default=6)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # processor time of several threads would count their waiting
    names = [asked.base, *(name for name in asked.methods or methods.names() if name != asked.base)]
    turns, failed = measure(names, asked.set, asked.steps)
    if asked.base not in turns:
        raise SystemExit(f"{asked.base}: {failed[asked.base]}")
    base = turns[asked.base]
    print(
        f"{asked.base}: {statistics.median(cpu for cpu, _ in base):.2f} processor seconds a step, {' '.join(asked.set)}"
    )
    print(f"{'method':24s} {'cost':>6s} {'tokens':>7s} {'cost for equal tokens':>22s}")
    for name, own in turns.items():
        cost = statistics.median(mine[0] / other[0] for mine, other in zip(own, base, strict=True))
        sampled = sum(count for _, count in base)
        tokens = sum(count for _, count in own) / sampled if sampled else float("nan")
        net = cost / tokens if tokens > 1 else cost
        print(f"{name:24s} {cost:6.2f} {tokens:7.2f} {net:22.2f}{'   above the aim' if net > AIM else ''}")
    for name, reason in failed.items():
        print(f"{name:24s} not measured: {reason}")


if __name__ == "__main__":
    main()
