"""Any method whose addition is an advantage, a loss or a choice of prompts, inside TRL's GRPO trainer (trl 1.16).

    from policydist.integrations.trl import GRPOTrainer

    GRPOTrainer(model=..., reward_funcs=..., args=GRPOConfig(...), train_dataset=..., method="bnpo").train()

TRL tokenises, generates, judges, logs, saves and distributes as always; the advantages come from the method's own
``credit``, the loss from its own ``objective`` and the prompts of vade, dump and knapsack from their own ``curriculum``,
the very objects that `policydist train` uses.
TRL's ``loss_type="bnpo"`` is a token mean and has nothing to do with ``method="bnpo"`` (Beta normalisation, arXiv
2506.02864).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor

from policydist.errors import MissingExtraError, PolicydistError, UsageError
from policydist.integrations.hosting import CHOOSING, CURRICULUM, HostedRows, hosted
from policydist.language.objectives import LossConfig
from policydist.language.recipe import Context, Norm
from policydist.language.types import Prompts, Rollouts
from policydist.language.world import World

try:
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer as TrlTrainer

    from policydist.integrations.trl_model import TrlPolicy, TrlWorld, from_trl
except ModuleNotFoundError as absent:
    if absent.name != "trl":
        raise
    raise MissingExtraError("trl", "trl") from None

DECIDED = {
    "loss_type": "aggregation",
    "epsilon": "clip_low",
    "epsilon_high": "clip_high",
    "beta": "kl_coef",
    "delta": "dual_clip",
    "entropy_coef": "entropy_coef",
    "scale_rewards": "scale",
    "importance_sampling_level": None,
    "multi_objective_aggregation": None,
    "use_adaptive_entropy": None,
    "top_entropy_quantile": None,
    "off_policy_mask_threshold": None,
    "use_bias_correction_kl": None,
}
"""Settings of GRPOConfig that the method decides, and the knob to set instead, if there is one."""
STATE = "policydist_state.json"


class GRPOTrainer(TrlTrainer):
    """TRL's trainer with the advantages, the loss and the choice of prompts of one of our methods.

    ``method`` is a slug (bnpo, dapo, dcpo, dr_grpo, dump, gspo, grpo, knapsack, reinforce, reinforce_pp, rloo, vade),
    ``knobs`` its settings as `policydist show SLUG` lists them; everything else is TRL's. The loss is normalised over
    the whole optimiser step, all processes and all accumulated micro-batches. Several updates a batch come from
    GRPOConfig (``steps_per_generation``, ``num_iterations``), a KL penalty from ``knobs={"kl_coef": ...}``, not ``beta``.

    Raises:
        UsageError: unknown method or knob; a method that is more than an advantage or a loss (aepo, ppo, sft, dapo's
            dynamic sampling); a GRPOConfig setting that the method decides; a vision or mixture-of-experts model; no
            rows to choose from where the method chooses.
    """

    model: Any
    args: Any
    num_generations: int
    num_generations_eval: int
    _logs: dict[str, Any]

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        *,
        method: str,
        knobs: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        args = GRPOConfig(f"policydist-{method}") if args is None else args
        if args.max_completion_length is None:
            raise UsageError("GRPOConfig(max_completion_length=None): set the longest completion that is allowed")
        rows = rows_to_choose(train_dataset, args, method) if method in CHOOSING else None
        self.knobs, self.recipe = hosted(method, knobs or {}, "TRL", args.max_completion_length, rows)
        check_settings(args, method, self.knobs)
        args = copy.copy(args)
        args.beta = self.knobs.kl_coef  # makes TRL load and score the reference policy
        self._past = Past()
        self._sizes: list[Norm] = []
        self._rewards: Tensor | None = None
        self._prompts: Prompts | None = None
        """What the curriculum chose for the present batch; None where TRL chooses, and in evaluation."""
        self._choices = 0
        super().__init__(model, reward_funcs, args, train_dataset, **others)
        self._rows = None if rows is None else self._remove_unused_columns(train_dataset, "Training")
        if self._is_vlm:
            raise UsageError("policydist's TRL trainer trains text models; this one takes images")
        if self.aux_loss_enabled:
            raise UsageError(f"{method} has no loss that balances experts: set GRPOConfig(router_aux_loss_coef=0.0)")

    def _calculate_rewards(self, *given: Any) -> Float[Tensor, "N K"]:
        """TRL's own, remembered: all processes' rewards by reward function, NaN where one does not apply."""
        self._rewards = super()._calculate_rewards(*given)
        return self._rewards

    def _choose(self, count: int) -> list[dict[str, Any]]:
        """This process's ``count`` rows of what the recipe's curriculum chooses now.

        Chosen where responses are about to be sampled and not in TRL's data loader, which reads a batch or more ahead:
        every choice thus knows of all earlier rewards. All processes hold the same statistics and choose alike.
        """
        ctx = dataclasses.replace(self._context(self.model, World()), step=self._choices)
        self._prompts = self.recipe.curriculum.select(ctx)
        self._choices += 1
        for name, value in ctx.metrics.items():
            self._log(name, value)
        chosen = self._prompts.index.repeat_interleave(self._prompts.samples).tolist()
        assert self._rows is not None
        assert len(chosen) == count * self.accelerator.num_processes
        start = self.accelerator.process_index * count
        return send_to_device([self._rows[row] for row in chosen[start : start + count]], self.accelerator.device)

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> Any:
        """TRL's own. vLLM is given every ``num_generations``-th row, which holds no prompt of groups of other sizes."""
        if self._prompts is not None and bool((self._prompts.samples != num_generations).any()):
            num_generations = 1
        return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, has_tool_images)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._prompts = None
        if self._rows is not None and self.model.training:
            inputs = self._choose(len(inputs))
        output = super()._generate_and_score_completions(inputs)
        everything = self._credit(self._judged(output))
        count, width = output["completion_ids"].shape
        start = self.accelerator.process_index * count
        assert everything.advantages is not None
        output["advantages"] = everything.advantages[start : start + count, :width]
        self._relog(everything)
        return output

    def _judged(self, output: dict[str, Any]) -> Rollouts:
        """All processes' completions with their rewards; rows in TRL's order, groups of consecutive rows. ``index`` is the
        row of the data set where the curriculum chose it, else the group."""
        device, training = self.accelerator.device, self.model.training
        joined = World(self.accelerator).join(from_trl(output)).to(device)
        assert self._rewards is not None
        row = torch.arange(len(joined), device=device)
        group = row // (self.num_generations if training else self.num_generations_eval)
        index = group
        if self._prompts is not None:
            group = torch.arange(len(self._prompts)).repeat_interleave(self._prompts.samples).to(device)
            index = self._prompts.index.to(device)[group]
        names = [f"reward/{name}" for name in self.reward_func_names]
        extras = dict(zip(names, self._rewards.unbind(1), strict=True)) | {"row": row}
        rewards = (self._rewards * self.reward_weights.to(device)).nansum(1)
        return dataclasses.replace(joined, group=group, index=index, rewards=rewards, advantages=None, extras=extras)

    @torch.no_grad()
    def _credit(self, everything: Rollouts) -> Rollouts:
        """The recipe's judge and credit over the global batch, from which its curriculum learns. Completions without any
        reward get advantage 0 and teach the curriculum nothing.

        Raises:
            UsageError: a reward function is silent on some completions, and the method takes its rewards by themselves.
            PolicydistError: the credit leaves out rows or yields an advantage that is not finite.
        """
        ctx = self._context(self.model, TrlWorld(self.accelerator, everything))
        if self.model.training:
            self._past = self._past.settled()
        ctx.entropy = self._past.entropy
        assert self._rewards is not None
        known = ~self._rewards.isnan().all(1)
        advantages = torch.zeros(everything.response_ids.shape, device=known.device)
        if not bool(known.any()):  # TRL has warned and goes on; statistics of no rewards do not exist
            return dataclasses.replace(everything, advantages=advantages)
        if getattr(self.knobs, "decompose", False) and bool(self._rewards[known].isnan().any()):
            raise UsageError("knob decompose: every reward function must score every completion, one returned None")
        credited = self.recipe.credit(self.recipe.judge(everything.select(known), ctx), ctx)
        found = credited.advantages
        if found is None or len(found) != int(known.sum()) or not bool(found.isfinite().all()):
            raise PolicydistError(
                f"step {self.state.global_step + 1}: the method's credit gave no finite advantage to every completion; "
                "does each reward function return a number for each of them?"
            )
        advantages[known] = found.to(advantages)
        if self.model.training:
            self.recipe.curriculum.observe(credited, ctx)
        for name, value in ctx.metrics.items():
            self._log(name, value)
        return dataclasses.replace(everything, advantages=advantages)

    def _relog(self, everything: Rollouts) -> None:
        """Put the true advantages (mean over a completion's tokens) into TRL's table of completions."""
        assert everything.advantages is not None
        means = everything.advantages.sum(1) / everything.response_mask.sum(1).clamp(min=1)
        logged = self._logs["advantages"]
        for _ in range(min(len(means), len(logged))):
            logged.pop()
        logged.extend(means.tolist())

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self.model.training and self._buffered_inputs is not before:
            self._sizes = [self._size(batch) for batch in self._buffered_inputs]
        return inputs

    def _size(self, inputs: dict[str, Any]) -> Norm:
        """Tokens, sequences and width of a micro-batch over all processes."""
        part = from_trl(inputs)
        mine = torch.tensor([[part.response_mask.sum(), *part.response_ids.shape]], device=self.accelerator.device)
        every = self.accelerator.gather(mine)
        return Norm(float(every[:, 0].sum()), float(every[:, 1].sum()), int(every[:, 2].max()))

    def _norm(self) -> Norm:
        """Denominators of the current optimiser step.

        Where a step spans several generation batches, the later ones are unknown yet and taken to be like this one.
        """
        known, steps = self._sizes, self.current_gradient_accumulation_steps
        factor = steps / len(known)
        if len(known) % steps == 0:
            start = self._step % len(known) // steps * steps
            known, factor = known[start : start + steps], 1.0
        tokens, sequences = sum(size.tokens for size in known), sum(size.sequences for size in known)
        return Norm(max(1.0, tokens * factor), sequences * factor, max(size.max_length for size in known))

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The recipe's objective on one micro-batch; over micro-batches and processes the parts add up to the loss."""
        batch, training = from_trl(inputs), self.model.training
        ctx = self._context(model, World())
        local = Norm(max(1.0, float(batch.response_mask.sum())), float(len(batch)), batch.response_ids.shape[1])
        ctx.norm = self._norm() if training else local
        loss, numbers = self.recipe.objective(ctx.policy, batch, ctx)
        stacked = torch.stack([value.detach().float() for value in numbers.values()])
        totals = dict(zip(numbers, self.accelerator.reduce(stacked, reduction="sum").tolist(), strict=True))
        processes = self.accelerator.num_processes
        if training:
            steps = self.current_gradient_accumulation_steps
            self._past = self._past.with_part(totals.get("entropy", math.nan), 1 / steps)
            scale = float(steps)
        else:
            scale = 1 / processes
        for name, total in totals.items():
            self._log(name, total * scale)
        return loss * processes if training else loss

    def _context(self, model: Any, world: World) -> Context:
        """Step, policy and updates a batch; with one update, the policy being trained is the one that sampled."""
        every = self.args.steps_per_generation * self.num_iterations
        aligned = self.args.gradient_accumulation_steps % every == 0
        updates = 1 if aligned else max(2, every // self.args.gradient_accumulation_steps)
        policy = TrlPolicy(self, model)
        return Context(policy, self.args.seed, world=world, step=self.state.global_step, updates=updates)

    def _log(self, name: str, value: float) -> None:
        self._metrics["train" if self.model.training else "eval"][f"policydist/{name}"].append(value)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            (folder / STATE).write_text(json.dumps(dataclasses.asdict(self._past)))
            if self._rows is not None:
                state = {"choices": self._choices, "curriculum": self.recipe.curriculum.state_dict()}
                (folder / CURRICULUM).write_text(json.dumps(state))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / STATE).is_file():
            self._past = Past(**json.loads((Path(checkpoint) / STATE).read_text()))
        if checkpoint is not None and self._rows is not None:
            file = Path(checkpoint) / CURRICULUM
            if not file.is_file():
                raise UsageError(f"{checkpoint} has no {CURRICULUM}: it is not from a run whose method chooses prompts")
            state = json.loads(file.read_text())
            self._choices = state["choices"]
            self.recipe.curriculum.load_state_dict(state["curriculum"])


@dataclasses.dataclass(frozen=True)
class Past:
    """The sampled entropy (nats) of the previous update phase, and the running sum of the present one over ``weight``
    optimiser steps."""

    entropy: float = 0.0
    total: float = 0.0
    weight: float = 0.0

    def with_part(self, entropy: float, weight: float) -> Past:
        """After one more micro-batch."""
        return Past(self.entropy, self.total + entropy, self.weight + weight)

    def settled(self) -> Past:
        """At the start of the next rollouts: the present phase becomes the previous one."""
        return Past(self.total / self.weight) if self.weight else self


def check_settings(args: GRPOConfig, method: str, config: LossConfig) -> None:
    """Refuse what would be silently ignored.

    Raises:
        UsageError: naming the setting of GRPOConfig and the knob that takes its place.
    """
    knobs = {field.name for field in dataclasses.fields(config)}
    for field in dataclasses.fields(args):
        value = getattr(args, field.name)
        if field.name in DECIDED and value != field.default:
            knob = DECIDED[field.name]
            mend = f"set knobs={{{knob!r}: ...}}" if knob in knobs else f"leave it at {field.default!r}"
            raise UsageError(f"GRPOConfig({field.name}={value!r}) would be ignored, {method} decides it: {mend}")
    if method == "dcpo" and args.temperature != 1:
        raise UsageError(f"dcpo tilts the policy at temperature 1, not GRPOConfig(temperature={args.temperature})")


def rows_to_choose(data: Any, args: Any, method: str) -> HostedRows:
    """The data set, and what TRL takes of it a generation batch.

    Raises:
        UsageError: there are no rows to choose from: no data set, or a stream.
    """
    if not isinstance(data, Dataset):
        raise UsageError(
            f"{method} chooses among all rows of train_dataset: give it a datasets.Dataset, not {type(data).__name__}"
        )
    return HostedRows(data, args.generation_batch_size // args.num_generations, args.num_generations)
