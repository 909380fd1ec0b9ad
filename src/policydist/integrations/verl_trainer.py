"""verl's synchronous trainer with prompts that one of our methods chooses (verl 0.9, its v1 trainer).

    export VERL_USE_EXTERNAL_MODULES=policydist.integrations.verl_trainer
    python -m verl.trainer.main_ppo trainer.v1.trainer_mode=policydist_vade algorithm.adv_estimator=policydist_grpo …

Importing this module registers the trainer modes ``policydist_vade`` and ``policydist_dump``. Everything but the choice of
rows is verl's: before each batch the method's own ``curriculum``, the object that `policydist train` uses, selects them, and
once verl has advantages it observes them. The knobs of the choice go to ``+trainer.v1.policydist_vade.<knob>=…``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from policydist.errors import MissingExtraError, UsageError
from policydist.integrations.hosting import CURRICULUM, HostedRows, hosted
from policydist.integrations.verl import LOSS_SETTINGS, Blind, outcomes
from policydist.language.recipe import Context

try:
    import transfer_queue as tq
    from verl.trainer.ppo.v1.trainer_base import collate_fn, register_trainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
except ModuleNotFoundError as absent:
    if absent.name == "transfer_queue":
        raise UsageError("verl's trainer needs the package TransferQueue: pip install 'verl[verl-core]'") from None
    if absent.name != "verl":
        raise
    raise MissingExtraError("verl", "verl") from None

ESTIMATORS = ("grpo", "policydist_grpo")


class ChoosingTrainer(PPOTrainerSync):
    """What the trainer modes have in common; ``method`` is the one whose curriculum chooses.

    Raises:
        UsageError: settings under which verl fetches prompts one by one, or lets no group differ within; an advantage
            other than GRPO's; a knob that does not exist or belongs to the loss; rows that name no source (dump).
    """

    method: str

    def __init__(self, config: Any) -> None:
        self.knobs = choice_knobs(self.method, config)
        config.trainer.v1.trainer_mode = "sync"  # verl decides by this name what a trainer can do
        self.choices = 0
        self.row_of: dict[str, int] = {}
        self.choice_metrics: dict[str, float] = {}
        super().__init__(config)

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        data, samples = self.config.data, self.config.actor_rollout_ref.rollout.n
        # verl's data set reads messages and images of every row; the table behind it has the columns as they are.
        table: Any = getattr(self.train_dataset, "dataframe", self.train_dataset)
        rows = HostedRows(table, data.train_batch_size, samples)
        _, recipe = hosted(self.method, self.knobs, "verl", 1, rows)
        self.curriculum = recipe.curriculum

    def _context(self) -> Context:
        return Context(Blind(), seed=self.config.data.get("seed") or 0, step=self.choices)

    def _next_train_batch(self, num_prompts: int | None = None) -> Any:
        """The rows that the curriculum chooses now, in place of the next ones of verl's data loader."""
        ctx = self._context()
        rows = self.curriculum.select(ctx).index.tolist()
        self.choices += 1
        self.choice_metrics = {f"policydist/{name}": value for name, value in ctx.metrics.items()}
        self.train_dataloader_it = iter([collate_fn([self.train_dataset[row] for row in rows])])
        batch = super()._next_train_batch(num_prompts)
        self.row_of = dict(zip(list(batch["uid"]), rows, strict=True))
        return batch

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """verl's own; then the curriculum learns from what came back."""
        done = super()._compute_advantage(batch, metrics)
        metrics.update(self.choice_metrics)
        fields = ["uid", "response_mask", "rm_scores", "advantages"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        uids, mask, scores, advantages = list(data["uid"]), *(data[name].to_padded_tensor(0) for name in fields[1:])
        rows = final_rows(batch, uids, list(self.row_of))
        index = torch.tensor([self.row_of[uids[row]] for row in rows])
        rollouts = outcomes(scores[rows], mask[rows].bool(), index, index, advantages[rows])
        self.curriculum.observe(rollouts, self._context())
        return done

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        state = {"choices": self.choices, "curriculum": self.curriculum.state_dict()}
        (self._folder() / CURRICULUM).write_text(json.dumps(state))

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.global_steps == 0:
            return
        file = self._folder() / CURRICULUM
        if not file.is_file():
            raise UsageError(f"{file.parent} has no {CURRICULUM}: it is not from a run whose method chooses prompts")
        state = json.loads(file.read_text())
        self.choices = state["choices"]
        self.curriculum.load_state_dict(state["curriculum"])

    def _folder(self) -> Path:
        """The checkpoint of the present step; while one is restored, that one."""
        trainer = self.config.trainer
        if self.choices == 0 and trainer.resume_mode == "resume_path":
            return Path(trainer.resume_from_path)
        return Path(trainer.default_local_dir) / f"global_step_{self.global_steps}"


@register_trainer("policydist_vade")
class VadeTrainer(ChoosingTrainer):
    """Prompts by Thompson draws of their success rates (arXiv 2511.18902)."""

    method = "vade"


@register_trainer("policydist_dump")
class DumpTrainer(ChoosingTrainer):
    """Prompts by the learnability of their sources, by default the column ``data_source`` (arXiv 2504.09710)."""

    method = "dump"


def final_rows(batch: Any, uids: list[str], chosen: list[str]) -> list[int]:
    """Rows of a batch that hold responses, in the order in which their prompts were ``chosen`` and sampled.

    verl sorts a batch by length, which must not decide what a window keeps; it fills it up, and an agent loop may put
    several outputs of one session into it, of which the last is the response.
    """
    place = {uid: number for number, uid in enumerate(chosen)}
    found: dict[tuple[int, int], tuple[int, int]] = {}
    for row, (key, uid, tag) in enumerate(zip(batch.keys, uids, batch.tags, strict=True)):
        if not tag.get("is_padding", False):
            session, output = (int(part) for part in key.rsplit("_", 2)[1:])
            response = (place[uid], session)
            found[response] = max(found.get(response, (-1, -1)), (output, row))
    return [found[response][1] for response in sorted(found)]


def choice_knobs(method: str, config: Any) -> dict[str, Any]:
    """The knobs of the choice, from ``trainer.v1.policydist_<method>``.

    Raises:
        UsageError: a knob of the loss, with verl's name for it; settings of verl under which the method is none.
    """
    mode = f"policydist_{method}"
    knobs = dict(config.trainer.v1.get(mode) or {})
    for name in knobs.keys() & LOSS_SETTINGS.keys():
        raise UsageError(f"trainer.v1.{mode}.{name} belongs to the loss: set actor.{LOSS_SETTINGS[name]}")
    if "ratio" in knobs:
        raise UsageError(
            f"trainer.v1.{mode}.ratio belongs to the loss: set actor.policy_loss.loss_mode=policydist_gspo"
        )
    if method == "dump":
        knobs.setdefault("column", "data_source")
    estimator = config.algorithm.adv_estimator
    if estimator not in ESTIMATORS:
        raise UsageError(f"{mode} takes GRPO's advantages: algorithm.adv_estimator=policydist_grpo, not {estimator}")
    if config.actor_rollout_ref.rollout.n < 2:
        raise UsageError(f"{mode} compares responses to one prompt: actor_rollout_ref.rollout.n must be at least 2")
    filters, sampler = config.algorithm.get("filter_groups"), config.trainer.v1.sampler
    for name, fetches_singly in (
        ("algorithm.filter_groups.enable", bool(filters) and bool(filters.get("enable"))),
        ("trainer.v1.sampler.sync_refill_failed_groups", bool(sampler.get("sync_refill_failed_groups"))),
        ("data.gen_batch_size", config.data.get("gen_batch_size") not in (None, config.data.train_batch_size)),
    ):
        if fetches_singly:
            raise UsageError(f"{mode} chooses whole batches, and {name} has verl fetch parts of them: leave it unset")
    return knobs
