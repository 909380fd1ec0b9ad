"""ICPO's recipe in the real trainer: its limit GRPO, the prompt swap, rejection in both layouts, the bonus, bad pools."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policydist.errors import UsageError
from policydist.functional import grpo_advantage
from policydist.language import methods, origins
from policydist.language.methods import icpo
from policydist.language.recipe import Context, Shuffled
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Rollouts
from policydist.language.worlds.steered import ClosedTask, traced

CONFIG = TrainConfig(steps=3, lr=0.05, grad_clip=0, seed=2)


def sampled(strength: float = 9.0, wrong: float = 0.0, **knobs: Any) -> tuple[Context, ClosedTask, Rollouts]:
    """Judged rollouts of a task whose demonstrations all but force the answer."""
    world = ClosedTask.draw(3, strength=strength, wrong=wrong)
    config, setting = icpo.Config(kl_coef=0.0, **knobs), world.setting(8)
    ctx = Context(world.policy, 3)
    sampler = icpo.InContextSampler(config, setting, setting.source)
    return ctx, world, world.judge(sampler(Shuffled(setting.source, 12, 8).select(ctx), ctx), ctx)


def final(slug: str, **knobs: Any) -> torch.Tensor:
    world = ClosedTask.draw(1)
    traced(slug, knobs, world.policy, world.setting(8), CONFIG, dict)
    return world.policy.core.logits.detach()


def test_without_guided_rollouts_it_is_grpo() -> None:
    torch.testing.assert_close(final("icpo", n_off=0, kl_coef=0.0, dual_clip=None), final("grpo"))


def test_guided_rows_are_trained_under_the_plain_prompt() -> None:
    _, world, rollouts = sampled()
    off = rollouts.extras["auxiliary"]
    assert rollouts.group[off].tolist() == list(range(12))
    assert torch.bincount(rollouts.group).tolist() == [8] * 12
    assert rollouts.prompt_ids.shape[1] == 1 or not bool(rollouts.prompt_mask[off, :-1].any())
    assert bool((origins.of(rollouts)[off] == origins.GUIDED).all())
    # They were drawn with the answer in front, and are scored without it.
    table = world.policy.core.logits.log_softmax(-1)
    plain = table[rollouts.prompt_ids[:, -1]].gather(-1, rollouts.response_ids.unsqueeze(-1))[..., 0].detach()
    torch.testing.assert_close(rollouts.old_logprobs, plain)
    assert bool((rollouts.behavior_logprobs[off].sum(1) > plain[off].sum(1)).all())


def test_the_loss_does_not_depend_on_what_stood_in_front() -> None:
    ctx, _, rollouts = sampled()
    credit, objective = icpo.RegionCredit(icpo.Config(kl_coef=0.0)), methods.load("icpo")
    credited = credit(rollouts, ctx)
    recipe = objective.build(objective.Config(kl_coef=0.0), ClosedTask.draw(3).setting(8))
    changed = replace(credited, behavior_logprobs=torch.randn_like(credited.behavior_logprobs))
    first, second = (recipe.objective(ctx.policy, batch, ctx)[0].detach() for batch in (credited, changed))
    assert torch.equal(first, second)


def test_rejected_rows_leave_the_statistics_in_append_and_the_group_whole_in_replace() -> None:
    ctx, _, rollouts = sampled()
    off = rollouts.extras["auxiliary"]
    wrong = replace(rollouts, rewards=torch.where(off, 0.9, rollouts.rewards))  # close, and outside at delta 1
    left = icpo.RegionCredit(icpo.Config())(wrong, ctx)
    assert len(left) == 12 * 7
    assert not bool(left.extras["auxiliary"].any())
    own = rollouts.select(~off)
    torch.testing.assert_close(left.advantages[:, 0], grpo_advantage(own.rewards, own.group))
    kept = icpo.RegionCredit(icpo.Config(reject=False))(wrong, ctx)
    assert len(kept) == 12 * 8

    ctx, _, rollouts = sampled(layout="replace")
    assert torch.bincount(rollouts.group).tolist() == [9] * 12
    off = rollouts.extras["auxiliary"]
    config = icpo.Config(layout="replace")
    none = icpo.RegionCredit(config)(replace(rollouts, rewards=torch.where(off, 0.0, rollouts.rewards)), ctx)
    assert torch.equal(none.response_ids, rollouts.select(~off).response_ids)
    some = icpo.RegionCredit(config)(replace(rollouts, rewards=torch.where(off, 1.0, rollouts.rewards)), ctx)
    assert torch.bincount(some.group).tolist() == [8] * 12
    assert torch.bincount(some.group[some.extras["auxiliary"]]).tolist() == [1] * 12


def test_the_bonus_is_for_right_guided_rows_alone_and_anneals() -> None:
    ctx, _, rollouts = sampled()
    off = rollouts.extras["auxiliary"]
    rollouts = replace(rollouts, rewards=torch.ones_like(rollouts.rewards))
    config = icpo.Config(bonus=1.0, bonus_steps=10)
    ctx.step = 5
    found = icpo.RegionCredit(config)(rollouts, ctx)
    assert found.rewards.tolist() == torch.where(off, 1.5, 1.0).tolist()
    ctx.step = 10
    assert icpo.RegionCredit(config)(rollouts, ctx).rewards.tolist() == [1.0] * len(rollouts)
    solved = icpo.RegionCredit(icpo.Config())(rollouts, ctx)
    assert bool((solved.advantages == 0).all())  # all groups already solved: nothing to learn


def test_several_updates_clip_only_the_policys_own_rows() -> None:
    world = ClosedTask.draw(4, wrong=0.0)
    config = replace(CONFIG, updates=2, epochs=2, lr=0.3)
    rows = traced("icpo", {}, world.policy, world.setting(8), config, dict)
    assert rows[-1]["off_tokens"] > 0
    assert rows[-1]["kl"] >= 0
    assert all(torch.isfinite(p).all() for p in world.policy.module.parameters())


def test_it_opens_a_task_that_grpo_does_not() -> None:
    reached = {}
    for slug, knobs in (("icpo", {"kl_coef": 0.0}), ("grpo", {})):
        world = ClosedTask.draw(0, questions=4, wrong=0.0)
        traced(slug, knobs, world.policy, world.setting(8), replace(CONFIG, steps=80, lr=0.1), dict)
        reached[slug] = world.success()
    assert reached["icpo"] > reached["grpo"] + 0.4


def setting_of(tiny: Any, rows: list[dict[str, Any]], samples: int = 4) -> Any:
    from policydist.language.policies.loading import load_policy
    from policydist.language.prompts import TextPrompts
    from policydist.language.recipe import Setting
    from policydist.language.types import Sampling

    tokenizer = load_policy(str(tiny.model), device="cpu").tokenizer
    source = TextPrompts(rows, tokenizer, 32)
    return Setting(source, lambda r, ctx: replace(r, rewards=torch.zeros(len(r))), Sampling(3), 2, samples)


def test_text_pools_are_checked(tiny: Any, tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "completion": "2"}, {"prompt": "1+2=", "completion": "3"}]
    setting = setting_of(tiny, rows)
    with pytest.raises(UsageError, match="example 1 has no text in column 'completion'"):
        icpo.build(icpo.Config(), setting_of(tiny, [rows[0], {"prompt": "3+1="}]))
    with pytest.raises(UsageError, match="no example besides the question itself"):
        icpo.build(icpo.Config(), setting_of(tiny, rows[:1]))
    empty = tmp_path / "pool.jsonl"
    empty.write_text("\n")
    with pytest.raises(UsageError, match="empty"):
        icpo.build(icpo.Config(pool=str(empty)), setting)
    with pytest.raises(UsageError, match="n_off is 4 of 4"):
        icpo.build(icpo.Config(n_off=4), setting)
    with pytest.raises(UsageError, match=r"its fields are \{question\}, \{answer\}"):
        icpo.Config(example="{quest}")
    empty.write_text(json.dumps({"prompt": "2+2=", "completion": "4"}) + "\n")
    steering: Any = icpo.build(icpo.Config(pool=str(empty)), setting).sampler.steering
    assert steering.with_examples("1+1=", torch.Generator()) == "Question: 2+2=\nAnswer: 4\n\nQuestion: 1+1=\nAnswer:"


def test_it_trains_a_language_model_and_drops_what_does_not_fit(tiny: Any) -> None:
    from policydist.language.policies.loading import load_policy

    rows = [{"prompt": f"{a}+1=", "completion": str(a + 1)} for a in range(4)]
    plain = {"example": "{question}{answer} ", "question": "{question}"}
    for knobs, share in ((plain, 0.0), ({**plain, "n_demo": 3, "example": "{question}{answer}" + " " * 12}, 1.0)):
        policy = load_policy(str(tiny.model), device="cpu")
        trainer = Trainer(policy, icpo.build(icpo.Config(reject=False, **knobs), setting_of(tiny, rows)), CONFIG)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            row = trainer.step()
        assert [str(warning.message) for warning in told if "leaves room" in str(warning.message)] == [
            icpo.TOO_LONG
        ] * int(share)
        assert row["icpo/too_long"] == share
        assert (row["off_tokens"] > 0) == (share == 0.0)
