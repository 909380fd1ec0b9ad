"""The trainer and the methods' recipes on small worlds: identities, accumulation, resume, failures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from at_work import FAST, trained, trainer, weights
from policydist.errors import PolicydistError, UsageError
from policydist.functional import aggregate, clipped_surrogate, grpo_advantage
from policydist.language.recipe import Context, Norm, Setting, Shuffled
from policydist.language.trainer import TrainConfig, drop_idle, micro_batches
from policydist.language.worlds import ModularSum, run
from policydist.runs import checkpoint
from policydist.runs.directory import Run, read_metrics, read_status


def test_one_grpo_step_is_the_formula_written_out() -> None:
    world, copy = ModularSum.draw(5, prompts=12), ModularSum.draw(5, prompts=12)
    config = replace(FAST, steps=1)
    run("grpo", {}, world.policy, world.setting(6, 8), config)

    setting = copy.setting(6, 8)
    ctx = Context(copy.policy, config.seed)
    prompts = Shuffled(setting.source, 6, 8).select(ctx)
    rollouts = copy.judge(ctx.generate(prompts, setting.sampling, "rollout"), ctx)
    adv = grpo_advantage(rollouts.rewards, rollouts.group).unsqueeze(1).expand(-1, 3)
    logp = copy.policy.score(rollouts).logprobs
    loss = aggregate(clipped_surrogate(logp, logp.detach(), adv), rollouts.response_mask, "token-mean")
    (gradient,) = torch.autograd.grad(loss, copy.policy.core.logits)
    expected = copy.policy.core.logits.detach() - config.lr * gradient
    torch.testing.assert_close(world.policy.core.logits.detach(), expected)


def test_micro_batches_give_the_same_step_as_one_batch() -> None:
    for aggregation in ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "dr-grpo"):
        whole = trained("grpo", aggregation=aggregation)
        pieces = trained("grpo", replace(FAST, micro_tokens=9), aggregation=aggregation)
        torch.testing.assert_close(whole, pieces)


def test_micro_batches_respect_the_limit_and_keep_the_order() -> None:
    world = ModularSum.draw(0, prompts=4)
    ctx = Context(world.policy, 0)
    rollouts = ctx.generate(Shuffled(world.setting(4, 3).source, 4, 3).select(ctx), world.setting(4, 3).sampling, "x")
    parts = list(micro_batches(rollouts, 9))  # a row has one prompt token and three of response
    assert [len(part) for part in parts] == [2] * 6
    assert torch.equal(torch.cat([part.response_ids for part in parts]), rollouts.response_ids)


def test_leaving_out_idle_rows_changes_neither_step_nor_entropy() -> None:
    kept, left = trainer("grpo", FAST), trainer("grpo", FAST)
    object.__setattr__(kept.recipe, "objective", AllRows(kept.recipe.objective))
    for _ in range(3):
        one, two = kept.step(), left.step()
        assert one["entropy"] == pytest.approx(two["entropy"], rel=1e-5)
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-6)
    torch.testing.assert_close(kept.parameters[0], left.parameters[0])


def test_a_batch_of_idle_rows_only_is_a_step_with_gradient_zero() -> None:
    config = replace(FAST, optimiser="adamw", lr=0.1, warmup=5)
    kept, left = trainer("grpo", config), trainer("grpo", config)
    object.__setattr__(kept.recipe, "objective", AllRows(kept.recipe.objective))
    for work in (kept, left):
        work.step()
        object.__setattr__(work.recipe, "judge", lambda r, ctx: replace(r, rewards=torch.ones(len(r))))
        before = work.parameters[0].detach().clone()
        work.step()
        assert not torch.equal(before, work.parameters[0])  # Adam's momentum moves on
    torch.testing.assert_close(kept.parameters[0], left.parameters[0])


class AllRows:
    sparse = False

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, *arguments: Any) -> Any:
        return self.inner(*arguments)


def test_idle_rows_are_those_without_any_advantage() -> None:
    world = ModularSum.draw(0, prompts=4)
    ctx = Context(world.policy, 0)
    setting = world.setting(4, 3)
    rollouts = ctx.generate(Shuffled(setting.source, 4, 3).select(ctx), setting.sampling, "x")
    advantages = torch.zeros(12, 3)
    advantages[5, 2] = 1.0
    ctx.norm = Norm(36.0, 12.0, 3)
    busy, row = drop_idle(replace(rollouts, advantages=advantages), ctx)
    assert len(busy) == 1
    nll = -rollouts.behavior_logprobs[torch.arange(12) != 5].sum() / 36
    assert row["entropy"] == pytest.approx(float(nll))


# --- methods -------------------------------------------------------------------------------------------------------


def test_dapo_keeps_only_mixed_groups_and_says_when_it_cannot() -> None:
    work = trainer("dapo", FAST)
    assert work.step()["effective_groups"] == 1.0
    object.__setattr__(work.recipe.sampler, "judge", lambda r, ctx: replace(r, rewards=torch.ones(len(r))))
    with pytest.raises(PolicydistError, match="10 batches gave 0 of 6 mixed groups"):
        work.step()


def test_gspo_and_ppo_take_several_updates_and_learn() -> None:
    for slug, knobs in (
        ("gspo", {"clip_low": 0.02, "clip_high": 0.02}),
        ("ppo", {"clip_low": 0.05, "clip_high": 0.05}),
    ):
        world = ModularSum.draw(0, prompts=12)
        config = replace(FAST, steps=60, lr=0.1, optimiser="adamw", updates=2)
        before = world.accuracy()
        rows = run(slug, knobs, world.policy, world.setting(12, 8), config)
        assert world.accuracy() > before + 0.3, slug
        assert any(row["clip_fraction"] > 0 for row in rows), slug


def test_the_kl_penalty_starts_at_zero_and_holds_the_policy_back() -> None:
    free, held = trained("grpo", replace(FAST, steps=60)), trained("grpo", replace(FAST, steps=60), kl_coef=2.0)
    start = weights(ModularSum.draw(1, prompts=12))
    assert (held - start).norm() < 0.7 * (free - start).norm()
    work = trainer("grpo", FAST, kl_coef=0.5)
    assert work.step()["kl"] == pytest.approx(0.0, abs=1e-7)
    work.step()  # the other half of the prompts, whose rows have not moved yet
    assert work.step()["kl"] > 0


def test_an_entropy_bonus_raises_entropy() -> None:
    rows = [trainer("grpo", replace(FAST, steps=40), entropy_coef=c).train()[-1]["entropy"] for c in (0.0, 1.0)]
    assert rows[1] > rows[0] + 0.05


@pytest.mark.parametrize(
    "slug", ["grpo", "bnpo", "dcpo", "aepo", "rloo", "dr_grpo", "reinforce_pp", "ppo", "gspo", "dpo"]
)
def test_a_group_of_one_and_equal_rewards_are_no_error(slug: str) -> None:
    config = replace(FAST, steps=2)
    assert bool(torch.isfinite(trained(slug, config, samples=1)).all())
    work = trainer(slug, config)
    object.__setattr__(work.recipe, "judge", lambda r, ctx: replace(r, rewards=torch.zeros(len(r))))
    work.train()
    assert bool(torch.isfinite(work.parameters[0]).all())


# --- runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", ["grpo", "dcpo", "aepo", "dapo", "ppo", "dpo"])
def test_a_resumed_run_gives_the_uninterrupted_metrics(slug: str, tmp_path: Path) -> None:
    config = TrainConfig(steps=6, lr=0.05, warmup=2, schedule="cosine", updates=2, save_every=3, seed=4)
    knobs = {"entropy_on": "main"} if slug == "aepo" else {}
    whole = trainer(slug, config, Run.create(tmp_path / "whole", config), **knobs)
    whole.train()
    half = trainer(slug, config, Run.create(tmp_path / "half", config), **knobs)
    while half.done < 4:  # one step past the checkpoint at 3, as a killed run would be
        half.record(half.step())
        if half.due(3):
            half.save()
    point = checkpoint.newest(tmp_path / "half" / "checkpoints")

    def plain(path: Path) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if "seconds" not in k and k != "memory"} for row in read_metrics(path)]

    again = trainer(slug, config, Run.reopen(tmp_path / "half", config, 3), **knobs)
    again.restore(point)
    again.train()
    assert plain(tmp_path / "half") == plain(tmp_path / "whole")
    assert torch.equal(again.parameters[0], whole.parameters[0])


def test_resume_refuses_a_changed_config(tmp_path: Path) -> None:
    config = TrainConfig(steps=6)
    Run.create(tmp_path / "run", config)
    with pytest.raises(UsageError, match=r"config changed \(lr was 0.001, now 0.002\)"):
        Run.reopen(tmp_path / "run", replace(config, lr=0.002), 0)


def test_a_run_directory_is_never_overwritten(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", TrainConfig())
    with pytest.raises(UsageError, match=r"exists; give another --out, or continue it with --resume"):
        Run.create(tmp_path / "run", TrainConfig())


def test_damaged_checkpoints_name_the_file_and_the_last_good_one(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, save_every=2)
    work = trainer("grpo", config, Run.create(tmp_path / "run", config))
    work.train()
    first, last = checkpoint.complete(tmp_path / "run" / "checkpoints")
    file = last / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(PolicydistError, match=rf"model.safetensors is truncated.*resume from the earlier {first}"):
        work.restore(last)
    (first / "optimiser.pt").unlink()
    with pytest.raises(PolicydistError, match="no earlier checkpoint is whole"):
        work.restore(last)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    config = TrainConfig(steps=4, save_every=1)
    work = trainer("grpo", config, Run.create(tmp_path / "run", config))
    work.record(work.step())
    work.save()
    before = work.parameters[0].detach().clone()
    inner = work.recipe.objective

    class Broken:
        sparse = False

        def __call__(self, *arguments: Any) -> Any:
            loss, numbers = inner(*arguments)
            return loss * float("nan"), numbers

    object.__setattr__(work.recipe, "objective", Broken())
    with pytest.raises(PolicydistError, match=r"step 2: loss is nan.*failed-batch-step-2.*step-00000001"):
        work.train()
    assert torch.equal(before, work.parameters[0])
    assert (tmp_path / "run" / "failed-batch-step-2.safetensors").is_file()


def test_ctrl_c_finishes_the_step_saves_and_raises(tmp_path: Path) -> None:
    import os
    import signal

    config = TrainConfig(steps=50)
    work = trainer("grpo", config, Run.create(tmp_path / "run", config))
    work.on_step = lambda row: os.kill(os.getpid(), signal.SIGINT) if row["step"] == 2 else None
    with pytest.raises(KeyboardInterrupt):
        work.train()
    assert work.done == 2
    assert read_status(tmp_path / "run")["state"] == "interrupted"
    assert checkpoint.newest(tmp_path / "run" / "checkpoints").name == "step-00000002"


def test_budgets_of_tokens_and_seconds_end_a_run() -> None:
    assert len(trainer("grpo", replace(FAST, steps=100, token_budget=300)).train()) == 3  # 6 x 8 x 3 = 144 a step
    assert len(trainer("grpo", replace(FAST, steps=10_000, second_budget=0.05)).train()) < 10_000


def test_shuffled_prompts_cover_every_epoch_once() -> None:
    world = ModularSum.draw(0, prompts=10)
    order = Shuffled(world.setting(4, 1).source, 4, 1)
    drawn = torch.cat([order.rows(7, step) for step in range(5)]).tolist()
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]


def test_validation_names_field_and_sample() -> None:
    world = ModularSum.draw(0, prompts=4)
    ctx = Context(world.policy, 0)
    setting: Setting = world.setting(4, 3)
    rollouts = ctx.generate(Shuffled(setting.source, 4, 3).select(ctx), setting.sampling, "x")
    bad = rollouts.behavior_logprobs.clone()
    bad[7, 1] = float("nan")
    with pytest.raises(PolicydistError, match="behavior_logprobs of sample 7 is NaN"):
        replace(rollouts, behavior_logprobs=bad).validate()
    with pytest.raises(PolicydistError, match="group has 3 rows"):
        replace(rollouts, group=rollouts.group[:3]).validate()
