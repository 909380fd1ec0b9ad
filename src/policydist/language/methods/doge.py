"""DoGe: learn to analyse contexts whose question is hidden, rewarded by a frozen Solver's pass rate; then to answer
(arXiv 2512.06835)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.functional import grpo_advantage
from policydist.functional.solver import context_reward, sometimes_solved
from policydist.language import contexts, guided
from policydist.language.credits import GroupCredit, rewards_of
from policydist.language.methods import grpo
from policydist.language.mixed_objective import MixedPolicyGradient
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Objective, Recipe, Setting, epoch_rows
from policydist.language.solver import Endpoint, EndpointConfig, FrozenCopy, Solver
from policydist.language.types import Policy, Prompts, Rollouts
from policydist.runs import seeds

DIFFERENCES: tuple[str, ...] = (
    "Stage-1 reward: the paper adds beta times the format of the Solver's answers to their pass rate (reward=paper); the code, "
    "followed here, mixes the pass rate with the format of the analysis, (1 - beta) p + beta f (reward=code).",
    "The shipped scripts give both stages the same, masked, data file; as in the paper, stage 2 here sees the unmasked prompts.",
    "If the Solver's service fails, the code goes on with another call; here the run ends after the tries asked for, with one "
    "line, and can be resumed.",
    "How questions are hidden is not in the code: here the row's context alone is put in a template, and a row whose question "
    "still stands in it is refused.",
    "The stages are separate launches in the code, each with a fresh optimiser and the start of the stage as KL reference; here "
    "one run, whose optimiser goes on and whose reference is its first policy.",
    "The code's truncated weights correct its inference engine; here sampling and training agree, and the same weights correct "
    "the temperature that analyses are drawn at.",
    "The generators of new and harder problems are not public; between rounds the seed pool filters the problems there are. "
    "The paper's 15 format-only steps before round 1 are left out.",
    "The full text could not be obtained: settings are the released scripts', checked against published summaries.",
)
"""Where paper, released code and this module part."""

EXAMPLE = (
    "--task chain --steps 60 --set knobs.stage1_steps=20 --set knobs.stage2_steps=40 "
    "--set 'knobs.analysis_prompt=\"{context}:\"' --set 'knobs.solver_prompt=\"{context}{question}{analysis}\"'"
)
"""What ``policydist show`` adds to ``policydist train NAME``: contexts apart from questions, prompts for the embedded model."""


@dataclass(frozen=True)
class Config(LossConfig):
    """A round is ``stage1_steps`` of analysing and ``stage2_steps`` of answering; rounds follow each other up to ``train.steps``,
    each with the policy at its start as frozen Solver, or always with the model ``solver_model`` behind ``solver_url``.
    ``analyses`` a context at ``analysis_temperature`` get ``solver_samples`` answers each (``solver_temperature``,
    ``solver_top_p``, ``solver_max_new_tokens``: null takes the policy's); ``analysis_clip_high`` is stage 1's ``clip_high``.
    ``reward`` of an analysis: paper or code form, with weight ``beta`` of the format; or, as controls that ask no Solver, the same
    for all (constant) or a random number (random). ``mask`` false leaves the question in; ``truncation`` caps importance weights
    (null: none). ``seed_pool``: between rounds keep the problems of pass rate ``pool_low`` to ``pool_high`` in
    ``pool_samples`` tries (filter), or as many random ones (random). ``analysis_prompt`` ({context}) and ``solver_prompt``
    ({context}, {question}, {analysis}) are templates. ``solver_timeout`` seconds and ``solver_retries`` are for the endpoint."""

    clip_high: float = 0.28
    dual_clip: float | None = 3.0
    kl_coef: float = 0.01
    stage1_steps: int = 150
    stage2_steps: int = 150
    analyses: int = 4
    solver_samples: int = 4
    analysis_temperature: float = 0.9
    analysis_clip_high: float = 0.24
    solver_temperature: float = 0.7
    solver_top_p: float = 0.9
    solver_max_new_tokens: int | None = None
    solver_url: str | None = None
    solver_model: str | None = None
    solver_timeout: float = 120.0
    solver_retries: int = 3
    reward: Literal["code", "paper", "constant", "random"] = "code"
    beta: float = 0.1
    mask: bool = True
    truncation: float | None = 2.0
    seed_pool: Literal["off", "filter", "random"] = "off"
    pool_low: float = 0.1
    pool_high: float = 0.3
    pool_samples: int = 10
    analysis_prompt: str = contexts.ANALYSIS_PROMPT
    solver_prompt: str = contexts.SOLVER_PROMPT

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("stage1_steps", 0), ("stage2_steps", 0), ("analyses", 2), ("solver_samples", 1), ("pool_samples", 1)
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UsageError(f"doge: {name} is {getattr(self, name)}; it must be at least {least}")
        if self.period < 1:
            raise UsageError("doge: stage1_steps and stage2_steps are both 0; a round needs steps")
        if not 0 <= self.beta <= 1:
            raise UsageError(f"doge: beta is {self.beta}; it must lie in [0, 1]")
        if not 0 <= self.pool_low <= self.pool_high <= 1:
            raise UsageError(
                f"doge: the pool keeps pass rates {self.pool_low} to {self.pool_high}; they must ascend within [0, 1]"
            )
        if self.truncation is not None and not self.truncation > 0:
            raise UsageError(f"doge: truncation is {self.truncation}; it must be positive, or null for no weights")
        if (self.solver_url is None) != (self.solver_model is None):
            raise UsageError("doge: a Solver behind an endpoint needs both solver_url and solver_model")

    @property
    def period(self) -> int:
        """Steps of a round."""
        return self.stage1_steps + self.stage2_steps

    def analysing(self, step: int) -> bool:
        """Whether step ``step`` (from 0) belongs to a stage 1."""
        return step % self.period < self.stage1_steps


class Rounds:
    """Shuffled prompts, ``analyses`` or ``rollout.samples`` each; from the second round on those of the seed pool, if asked."""

    def __init__(self, config: Config, setting: Setting) -> None:
        self.config, self.setting = config, setting
        self.kept: list[int] = list(range(len(setting.source)))

    def select(self, ctx: Context) -> Prompts:
        config, setting = self.config, self.setting
        starts = ctx.step and ctx.step % config.period == 0
        if starts and config.seed_pool != "off":
            self.kept = self.pool(ctx)
            ctx.log("doge/pool", len(self.kept))
        samples = config.analyses if config.analysing(ctx.step) else setting.samples_per_prompt
        kept = torch.tensor(self.kept)
        rows = epoch_rows(len(kept), min(setting.prompts_per_step, len(kept)), ctx.seed, ctx.step)
        return setting.source.take(kept[rows], samples)

    def pool(self, ctx: Context) -> list[int]:
        """Numbers of the problems that go on, from all there are.

        Raises:
            PolicydistError: if none does.
        """
        config, size = self.config, len(self.setting.source)
        prompts = self.setting.source.take(torch.arange(size), config.pool_samples)
        answers = ctx.judge(self.setting.judge, ctx.generate(prompts, self.setting.sampling, "pool"))
        right = per_group((rewards_of(answers) > 0.5).float(), answers.group, size).round().long().cpu()
        chosen = sometimes_solved(right, config.pool_samples, config.pool_low, config.pool_high)
        count = int(chosen.sum())
        if count == 0:
            raise PolicydistError(
                f"doge: no problem has a pass rate of {config.pool_low} to {config.pool_high} after this round (mean "
                f"{float(right.double().mean()) / config.pool_samples:.2f}); widen knobs.pool_low and knobs.pool_high, or set "
                "knobs.seed_pool=off"
            )
        if config.seed_pool == "random":
            order = torch.randperm(size, generator=seeds.torch_generator(ctx.seed, ctx.step, "random pool"))
            return sorted(order[:count].tolist())
        return chosen.nonzero().flatten().tolist()

    def observe(self, rollouts: Rollouts, ctx: Context) -> None:
        """Nothing to learn within a round."""

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.kept = list(state["kept"])


class TwoStages:
    """Judged analyses of masked contexts in stage 1, judged direct answers in stage 2."""

    def __init__(self, config: Config, setting: Setting, source: contexts.ContextSource, solver: Solver | None) -> None:
        self.config, self.setting, self.source, self.solver = config, setting, source, solver

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        config = self.config
        if self.solver is not None and ctx.step % config.period == 0:
            self.solver.renew(ctx)
        stage = 1 if config.analysing(ctx.step) else 2
        ctx.log("doge/round", ctx.step // config.period + 1)
        ctx.log("doge/stage", stage)
        return self.analyse(prompts, ctx) if stage == 1 else self.answer(prompts, ctx)

    def analyse(self, prompts: Prompts, ctx: Context) -> Rollouts:
        """Stage 1: analyses, each rewarded by the Solver's answers to the whole question with it at hand, or blindly."""
        config = self.config
        shown = self.source.analysis_prompts(prompts, config.mask)
        sampling = replace(self.setting.sampling, temperature=config.analysis_temperature)
        analyses = ctx.generate(shown, sampling, "analysis")
        if config.reward == "constant" or config.reward == "random":
            ctx.log("doge/format", self.source.analysis_formats(analyses).mean())
            return replace(analyses, rewards=blind_reward(len(analyses), config.reward, ctx).to(analyses.group.device))
        rates, formats = self.solve(analyses, ctx)
        if config.reward == "code":
            formats = self.source.analysis_formats(analyses)
        ctx.log("doge/pass_rate", rates.mean())
        ctx.log("doge/format", formats.mean())
        return replace(analyses, rewards=context_reward(rates, formats, config.beta, config.reward))

    def solve(self, analyses: Rollouts, ctx: Context) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
        """Of each analysis, the mean reward and the mean format of the Solver's answers with it; 0 if it is too long to read."""
        config, setting, solver = self.config, self.setting, self.solver
        assert solver is not None
        length = config.solver_max_new_tokens or setting.sampling.max_new_tokens
        sampling = replace(
            setting.sampling, temperature=config.solver_temperature, top_p=config.solver_top_p, top_k=0,
            max_new_tokens=length,
        )  # fmt: skip
        asked = self.source.solver_prompts(analyses)
        fits = guided.fitting(asked, ctx.policy, length).cpu()
        ctx.log("doge/too_long", (~fits).float().mean())
        rates = torch.zeros(len(analyses), device=analyses.group.device)
        formats = torch.zeros_like(rates)
        if bool(fits.any()):
            wanted = asked.select(fits)
            wanted = replace(wanted, samples=torch.full_like(wanted.samples, config.solver_samples))
            answers = ctx.judge(setting.judge, solver.answer(wanted, sampling, ctx))
            place = fits.to(rates.device)
            share = 1 / config.solver_samples
            rates[place] = per_group(rewards_of(answers), answers.group, len(wanted)) * share
            formats[place] = per_group(self.source.answer_formats(answers), answers.group, len(wanted)) * share
        return rates, formats

    def answer(self, prompts: Prompts, ctx: Context) -> Rollouts:
        """Stage 2: direct answers to the whole prompts."""
        answers = ctx.judge(self.setting.judge, ctx.generate(prompts, self.setting.sampling, "rollout"))
        formats = self.source.answer_formats(answers)
        ctx.log("doge/format", formats.mean())
        return replace(answers, rewards=context_reward(rewards_of(answers), formats, self.config.beta))

    def tensors(self) -> dict[str, Tensor]:
        """The frozen Solver's weights, for checkpoints."""
        return {} if self.solver is None else self.solver.tensors()


@dataclass(frozen=True)
class StagedObjective:
    """Each stage's own clipped surrogate."""

    config: Config

    @property
    def sparse(self) -> bool:
        return self.stage(self.config.clip_high).sparse

    def stage(self, clip_high: float) -> Objective:
        return MixedPolicyGradient(replace(self.config, clip_high=clip_high), truncation=self.config.truncation)

    def __call__(self, policy: Policy, batch: Rollouts, ctx: Context) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        first = config.analysing(ctx.step)
        return self.stage(config.analysis_clip_high if first else config.clip_high)(policy, batch, ctx)


@dataclass(frozen=True)
class Preparation:
    """Hands the trainer's policy to the Solver before the first step."""

    solver: Solver

    def begin(self, policy: Policy, optimiser: torch.optim.Optimizer) -> None:
        self.solver.begin(policy, optimiser)

    def observe(self, ctx: Context) -> None:
        """The Solver does not follow the policy."""


def blind_reward(count: int, form: Literal["constant", "random"], ctx: Context) -> Float[Tensor, " N"]:
    """Rewards that know nothing of what they are given for: all 1, or uniform in [0, 1), of seed and step alone."""
    return torch.ones(count) if form == "constant" else torch.rand(count, generator=ctx.generator("blind reward"))


def per_group(values: Float[Tensor, " N"], group: Int[Tensor, " N"], groups: int) -> Float[Tensor, " Q"]:
    """Sum of the values in each of the groups 0, 1, …"""
    return torch.zeros(groups, device=values.device).index_add(0, group, values)


def find_solver(config: Config, setting: Setting) -> Solver | None:
    """A frozen copy of the policy, or the endpoint named; None where rewards need no Solver.

    Raises:
        UsageError: an endpoint for a task without text, or an address that is none.
    """
    if config.reward in ("constant", "random"):
        return None
    if config.solver_url is None or config.solver_model is None:
        return FrozenCopy()
    tokenizer = getattr(setting.source, "tokenizer", None)
    if tokenizer is None:
        raise UsageError("doge: a Solver behind an endpoint reads text; give the method a task of texts")
    endpoint = EndpointConfig(
        config.solver_url, config.solver_model, timeout=config.solver_timeout, retries=config.solver_retries
    )
    return Endpoint(endpoint, tokenizer)


def build(config: Config, setting: Setting) -> Recipe:
    source = contexts.find_contexts(setting, config.analysis_prompt, config.solver_prompt, config.mask)
    solver = find_solver(config, setting)
    return replace(
        grpo.plain(config, setting, GroupCredit(grpo_advantage)),
        curriculum=Rounds(config, setting),
        sampler=TwoStages(config, setting, source, solver),
        objective=StagedObjective(config),
        extensions=() if solver is None else (Preparation(solver),),
    )
