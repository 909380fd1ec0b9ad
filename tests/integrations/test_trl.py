"""Real TRL training steps, and the same steps by our own trainer on TRL's batches."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl", reason="needs the trl extra")

import tiny_qwen as tiny  # noqa: E402

from policydist.errors import UsageError  # noqa: E402
from policydist.functional import bnpo_advantage  # noqa: E402
from policydist.integrations.hosting import HostedPrompts, hosted, keep_rewards  # noqa: E402
from policydist.integrations.trl import STATE, GRPOTrainer, Past  # noqa: E402
from policydist.integrations.trl_model import from_trl  # noqa: E402
from policydist.language import methods  # noqa: E402
from policydist.language.policies.hf import TransformersPolicy  # noqa: E402
from policydist.language.recipe import Setting  # noqa: E402
from policydist.language.trainer import TrainConfig, Trainer  # noqa: E402
from policydist.language.types import Rollouts, Sampling  # noqa: E402

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
    ("reinforce", {}, {"max_steps": 1}),
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
        moved += float((mine - start).detach().abs().sum())
    assert moved > 0.01


def test_a_kl_penalty_takes_trls_reference_model(tmp_path: Path) -> None:
    """The reference is read from disk by TRL, copied in memory by our trainer; both must give the same step."""
    tiny.model().save_pretrained(tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    knobs = {"kl_coef": 0.3, "dual_clip": None}
    host = trained(tmp_path / "out", "grpo", knobs, model=str(tmp_path / "model"))
    own = ours("grpo", knobs)
    for seen in host.seen:
        own.update(replace(seen.ordered, old_logprobs=None, extras={}))
    logged = [row for row in host.state.log_history if "loss" in row]
    assert own.ctx.metrics["loss"] == pytest.approx(logged[-1]["loss"], abs=2e-6)
    assert own.ctx.metrics["kl"] == pytest.approx(logged[-1]["policydist/kl"], abs=2e-6)
    assert logged[-1]["policydist/kl"] > 1e-4
    for mine, theirs in zip(own.policy.model.parameters(), host.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=3e-6, rtol=1e-4)


def native(path: Path, **changes: Any) -> Any:
    trainer = trl.GRPOTrainer(
        tiny.model(), tiny.has_a, settings(path, **changes), tiny.dataset(), processing_class=tiny.tokenizer()
    )
    trainer.train()
    return trainer


def test_grpo_is_trls_own_grpo_and_bnpo_is_not_trls_bnpo(tmp_path: Path) -> None:
    changes = {"max_steps": 2, "num_iterations": 2, "epsilon": 0.2}
    theirs = native(tmp_path, loss_type="dapo", **changes)
    mine = trained(tmp_path, "grpo", {"eps": 1e-4}, **changes)
    for one, other in zip(mine.model.parameters(), theirs.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=3e-6, rtol=1e-4)
    losses = [[row["loss"] for row in host.state.log_history if "loss" in row] for host in (mine, theirs)]
    assert losses[0] == pytest.approx(losses[1], abs=3e-6)
    named_alike = native(tmp_path, loss_type="bnpo", **changes)
    beta = trained(tmp_path, "bnpo", **changes)
    gap = torch.tensor(list(beta._logs["advantages"])) - torch.tensor(list(named_alike._logs["advantages"]))
    assert float(gap.abs().max()) > 0.1
    seen = beta.seen[0]
    expected, _ = bnpo_advantage(seen.judged.rewards, seen.judged.group)
    torch.testing.assert_close(torch.tensor(list(beta._logs["advantages"])), expected)
    alike = torch.tensor(list(named_alike._logs["advantages"]))
    torch.testing.assert_close(alike, torch.tensor(list(theirs._logs["advantages"])))


def test_completions_without_reward_do_not_count(tmp_path: Path) -> None:
    def silent_on_b(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if text.startswith("b") else float("a" in text) for text in completions]

    host = trained(tmp_path, "rloo", reward_funcs=silent_on_b, max_steps=1)
    seen = host.seen[0]
    silent = torch.tensor([text.startswith("b") for text in host._logs["completion"]])
    assert 0 < int(silent.sum()) < len(silent)
    advantages = seen.credited.advantages
    assert bool((advantages[silent] == 0).all())
    for g in seen.judged.group.unique():
        rows = (seen.judged.group == g) & ~silent
        rewards, n = seen.judged.rewards[rows], int(rows.sum())
        expected = (rewards - rewards.mean()) * n / max(n - 1, 1)
        torch.testing.assert_close(advantages[rows][:, 0], expected * seen.judged.response_mask[rows][:, 0])


@pytest.mark.parametrize("method", ["bnpo", "dcpo", "grpo", "reinforce_pp"])
def test_a_batch_without_any_reward_changes_nothing(tmp_path: Path, method: str) -> None:
    host = trained(tmp_path, method, reward_funcs=lambda completions, **columns: [None] * len(completions), max_steps=1)
    assert bool((host.seen[0].credited.advantages == 0).all())
    for now, start in zip(host.model.parameters(), tiny.model().parameters(), strict=True):
        torch.testing.assert_close(now, start, atol=0.0, rtol=0.0)


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    """Evaluation credits its own groups; the entropy that dcpo steers by is that of training alone."""
    args = settings(tmp_path, eval_strategy="steps", eval_steps=1, num_generations_eval=2, per_device_eval_batch_size=4)
    data = tiny.dataset()
    host = Watched(
        tiny.model(), tiny.has_a, args, data, eval_dataset=data.select(range(4)), processing_class=tiny.tokenizer(),
        method="dcpo",
    )  # fmt: skip
    host.train()
    rows = host.state.log_history
    trained_at = [row["policydist/entropy"] for row in rows if "policydist/entropy" in row]
    steered_by = [row["policydist/dcpo/entropy"] for row in rows if "policydist/dcpo/entropy" in row]
    assert steered_by == pytest.approx([0.0, trained_at[0]])
    assert trained_at[1] == pytest.approx(host._past.total)
    held_out = [row for row in rows if "eval_loss" in row]
    assert len(held_out) == 2
    assert held_out[0]["eval_policydist/entropy"] != pytest.approx(trained_at[0])
    assert {len(seen.judged.group.unique()) for seen in host.seen if len(seen.judged) == 4} == {2}


def test_decomposed_bnpo_sees_each_reward_function(tmp_path: Path) -> None:
    rewards = [tiny.has_a, tiny.short]
    host = trained(tmp_path, "bnpo", {"decompose": True}, reward_funcs=rewards, max_steps=1)
    seen = host.seen[0]
    parts = [bnpo_advantage(seen.judged.extras[f"reward/{f.__name__}"], seen.judged.group)[0] for f in rewards]
    expected = (sum(parts) / 2).unsqueeze(1) * seen.judged.response_mask
    torch.testing.assert_close(seen.credited.advantages, expected)

    def sometimes(completions: list[str], **columns: Any) -> list[float | None]:
        return [None if text.startswith("b") else 1.0 for text in completions]

    with pytest.raises(UsageError, match="every reward function must score every completion"):
        trained(tmp_path, "bnpo", {"decompose": True}, reward_funcs=[tiny.has_a, sometimes], max_steps=1)


def test_dcpos_entropy_survives_a_resume(tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    first = trained(tmp_path, "dcpo", **changes)
    saved = Past(**json.loads((tmp_path / "checkpoint-1" / STATE).read_text())).settled()
    assert saved.entropy == pytest.approx(first.state.log_history[0]["policydist/entropy"], rel=1e-5)
    second = Watched(
        tiny.model(), tiny.has_a, settings(tmp_path, **{**changes, "max_steps": 2}), tiny.dataset(),
        processing_class=tiny.tokenizer(), method="dcpo",
    )  # fmt: skip
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    row = next(row for row in reversed(second.state.log_history) if "policydist/dcpo/entropy" in row)
    assert row["policydist/dcpo/entropy"] == pytest.approx(saved.entropy)
    assert len(second.seen) == 1


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("aepo", {}, {}, "aepo cannot run inside TRL: it needs a second, hotter or colder, sampling pass"),
    ("ppo", {}, {}, "a value head"),
    ("sft", {}, {}, "responses from the data"),
    ("dapo", {}, {}, "dynamic sampling"),
    ("bnpoo", {}, {}, "did you mean bnpo"),
    ("bnpo", {"cup": 1.0}, {}, "cap"),
    ("grpo", {}, {"epsilon": 0.3}, "clip_low"),
    ("grpo", {}, {"beta": 0.1}, "kl_coef"),
    ("bnpo", {}, {"loss_type": "bnpo"}, "aggregation"),
    ("bnpo", {}, {"scale_rewards": "batch"}, "leave it at 'group'"),
    ("gspo", {}, {"importance_sampling_level": "sequence"}, "gspo decides it"),
    ("dcpo", {}, {"temperature": 0.9}, "temperature 1"),
]


@pytest.mark.parametrize(("method", "knobs", "changes", "words"), REFUSED)
def test_what_would_be_wrong_or_ignored_is_refused_before_a_model_is_loaded(
    tmp_path: Path, method: str, knobs: dict[str, Any], changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        GRPOTrainer("no/such-model", tiny.has_a, settings(tmp_path, **changes), method=method, knobs=knobs)


def test_every_method_is_taken_or_refused_with_its_reason() -> None:
    refused = {}
    for name in methods.names():
        try:
            hosted(name, {"dynamic_sampling": False} if name == "dapo" else {}, "TRL", LENGTH)
        except UsageError as refusal:
            refused[name] = str(refusal)
    assert all(text.startswith(f"{name} cannot run inside TRL") for name, text in refused.items())
    assert {"aepo", "ppo", "sft"} <= refused.keys()
    taken = {"bnpo", "dapo", "dcpo", "dr_grpo", "gspo", "grpo", "reinforce", "reinforce_pp", "rloo"}
    assert not taken & refused.keys()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dcpo"])
def test_two_processes_train_as_one(tmp_path: Path, method: str) -> None:
    """Two gloo processes with unequal completions each; our trainer, in this one, on what they sampled together."""
    worker = Path(__file__).with_name("trl_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker)]
    done = subprocess.run([*command, method, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = torch.load(tmp_path / "seen.pt", weights_only=False)
    own = ours(method, {})
    for seen, loss in zip(found["seen"], found["losses"], strict=True):
        own.ctx.metrics = {}
        credited = own.recipe.credit(seen.judged, own.ctx)
        torch.testing.assert_close(seen.credited.advantages, credited.advantages, atol=2e-6, rtol=1e-5)
        own.update(credited)
        assert own.ctx.metrics["loss"] == pytest.approx(loss, abs=3e-6)
    assert len(seen.judged) == 16
    state = own.policy.model.state_dict()
    for name, theirs in found["weights"].items():
        torch.testing.assert_close(state[name], theirs, atol=5e-6, rtol=1e-4)
