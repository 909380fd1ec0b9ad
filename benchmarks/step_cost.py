"""What a training step of each language method costs beside a step of GRPO, on the embedded model.

    python benchmarks/step_cost.py [METHOD[:knob=value] …] [--task arithmetic] [--steps 6]

All methods take their steps in turn, in one process on one thread, on the same prompts with the same random numbers and
with a learning rate that leaves the model as it is. A method's cost is the median over steps of its own step's processor
time divided by that of GRPO's step in the same turn. Printed beside it: the tokens it samples, in GRPO's, and the cost
for equal tokens. Aim: at most 1.10 besides extra samples.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterable

from policydist.errors import PolicydistError, UsageError
from policydist.language import methods
from policydist.language.experiment import assemble, configure
from policydist.language.trainer import Trainer
from policydist.language.world import World

BASE, AIM = "grpo", 1.10
Turn = tuple[float, float]
"""Processor seconds of one step, and the tokens sampled in it."""


def prepare(method: str, task: str, steps: int) -> Trainer:
    """A trainer of ``method``, with its default knobs but for one that may follow a colon; it writes nothing."""
    slug, _, knob = method.partition(":")
    words = [f"task.name={task}", f"train.steps={steps}", "train.lr=1e-9", "model.device=cpu"]
    config = configure(slug, None, [*words, *([f"knobs.{knob}"] if knob else [])])
    world = World()
    parts = assemble(config, world)
    return Trainer(parts.policy, parts.recipe, config.train, world=world)


def turn(trainer: Trainer) -> Turn:
    """One step."""
    before = trainer.ctx.generated
    start = time.process_time()
    trainer.step()
    return time.process_time() - start, float(trainer.ctx.generated - before)


def measure(names: Iterable[str], task: str, steps: int) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """The turns of every method, the first (warm) one left out; and why some could not take part."""
    trainers: dict[str, Trainer] = {}
    turns: dict[str, list[Turn]] = {}
    failed: dict[str, str] = {}
    for name in names:
        try:
            trainers[name] = prepare(name, task, steps + 1)
            turn(trainers[name])
            turns[name] = []
        except (UsageError, PolicydistError) as problem:
            trainers.pop(name, None)
            failed[name] = str(problem)
    for _ in range(steps):
        for name, trainer in trainers.items():
            turns[name].append(turn(trainer))
    return turns, failed


def main() -> None:
    """Parse the command line, measure, print."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help="default: all that are implemented")
    parser.add_argument("--task", default="arithmetic")
    parser.add_argument("--steps", type=int, default=6)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # processor time of several threads would count their waiting
    names = [BASE, *(name for name in asked.methods or methods.names() if name != BASE)]
    turns, failed = measure(names, asked.task, asked.steps)
    base = turns[BASE]
    print(f"{BASE}: {statistics.median(cpu for cpu, _ in base):.2f} processor seconds a step, {asked.task}")
    print(f"{'method':16s} {'cost':>6s} {'tokens':>7s} {'cost for equal tokens':>22s}")
    for name, own in turns.items():
        cost = statistics.median(mine[0] / grpo[0] for mine, grpo in zip(own, base, strict=True))
        tokens = sum(count for _, count in own) / sum(count for _, count in base)
        net = cost / max(tokens, 1.0)
        print(f"{name:16s} {cost:6.2f} {tokens:7.2f} {net:22.2f}{'   above the aim' if net > AIM else ''}")
    for name, reason in failed.items():
        print(f"{name:16s} not measured: {reason}")


if __name__ == "__main__":
    main()
