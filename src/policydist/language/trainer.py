"""The training loop of the language family: six stages a step, and everything a long run needs around them."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from safetensors.torch import save_file
from torch import Tensor

from policydist.errors import PolicydistError, UsageError
from policydist.functional import effective_gradient_ratio
from policydist.language.credits import rewards_of
from policydist.language.recipe import Context, Norm, Recipe
from policydist.language.types import Policy, Rollouts
from policydist.language.world import World
from policydist.runs import checkpoint
from policydist.runs.directory import Run

Row = dict[str, float]


@dataclass(frozen=True)
class TrainConfig:
    """How the policy is optimised, and how often it is evaluated and saved.

    ``updates`` optimiser steps per batch of rollouts and epoch (PPO's mini-batches); ``micro_tokens`` bounds the tokens of one
    forward pass, gradients are accumulated over as many as needed; ``grad_clip`` 0 means none. ``token_budget`` (tokens sampled)
    and ``second_budget`` (seconds of training steps) end the run before ``steps``; 0 means no such limit.
    """

    steps: int = 100
    lr: float = 1e-3
    optimiser: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    warmup: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    updates: int = 1
    epochs: int = 1
    micro_tokens: int = 32768
    token_budget: int = 0
    second_budget: float = 0.0
    eval_every: int = 0
    save_every: int = 50
    keep: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "updates", "epochs", "micro_tokens", "keep"):
            if getattr(self, name) < 1:
                raise UsageError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        for name in (
            "warmup",
            "token_budget",
            "second_budget",
            "eval_every",
            "save_every",
            "grad_clip",
            "weight_decay",
        ):
            if not getattr(self, name) >= 0:
                raise UsageError(f"train.{name} is {getattr(self, name)}; it must not be negative")
        if not self.lr > 0:
            raise UsageError(f"train.lr is {self.lr}; it must be positive")


class Trainer:
    """Trains ``policy`` by ``recipe``. Without ``run`` nothing is written: this is how claims use it."""

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        config: TrainConfig,
        *,
        world: World | None = None,
        run: Run | None = None,
        evaluate: Callable[[Context], Mapping[str, float]] | None = None,
        on_step: Callable[[Row], None] | None = None,
    ) -> None:
        self.policy, self.recipe, self.config = policy, recipe, config
        self.run, self.evaluate, self.on_step = run, evaluate, on_step
        if recipe.needs_values:
            policy.add_value_head()
        reference = frozen(policy) if recipe.needs_reference else None
        self.parameters = [p for p in policy.module.parameters() if p.requires_grad]
        self.optimiser = make_optimiser(self.parameters, config)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: rate(step, config))
        for extension in recipe.extensions:
            extension.begin(policy, self.optimiser)
        world = world or World()
        if world.accelerator is not None:
            policy.module, self.optimiser = world.accelerator.prepare(policy.module, self.optimiser)
        updates = config.updates * config.epochs
        self.ctx = Context(policy, config.seed, world=world, reference=reference, updates=updates)
        self.done = 0
        self.seconds = 0.0
        self.stopping = False

    def step(self) -> Row:
        """One training step: the six stages."""
        ctx, recipe = self.ctx, self.recipe
        ctx.step, ctx.metrics = self.done, {}
        with timed(ctx, "sample"):
            prompts = recipe.curriculum.select(ctx)
            rollouts = recipe.sampler(prompts, ctx)
        with timed(ctx, "judge"):
            if rollouts.rewards is None:
                rollouts = ctx.judge(recipe.judge, rollouts)
            describe(rollouts, ctx)
        with timed(ctx, "credit"):
            rollouts = recipe.credit(rollouts, ctx)
        with timed(ctx, "update"):
            self.update(rollouts)
            for extension in recipe.extensions:
                extension.observe(ctx)
        recipe.curriculum.observe(rollouts, ctx)
        self.done += 1
        self.seconds += sum(value for name, value in ctx.metrics.items() if name.startswith("seconds/"))
        used = {"tokens": ctx.generated, "responses": ctx.responses, "seconds": self.seconds, "memory": memory()}
        return {"step": self.done, **used, **ctx.metrics}

    def update(self, rollouts: Rollouts) -> None:
        """``epochs`` passes over the rollouts in ``updates`` mini-batches each, in order."""
        ctx, config = self.ctx, self.config
        if len(rollouts) == 0 or not bool(rollouts.response_mask.any()):
            ctx.log("skipped", 1)
            return
        if rollouts.old_logprobs is None and ctx.updates > 1:
            rollouts = replace(rollouts, old_logprobs=ctx.score(rollouts).logprobs)
        if ctx.reference is not None:
            known = ctx.score(rollouts, ctx.reference).logprobs
            rollouts = replace(rollouts, extras={**rollouts.extras, "reference_logprobs": known})
        totals: dict[str, list[float]] = {}
        together = self.recipe.together
        count = together * math.ceil(len(rollouts) / together / config.updates)
        for _ in range(config.epochs):
            for batch in rollouts.split(count):
                for name, value in self.minibatch(batch).items():
                    totals.setdefault(name, []).append(value)
        for name, values in totals.items():
            ctx.log(name, sum(values) / len(values))
        ctx.entropy = ctx.metrics.get("entropy", ctx.entropy)

    def minibatch(self, batch: Rollouts) -> Row:
        """One optimiser step on ``batch``, accumulated over micro-batches and processes."""
        ctx = self.ctx
        ctx.norm = Norm(float(batch.response_mask.sum()), float(len(batch)), batch.response_ids.shape[1])
        kept, row = drop_idle(batch, ctx) if self.recipe.objective.sparse else (batch, {})
        together = self.recipe.together
        share = ctx.world.share(len(kept) // together)
        own = torch.arange(together * share.start, together * share.stop)
        mine = kept if ctx.world.size == 1 else kept.select(own)
        parts = list(micro_batches(mine, self.config.micro_tokens, together))
        rounds = max(ctx.world.gather(len(parts)))
        self.optimiser.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for number in range(rounds):
            # A process that has run out of rows still takes part in the gradient exchange, with weight zero.
            part, weight = (parts[number], 1.0) if number < len(parts) else (batch.select(torch.arange(together)), 0.0)
            with self.accumulating(last=number == rounds - 1):
                loss, numbers = self.recipe.objective(self.policy, part.trimmed(), ctx)
                self.backward(loss * weight * ctx.world.size)
            for name, value in {"loss": loss.detach(), **numbers}.items():
                sums[name] = sums.get(name, torch.zeros(())) + value.detach().cpu() * weight
        for other in ctx.world.gather({name: float(value) for name, value in sums.items()}):
            for name, value in other.items():
                row[name] = row.get(name, 0.0) + value
        if rounds == 0:  # all rows idle: a step with gradient zero, which momentum and schedule must see
            for parameter in self.parameters:
                parameter.grad = torch.zeros_like(parameter)
        row["grad_norm"] = self.apply(batch, row.get("loss", 0.0))
        return row

    def backward(self, loss: Tensor) -> None:
        if not loss.requires_grad:
            return
        accelerator = self.ctx.world.accelerator
        if accelerator is None:
            loss.backward()
        else:
            accelerator.backward(loss)

    def accumulating(self, last: bool) -> Any:
        accelerator = self.ctx.world.accelerator
        return nullcontext() if accelerator is None or last else accelerator.no_sync(self.policy.module)

    def apply(self, batch: Rollouts, loss: float) -> float:
        """Clip and step; returns the gradient norm before clipping.

        Raises:
            PolicydistError: on a loss or gradient that is not finite, before the weights are touched.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip or math.inf))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise PolicydistError(self.report_failure(batch, loss, norm))  # the same on all processes
        self.optimiser.step()
        self.schedule.step()
        return norm

    def report_failure(self, batch: Rollouts, loss: float, norm: float) -> str:
        text = f"step {self.done + 1}: loss is {loss}, gradient norm {norm}; the weights were not changed"
        if self.run is None:
            return text
        file = self.run.path / f"failed-batch-step-{self.done + 1}.safetensors"
        if self.ctx.world.main:
            save_file({name: tensor.cpu().clone() for name, tensor in batch.tensors().items()}, file)
        good = checkpoint.complete(self.run.path / "checkpoints")
        last = f"last good checkpoint: {good[-1]}" if good else "no checkpoint yet"
        return f"{text}. Batch: {file}; {last}. Lower train.lr or train.grad_clip"

    def train(self) -> list[Row]:
        """Run to ``config.steps``; returns the metrics of the steps done in this call.

        Ctrl-C finishes the step, saves a checkpoint and raises KeyboardInterrupt.
        """
        rows = []
        with self.interruptible():
            if self.done == 0 and self.evaluate and self.config.eval_every:
                self.record({"step": 0, **self.evaluate(self.ctx)})
            while not self.finished and not self.interrupted:
                row = self.step()
                if self.evaluate and self.config.eval_every and self.due(self.config.eval_every):
                    row |= self.evaluate(self.ctx)
                self.record(row)
                rows.append(row)
                if self.run and self.due(self.config.save_every):
                    self.save()
        if self.interrupted:
            self.save("interrupted")
            raise KeyboardInterrupt
        return rows

    @property
    def finished(self) -> bool:
        """Whether the steps, the tokens or the seconds are used up; processes follow the main one's clock."""
        config = self.config
        late = bool(config.second_budget) and self.ctx.world.gather(self.seconds)[0] >= config.second_budget
        spent = bool(config.token_budget) and self.ctx.generated >= config.token_budget
        return self.done >= config.steps or spent or late

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C reached any process: they stop after the same step."""
        return any(self.ctx.world.gather(self.stopping))

    def due(self, every: int) -> bool:
        return self.finished or (every > 0 and self.done % every == 0)

    def record(self, row: Row) -> None:
        if self.run and self.ctx.world.main:
            self.run.log(row)
        if self.on_step:
            self.on_step(row)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the first Ctrl-C end the loop after the current step; a second one interrupts at once."""
        if self.run is None:
            yield
            return

        def stop(number: int, frame: Any) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.stopping = True

        try:
            before = signal.signal(signal.SIGINT, stop)
        except ValueError:  # not the main thread: whoever owns it handles signals
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def save(self, state: str = "running") -> None:
        """Write a checkpoint of everything that the next step depends on."""
        if self.run is None or not self.ctx.world.main:
            return
        weights = self.kept()
        parts = {name: part.state_dict() for name, part in self.stateful().items()}
        extra = {
            "entropy": self.ctx.entropy, "generated": self.ctx.generated, "responses": self.ctx.responses,
            "seconds": self.seconds,
            "schedule": self.schedule.last_epoch, "parts": parts,
        }  # fmt: skip
        folder = self.run.path / "checkpoints"
        checkpoint.save(folder, self.done, weights, self.optimiser.state_dict(), extra, self.config.keep)
        self.run.status(state, self.done)

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint; the following steps give what the uninterrupted run would have given."""
        weights, optimiser, state = checkpoint.load(path, self.policy.device)
        own = self.kept()
        if own.keys() != weights.keys():
            odd = sorted(own.keys() ^ weights.keys())[0]
            raise PolicydistError(f"checkpoint {path} is of another model: {odd} is not in both")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
        self.optimiser.load_state_dict(optimiser)
        self.schedule.last_epoch = state["schedule"]
        for group, base in zip(self.optimiser.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = base * rate(state["schedule"], self.config)
        for name, part in self.stateful().items():
            part.load_state_dict(state["parts"][name])
        self.ctx.entropy, self.ctx.generated = state["entropy"], state["generated"]
        self.ctx.responses = state["responses"]
        self.done, self.seconds = state["step"], state["seconds"]

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        accelerator = self.ctx.world.accelerator
        module = self.policy.module if accelerator is None else accelerator.unwrap_model(self.policy.module)
        return module.named_parameters()

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds: the trained weights, and the tensors that parts of the recipe keep beside them."""
        own: dict[str, Tensor] = {name: p for name, p in self.named_parameters() if p.requires_grad}
        for name in ("curriculum", "sampler", "judge", "credit", "objective"):
            tensors: Mapping[str, Tensor] = getattr(getattr(self.recipe, name), "tensors", dict)()
            own |= {f"{name}/{key}": tensor for key, tensor in tensors.items()}
        return own

    def stateful(self) -> dict[str, Any]:
        names = ("curriculum", "sampler", "judge", "credit", "objective")
        return {name: part for name in names if hasattr(part := getattr(self.recipe, name), "state_dict")}


def frozen(policy: Policy) -> Policy:
    """A copy that is not trained: the reference of KL penalties."""
    twin = copy.deepcopy(policy)
    twin.module.requires_grad_(False)
    return twin


@contextmanager
def timed(ctx: Context, stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    ctx.log(f"seconds/{stage}", time.perf_counter() - start)


def memory() -> float:
    """MiB in use: the GPU's peak since the start, else this process's resident memory now."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return float(psutil.Process().memory_info().rss / 2**20)


def describe(rollouts: Rollouts, ctx: Context) -> None:
    """Log rewards and lengths of the main rollouts; rows marked ``extras["auxiliary"]`` are reported apart."""
    auxiliary = rollouts.extras.get("auxiliary")
    main = rollouts if auxiliary is None else rollouts.select(~auxiliary)
    rewards = rewards_of(main)
    effective = effective_gradient_ratio(rewards, main.group, tolerance=1e-6)
    ctx.log("reward", rewards.mean())
    ctx.log("effective_groups", effective.prompts)
    ctx.log("effective_samples", effective.samples)
    ctx.log("response_length", main.lengths.float().mean())
    ctx.log("response_tokens", rollouts.lengths.sum())
    for name, values in main.extras.items():
        if name.startswith("reward/"):
            ctx.log(name, values.mean())
    if auxiliary is not None and bool(auxiliary.any()):
        ctx.log("reward_auxiliary", rewards_of(rollouts)[auxiliary].mean())


def drop_idle(batch: Rollouts, ctx: Context) -> tuple[Rollouts, Row]:
    """Leave out rows with zero advantage everywhere; their share of the entropy metric comes from their known log-probabilities."""
    if batch.advantages is None or batch.old_logprobs is None:
        return batch, {}
    busy = (batch.advantages * batch.response_mask).ne(0).any(1)
    if bool(busy.all()):
        return batch, {}
    idle = ~busy
    nll = -(batch.old_logprobs[idle] * batch.response_mask[idle]).sum() / ctx.norm.tokens
    return batch.select(busy), {"entropy": float(nll)}


def micro_batches(batch: Rollouts, tokens: int, together: int = 1) -> Iterator[Rollouts]:
    """Consecutive rows whose real tokens add up to at most ``tokens``; ``together`` rows at the least, and multiples of it."""
    sizes = (batch.prompt_mask.sum(1) + batch.lengths).view(-1, together).sum(1).tolist()
    start, total = 0, 0
    for bundle, size in enumerate(sizes):
        row = together * bundle
        if row > start and total + size > tokens:
            yield batch.select(torch.arange(start, row, device=batch.group.device))
            start, total = row, 0
        total += size
    if start == 0 and sizes:
        yield batch
    elif sizes:
        yield batch.select(torch.arange(start, len(batch), device=batch.group.device))


def make_optimiser(parameters: list[torch.nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimiser == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def rate(step: int, config: TrainConfig) -> float:
    """Learning rate at optimiser step ``step`` as a fraction of ``config.lr``."""
    total = config.steps * config.updates * config.epochs
    if config.warmup and step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, total - config.warmup))
    if config.schedule == "linear":
        return 1 - done
    return 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0
