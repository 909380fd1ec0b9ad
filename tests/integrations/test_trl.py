"""Real TRL training steps, and the same steps by our own trainer on TRL's batches."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl", reason="needs the trl extra")

from policydist.errors import PolicydistError, UsageError  # noqa: E402
from policydist.functional import bnpo_advantage  # noqa: E402
from policydist.integrations.hosting import HostedPrompts, hosted, keep_rewards  # noqa: E402
from policydist.integrations.trl import STATE, GRPOTrainer, Past  # noqa: E402
from policydist.integrations.trl_model import from_trl  # noqa: E402
from policydist.language import methods  # noqa: E402
from policydist.language.policies.hf import TransformersPolicy  # noqa: E402
from policydist.language.recipe import Setting  # noqa: E402
from policydist.language.trainer import TrainConfig, Trainer  # noqa: E402
from policydist.language.types import Rollouts, Sampling  # noqa: E402
import tiny_qwen as tiny  # noqa: E402

LENGTH = 8
RATE = 0.05


@dataclass
class Seen:
    """One generation batch: judged, credited, and as cut into micro-batches."""

    judged: Rollouts
    credited: Rollouts
    ordered: Rollouts | None = None


class Watched(GRPOTrainer):
    """Remembers every generation batch."""

    def _credit(self, everything: Rollouts) -> Rollouts:
        credited = super()._credit(everything)
        self.__dict__.setdefault("seen", []).append(Seen(everything, credited))
        return credited

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        inputs = super()._prepare_inputs(generation_batch)
        if self.seen[-1].ordered is None:
            self.seen[-1].ordered = Rollouts.cat([from_trl(batch) for batch in self._buffered_inputs])
        return inputs


def settings(path: Path, **changes: Any) -> Any:
    plain: dict[str, Any] = {
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
        "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4, "seed": 3,
        "max_completion_length": LENGTH, "max_steps": 2, "learning_rate": RATE, "optim": "sgd",
        "lr_scheduler_type": "constant", "gradient_checkpointing": False, "bf16": False,
    }  # fmt: skip
    return trl.GRPOConfig(str(path), **{**plain, **changes})


def trained(path: Path, method: str, knobs: dict[str, Any] | None = None, model: Any = None, **changes: Any) -> Watched:
    trainer = Watched(
        tiny.model() if model is None else model,
        changes.pop("reward_funcs", tiny.has_a),
        settings(path, **changes),
        tiny.dataset(),
        processing_class=tiny.tokenizer(),
        method=method,
        knobs=knobs,
    )
    trainer.train()
    return trainer


def ours(method: str, knobs: dict[str, Any], updates: int = 1, epochs: int = 1) -> Trainer:
    module = methods.load(method)
    setting = Setting(HostedPrompts(), keep_rewards, Sampling(LENGTH))
    recipe = module.build(module.Config(**knobs), setting)
    config = TrainConfig(lr=RATE, optimiser="sgd", updates=updates, epochs=epochs, steps=10)
    return Trainer(TransformersPolicy(tiny.model(), tiny.tokenizer()), recipe, config)


CASES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("grpo", {"clip_high": 0.001, "clip_low": 0.001}, {"steps_per_generation": 4, "max_steps": 2}),
    ("bnpo", {}, {}),
    ("dcpo", {}, {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 4, "temperature": 1.0}),
    ("gspo", {}, {"num_iterations": 2, "max_steps": 2}),
    ("dr_grpo", {"entropy_coef": 0.02}, {"max_steps": 1}),
    ("reinforce_pp", {"gamma": 0.9}, {"max_steps": 1}),
    ("rloo", {}, {"max_steps": 1, "mask_truncated_completions": True}),
    ("dapo", {"dynamic_sampling": False, "overlong_buffer": 5}, {"max_steps": 1}),
]


@pytest.mark.parametrize(("method", "knobs", "changes"), CASES, ids=[case[0] for case in CASES])
def test_training_through_trl_is_training_by_our_own_trainer(
    tmp_path: Path, method: str, knobs: dict[str, Any], changes: dict[str, Any]
) -> None:
    host = trained(tmp_path, method, knobs, **changes)
    steps = host.args.steps_per_generation // host.args.gradient_accumulation_steps
    own = ours(method, knobs, updates=steps, epochs=host.num_iterations)
    losses = []
    for seen in host.seen:
        own.ctx.metrics = {}
        credited = own.recipe.credit(own.recipe.judge(seen.judged, own.ctx), own.ctx)
        torch.testing.assert_close(seen.credited.advantages, credited.advantages, atol=2e-6, rtol=1e-5)
        assert bool(credited.advantages.ne(0).any())
        own.update(replace(seen.ordered, old_logprobs=None))
        losses.append(own.ctx.metrics["loss"])
    logged = [row["loss"] for row in host.state.log_history if "loss" in row]
    per_batch = torch.tensor(logged).view(len(losses), -1).mean(1)
    torch.testing.assert_close(per_batch, torch.tensor(losses), atol=2e-6, rtol=1e-4)
    moved = 0.0
    for (name, mine), theirs, start in zip(
        own.policy.model.named_parameters(), host.model.parameters(), tiny.model().parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, atol=3e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
        moved += float((mine - start).abs().sum())
    assert moved > 0.01
