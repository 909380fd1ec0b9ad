"""Recipes at work on a small world: the trainer of a method, and the weights it ends with."""

from __future__ import annotations

from typing import Any

import torch

from policydist.language import methods
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.worlds import ModularSum, run
from policydist.runs.directory import Run

FAST = TrainConfig(steps=4, lr=8.0, optimiser="sgd", grad_clip=0, seed=3)


def weights(world: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in world.policy.module.parameters()])


def trained(slug: str, config: TrainConfig = FAST, seed: int = 1, samples: int = 8, **knobs: Any) -> torch.Tensor:
    world = ModularSum.draw(seed, prompts=12)
    run(slug, knobs, world.policy, world.setting(6, samples), config)
    return weights(world)


def trainer(slug: str, config: TrainConfig, run: Run | None = None, seed: int = 1, **knobs: Any) -> Trainer:
    world = ModularSum.draw(seed, prompts=12)
    method = methods.load(slug)
    return Trainer(world.policy, method.build(method.Config(**knobs), world.setting(6, 8)), config, run=run)
