"""VADE: prompts picked by Thompson draws of their success rate, with forgetting (arXiv 2511.18902).

Nothing else changes: GRPO (or GSPO) on the prompts picked, and only rollouts that are trained on update what is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from policydist.functional import (
    expected_info_gain,
    grpo_advantage,
    info_gain,
    posterior_mean,
    thompson_rates,
    top_rows,
)
from policydist.functional.allocation import Score
from policydist.language.credits import GroupCredit
from policydist.language.methods import grpo
from policydist.language.objectives import LossConfig, PolicyGradient
from policydist.language.recipe import Context, Recipe, Setting
from policydist.language.statistics import Statistics, main_rows, successes
from policydist.language.types import Prompts, Rollouts
from policydist.runs import seeds

DIFFERENCES: tuple[str, ...] = (
    "The code repository that the project page names was not to be had; the rules here are those of the page's framework "
    "figure, whose worked numbers are reproduced by a test (its 1.998 is a misprint of 0.1998).",
    "Every prompt starts without evidence, a uniform posterior: reconstructed from the figure's +1, no warm-up is mentioned.",
    "What counts as success: the task's accuracy where rewards have further parts (success names another component).",
    "Batch size and learning rate were not found; these are this library's defaults.",
)
"""Where paper, released code and this module part."""


@dataclass(frozen=True)
class Config(LossConfig):
    """``kept``/``idle``: what is left of the evidence on a prompt at a step that measures it, and at one that does not;
    ``score`` of a success rate p, p(1-p) being an ablation; ``draw``: a Thompson draw, or the posterior mean (the
    paper's "greedy" ablation; with kept=0 its "last update"); ``ratio``: GRPO's token or GSPO's sequence ratio, whose
    clip range is 3e-4 and 4e-4 and whose aggregation seq-mean-token-mean; ``success``: reward component that says right or
    wrong (null: accuracy if there is one, else the whole reward), right above ``success_above``."""

    kept: float = 0.2
    idle: float = 0.999
    score: Score = "p(1-p)^2"
    draw: Literal["thompson", "mean"] = "thompson"
    ratio: Literal["token", "sequence"] = "token"
    success: str | None = None
    success_above: float = 0.5


class DifficultySelection:
    """The ``B`` prompts of the whole pool with the highest score of a drawn success rate; all of them if there are fewer."""

    def __init__(self, config: Config, setting: Setting) -> None:
        self.config, self.source = config, setting.source
        self.count = min(setting.prompts_per_step, len(setting.source))
        self.samples = setting.samples_per_prompt
        self.statistics = Statistics(len(setting.source), kept=config.kept, idle=config.idle)

    def select(self, ctx: Context) -> Prompts:
        alpha, beta = self.statistics.evidence()
        if self.config.draw == "thompson":
            rates = thompson_rates(alpha, beta, seeds.numpy_generator(ctx.seed, ctx.step, "difficulty"))
        else:
            rates = posterior_mean(alpha, beta)
        rows = top_rows(info_gain(rates, self.config.score), self.count)
        ctx.log("vade/expected_gain", expected_info_gain(alpha, beta)[rows].mean())
        ctx.log("vade/evidence", (alpha + beta)[rows].mean())
        ctx.log("vade/new", (self.statistics.seen[rows] == 0).double().mean())
        return self.source.take(rows, self.samples)

    def observe(self, rollouts: Rollouts, ctx: Context) -> None:
        main = main_rows(rollouts)
        self.statistics.observe(main.index, successes(main, self.config.success, self.config.success_above))

    def state_dict(self) -> dict[str, Any]:
        return self.statistics.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.statistics.load_state_dict(state)


def build(config: Config, setting: Setting) -> Recipe:
    recipe = grpo.plain(config, setting, GroupCredit(grpo_advantage))
    objective = PolicyGradient(config, ratio=config.ratio)
    return replace(recipe, curriculum=DifficultySelection(config, setting), objective=objective)
