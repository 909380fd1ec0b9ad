"""DPO's recipe in the real trainer: steps written out, pairs that no cut of the batch tears apart, idle groups."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from at_work import FAST, trained, trainer, weights
from policydist.errors import PolicydistError, UsageError
from policydist.functional import best_worst_pairs
from policydist.language.experiment import train
from policydist.language.methods import dpo
from policydist.language.recipe import Context, Shuffled
from policydist.language.trainer import micro_batches
from policydist.language.types import Rollouts
from policydist.language.world import World
from policydist.language.worlds import ModularSum

BETA = 0.4


def sampled(world: ModularSum, ctx: Context) -> Rollouts:
    setting = world.setting(6, 8)
    prompts = Shuffled(setting.source, 6, 8).select(ctx)
    return world.judge(ctx.generate(prompts, setting.sampling, "rollout"), ctx)


def by_hand(updates: int, steps: int = 2, lr: float = FAST.lr) -> Tensor:
    """Two steps of SGD on the loss as the paper writes it, pair by pair."""
    world, start = ModularSum.draw(1, prompts=12), ModularSum.draw(1, prompts=12)
    ctx = Context(world.policy, FAST.seed)
    for step in range(steps):
        ctx.step = step
        rollouts = sampled(world, ctx)
        pairs = best_worst_pairs(rollouts.rewards, rollouts.group)
        for part in pairs.split(math.ceil(len(pairs) / updates)):
            losses = []
            for best, worst in part.tolist():
                two = rollouts.select(torch.tensor([best, worst]))
                ratio = (world.policy.score(two).logprobs - start.policy.score(two).logprobs.detach()).sum(1)
                losses.append(torch.log1p(torch.exp(-BETA * (ratio[0] - ratio[1]))))
            (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), world.policy.core.logits)
            with torch.no_grad():
                world.policy.core.logits -= lr * gradient
    return weights(world)


@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize("micro_tokens", [32768, 1, 20])
def test_steps_are_the_papers_however_the_batch_is_cut(updates: int, micro_tokens: int) -> None:
    config = replace(FAST, steps=2, updates=updates, micro_tokens=micro_tokens)
    torch.testing.assert_close(trained("dpo", config, beta=BETA), by_hand(updates), atol=1e-5, rtol=1e-5)


def test_the_first_step_is_half_beta_times_the_difference_of_the_scores() -> None:
    work = trainer("dpo", replace(FAST, steps=1), beta=BETA)
    row = work.step()
    assert row["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert row["dpo/margin"] == pytest.approx(0, abs=1e-6)
    world = ModularSum.draw(1, prompts=12)
    ctx = Context(world.policy, FAST.seed)
    rollouts = sampled(world, ctx)
    pairs = best_worst_pairs(rollouts.rewards, rollouts.group)
    assert row["dpo/pairs"] == len(pairs) / 6
    scores = world.policy.score(rollouts).logprobs.sum(1)
    push = (scores[pairs[:, 0]] - scores[pairs[:, 1]]).mean()
    logits = world.policy.core.logits
    (gradient,) = torch.autograd.grad(BETA / 2 * push, logits)
    torch.testing.assert_close(work.policy.core.logits.detach(), logits.detach() + FAST.lr * gradient)


def test_two_epochs_see_the_margin_move_and_numbers_do_not_depend_on_cuts() -> None:
    rows = [trainer("dpo", replace(FAST, epochs=2, micro_tokens=tokens), beta=BETA).step() for tokens in (32768, 1)]
    assert rows[0]["dpo/margin"] > 0.01  # the mean over both passes; the first starts at 0
    assert rows[0]["dpo/margin"] == pytest.approx(rows[0]["dpo/chosen"] - rows[0]["dpo/rejected"], abs=1e-6)
    assert rows[0]["dpo/accuracy"] > 0.4
    for name in ("loss", "entropy", "dpo/margin", "dpo/accuracy", "dpo/chosen", "grad_norm"):
        assert rows[1][name] == pytest.approx(rows[0][name], abs=1e-5), name


def test_pairs_stay_together_in_micro_batches_and_on_processes() -> None:
    world = ModularSum.draw(0, prompts=12)
    ctx = Context(world.policy, 0)
    rollouts = dpo.best_against_worst(sampled(world, ctx), ctx)
    assert bool((rollouts.rewards[0::2] > rollouts.rewards[1::2]).all())
    assert torch.equal(rollouts.group[0::2], rollouts.group[1::2])
    for tokens in (1, 8, 15, 16, 100):  # a row has one prompt token and three of response
        parts = list(micro_batches(rollouts, tokens, together=2))
        assert [len(part) for part in parts] == cut(len(rollouts), max(2, tokens // 8 * 2))
        assert torch.equal(torch.cat([part.response_ids for part in parts]), rollouts.response_ids)


def cut(count: int, most: int) -> list[int]:
    return [min(most, count - start) for start in range(0, count, most)]


def test_processes_share_pairs_and_not_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of four processes' parts, computed one after the other: their losses add up to the whole batch's."""
    world = ModularSum.draw(1, prompts=12)
    ctx = Context(world.policy, FAST.seed)
    rollouts = dpo.best_against_worst(sampled(world, ctx), ctx)
    known = world.policy.score(rollouts).logprobs.detach() + 0.1 * torch.arange(len(rollouts)).unsqueeze(1)
    rollouts = replace(rollouts, extras={**rollouts.extras, "reference_logprobs": known})
    alone = trainer("dpo", FAST, beta=BETA).minibatch(rollouts)["loss"]
    seen: list[int] = []
    whole = 0.0
    monkeypatch.setattr(World, "size", property(lambda self: 4))
    monkeypatch.setattr(World, "gather", lambda self, mine: [mine])
    for rank in range(4):
        work = trainer("dpo", FAST, beta=BETA)
        monkeypatch.setattr(World, "rank", property(lambda self, rank=rank: rank))
        object.__setattr__(work.recipe, "objective", Watched(work.recipe.objective, seen))
        whole += work.minibatch(rollouts)["loss"]
    assert whole == pytest.approx(alone, abs=1e-6)
    assert sum(seen) == len(rollouts)
    assert all(rows % 2 == 0 for rows in seen)
    assert len(set(seen)) == 2  # the pairs cannot be shared evenly


class Watched:
    sparse = False

    def __init__(self, inner: Any, seen: list[int]) -> None:
        self.inner, self.seen = inner, seen

    def __call__(self, policy: Any, batch: Rollouts, ctx: Context) -> Any:
        self.seen.append(len(batch))
        return self.inner(policy, batch, ctx)


def test_groups_without_a_strict_pair_are_idle_and_none_at_all_skips_the_step() -> None:
    work = trainer("dpo", FAST)
    object.__setattr__(
        work.recipe, "judge", lambda r, ctx: replace(r, rewards=(r.group == 2) * (r.response_ids[:, 0] % 2.0))
    )
    before = work.parameters[0].detach().clone()
    assert work.step()["dpo/pairs"] == pytest.approx(1 / 6)
    moved = (work.parameters[0] != before).flatten(1).any(1)
    assert int(moved.sum()) == 1
    object.__setattr__(work.recipe, "judge", lambda r, ctx: replace(r, rewards=torch.ones(len(r))))
    row = work.step()
    assert row["skipped"] == 1
    assert row["dpo/pairs"] == 0
    assert bool(torch.isfinite(trained("dpo", replace(FAST, steps=2), samples=1)).all())


def test_it_learns_and_beta_holds_it_back() -> None:
    config = replace(FAST, steps=40, lr=100.0)
    start = weights(ModularSum.draw(1, prompts=12))
    work = trainer("dpo", config, beta=0.1)
    rows = work.train()
    assert sum(row["dpo/accuracy"] for row in rows[-6:]) > 5.4
    assert sum(row["reward"] for row in rows[-6:]) > sum(row["reward"] for row in rows[:6]) + 2
    free = weights(work) - start
    held = trained("dpo", replace(config, lr=10.0), beta=1.0) - start  # the same first step, then the reference pulls
    assert held.norm() < 0.75 * free.norm()


def test_a_bad_beta_and_a_missing_reference_are_named() -> None:
    with pytest.raises(UsageError, match="dpo: beta is 0"):
        dpo.Config(beta=0.0)
    world = ModularSum.draw(0, prompts=12)
    ctx = Context(world.policy, 0)
    with pytest.raises(PolicydistError, match="no reference_logprobs"):
        dpo.PairObjective(0.1)(world.policy, dpo.best_against_worst(sampled(world, ctx), ctx), ctx)


def test_it_trains_a_language_model(tiny: Any, tmp_path: Path) -> None:
    words = [*tiny.words, "knobs.beta=0.2", "train.updates=2", "train.micro_tokens=1"]
    outcome = train("dpo", task=tiny.task, model=str(tiny.model), steps=2, settings=words, out=tmp_path / "run")
    assert {"dpo/pairs", "reward"} <= outcome.metrics[-1].keys()
