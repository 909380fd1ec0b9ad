"""DUMP: which source of prompts to train on, by the size of its advantages and an exploration bonus (arXiv 2504.09710)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import grpo_advantage, softmax_probabilities, stage_of, ucb_scores
from policydist.language.credits import GroupCredit
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig
from policydist.language.prompts import row_sources
from policydist.language.recipe import Context, Recipe, Setting
from policydist.language.statistics import Statistics, main_rows, response_advantages, successes
from policydist.language.types import Prompts, Rollouts
from policydist.runs import seeds

DIFFERENCES: tuple[str, ...] = (
    "The paper counts |B|, prompts or responses; the released code counts responses and keeps a window of 300 of them, which "
    "is followed here.",
    "The released code also updates every source after each validation, with mean validation rewards in the place of "
    "advantages; the paper has no such step and it is left out.",
    "In the released code the data loader fetches ahead, so new weights act some steps late; here they act at the next step.",
    "Sources without a name: the released code needs one data set each; here rows without a source fall back to their "
    "difficulty.",
)
"""Where paper, released code and this module part."""

EXAMPLE = "--task mix:arithmetic,chain,logic"
"""What ``policydist show`` adds to ``policydist train NAME``: several sources to choose from."""


@dataclass(frozen=True)
class Config(LossConfig):
    """``window``: responses of each source whose mean absolute advantage counts; ``tau``: temperature of the sampling
    probabilities (0: the best source only); ``bonus``: weight of the exploration bonus; ``signal``: what the mean is taken of, the
    advantage's size or, for a curriculum of what is not solved yet, 1 - success (failure); ``stages``: a static curriculum in
    place of the bandit, all sources from easy to hard, one after the other for ``stage_steps`` steps each (null: as many as draw
    as often as the source has rows), the last to the end; ``column``: which column of the rows names their source (null: source,
    or else difficulty)."""

    kl_coef: float = 0.001
    window: int = 300
    tau: float = 0.1
    bonus: float = 1.0
    signal: Literal["advantage", "failure"] = "advantage"
    stages: tuple[str | int, ...] | None = None
    stage_steps: int | None = None
    column: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.window < 1:
            raise UsageError(f"window is {self.window}; it must be at least 1")
        if self.tau < 0:
            raise UsageError(f"tau is {self.tau}; it must be 0 (greedy) or positive")
        if self.bonus < 0:
            raise UsageError(f"bonus is {self.bonus}; it must not be negative")
        if self.stage_steps is not None and (self.stages is None or self.stage_steps < 1):
            raise UsageError(f"stage_steps is {self.stage_steps}; it must be at least 1, and needs stages")


def failures(rollouts: Rollouts) -> Float[Tensor, " N"]:
    """1 where the response is wrong."""
    return 1 - successes(rollouts)


SIGNALS: Mapping[str, Callable[[Rollouts], Float[Tensor, " N"]]] = MappingProxyType(
    {"advantage": response_advantages, "failure": failures}
)


class SourceBandit:
    """Each slot of a batch draws a source from P, then a row of it, both with replacement.

    ``signal`` says what of a response is kept, in place of what the config names; its absolute value is averaged.
    """

    def __init__(
        self,
        config: Config,
        setting: Setting,
        signal: Callable[[Rollouts], Float[Tensor, " N"]] | None = None,
    ) -> None:
        self.config, self.source, self.signal = config, setting.source, signal or SIGNALS[config.signal]
        self.count, self.samples = setting.prompts_per_step, setting.samples_per_prompt
        named = row_sources(setting.source, config.column)
        self.names = list(dict.fromkeys(named))
        place = {name: number for number, name in enumerate(self.names)}
        self.owner = torch.tensor([place[name] for name in named])
        self.rows = [(self.owner == number).nonzero().flatten() for number in range(len(self.names))]
        self.statistics = Statistics(len(self.names), window=config.window)
        self.stages = [] if config.stages is None else self.ordered([str(name) for name in config.stages])
        self.lengths = [config.stage_steps or -(-len(self.rows[stage]) // self.count) for stage in self.stages]

    def ordered(self, names: list[str]) -> list[int]:
        """The sources' numbers in the order of the stages.

        Raises:
            UsageError: unless every source is named once.
        """
        if sorted(names) != sorted(self.names):
            raise UsageError(
                f"dump: stages are {', '.join(names)}; they must name each source once: {', '.join(self.names)}"
            )
        return [self.names.index(name) for name in names]

    def shares(self, step: int) -> Float[Tensor, " S"]:
        """What slots are drawn from at a step: P, or the stage's source alone."""
        if not self.stages:
            return self.probabilities()
        stage = torch.tensor(self.stages[stage_of(step, self.lengths)])
        return torch.nn.functional.one_hot(stage, len(self.names)).double()

    def probabilities(self) -> Float[Tensor, " S"]:
        """P of every source; uniform as long as nothing was observed."""
        scores = ucb_scores(self.statistics.learnability(), self.statistics.seen, self.config.bonus)
        return softmax_probabilities(scores, self.config.tau)

    def select(self, ctx: Context) -> Prompts:
        shares, learnability = self.shares(ctx.step), self.statistics.learnability()
        for number, name in enumerate(self.names):
            ctx.log(f"dump/share/{name}", shares[number])
            ctx.log(f"dump/learnability/{name}", learnability[number])
        rng = seeds.numpy_generator(ctx.seed, ctx.step, "sources")
        slots = rng.choice(len(self.names), size=self.count, p=shares.numpy())
        chosen = [self.rows[slot][rng.integers(len(self.rows[slot]))] for slot in slots]
        return self.source.take(torch.stack(chosen), self.samples)

    def observe(self, rollouts: Rollouts, ctx: Context) -> None:
        main = main_rows(rollouts)
        self.statistics.observe(self.owner[main.index.cpu()], successes(main), self.signal(main))

    def state_dict(self) -> dict[str, Any]:
        return {"names": self.names, "statistics": self.statistics.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["names"] != self.names:
            raise UsageError(
                f"the checkpoint is of sources {', '.join(state['names'])}; the task has {', '.join(self.names)}"
            )
        self.statistics.load_state_dict(state["statistics"])


def build(config: Config, setting: Setting) -> Recipe:
    recipe = grpo.plain(config, setting, GroupCredit(grpo_advantage))
    return replace(recipe, curriculum=SourceBandit(config, setting))
