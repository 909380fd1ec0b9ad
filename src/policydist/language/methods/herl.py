"""HeRL: the group's best failure, revised by the policy itself with the unmet criteria in view, joins the group
(arXiv 2603.20046)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import UsageError
from policydist.functional import grpo_advantage, hindsight_bonus, select_candidates, select_replacements
from policydist.language import guided, origins, revision
from policydist.language.credits import GroupCredit, rewards_of
from policydist.language.methods import grpo
from policydist.language.mixed_objective import Denominator, MixedPolicyGradient
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Recipe, Setting
from policydist.language.types import Prompts, Rollouts

DIFFERENCES: tuple[str, ...] = (
    "The full text could not be obtained: the procedure is the released code's, checked against the paper's figure.",
    "Paper and code train a revised row with the hindsight prompt in front (off_prompt=hindsight, the default); "
    "off_prompt=original trains it under the plain question, so that the behaviour no longer needs the diagnosis.",
    "The code divides by the old policy under the row's own prompt (off_denominator=same_prompt); hindsight divides by "
    "what the revision was really drawn from, its temperature included; none is LUFFY's form.",
    "Where no revision is as good as the group's best, the code puts a copy of the best original into the random slot; so "
    "does this module. The copy is not off-policy.",
    "A key rewrite_he.gamma of the released scripts is read by nothing; gamma here is the one that acts.",
    "The code's prompt mode medical_rar is never reached as named in the medical script; there is one prompt here.",
    "The undiagnosed revision (diagnosis=false) and self-improvement at test time are reconstructed.",
)
"""Where paper, released code and this module part."""

EXAMPLE = "--task multi --set task.options.rubric=true --set 'knobs.template=\"{unmet},{met}:\"'"
"""What ``policydist show`` adds to ``policydist train NAME``: rows with a rubric, a revision prompt for the embedded model."""

Denominators = Literal["same_prompt", "hindsight", "none"]
_DENOMINATORS: Mapping[str, Denominator] = {"same_prompt": "same_prompt", "hindsight": "behavior", "none": "none"}


@dataclass(frozen=True)
class Config(LossConfig):
    """``bonus``: share of a revision's gain that its draft's reward gets (or loses); ``gamma``: shaping x / (x + gamma) of
    revised rows, 0 for none; ``threshold``: groups whose best reward reaches it are left alone; at most ``candidate_limit``
    drafts a group get ``revisions`` each, at ``revision_temperature``; ``replace_top_n`` rows of the group are replaced;
    ``off_prompt``: revised rows are trained under the hindsight prompt or the original one; ``off_denominator``: see the
    page. ``diagnosis`` false hides the criteria. Criteria are those of the rows' ``rubric_column``, or come from ``verdicts``, a
    ``module:function`` that maps (response, row) to a list of (text, weight, met or None). ``template`` replaces the prompt's
    wording; fields {instruction}, {met}, {unmet}, {unclear}, {draft}."""

    dual_clip: float | None = 3.0
    bonus: float = 0.05
    gamma: float = 1.0
    threshold: float = 1.0
    candidate_limit: int = 16
    revisions: int = 1
    revision_temperature: float = 0.3
    replace_top_n: int = 1
    off_prompt: Literal["hindsight", "original"] = "hindsight"
    off_denominator: Denominators = "same_prompt"
    diagnosis: bool = True
    rubric_column: str = "rubric"
    verdicts: str | None = None
    template: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("candidate_limit", "revisions", "replace_top_n"):
            if getattr(self, name) < 1:
                raise UsageError(f"herl: {name} is {getattr(self, name)}; it must be at least 1")
        if not self.revision_temperature >= 0:
            raise UsageError(f"herl: revision_temperature is {self.revision_temperature}; it must not be negative")
        if self.template is not None:
            guided.check_template("herl: template", self.template, revision.FIELDS)


class HindsightSampler:
    """Rollouts, revisions of each unsolved group's best, the bonus, and the replacement; everything judged."""

    def __init__(self, config: Config, setting: Setting, reviser: revision.Reviser) -> None:
        self.config, self.setting, self.reviser = config, setting, reviser

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        drawn = ctx.judge(self.setting.judge, ctx.generate(prompts, self.setting.sampling, "rollout"))
        main = guided.tag(drawn, origins.MODEL)
        before = rewards_of(main)
        ctx.log("herl/own_reward", before.mean())
        revised, draft = self.revise(main, self.candidates(main), ctx)
        ctx.log("herl/revised", len(draft) / len(main))
        if not len(draft):
            return main
        after = rewards_of(revised)
        gains: dict[int, list[float]] = {}
        for row, reward in zip(draft.tolist(), after.tolist(), strict=True):
            gains.setdefault(row, []).append(reward)
        ctx.log("herl/gain", (after - before[draft]).mean())
        main = replace(main, rewards=hindsight_bonus(before, gains, self.config.bonus))
        return self.place(main, before, revised, ctx)

    def candidates(self, main: Rollouts) -> list[int]:
        """Rows to revise."""
        rewards, met = rewards_of(main).tolist(), self.reviser.met(main).tolist()
        found: list[int] = []
        for members in members_of(main):
            scores, counts = ([values[i] for i in members] for values in (rewards, met))
            config = self.config
            chosen = select_candidates(scores, counts, threshold=config.threshold, limit=config.candidate_limit)
            found += [members[i] for i in chosen]
        return found

    def revise(self, main: Rollouts, rows: list[int], ctx: Context) -> tuple[Rollouts, Int[Tensor, " K"]]:
        """Judged revisions of the given rows, in their groups, and each one's draft."""
        drafts = main.select(torch.tensor(rows, dtype=torch.long, device=main.group.device))
        none = torch.zeros(0, dtype=torch.long, device=main.group.device)
        if not rows:
            return drafts, none
        config, sampling = self.config, replace(self.setting.sampling, temperature=self.config.revision_temperature)
        prompts = self.reviser.revision_prompts(drafts, config.diagnosis)
        fits = guided.fitting(prompts, ctx.policy, sampling.max_new_tokens).cpu()
        ctx.log("herl/too_long", (~fits).float().mean())
        if not bool(fits.any()):
            return drafts.select(none), none
        prompts = prompts.select(fits)
        drawn = ctx.generate(
            replace(prompts, samples=torch.full_like(prompts.samples, config.revisions)), sampling, "revision"
        )
        own = fits.nonzero().flatten().to(drawn.group.device)[drawn.group]
        revised = ctx.judge(self.setting.judge, drawn)
        if config.off_prompt == "original":
            revised = guided.swap_prompts(revised, plain_prompts(drafts), own)
        revised = replace(revised, group=drafts.group[own])
        return guided.tag(revised, origins.GUIDED), torch.tensor(rows, device=own.device)[own]

    def place(self, main: Rollouts, before: Float[Tensor, " N"], revised: Rollouts, ctx: Context) -> Rollouts:
        """Every revised group with its picks in random slots."""
        scores, after, order = before.tolist(), rewards_of(revised).tolist(), list(range(len(main)))
        used: list[int] = []
        generator, accepted = ctx.generator("slots"), 0
        owners = revised.group.tolist()
        for members in members_of(main):
            group = int(main.group[members[0]])
            mine = [j for j, owner in enumerate(owners) if owner == group]
            if not mine:
                continue
            picks = select_replacements(
                [scores[i] for i in members], [after[j] for j in mine], self.config.replace_top_n
            )
            slots = torch.randperm(len(members), generator=generator).tolist()
            for (kind, number), slot in zip(picks, slots, strict=False):
                if kind == "revised":
                    order[members[slot]] = len(main) + len(used)
                    used.append(mine[number])
                else:
                    order[members[slot]] = members[number]
            accepted += any(after[j] > max(scores[i] for i in members) for j in mine)
        ctx.log("herl/improved_groups", accepted / len(set(owners)))
        chosen = revised.select(torch.tensor(used, dtype=torch.long, device=main.group.device))
        joined = guided.join(main, chosen, ctx)
        return joined.select(torch.tensor(order, device=main.group.device))


def reviser_of(config: Config, setting: Setting) -> revision.Reviser:
    """Who judges criterion by criterion and asks for revisions."""
    return revision.find_reviser(setting, config.rubric_column, config.verdicts, config.template)


def members_of(rollouts: Rollouts) -> list[list[int]]:
    """Row numbers of each group, groups in ascending order."""
    found: dict[int, list[int]] = {}
    for row, group in enumerate(rollouts.group.tolist()):
        found.setdefault(group, []).append(row)
    return [found[group] for group in sorted(found)]


def plain_prompts(rollouts: Rollouts) -> Prompts:
    """The prompts that stand in the rows, one a row."""
    ones = torch.ones(len(rollouts), dtype=torch.long)
    return Prompts(rollouts.prompt_ids, rollouts.prompt_mask, ones, rollouts.index, rollouts.items)


def improve(
    prompts: Prompts, ctx: Context, setting: Setting, config: Config | None = None, rounds: int = 2
) -> tuple[Rollouts, Float[Tensor, "rounds N"]]:
    """Self-improvement at test time: answer, grade, revise what is not perfect, keep the better one; ``rounds`` times.

    Returns the best responses, as answers to the plain prompts, and their rewards before and after every round
    [rounds + 1, N], which never fall. The procedure is reconstructed from the paper's abstract.
    """
    config = config or Config()
    sampler = HindsightSampler(replace(config, off_prompt="original"), setting, reviser_of(config, setting))
    best = guided.tag(ctx.judge(setting.judge, ctx.generate(prompts, setting.sampling, "answer")), origins.MODEL)
    history = [rewards_of(best)]
    for number in range(rounds):
        open_rows = (rewards_of(best) < config.threshold).nonzero().flatten().tolist()
        revised, draft = sampler.revise(best, open_rows, replace(ctx, step=ctx.step + number))
        if len(draft):
            # Of several revisions of one draft the best one counts, the first in case of a tie.
            order = torch.argsort(rewards_of(revised), descending=True, stable=True)
            first = {int(draft[j]): j for j in reversed(order.tolist())}
            better = [j for row, j in first.items() if rewards_of(revised)[j] > history[-1][row]]
            chosen = torch.tensor(better, dtype=torch.long, device=draft.device)
            best = guided.replace_rows(best, draft[chosen], revised.select(chosen), ctx)
        history.append(rewards_of(best))
    return best, torch.stack(history)


def build(config: Config, setting: Setting) -> Recipe:
    recipe = grpo.plain(config, setting, GroupCredit(grpo_advantage))
    objective = MixedPolicyGradient(config, gamma=config.gamma, denominator=_DENOMINATORS[config.off_denominator])
    return replace(recipe, sampler=HindsightSampler(config, setting, reviser_of(config, setting)), objective=objective)
