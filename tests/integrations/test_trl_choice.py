"""Methods that choose prompts, in real TRL training steps: the choices are those of our own curricula on the same rewards."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

trl = pytest.importorskip("trl", reason="needs the trl extra")

import tiny_qwen as tiny  # noqa: E402
from datasets import Dataset  # noqa: E402
from test_trl import LENGTH, RATE, Watched, settings  # noqa: E402
from trl.trainer.grpo_trainer import GRPOTrainer as TrlTrainer  # noqa: E402

from policydist.errors import UsageError  # noqa: E402
from policydist.integrations.hosting import CURRICULUM, keep_rewards  # noqa: E402
from policydist.integrations.trl import GRPOTrainer  # noqa: E402
from policydist.language import methods  # noqa: E402
from policydist.language.policies.hf import TransformersPolicy  # noqa: E402
from policydist.language.prompts import ContextPrompts  # noqa: E402
from policydist.language.recipe import Context, Setting  # noqa: E402
from policydist.language.trainer import TrainConfig, Trainer  # noqa: E402
from policydist.language.types import Sampling  # noqa: E402

EASY, MIXED = "ab", "cdc"
ROWS = [EASY, EASY, EASY, MIXED] * 3
SOURCES = ["easy" if prompt == EASY else "mixed" for prompt in ROWS]


def data(rows: int = len(ROWS)) -> Dataset:
    return Dataset.from_dict({"prompt": ROWS[:rows], "source": SOURCES[:rows]})


def right(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Always 1 on easy prompts, and for a letter a on the others."""
    return [float(prompt == EASY or "a" in text) for prompt, text in zip(prompts, completions, strict=True)]


def trainer(path: Path, method: str, knobs: dict[str, Any], rows: int = len(ROWS), **changes: Any) -> Watched:
    return Watched(
        tiny.model(), right, settings(path, **changes), data(rows), processing_class=tiny.tokenizer(), method=method,
        knobs=knobs,
    )  # fmt: skip


def trained(path: Path, method: str, knobs: dict[str, Any], **changes: Any) -> Watched:
    host = trainer(path, method, knobs, **changes)
    host.train()
    return host


def ours(method: str, knobs: dict[str, Any], rows: int, prompts: int, updates: int, epochs: int) -> Trainer:
    """Our trainer on numbered contexts in place of the data set's rows."""
    module = methods.load(method)
    source = ContextPrompts(rows, SOURCES[:rows])
    recipe = module.build(module.Config(**knobs), Setting(source, keep_rewards, Sampling(LENGTH), prompts, 4))
    config = TrainConfig(lr=RATE, optimiser="sgd", updates=updates, epochs=epochs, steps=10, seed=3)
    return Trainer(TransformersPolicy(tiny.model(), tiny.tokenizer()), recipe, config)


def replayed(host: Watched, own: Trainer) -> list[torch.Tensor]:
    """Our trainer's choices and updates on what TRL sampled, compared with TRL's; the responses a prompt of each batch."""
    counts = []
    for number, seen in enumerate(host.seen):
        own.ctx.step, own.ctx.metrics = number, {}
        prompts = own.recipe.curriculum.select(own.ctx)
        assert torch.equal(seen.judged.index, prompts.index.repeat_interleave(prompts.samples))
        texts = host.processing_class.batch_decode(seen.judged.prompt_ids, skip_special_tokens=True)
        assert texts == [ROWS[row] for row in seen.judged.index.tolist()]
        credited = own.recipe.credit(seen.judged, own.ctx)
        torch.testing.assert_close(seen.credited.advantages, credited.advantages, atol=2e-6, rtol=1e-5)
        own.update(replace(seen.ordered, old_logprobs=None))
        own.recipe.curriculum.observe(credited, own.ctx)
        counts.append(prompts.samples)
    return counts


CASES: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    ("vade", {}, len(ROWS), {"max_steps": 4}),
    ("vade", {"ratio": "sequence"}, len(ROWS), {"steps_per_generation": 4, "max_steps": 6}),
    ("dump", {"kl_coef": 0.0, "window": 20}, len(ROWS), {"max_steps": 4}),
    ("dump", {"kl_coef": 0.0, "column": "source"}, len(ROWS), {"num_iterations": 2, "max_steps": 4}),
    ("knapsack", {"min_count": 4}, 4, {"max_steps": 3}),
]


@pytest.mark.parametrize(("method", "knobs", "rows", "changes"), CASES)
def test_prompts_advantages_and_weights_are_those_of_our_own_trainer(
    tmp_path: Path, method: str, knobs: dict[str, Any], rows: int, changes: dict[str, Any]
) -> None:
    host = trained(tmp_path, method, knobs, rows=rows, **changes)
    steps = host.args.steps_per_generation // host.args.gradient_accumulation_steps
    own = ours(method, knobs, rows, host.args.generation_batch_size // 4, steps, host.num_iterations)
    counts = replayed(host, own)
    assert len(counts) == host.args.max_steps // (steps * host.num_iterations) > 1
    assert {tuple(c.tolist()) for c in counts[:1]} == {(4,) * len(counts[0])}
    assert (len({tuple(c.tolist()) for c in counts}) > 1) == (method == "knapsack")
    for mine, theirs in zip(own.policy.model.parameters(), host.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=3e-6, rtol=1e-4)


def test_several_generations_in_one_optimiser_step_each_see_the_one_before(tmp_path: Path) -> None:
    changes = {"steps_per_generation": 2, "gradient_accumulation_steps": 6, "max_steps": 2}
    host = trained(tmp_path, "vade", {}, **changes)
    replayed(host, ours("vade", {}, len(ROWS), 4, 1, 1))
    assert len(host.seen) == 6


def test_solved_prompts_are_left_for_those_that_teach(tmp_path: Path) -> None:
    """Three rows in four are always solved; by chance they would be three choices in four."""
    host = trained(tmp_path, "vade", {}, max_steps=8)
    late = torch.cat([seen.judged.index for seen in host.seen[4:]])
    assert float((late % 4 == 3).float().mean()) > 0.5
    host = trained(tmp_path, "dump", {"kl_coef": 0.0}, max_steps=8)
    shares = [row["policydist/dump/share/mixed"] for row in host.state.log_history if "loss" in row]
    assert shares[0] == pytest.approx(0.5)
    assert shares[-1] > 0.8
    late = torch.cat([seen.judged.index for seen in host.seen[4:]])
    assert float((late % 4 == 3).float().mean()) > 0.7


@pytest.mark.parametrize(
    ("method", "knobs", "rows"), [("vade", {}, 12), ("dump", {"kl_coef": 0.0}, 12), ("knapsack", {"min_count": 4}, 6)]
)
def test_a_resumed_run_chooses_and_samples_as_the_uninterrupted_one(
    tmp_path: Path, method: str, knobs: dict[str, Any], rows: int
) -> None:
    whole = trained(tmp_path, method, knobs, rows=rows, max_steps=4, save_strategy="steps", save_steps=2)
    second = trainer(tmp_path / "again", method, knobs, rows=rows, max_steps=4)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(second.seen) == 2
    for mine, theirs in zip(second.seen, whole.seen[2:], strict=True):
        assert torch.equal(mine.judged.index, theirs.judged.index)
        assert torch.equal(mine.judged.response_ids, theirs.judged.response_ids)
    assert second.recipe.curriculum.state_dict() == whole.recipe.curriculum.state_dict()
    (tmp_path / "checkpoint-2" / CURRICULUM).unlink()
    with pytest.raises(UsageError, match=f"has no {CURRICULUM}"):
        trainer(tmp_path / "third", method, knobs, rows=rows, max_steps=4).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2")
        )


def test_completions_without_reward_teach_the_curriculum_nothing(tmp_path: Path) -> None:
    def silent_on_easy(prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [None if prompt == EASY else 1.0 for prompt in prompts]

    host = Watched(
        tiny.model(), silent_on_easy, settings(tmp_path, max_steps=3), data(), processing_class=tiny.tokenizer(),
        method="vade",
    )  # fmt: skip
    host.train()
    statistics = host.recipe.curriculum.statistics
    mixed = torch.arange(len(ROWS)) % 4 == 3
    assert not bool(statistics.seen[~mixed].any())
    assert bool(statistics.seen[mixed].any())


def test_evaluation_neither_chooses_nor_teaches(tmp_path: Path) -> None:
    args = settings(tmp_path, eval_strategy="steps", eval_steps=1, num_generations_eval=2, per_device_eval_batch_size=4)
    host = Watched(
        tiny.model(), right, args, data(), eval_dataset=data(4), processing_class=tiny.tokenizer(), method="vade"
    )
    host.train()
    held_out = [seen.judged for seen in host.seen if len(seen.judged) == 4]
    assert len(held_out) == 4
    assert {len(judged.group.unique()) for judged in held_out} == {2}
    assert int(host.recipe.curriculum.statistics.seen.sum()) == 2 * 16


def test_groups_of_unequal_size_are_asked_for_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM is given every n-th row n times over, which with unequal groups would be the wrong prompts."""
    asked = []

    def spy(self: Any, prompt_ids: Any, images: Any, fields: Any, num_generations: int, has: bool = False) -> Any:
        asked.append((num_generations, len(prompt_ids)))
        return plain(self, prompt_ids, images, fields, num_generations, has)

    plain = TrlTrainer._generate_single_turn
    monkeypatch.setattr(TrlTrainer, "_generate_single_turn", spy)
    trained(tmp_path, "knapsack", {"min_count": 4}, rows=4, max_steps=2)
    assert asked == [(4, 16), (1, 16)]


@pytest.mark.slow
def test_two_processes_choose_alike_from_what_both_have_seen(tmp_path: Path) -> None:
    """Each process samples half of every batch; were their choices not the same, half of the prompts would be others."""
    worker = Path(__file__).with_name("trl_worker.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(worker)]
    done = subprocess.run([*command, "vade", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    module = methods.load("vade")
    rows = tiny.dataset()["prompt"]
    setting = Setting(ContextPrompts(len(rows)), keep_rewards, Sampling(LENGTH), 4, 4)
    curriculum = module.build(module.Config(), setting).curriculum
    ctx = Context(TransformersPolicy(tiny.model(), tiny.tokenizer()), seed=3)
    found = torch.load(tmp_path / "seen.pt", weights_only=False)["seen"]
    for ctx.step, seen in enumerate(found):
        assert torch.equal(seen.judged.index, curriculum.select(ctx).index.repeat_interleave(4))
        texts = tiny.tokenizer().batch_decode(seen.judged.prompt_ids, skip_special_tokens=True)
        assert texts == [rows[row] for row in seen.judged.index.tolist()]
        curriculum.observe(seen.credited, ctx)
    assert len(found) == 3


def without_source() -> Dataset:
    return data().remove_columns("source")


REFUSED: list[tuple[str, dict[str, Any], Any, str]] = [
    ("vade", {}, lambda: None, "give it a datasets.Dataset, not NoneType"),
    ("dump", {}, lambda: data().to_iterable_dataset(), "not IterableDataset"),
    ("dump", {}, without_source, "no column source or difficulty to tell sources apart"),
    ("dump", {"column": "level"}, data, "no column level"),
    ("vade", {}, lambda: data(3), "the data set has 3 rows, TRL takes 4 prompts a step"),
    ("knapsack", {"n_low": 5}, data, "n_low"),
    ("knapsack", {"apply": "weight"}, data, "apply=weight"),
    ("vade", {"idle": 2.0}, data, "idle is 2.0"),
]


@pytest.mark.parametrize(("method", "knobs", "make", "words"), REFUSED)
def test_what_cannot_be_chosen_from_is_refused_before_a_model_is_loaded(
    tmp_path: Path, method: str, knobs: dict[str, Any], make: Any, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        GRPOTrainer("no/such-model", right, settings(tmp_path), make(), method=method, knobs=knobs)
