"""verl's own trainer class with our choice of prompts: real config, data set, data loader and advantages; no Ray, no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("verl", reason="needs the verl environment: bash scripts/verl-env.sh")
pytest.importorskip("transfer_queue", reason="needs the verl environment: bash scripts/verl-env.sh")
pytestmark = pytest.mark.verl

import verl  # noqa: E402
from transfer_queue import KVBatchMeta  # noqa: E402
from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base  # noqa: E402
from verl.utils import tensordict_utils as tu  # noqa: E402

from policydist.errors import UsageError  # noqa: E402
from policydist.integrations import verl_trainer as ours  # noqa: E402
from policydist.integrations.hosting import CURRICULUM, keep_rewards  # noqa: E402
from policydist.integrations.verl import Blind  # noqa: E402
from policydist.language import methods  # noqa: E402
from policydist.language.prompts import ContextPrompts  # noqa: E402
from policydist.language.recipe import Context, Setting  # noqa: E402
from policydist.language.types import Sampling  # noqa: E402

ROWS, PROMPTS, SAMPLES = 12, 4, 4
SOURCES = ["easy", "easy", "mixed"] * 4


class Store:
    """Stands for TransferQueue: what was put under a key, field by field."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, Any]] = {}

    def kv_batch_put(self, keys: list[str], partition_id: str, fields: Any) -> KVBatchMeta:
        for number, key in enumerate(keys):
            self.rows.setdefault(key, {}).update({name: value[number] for name, value in fields.items()})
        return KVBatchMeta(keys=keys, tags=[{} for _ in keys], partition_id=partition_id)

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> Any:
        columns: dict[str, Any] = {}
        for name in select_fields:
            found = [self.rows[key][name] for key in keys if name in self.rows[key]]
            if found:
                nested = isinstance(found[0], torch.Tensor)
                columns[name] = torch.nested.as_nested_tensor(found, layout=torch.jagged) if nested else found
        return tu.get_tensordict(columns)


class Workers:
    """The actor's workers, whose weights are not at stake here."""

    def save_checkpoint(self, *given: Any, **named: Any) -> None: ...

    def load_checkpoint(self, *given: Any, **named: Any) -> None: ...


def config(folder: Path, mode: str, *overrides: str) -> Any:
    from datasets import Dataset
    from hydra import compose, initialize_config_dir

    file = folder / "train.parquet"
    prompts = [[{"role": "user", "content": str(row)}] for row in range(ROWS)]
    Dataset.from_dict({"prompt": prompts, "data_source": SOURCES}).to_parquet(str(file))
    given = [
        f"trainer.v1.trainer_mode={mode}", "algorithm.adv_estimator=policydist_grpo", f"data.train_files={file}",
        f"data.val_files={file}", f"data.train_batch_size={PROMPTS}", f"actor_rollout_ref.rollout.n={SAMPLES}",
        "data.seed=3", "data.dataloader_num_workers=0", f"trainer.default_local_dir={folder}",
        "actor_rollout_ref.actor.strategy=fsdp", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose("ppo_trainer", given)


def trainer(folder: Path, monkeypatch: pytest.MonkeyPatch, mode: str, *overrides: str) -> Any:
    store = Store()
    monkeypatch.setattr(trainer_base, "tq", store)
    monkeypatch.setattr(ours, "tq", store)
    made = get_trainer_cls(mode)(config(folder, mode, *overrides))
    made.tokenizer = made.processor = None
    made._init_dataloader()
    made.global_steps, made.actor_rollout_wg = 0, Workers()
    return made


def step(made: Any, number: int) -> tuple[list[int], torch.Tensor]:
    """One batch as verl handles it: fetched, answered, shuffled, filled up; the rows fetched and the rewards by row."""
    batch = made._next_train_batch()
    rows = [int(messages[0]["content"]) for messages in batch["raw_prompt"]]
    draw = torch.Generator().manual_seed(number)
    rewards = (torch.rand(PROMPTS, SAMPLES, generator=draw) < 0.5).float()
    rewards[torch.tensor([SOURCES[row] == "easy" for row in rows])] = 1.0
    keys = [f"{uid}_{sample}_0" for uid in batch["uid"] for sample in range(SAMPLES)]
    for place, key in enumerate(keys):
        length = 1 + place % 3
        scores = torch.zeros(length)
        scores[-1] = rewards.flatten()[place]
        made_row = {
            "uid": key.split("_")[0],
            "response_mask": torch.ones(length, dtype=torch.long),
            "rm_scores": scores,
        }
        trainer_base.tq.rows[key] = made_row
    filler = {"uid": "pad", "response_mask": torch.zeros(1, dtype=torch.long), "rm_scores": torch.zeros(1)}
    trainer_base.tq.rows["pad_0_0"] = filler
    order = torch.randperm(len(keys), generator=draw).tolist()
    shuffled = [keys[place] for place in order] + ["pad_0_0"]
    tags = [{"is_padding": key == "pad_0_0"} for key in shuffled]
    metrics: dict[str, Any] = {}
    made._compute_advantage(KVBatchMeta(keys=shuffled, tags=tags, partition_id="train"), metrics)
    assert any(name.startswith("policydist/") for name in metrics)
    return rows, rewards


def own_curriculum(method: str, **knobs: Any) -> Any:
    module = methods.load(method)
    setting = Setting(ContextPrompts(ROWS, SOURCES), keep_rewards, Sampling(1), PROMPTS, SAMPLES)
    return module.build(module.Config(**knobs), setting)


@pytest.mark.parametrize(("method", "knob"), [("vade", {"kept": 0.5}), ("dump", {"window": 20})])
def test_verl_trains_on_the_prompts_that_our_curriculum_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, knob: dict[str, Any]
) -> None:
    mode = f"policydist_{method}"
    overrides = [f"+trainer.v1.{mode}.{name}={value}" for name, value in knob.items()]
    made = trainer(tmp_path, monkeypatch, mode, *overrides)
    recipe = own_curriculum(method, **knob)
    ctx = Context(Blind(), seed=3)
    late = []
    for ctx.step in range(10):
        rows, rewards = step(made, ctx.step)
        prompts = recipe.curriculum.select(ctx)
        assert rows == prompts.index.tolist()
        group = torch.arange(PROMPTS).repeat_interleave(SAMPLES)
        mask = torch.ones(PROMPTS * SAMPLES, 1, dtype=torch.bool)
        rollouts = ours.outcomes(rewards.view(-1, 1), mask, group, prompts.index[group])
        recipe.curriculum.observe(recipe.credit(rollouts, ctx), ctx)
        late += rows if ctx.step >= 5 else []
    assert sum(SOURCES[row] == "mixed" for row in late) / len(late) > 0.6  # by chance a third
    theirs, mine = made.curriculum.statistics, recipe.curriculum.statistics
    torch.testing.assert_close(theirs.evidence(), mine.evidence())
    if method == "dump":
        torch.testing.assert_close(theirs.learnability(), mine.learnability())


def test_of_an_agents_session_the_last_output_counts() -> None:
    keys = ["b_1_0", "b_0_1", "pad_0_0", "a_10_0", "a_9_0", "b_0_0"]
    batch = KVBatchMeta(keys=keys, tags=[{"is_padding": key.startswith("pad")} for key in keys])
    assert ours.final_rows(batch, [key.split("_")[0] for key in keys], ["a", "b"]) == [4, 3, 1, 0]


def test_a_resumed_run_chooses_as_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(tmp_path, monkeypatch, "policydist_vade")
    for made.global_steps in (1, 2):
        step(made, made.global_steps)
    made._save_checkpoint()
    expected = [step(made, number)[0] for number in (3, 4)]
    again = trainer(tmp_path, monkeypatch, "policydist_vade", f"trainer.resume_from_path={tmp_path}/global_step_2",
                    "trainer.resume_mode=resume_path")  # fmt: skip
    again._load_checkpoint()
    assert [step(again, number)[0] for number in (3, 4)] == expected
    (tmp_path / "global_step_2" / CURRICULUM).unlink()
    with pytest.raises(UsageError, match=f"has no {CURRICULUM}"):
        trainer(tmp_path, monkeypatch, "policydist_vade", f"trainer.resume_from_path={tmp_path}/global_step_2",
                "trainer.resume_mode=resume_path")._load_checkpoint()  # fmt: skip


REFUSED = [
    ("policydist_vade", "algorithm.adv_estimator=gae", "adv_estimator=policydist_grpo, not gae"),
    ("policydist_vade", "actor_rollout_ref.rollout.n=1", "rollout.n must be at least 2"),
    ("policydist_vade", "data.gen_batch_size=1", "data.gen_batch_size"),
    ("policydist_vade", "data.train_batch_size=13", "the data set has 12 rows, verl takes 13 prompts a step"),
    ("policydist_vade", "+trainer.v1.policydist_vade.clip_high=0.3", "actor.clip_ratio_high"),
    ("policydist_vade", "+trainer.v1.policydist_vade.keptt=0.3", "kept"),
    ("policydist_dump", "+trainer.v1.policydist_dump.column=level", "no column level"),
    ("policydist_dump", "trainer.v1.sampler.sync_refill_failed_groups=true", "sync_refill_failed_groups"),
]


@pytest.mark.parametrize(("mode", "override", "words"), REFUSED)
def test_settings_that_leave_no_choice_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, override: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        trainer(tmp_path, monkeypatch, mode, override)
