"""One training run of the language family from its config: model, task, recipe, trainer, run directory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from policydist.errors import MissingExtraError, UsageError
from policydist.functional.anytime import check_budgets
from policydist.language import methods
from policydist.language.evaluate import Anytime, Evaluation
from policydist.language.multiturn import AnswerJudge
from policydist.language.prompts import ContextPrompts, TextPrompts
from policydist.language.recipe import Judge, Recipe, Setting
from policydist.language.retrieval import check_sources
from policydist.language.segmented import TextAnswering, Thinking, thinking_of
from policydist.language.trainer import Row, TrainConfig, Trainer
from policydist.language.types import Sampling
from policydist.language.world import World
from policydist.runs import checkpoint
from policydist.runs.config import assign, build, plain
from policydist.runs.directory import Run, fresh_name, read_config, read_metrics, write_whole

if TYPE_CHECKING:
    from policydist.language.policies.hf import TransformersPolicy
    from policydist.language.tasks.base import Task


def at_least_one(section: str, config: Any, *names: str) -> None:
    """Refuse counts below one; None stands for a default found later.

    Raises:
        UsageError: naming section, setting and value.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UsageError(f"{section}.{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class TaskConfig:
    """``name``: a built-in task, ``reasoning-gym:<name>``, ``jsonl:<file>``, ``parquet:<file>`` or ``hub:<data set>``;
    ``grader``: how responses are scored (``module:function`` for your own); ``options``: the task's own settings."""

    name: str = "arithmetic"
    train_size: int | None = None
    test_size: int | None = None
    prompt_column: str = "prompt"
    answer_column: str = "answer"
    grader: str = "auto"
    options: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class ModelConfig:
    """``name``: ``embedded``, a local directory or a Hub name; ``lora_rank`` 0 trains all weights; ``precision`` bf16 runs forward
    and backward passes under autocast (GPU); ``freeze_vision`` keeps a vision-language model's image encoder as it is."""

    name: str = "embedded"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    lora_rank: int = 0
    lora_alpha: int = 32
    trust_remote_code: bool = False
    freeze_vision: bool = False

    def __post_init__(self) -> None:
        if self.lora_rank < 0:
            raise UsageError(f"model.lora_rank is {self.lora_rank}; it must be 0 (train all weights) or positive")
        at_least_one("model", self, "lora_alpha")


@dataclass(frozen=True)
class RolloutConfig:
    """``prompts`` a step, ``samples`` a prompt; ``max_new_tokens`` null takes the task's own limit."""

    prompts: int = 32
    samples: int = 8
    max_new_tokens: int | None = None
    max_prompt_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        at_least_one("rollout", self, "prompts", "samples", "max_new_tokens", "max_prompt_tokens")
        if not self.temperature >= 0:
            raise UsageError(f"rollout.temperature is {self.temperature}; it must be 0 (greedy) or positive")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"rollout.top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k < 0:
            raise UsageError(f"rollout.top_k is {self.top_k}; it must be 0 (all tokens) or positive")


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation on the task's test rows before the first step, every ``train.eval_every`` steps (0: never) and at the end.

    With ``budgets`` (ascending numbers of tokens) also the accuracy of answers of at most ``answer_tokens`` after thinking is
    cut there; ``think_end``, ``ellipsis`` and ``header`` are what closes it, by default as the model's tokenizer has it."""

    rows: int = 128
    samples: int = 4
    temperature: float = 1.0
    budgets: tuple[int, ...] = ()
    answer_tokens: int = 118
    think_end: str | None = None
    ellipsis: str | None = None
    header: str | None = None

    def __post_init__(self) -> None:
        at_least_one("eval", self, "rows", "samples", "answer_tokens")
        if self.budgets:
            check_budgets(self.budgets)
        if not self.temperature >= 0:
            raise UsageError(f"eval.temperature is {self.temperature}; it must be 0 (greedy) or positive")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's result. ``trackers``: any of tensorboard, wandb, trackio."""

    method: str
    knobs: Any
    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    trackers: tuple[str, ...] = ("tensorboard",)


SECTIONS: dict[str, type] = {
    "task": TaskConfig, "model": ModelConfig, "rollout": RolloutConfig, "train": TrainConfig, "eval": EvalConfig,
}  # fmt: skip


def configure(method: str, data: Mapping[str, Any] | None = None, words: Sequence[str] = ()) -> RunConfig:
    """The full config of a run from plain settings (a YAML file's) and ``key=value`` words, every value checked.

    Raises:
        UsageError: naming the first setting that is unknown or ill-typed.
    """
    module: Any = methods.load(method)
    knobs = module.Config
    settings = beneath(getattr(module, "DEFAULTS", {}), data or {})
    stated = settings.pop("method", method)
    if stated != method:
        raise UsageError(f"the config is for method {stated}, not {method}")
    assign(settings, words, {**SECTIONS, "knobs": knobs}, top=("trackers",))
    typed: Any = build(knobs, settings.pop("knobs", None) or {}, "knobs")
    return replace(build(RunConfig, {"method": method, "knobs": None, **settings}), knobs=typed)


def beneath(defaults: Mapping[str, Mapping[str, Any]], data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, with a method's own defaults where a section leaves them open."""
    sections = {
        name: {**own, **data[name]} if isinstance(data.get(name), Mapping) else data.get(name, dict(own))
        for name, own in defaults.items()
    }
    return {**data, **sections}


@dataclass(frozen=True)
class Outcome:
    """A finished run: its directory, its metric rows, the trained policy."""

    path: Path
    metrics: list[Row]
    policy: TransformersPolicy

    @property
    def final(self) -> dict[str, float]:
        """The last row, with the last evaluation if the run had one."""
        evaluated = [row for row in self.metrics if any(key.startswith("eval/") for key in row)]
        return {**(evaluated[-1] if evaluated else {}), **(self.metrics[-1] if self.metrics else {})}


@dataclass(frozen=True)
class Parts:
    """What a config stands for, loaded: the policy, the recipe and the evaluation."""

    policy: TransformersPolicy
    recipe: Recipe
    evaluation: Evaluation


def read_task(config: TaskConfig) -> Task:
    """The task that the config names."""
    from policydist.language.tasks.sources import load_task

    return load_task(
        config.name,
        seed=config.seed,
        train_size=config.train_size,
        test_size=config.test_size,
        prompt_column=config.prompt_column,
        answer_column=config.answer_column,
        grader=config.grader,
        options=config.options,
    )


def check_answering(config: RunConfig, task: Task) -> None:
    """Single responses cannot answer a task that brings documents to search; episodes need something to search, and have no
    thinking to be cut. Known before a model is loaded.

    Raises:
        UsageError: for any of them, saying what to do instead.
    """
    episodes = methods.plays_episodes(config.method)
    if task.documents and not episodes:
        raise UsageError(
            f"task {config.task.name} is answered by searching, but {config.method} trains on single responses; GRPO with "
            "the search tool is: policydist train rexrag --set knobs.p_rev=0"
        )
    if not episodes:
        return
    check_sources(config.knobs.retriever, config.knobs.corpus, task.documents)
    if config.eval.budgets:
        raise UsageError(
            f"eval.budgets (--budgets) cuts the thinking of single responses, but task {config.task.name} is answered in "
            "episodes with a search engine; leave the budgets out"
        )


def assemble(config: RunConfig, world: World, task: Task | None = None) -> Parts:
    """Load model and task (unless it is at hand) and build the recipe; nothing is written."""
    from policydist.language.judges import TaskJudge
    from policydist.language.policies.loading import Lora, load_policy

    rollout = config.rollout
    task = task or read_task(config.task)
    check_answering(config, task)
    lora = Lora(rank=config.model.lora_rank, alpha=config.model.lora_alpha) if config.model.lora_rank else None
    device: Any = config.model.device
    if device == "auto":
        device = world.accelerator.device if world.accelerator else ("cuda" if torch.cuda.is_available() else "cpu")
    # LoRA and value heads draw their initial weights from the global generator.
    torch.manual_seed(config.train.seed)
    policy = load_policy(
        config.model.name, device=device, lora=lora, trust_remote_code=config.model.trust_remote_code,
        freeze_vision=config.model.freeze_vision,
    )  # fmt: skip
    judge = TaskJudge(task, policy.tokenizer)
    sampling = Sampling(
        max_new_tokens=rollout.max_new_tokens or task.max_new_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
    )
    room = prompt_room(policy.context, {"rollout.max_new_tokens": sampling.max_new_tokens}, rollout.max_prompt_tokens)
    source = TextPrompts(task.train, policy.tokenizer, room)
    setting = Setting(source, judge, sampling, rollout.prompts, rollout.samples, task.documents)
    component = f"reward/{next(iter(task.graders))}"
    anytime, asked = None, {"the last of eval.budgets": 0}
    if config.eval.budgets:
        thinking = thinking_of(policy.tokenizer, config.eval.think_end, config.eval.ellipsis, config.eval.header)
        anytime = anytime_of(config.eval, thinking, judge, sampling, component)
        asked |= {"the last of eval.budgets": config.eval.budgets[-1], "the closing words": len(thinking.closing)}
        asked |= {"eval.answer_tokens": config.eval.answer_tokens}
    if config.train.eval_every and not task.test:
        raise UsageError(
            f"train.eval_every is {config.train.eval_every}, but task.test_size=0 leaves no rows to evaluate on; set one of them"
        )
    room = prompt_room(policy.context, asked, room)
    held_out = TextPrompts(task.test, policy.tokenizer, room) if task.test else ContextPrompts(0)
    measured = Evaluation(
        held_out, judge, measuring(config.eval, sampling), config.eval.rows, config.eval.samples,
        component=component, anytime=anytime,
    )  # fmt: skip
    recipe = methods.load(config.method).build(config.knobs, setting)
    if recipe.episodes is not None:
        measured = replace(measured, judge=AnswerJudge(judge), episodes=recipe.episodes)
    return Parts(policy, recipe, measured)


def measuring(config: EvalConfig, sampling: Sampling) -> Sampling:
    """How responses are drawn when a policy is measured: its whole distribution at the evaluation's temperature."""
    return replace(sampling, temperature=config.temperature, top_p=1.0, top_k=0)


def anytime_of(config: EvalConfig, thinking: Thinking, judge: Judge, sampling: Sampling, component: str) -> Anytime:
    """How accuracy at token budgets is measured, by the reward's ``component``."""
    drawn = measuring(config, sampling)
    answering = TextAnswering(thinking, judge, replace(drawn, max_new_tokens=config.answer_tokens), component)
    return Anytime(config.budgets, thinking.sampling(drawn), answering)


def prompt_room(context: int | None, asked: Mapping[str, int], limit: int) -> int:
    """How many tokens a prompt may have, so that it and what is ``asked`` for behind it fit into the model's context.

    Raises:
        UsageError: if that alone fills the context.
    """
    if context is None:
        return limit
    new_tokens = sum(asked.values())
    if new_tokens >= context:
        named = " and ".join(f"{name} ({count} tokens)" for name, count in asked.items() if count)
        verb = "leaves" if len(asked) == 1 else "leave"
        raise UsageError(f"{named} {verb} no room for a prompt in the model's context of {context}; lower that")
    return min(limit, context - new_tokens)


def make_world(config: RunConfig, folder: Path) -> World:
    """The processes this run was launched with (``accelerate launch`` starts several), and its trackers."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    if config.model.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("model.device is cuda, but there is no GPU that torch can use; set it to auto or cpu")
    for name in config.trackers:
        if name not in ("tensorboard", "wandb", "trackio"):
            raise UsageError(f"no tracker {name}; there are tensorboard, wandb and trackio")
        try:
            __import__(name)
        except ImportError:
            raise MissingExtraError(name, name) from None
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        # accelerate keeps the first run's device and precision for the whole process and refuses others.
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(
        mixed_precision="bf16" if config.model.precision == "bf16" else "no",
        cpu=config.model.device == "cpu",
        log_with=list(config.trackers) or None,
        project_dir=str(folder),
    )
    if str(accelerator.distributed_type).endswith("FSDP"):
        raise UsageError(
            "sharded (FSDP) sampling is not supported by this trainer; launch DDP, or use the TRL or verl integration"
        )
    return World(accelerator)


def train(
    method: str,
    *,
    task: str | None = None,
    model: str | None = None,
    steps: int | None = None,
    config: Mapping[str, Any] | RunConfig | None = None,
    settings: Sequence[str] = (),
    out: str | Path | None = None,
    on_step: Callable[[Row], None] | None = None,
    on_start: Callable[[Path, RunConfig], None] | None = None,
) -> Outcome:
    """Train a policy by ``method`` and keep the run in its own directory.

    Args:
        method: a slug, e.g. ``"bnpo"``.
        task, model, steps: short forms of ``task.name``, ``model.name`` and ``train.steps``.
        config: further settings, as in a YAML config file, or a complete `RunConfig`.
        settings: ``"key=value"`` words, e.g. ``["train.lr=1e-4", "clip_high=0.28"]``.
        out: the run directory; by default a fresh one under ``runs/``.
        on_step: called with every step's metrics.

    Raises:
        UsageError: for anything wrong with the request, before anything is written.
    """
    if not isinstance(config, RunConfig):
        short = {"task.name": task, "model.name": model, "train.steps": steps}
        words = [f"{key}={json.dumps(value)}" for key, value in short.items() if value is not None]
        config = configure(method, config, [*words, *settings])
    path = Path(out) if out is not None else shared_name(Path("runs"), f"{method}-{slug(config.task.name)}")
    world = make_world(config, path)
    parts = assemble(config, world)
    run = Run.create(path, config) if world.main else Run(path)
    return execute(config, parts, world, run, None, on_step, on_start)


def resume(
    path: str | Path,
    settings: Sequence[str] = (),
    on_step: Callable[[Row], None] | None = None,
    on_start: Callable[[Path, RunConfig], None] | None = None,
) -> Outcome:
    """Continue a run from its newest checkpoint (or from the checkpoint directory given).

    Raises:
        UsageError: no run or no checkpoint there, or ``settings`` would change its config.
        PolicydistError: the checkpoint is damaged.
    """
    path = Path(path)
    chosen = path.resolve() if path.name.startswith("step-") else None
    folder = path.parent.parent if chosen else path
    stored = read_config(folder)
    if "method" not in stored:
        raise UsageError(f"{folder / 'config.yaml'} names no method; it is not the config of a training run")
    config = configure(stored["method"], stored, settings)
    point = chosen or checkpoint.newest(folder / "checkpoints")
    step = checkpoint.load(point)[2]["step"]
    world = make_world(config, folder)
    run = Run.reopen(folder, config, step) if world.main else Run(folder)
    return execute(config, assemble(config, world), world, run, point, on_step, on_start)


def execute(
    config: RunConfig,
    parts: Parts,
    world: World,
    run: Run,
    point: Path | None,
    on_step: Callable[[Row], None] | None,
    on_start: Callable[[Path, RunConfig], None] | None,
) -> Outcome:
    accelerator = world.accelerator
    if config.trackers:
        accelerator.init_trackers("policydist", config={"config": json.dumps(plain(config))})

    def record(row: Row) -> None:
        accelerator.log({key: value for key, value in row.items() if key != "step"}, step=int(row["step"]))
        if on_step and world.main:
            on_step(row)

    trainer = Trainer(
        parts.policy, parts.recipe, config.train, world=world, run=run, evaluate=parts.evaluation, on_step=record
    )
    if point is not None:
        trainer.restore(point)
    if on_start and world.main:
        on_start(run.path, config)
    try:
        trainer.train()
    except BaseException as problem:
        if not isinstance(problem, KeyboardInterrupt) and world.main:
            run.status("failed", trainer.done, error=str(problem))
        raise
    finally:
        for tracker in accelerator.trackers:  # end_training would end the process group too, and with it a second run
            tracker.finish()
    if world.main:
        parts.policy.save(run.path / "model")
        rows = read_metrics(run.path)
        outcome = Outcome(run.path, rows, parts.policy)
        write_whole(run.path / "summary.json", json.dumps(outcome.final, indent=2))
        run.status("finished", trainer.done)
        return outcome
    return Outcome(run.path, [], parts.policy)


def slug(task: str) -> str:
    """A task's name as part of a file name: the file's own name for ``jsonl:/data/x.jsonl``."""
    kind, _, rest = task.partition(":")
    return f"{kind}-{Path(rest).stem}" if rest else kind


def shared_name(parent: Path, stem: str) -> Path:
    """A fresh run directory. Processes that were launched together could not agree on one, so they must be told."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("several processes need one run directory: give --out")
    return fresh_name(parent, stem)
