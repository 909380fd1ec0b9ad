"""A recipe inside somebody else's training loop: the host samples and judges, the recipe gives credit and the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.language import methods
from policydist.language.objectives import LossConfig
from policydist.language.prompts import counts
from policydist.language.recipe import Context, OnPolicy, Recipe, Setting, Shuffled
from policydist.language.types import Prompts, Rollouts, Sampling
from policydist.runs import config as configs

NEEDS = {
    "aepo": "a second, hotter or colder, sampling pass",
    "brpo": "its own sampler, which cuts each trace and samples answers after every cut",
    "calibrl": "an expert's response to every prompt, scored by the policy",
    "dft": "responses from the data in place of samples, the task of TRL's SFTTrainer",
    "doge": "contexts whose question is hidden, and a frozen Solver's pass rate on them",
    "dpo": "pairs of responses side by side in one loss, the task of TRL's DPOTrainer",
    "dump": "to choose each step's prompts by source",
    "grpo_sft": "an expert's response in every group",
    "herl": "revisions of the group's best responses, judged before credit is given",
    "icpo": "rollouts drawn behind solved examples and trained on without them",
    "knapsack": "to choose how many responses each prompt gets",
    "luffy": "an expert's response in every group",
    "otr": "responses from the data, as TRL's SFTTrainer takes them, and every token's whole distribution",
    "ppo": "a value head and its loss",
    "remax": "a greedy response to every prompt",
    "rexrag": "episodes with a search engine, of which failed ones are cut and played on behind a hint",
    "rft": "a supervised loss on the accepted samples alone",
    "rl_plus": "an expert's response in every group",
    "sft": "responses from the data in place of samples, the task of TRL's SFTTrainer",
    "subnetworks": "the trainer's weights before and after every step",
    "vade": "to choose each step's prompts by their success rates",
}
"""What those methods need that a host, which samples by itself and trains one language model, does not give."""
CHOOSING = ("dump", "knapsack", "vade")
"""Methods that need nothing but to choose rows of the data set, which a host may let them (`HostedRows`)."""
CURRICULUM = "policydist_curriculum.json"
"""The file of a host's checkpoint that holds what their curriculum has learnt."""


@dataclass(frozen=True)
class HostedPrompts:
    """Stands where a recipe expects its prompts: the host takes them from its own data set."""

    def __len__(self) -> int:
        return 1

    def take(self, rows: Int[Tensor, " Q"], samples: int | Int[Tensor, " Q"]) -> Prompts:
        raise UsageError("the host engine draws the prompts; a hosted recipe has none of its own")


@dataclass(frozen=True)
class HostedRows:
    """A host's data set for a curriculum to choose from: the choice are row numbers, which the host turns into prompts.

    The host takes ``prompts_per_step`` groups a step, of ``samples_per_prompt`` responses each or on average.
    """

    rows: Sequence[Mapping[str, Any]]
    prompts_per_step: int
    samples_per_prompt: int

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: Int[Tensor, " Q"], samples: int | Int[Tensor, " Q"]) -> Prompts:
        nothing = torch.zeros(len(rows), 0, dtype=torch.long)
        return Prompts(nothing, nothing.bool(), counts(samples, len(rows)), rows)


def keep_rewards(rollouts: Rollouts, ctx: Context) -> Rollouts:
    """The judge of a hosted recipe: the host's rewards as they are."""
    return rollouts


def hosted(
    method: str, knobs: Mapping[str, Any], host: str, max_new_tokens: int, rows: HostedRows | None = None
) -> tuple[LossConfig, Recipe]:
    """The method's config and recipe, if all that it adds is a judge's shaping, an advantage or a loss; or, with ``rows``
    of a host that lets it, a choice of prompts.

    Raises:
        UsageError: unknown method or knob, or a method that changes how prompts are chosen or responses sampled, or
            that needs a value head; fewer rows than a step takes.
    """
    module = methods.load(method)
    if method in NEEDS and not (rows is not None and method in CHOOSING):
        raise UsageError(f"{method} cannot run inside {host}: it needs {NEEDS[method]}. Use policydist train {method}")
    config: Any = configs.build(module.Config, knobs, "knobs")
    refuse(method, config, host)
    sampling = Sampling(max_new_tokens)
    if rows is None:
        setting = Setting(HostedPrompts(), keep_rewards, sampling)
    elif len(rows) < rows.prompts_per_step:
        raise UsageError(f"the data set has {len(rows)} rows, {host} takes {rows.prompts_per_step} prompts a step")
    else:
        setting = Setting(rows, keep_rewards, sampling, rows.prompts_per_step, rows.samples_per_prompt)
    recipe = module.build(config, setting)
    for part, plain, what in (
        (recipe.sampler, OnPolicy, "samples responses"),
        (recipe.curriculum, Shuffled if rows is None else object, "chooses prompts"),
    ):
        if not isinstance(part, plain):
            raise UsageError(
                f"{method} cannot run inside {host}: it {what} in its own way ({type(part).__name__}). "
                f"Use policydist train {method}"
            )
    if recipe.needs_values:
        raise UsageError(f"{method} cannot run inside {host}: it needs {NEEDS['ppo']}. Use policydist train {method}")
    assert isinstance(config, LossConfig)
    return config, recipe


def refuse(method: str, config: Any, host: str) -> None:
    """Refuse knobs that make more of a method than a host can give it.

    Raises:
        UsageError: naming the knob.
    """
    if getattr(config, "dynamic_sampling", False):
        raise UsageError(
            f"{method} cannot run inside {host} with dynamic sampling, which draws prompts until the batch is full: "
            "set the knob dynamic_sampling to False"
        )
    if host == "verl" and getattr(config, "length_penalty", None) == "absolute":
        raise UsageError(
            f"{method} cannot run inside verl with length_penalty=absolute: verl tells an estimator no length limit. "
            "Set length_penalty=relative"
        )
    if getattr(config, "apply", None) == "weight":
        raise UsageError(
            f"{method} cannot run inside {host} with apply=weight, an ablation whose weights evaluation groups lack: "
            f"use policydist train {method}"
        )
