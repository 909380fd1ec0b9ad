"""Knapsack RL in the real trainer: first epoch, ragged groups all the way, weights, its limits, and an exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policydist.errors import UsageError
from policydist.functional import allocate_rollouts, grpo_advantage
from policydist.language.methods import grpo, knapsack
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Setting
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Rollouts
from policydist.language.worlds.pool import Pool
from policydist.runs.directory import Run

CONFIG = TrainConfig(steps=8, lr=4.0, optimiser="sgd", grad_clip=0, seed=3)


def bandit(items: int = 16, prompts: int = 8, samples: int = 8, **knobs: object) -> Trainer:
    pool = Pool.items(1, items, -1.5, 3.0)
    setting = pool.setting(prompts, samples)
    return Trainer(pool.policy, knapsack.build(knapsack.Config(**knobs), setting), CONFIG)  # type: ignore[arg-type]


def curriculum(work: Trainer) -> knapsack.BudgetedPrompts:
    found = work.recipe.curriculum
    assert isinstance(found, knapsack.BudgetedPrompts)
    return found


def parameters(work: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in work.policy.module.parameters()])


def test_the_first_epoch_is_grpo_and_the_second_is_not() -> None:
    work = bandit(advantage_clip=1e9)
    pool = Pool.items(1, 16, -1.5, 3.0)
    plain = Trainer(pool.policy, grpo.build(grpo.Config(clip_high=0.28, dual_clip=10.0), pool.setting(8, 8)), CONFIG)
    for _ in range(2):
        assert work.step()["reward"] == plain.step()["reward"]
    assert torch.equal(parameters(work), parameters(plain))
    work.step()
    plain.step()
    assert not torch.equal(parameters(work), parameters(plain))


def test_budget_is_kept_and_groups_are_ragged_from_sampling_to_metrics() -> None:
    work = bandit()
    seen: list[Rollouts] = []
    observe = curriculum(work).observe
    object.__setattr__(curriculum(work), "observe", lambda r, ctx: (seen.append(r), observe(r, ctx)))
    rows = work.train()
    sizes = [torch.bincount(rollouts.group).tolist() for rollouts in seen]
    assert all(sum(size) == 64 for size in sizes)
    assert all(size == [8] * 8 for size in sizes[:2])
    assert any(len(set(size)) > 2 for size in sizes[2:])
    for rollouts, row in zip(seen, rows, strict=True):
        assert rollouts.rewards is not None
        assert rollouts.advantages is not None
        expected = grpo_advantage(rollouts.rewards, rollouts.group).clamp(-5, 5)
        torch.testing.assert_close(rollouts.advantages[:, 0], expected)
        mixed = [len(set(rollouts.rewards[rollouts.group == q].tolist())) > 1 for q in range(8)]
        samples = sum(size for size, some in zip(torch.bincount(rollouts.group).tolist(), mixed, strict=True) if some)
        assert row["effective_groups"] == pytest.approx(sum(mixed) / 8)
        assert row["effective_samples"] == pytest.approx(samples / 64)


def test_the_allocation_looks_at_earlier_visits_only() -> None:
    work = bandit()
    for _ in range(2):
        work.step()
    store = curriculum(work).statistics
    rows = curriculum(work).order.rows(CONFIG.seed, 2)
    expected = allocate_rollouts(store.rates()[rows].clone(), store.seen[rows] >= 8, 8).counts
    work.ctx.step = 2
    assert curriculum(work).select(work.ctx).samples.tolist() == expected.tolist()


def test_prompts_below_the_minimum_count_stay_at_n() -> None:
    work = bandit(samples=4, min_count=8)
    for _ in range(4):  # two visits of 4 make 8
        row = work.step()
        assert row["knapsack/known"] == 0.0
        assert row["knapsack/largest"] == 4
    assert work.step()["knapsack/known"] == 1.0


def test_token_mean_weights_prompts_by_their_samples_and_the_controls_do_not() -> None:
    group = torch.tensor([0] * 12 + [1] * 4)
    rewards = (torch.arange(16) % 2).float()

    def weights(apply: str) -> list[float]:
        work = bandit(apply=apply)
        curriculum(work).planned = torch.tensor([12, 4])
        advantages = knapsack.BudgetedAdvantage(knapsack.Config(apply=apply), curriculum(work))(rewards, group)  # type: ignore[arg-type]
        plain = grpo_advantage(rewards, group)
        return [float((advantages / plain)[place]) for place in (0, 15)]

    assert weights("samples") == [1.0, 1.0]
    assert weights("samples_equal_weight") == pytest.approx([8 / 12, 8 / 4])
    assert weights("weight") == pytest.approx([12 / 8, 4 / 8])


def test_weights_alone_leave_the_samples_equal() -> None:
    work = bandit(apply="weight")
    for row in work.train():
        assert row["effective_samples"] == row["effective_groups"]


def test_a_lone_success_among_many_is_clipped() -> None:
    rewards, group = torch.zeros(128), torch.zeros(128, dtype=torch.long)
    rewards[0] = 1
    assert float(grpo_advantage(rewards, group).max()) > 11
    found = knapsack.BudgetedAdvantage(knapsack.Config(), curriculum(bandit()))(rewards, group)
    assert float(found.max()) == 5.0


def test_all_solved_or_all_hopeless_batches_stay_uniform() -> None:
    for fixed in (0.0, 1.0):
        pool = replace(Pool.items(0, 8, 0.0, 1.0), fixed=torch.full((8,), fixed))
        work = Trainer(pool.policy, knapsack.build(knapsack.Config(), pool.setting(4, 8)), CONFIG)
        for row in work.train():
            assert row["knapsack/largest"] == 8
            assert row["effective_samples"] == 0.0


def test_a_budget_below_the_lower_bounds_is_refused_before_training() -> None:
    with pytest.raises(UsageError, match="fewer than n_low=4"):
        bandit(samples=3, n_low=4)
    with pytest.raises(UsageError, match="more than n_up=6"):
        bandit(samples=8, n_up=6)
    for knobs, match in (
        ({"chance": 1.0}, "chance is"),
        ({"recent": 0}, "recent is 0"),
        ({"advantage_clip": 0}, "clip"),
    ):
        with pytest.raises(UsageError, match=match):
            knapsack.Config(**knobs)  # type: ignore[arg-type]


def test_more_prompts_a_step_than_there_are_and_none_at_all() -> None:
    work = bandit(items=3, prompts=8)
    assert work.step()["tokens"] == 24
    empty = Setting(ContextPrompts(0), lambda rollouts, ctx: rollouts, Pool.items(0, 1, 0, 1).setting(1, 1).sampling)
    with pytest.raises(UsageError, match="no rows"):
        knapsack.build(knapsack.Config(), empty)


def test_the_filter_leaves_pure_prompts_out_and_spends_as_much() -> None:
    work, plain = bandit(allocation="filter"), bandit()
    seen: list[Rollouts] = []
    observe = curriculum(work).observe
    object.__setattr__(curriculum(work), "observe", lambda r, ctx: (seen.append(r), observe(r, ctx)))
    rows = work.train()
    assert [row["responses"] for row in rows] == [row["responses"] for row in plain.train()]
    history: dict[int, list[float]] = {row: [] for row in range(16)}
    rates: dict[int, float] = {}
    for step, rollouts in enumerate(seen):
        batch = curriculum(work).order.rows(CONFIG.seed, step).tolist()
        pure = [row for row in batch if rates.get(row) in (0.0, 1.0)]
        assert len(rollouts) == 64
        assert set(rollouts.index.tolist()) == set(batch) - set(pure)
        assert rows[step]["knapsack/left_out"] == len(pure) / 8
        sizes = torch.bincount(rollouts.group)
        assert int(sizes.max() - sizes.min()) <= 1
        assert rollouts.rewards is not None
        for row in set(rollouts.index.tolist()):
            visit = rollouts.rewards[rollouts.index == row].tolist()
            history[row] += visit
            recent = history[row][-max(16, len(visit)) :]
            rates[row] = sum(recent) / len(recent)
    assert rows[-1]["knapsack/left_out"] > 0


def test_what_was_left_out_has_weight_zero_where_samples_are_equal() -> None:
    work = bandit(allocation="filter", apply="weight")
    for _ in range(3):
        work.step()
    out = curriculum(work).planned == 0
    assert bool(out.any())
    assert int(curriculum(work).planned.sum()) == 64
    group = torch.arange(8).repeat_interleave(8)
    rewards = (torch.arange(64) % 2).float()
    advantages = knapsack.BudgetedAdvantage(curriculum(work).config, curriculum(work))(rewards, group)
    assert torch.equal(advantages == 0, out[group])


@pytest.mark.parametrize("allocation", ["knapsack", "filter"])
def test_a_resumed_run_allocates_as_if_never_stopped(tmp_path: Path, allocation: Any) -> None:
    rows = bandit(allocation=allocation).train()
    pool = Pool.items(1, 16, -1.5, 3.0)
    recipe = knapsack.build(knapsack.Config(allocation=allocation), pool.setting(8, 8))
    part = Trainer(pool.policy, recipe, CONFIG, run=Run.create(tmp_path / "r", CONFIG))
    for _ in range(5):
        part.step()
    part.save()
    again = bandit(allocation=allocation)
    again.restore(next((tmp_path / "r" / "checkpoints").glob("step-*")))
    later = again.train()
    for one, other in zip(rows[5:], later, strict=True):
        for name in ("reward", "loss", "knapsack/largest", "knapsack/surplus", "effective_samples"):
            assert one[name] == other[name]


def test_selection_needs_no_policy() -> None:
    prompts = curriculum(bandit()).select(Context(None, 0))  # type: ignore[arg-type]
    assert prompts.samples.tolist() == [8] * 8
