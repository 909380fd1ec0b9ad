"""ICPO: one rollout a group is drawn with a solved example in front and trained on without it (arXiv 2510.26519)."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from policydist.errors import UsageError
from policydist.functional import accept_off_policy, annealed_bonus, grpo_advantage
from policydist.language import guided, origins
from policydist.language.credits import rewards_of
from policydist.language.methods import grpo
from policydist.language.mixed_objective import MixedPolicyGradient
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Recipe, Setting, broadcast
from policydist.language.types import Prompts, Rollouts

DIFFERENCES: tuple[str, ...] = (
    "The paper rejects guided responses outside the expert region; the released code keeps them all (reject=false).",
    "The paper's notes accept rewards strictly above delta, which at delta 1 accepts nothing; here at least delta.",
    "Layout: seven own rows and one guided one (code, later version) by default; layout=replace is the first version's: "
    "eight own rows, of which an accepted guided one replaces a random one.",
    "lambda is 0.1 in the code, followed here, and 0.01 in the paper's notes (lam=0.01).",
    "The notes put the guided ratio inside the clip; the code, followed here, takes the policy's plain probability, "
    "unclipped.",
    "Bonus: the paper scales it by alpha (bonus); the code ignores its alpha and starts at 1 over a fixed 400 steps "
    "(bonus=1.0, bonus_steps=400).",
    "One branch of the released prompt builder drops the prompt's last character; not taken over.",
)
"""Where paper, released code and this module part."""

EXAMPLE = "--task multi --set 'knobs.example=\"{answer}\"' --set 'knobs.question=\"{question}\"'"
"""What ``policydist show`` adds to ``policydist train NAME``: examples in the form that the embedded model knows."""


@dataclass(frozen=True)
class Config(LossConfig):
    """``n_off`` of a group's responses are drawn behind ``n_demo`` solved examples; ``layout``: they count among the samples of
    a prompt (append) or come on top and replace random ones (replace); ``reject``: drop those with a reward below ``delta``;
    ``lam``: shaping p / (p + lam) of their loss; ``bonus``: added to the reward of accepted ones, annealed to 0 over
    ``bonus_steps``. Examples come from ``example_column`` of the task's rows, or of the JSONL file ``pool``; at most
    ``pool_size`` are kept, ``match`` says which are taken; the templates ``example`` ({question}, {answer}) and ``question``
    ({question}) say how they are shown."""

    dual_clip: float | None = 3.0
    kl_coef: float = 0.001
    n_off: int = 1
    n_demo: int = 1
    layout: Literal["append", "replace"] = "append"
    reject: bool = True
    delta: float = 1.0
    lam: float = 0.1
    bonus: float = 0.0
    bonus_steps: int = 400
    example_column: str = "completion"
    pool: str | None = None
    pool_size: int = 75_000
    match: guided.Match = "random"
    example: str = "Question: {question}\nAnswer: {answer}\n\n"
    question: str = "Question: {question}\nAnswer:"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("n_off", 0), ("n_demo", 1), ("bonus_steps", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"icpo: {name} is {getattr(self, name)}; it must be at least {least}")
        guided.check_template("icpo: example", self.example, ("question", "answer"))
        guided.check_template("icpo: question", self.question, ("question",))


TOO_LONG = (
    "icpo: behind its examples not one question of this step leaves room for a response in the model's context, so the step is "
    "GRPO with fewer samples; give shorter examples (knobs.pool, knobs.example), fewer (knobs.n_demo), or shorter responses"
)


class InContextSampler:
    """The group's own rows, and guided ones under the plain prompt."""

    def __init__(self, config: Config, setting: Setting, steering: guided.Steering) -> None:
        self.config, self.sampling, self.steering = config, setting.sampling, steering

    def __call__(self, prompts: Prompts, ctx: Context) -> Rollouts:
        count = self.config.n_off
        within = count if self.config.layout == "append" else 0
        own = ctx.generate(replace(prompts, samples=prompts.samples - within), self.sampling, "rollout")
        own = guided.tag(own, origins.MODEL)
        if count == 0:
            return own
        owner = torch.arange(len(prompts)).repeat_interleave(count)
        asked = prompts.select(owner)
        shown = self.steering.steer(replace(asked, samples=torch.ones_like(asked.samples)), ctx.generator("examples"))
        fits = guided.fitting(shown, ctx.policy, self.sampling.max_new_tokens)
        ctx.log("icpo/too_long", (~fits).float().mean())
        if not bool(fits.any()):
            warnings.warn(TOO_LONG, stacklevel=2)
            return own
        drawn = ctx.generate(shown.select(fits), self.sampling, "in-context")
        owner = owner[fits].to(drawn.group.device)[drawn.group]
        plain = replace(guided.swap_prompts(drawn, prompts, owner), group=owner)
        return guided.by_group(guided.join(own, guided.tag(plain, origins.GUIDED), ctx))


@dataclass(frozen=True)
class RegionCredit:
    """Rejects guided rows outside the expert region, adds the bonus inside it, and standardises over what is left."""

    config: Config

    def __call__(self, rollouts: Rollouts, ctx: Context) -> Rollouts:
        config, rewards, off = self.config, rewards_of(rollouts), rollouts.extras["auxiliary"]
        right = off & accept_off_policy(rewards, config.delta)
        accepted = right if config.reject else off
        if bool(off.any()):
            ctx.log("icpo/accepted", accepted.sum() / off.sum())
        raised = annealed_bonus(rewards, right, step=ctx.step, total=config.bonus_steps, alpha=config.bonus)
        rollouts = replace(rollouts, rewards=raised)
        if config.layout == "replace":
            rollouts = rollouts.select(swapped_in(rollouts, accepted, off, ctx.generator("slots")))
        else:
            rollouts = rollouts.select(~off | accepted)
        advantages = grpo_advantage(rewards_of(rollouts), rollouts.group)
        return replace(rollouts, advantages=broadcast(advantages, rollouts))


def swapped_in(
    rollouts: Rollouts, accepted: torch.Tensor, off: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Row numbers of the groups' own rows, with random ones replaced by the group's accepted guided rows."""
    order = torch.arange(len(rollouts), device=off.device)
    for group in rollouts.group[accepted].unique().tolist():
        members = rollouts.group == group
        slots = (members & ~off).nonzero().flatten()
        added = (members & accepted).nonzero().flatten()[: len(slots)]
        chosen = torch.randperm(len(slots), generator=generator)[: len(added)].to(slots.device)
        order[slots[chosen]] = added
    return order[~off]


def examples(config: Config, setting: Setting) -> guided.Steering:
    """The source's own guidance (a small world's), or solved examples written in front of the question.

    Raises:
        UsageError: for a task without text, a row without a text in ``example_column``, or an empty pool.
    """
    source: Any = setting.source
    if isinstance(source, guided.Steering):
        return source
    tokenizer = getattr(source, "tokenizer", None)
    if tokenizer is None:
        raise UsageError("icpo puts solved examples in front of text; give it a task with completions")
    rows = read_pool(config.pool) if config.pool else source.rows
    if len({guided.same(guided.question_of(row["prompt"])) for row in rows}) < 2 - bool(config.pool):
        raise UsageError(
            "icpo: the pool of solved examples holds no example besides the question itself; set knobs.pool"
        )
    pool = guided.SolvedExamples(config.pool_size, config.match)
    for number, row in enumerate(rows):
        answer = row.get(config.example_column)
        if not isinstance(answer, str) or not answer.strip():
            raise UsageError(
                f"icpo: example {number} has no text in column {config.example_column!r} (it has "
                f"{', '.join(map(str, row))}); set knobs.example_column, or knobs.pool to a JSONL file of solved examples"
            )
        pool.add(guided.question_of(row["prompt"]), answer)
    return guided.ExamplePrompts(pool, tokenizer, config.n_demo, config.example, config.question)


def read_pool(file: str) -> list[Any]:
    """Rows with a prompt and a solution; an empty or missing file is a `UsageError`."""
    from policydist.language.tasks.files import Columns, read_jsonl

    return list(read_jsonl(Path(file).expanduser(), Columns(grader="rubric")))


def build(config: Config, setting: Setting) -> Recipe:
    if config.layout == "append" and config.n_off >= setting.samples_per_prompt:
        raise UsageError(
            f"icpo: n_off is {config.n_off} of {setting.samples_per_prompt} samples a prompt; leave some to the policy "
            "itself (rollout.samples)"
        )
    recipe = grpo.plain(config, setting, RegionCredit(config))
    return replace(
        recipe,
        sampler=InContextSampler(config, setting, examples(config, setting)),
        objective=MixedPolicyGradient(config, gamma=config.lam, denominator="none"),
    )
