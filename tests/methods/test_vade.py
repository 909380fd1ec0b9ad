"""VADE's selection in the real trainer: what it picks, what it remembers, its limits, and an exact resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policydist.errors import UsageError
from policydist.language import methods
from policydist.language.methods import vade
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Context, Setting
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Rollouts
from policydist.language.worlds.pool import Pool
from policydist.runs.directory import Run

CONFIG = TrainConfig(steps=6, lr=4.0, optimiser="sgd", grad_clip=0, seed=3)


def bandit(items: int = 40, prompts: int = 5, samples: int = 4, seed: int = 1, **knobs: object) -> Trainer:
    pool = Pool.items(seed, items, -0.5, 3.0)
    setting = pool.setting(prompts, samples)
    return Trainer(pool.policy, vade.build(vade.Config(**knobs), setting), CONFIG)  # type: ignore[arg-type]


def curriculum(work: Trainer) -> vade.DifficultySelection:
    found = work.recipe.curriculum
    assert isinstance(found, vade.DifficultySelection)
    return found


def test_only_what_is_trained_on_is_measured_and_decays_by_two_scales() -> None:
    work = bandit(kept=0.2, idle=0.5)
    first = curriculum(work).select(work.ctx)
    assert len(set(first.index.tolist())) == 5
    work.step()
    alpha, beta = curriculum(work).statistics.evidence()
    touched = (alpha + beta) > 0
    assert int(touched.sum()) == 5
    torch.testing.assert_close((alpha + beta)[touched], torch.full((5,), 4.0, dtype=torch.float64))
    before = (alpha + beta).clone()
    work.ctx.step = 1
    second = curriculum(work).select(work.ctx).index
    work.step()
    after = sum(curriculum(work).statistics.evidence())
    assert isinstance(after, torch.Tensor)
    chosen = torch.zeros(40, dtype=torch.bool)
    chosen[second] = True
    torch.testing.assert_close(after[chosen], 0.2 * before[chosen] + 4)
    torch.testing.assert_close(after[~chosen], 0.5 * before[~chosen])


def test_the_whole_pool_is_selected_when_the_batch_is_as_large_or_larger() -> None:
    for prompts in (12, 50):
        work = bandit(items=12, prompts=prompts)
        chosen = curriculum(work).select(work.ctx)
        assert sorted(chosen.index.tolist()) == list(range(12))
        assert work.step()["effective_groups"] >= 0


def test_a_solved_prompt_is_dropped_and_drifts_back_to_unknown() -> None:
    selection = curriculum(bandit(items=3, prompts=1, draw="mean"))
    store = selection.statistics
    for _ in range(4):
        store.observe(torch.zeros(8, dtype=torch.long), torch.ones(8))
    assert int(selection.select(Context(None, 0)).index[0]) != 0  # type: ignore[arg-type]
    known = float(store.evidence()[0][0])
    for _ in range(2000):
        store.observe(torch.ones(8, dtype=torch.long), torch.zeros(8))
    assert float(store.evidence()[0][0]) < 0.14 * known


def test_thompson_draws_differ_between_steps_and_the_mean_does_not() -> None:
    def rows(draw: str, step: int) -> list[int]:
        work = bandit(draw=draw)
        work.ctx.step = step
        return curriculum(work).select(work.ctx).index.tolist()

    assert rows("thompson", 0) != rows("thompson", 1)
    assert rows("mean", 0) == rows("mean", 1)


def test_all_solved_or_all_hopeless_pools_still_train() -> None:
    for fixed in (0.0, 1.0):
        pool = Pool.items(0, 10, 0.0, 1.0)
        pool = replace(pool, fixed=torch.full((10,), fixed))
        work = Trainer(pool.policy, vade.build(vade.Config(), pool.setting(4, 4)), CONFIG)
        rows = work.train()
        assert rows[-1]["effective_groups"] == 0.0
        assert rows[-1]["grad_norm"] == 0.0


def test_accuracy_counts_and_not_the_shaped_reward() -> None:
    pool = Pool.items(0, 8, 0.0, 1.0)

    def judge(rollouts: Rollouts, ctx: Context) -> Rollouts:
        judged = pool.judge(rollouts, ctx)
        assert judged.rewards is not None
        extras = {"reward/accuracy": torch.zeros(len(rollouts)), "reward/format": torch.ones(len(rollouts))}
        return replace(judged, rewards=judged.rewards + 1, extras=extras)

    setting = replace(pool.setting(8, 4), judge=judge)
    for knobs, hits in (({}, 0.0), ({"success": "format"}, 32.0)):
        work = Trainer(pool.policy, vade.build(vade.Config(**knobs), setting), CONFIG)  # type: ignore[arg-type]
        work.step()
        assert float(curriculum(work).statistics.evidence()[0].sum()) == hits
    work = Trainer(pool.policy, vade.build(vade.Config(success="speed"), setting), CONFIG)
    with pytest.raises(UsageError, match="no reward component 'speed'; the task has accuracy, format"):
        work.step()


GSPO: dict[str, Any] = {
    "ratio": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "aggregation": "seq-mean-token-mean",
}  # fmt: skip
SELECTIONS: tuple[dict[str, Any], ...] = (
    {}, {"draw": "mean"}, {"score": "p(1-p)"}, {"draw": "mean", "kept": 0.0},
)  # fmt: skip


def chains(slug: str, **knobs: Any) -> Trainer:
    """A method on chains of two to six decisions, where the ratio of a sequence is not that of its tokens."""
    pool, method = Pool.chains(3, each=4), methods.load(slug)
    config = replace(CONFIG, updates=2, lr=0.5)
    return Trainer(pool.policy, method.build(method.Config(**knobs), pool.setting(6, 6)), config)


def weights(work: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in work.policy.module.parameters()])


@pytest.mark.parametrize("selection", SELECTIONS)
def test_every_selection_trains_by_the_loss_of_gspo(selection: dict[str, Any]) -> None:
    work, gspo, token = chains("vade", **selection, **GSPO), chains("gspo"), chains("vade", **selection)
    start = weights(work)
    prompts = work.recipe.curriculum.select(work.ctx)
    assert torch.equal(prompts.index, token.recipe.curriculum.select(token.ctx).index)  # the loss does not select
    rollouts = work.ctx.judge(work.recipe.judge, work.recipe.sampler(prompts, work.ctx))
    credited = work.recipe.credit(rollouts, work.ctx)
    for each in (work, gspo, token):
        each.update(credited)
    assert not torch.equal(weights(work), start)
    assert torch.equal(weights(work), weights(gspo))
    assert not torch.equal(weights(work), weights(token))
    assert any(row["clip_fraction"] > 0 for row in work.train())


def test_dynamic_sampling_trains_by_the_loss_of_gspo_and_counts_what_it_throws_away() -> None:
    work, gspo, token = chains("dapo", **GSPO), chains("gspo"), chains("dapo", clip_high=0.2)
    rollouts = work.recipe.credit(work.recipe.sampler(work.recipe.curriculum.select(work.ctx), work.ctx), work.ctx)
    assert len(rollouts) == 36 < work.ctx.responses
    for each in (work, gspo, token):
        each.update(rollouts)
    assert torch.equal(weights(work), weights(gspo))
    assert not torch.equal(weights(work), weights(token))


def test_an_empty_pool_is_refused() -> None:
    empty = Setting(ContextPrompts(0), lambda rollouts, ctx: rollouts, Pool.items(0, 1, 0, 1).setting(1, 1).sampling)
    with pytest.raises(UsageError, match="no rows"):
        vade.build(vade.Config(), empty)


@pytest.mark.parametrize("knobs", [{}, {**GSPO, "draw": "mean", "kept": 0.0}])
def test_a_resumed_run_selects_and_learns_as_if_never_stopped(tmp_path: Path, knobs: dict[str, Any]) -> None:
    whole = bandit(**knobs)
    rows = whole.train()
    config = replace(CONFIG, save_every=3)
    pool = Pool.items(1, 40, -0.5, 3.0)
    part = Trainer(
        pool.policy,
        vade.build(vade.Config(**knobs), pool.setting(5, 4)),
        config,
        run=Run.create(tmp_path / "r", CONFIG),
    )
    for _ in range(3):
        part.step()
    part.save()
    again = bandit(**knobs)
    again.restore(next((tmp_path / "r" / "checkpoints").glob("step-*")))
    later = again.train()
    for one, other in zip(rows[3:], later, strict=True):
        for name in ("reward", "loss", "vade/evidence", "vade/new", "vade/expected_gain"):
            assert one[name] == other[name]
