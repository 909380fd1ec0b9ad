"""RL-PLUS's recipe in the real trainer: the experts' loss written out, its limit GRPO, cuts of the batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from policydist.errors import UsageError
from policydist.functional import aggregate, clipped_surrogate
from policydist.language import methods
from policydist.language.experiment import train
from policydist.language.methods import rl_plus
from policydist.language.recipe import Context, Shuffled
from policydist.language.trainer import TrainConfig
from policydist.language.types import Prompts, Rollouts
from policydist.language.worlds.steered import ExpertPrompts, ExpertTree, traced
from policydist.runs.config import read_yaml

SGD = TrainConfig(steps=3, lr=3.0, optimiser="sgd", grad_clip=0, seed=2)


class NoExperts(ExpertPrompts):
    """Knows of no expert; the missing ones are skipped."""

    def experts(self, prompts: Prompts) -> list[None]:
        return [None] * len(prompts)


def final(slug: str, config: TrainConfig = SGD, experts: type[ExpertPrompts] = ExpertPrompts, **knobs: Any) -> Any:
    world = ExpertTree.draw(1)
    world = replace(world, source=experts(world.source.responses))
    traced(slug, knobs, world.policy, world.setting(10), config, dict)
    return world.policy.core.logits.detach()


def credited(**knobs: Any) -> tuple[ExpertTree, Context, Any, Rollouts]:
    world = ExpertTree.draw(4)
    setting = world.setting(10)
    recipe = rl_plus.build(rl_plus.Config(**knobs), setting)
    ctx = Context(world.policy, 4)
    rollouts = world.judge(recipe.sampler(Shuffled(setting.source, 8, 10).select(ctx), ctx), ctx)
    rollouts = recipe.credit(rollouts, ctx)
    ctx.norm = replace(ctx.norm, tokens=float(rollouts.response_mask.sum()))
    return world, ctx, recipe, rollouts


@pytest.mark.parametrize(("gamma", "uniform"), [(0.5, 1.0), (2.0, 1 / 6)])
def test_the_loss_is_the_formula_written_out(gamma: float, uniform: float) -> None:
    world, ctx, recipe, rollouts = credited(gamma=gamma, uniform=uniform)
    expert = rollouts.extras["auxiliary"]
    assert torch.bincount(rollouts.group).tolist() == [11] * 8
    assert int(expert.sum()) == 8
    ctx.updates, drifted = 2, replace(rollouts, old_logprobs=rollouts.old_logprobs - 0.3)
    logp = world.policy.score(rollouts).logprobs
    p, old = logp.exp(), drifted.old_logprobs.exp()
    ratio = 2 * p / (0.5 * (old + uniform) + old)
    theirs = -rollouts.advantages * (1 - p.detach()) ** gamma * ratio
    own = clipped_surrogate(logp, drifted.old_logprobs, rollouts.advantages)
    expected = aggregate(torch.where(expert.unsqueeze(1), theirs, own), rollouts.response_mask)
    loss, _ = recipe.objective(world.policy, drifted, ctx)
    torch.testing.assert_close(loss, expected)
    (mine,) = torch.autograd.grad(loss, world.policy.core.logits)
    (wanted,) = torch.autograd.grad(expected, world.policy.core.logits)
    torch.testing.assert_close(mine, wanted)


def test_on_policy_rows_alone_are_grpo_bit_for_bit() -> None:
    for config in (SGD, replace(SGD, updates=2)):
        assert torch.equal(final("rl_plus", config, NoExperts, gamma=0.0), final("grpo", config))
    assert not torch.allclose(final("rl_plus", gamma=0.0), final("grpo"))


def test_the_step_does_not_depend_on_how_the_batch_is_cut() -> None:
    torch.testing.assert_close(final("rl_plus"), final("rl_plus", replace(SGD, micro_tokens=9)))
    two = replace(SGD, updates=2)
    torch.testing.assert_close(final("rl_plus", two), final("rl_plus", replace(two, micro_tokens=9)))


def test_each_knob_moves_it_and_bad_ones_are_refused() -> None:
    plain = final("rl_plus")
    for knobs in ({"gamma": 2.0}, {"uniform": 1 / 6}, {"scale": "none"}):
        assert not torch.allclose(final("rl_plus", **knobs), plain), knobs
    assert not torch.allclose(plain, final("luffy"))
    for name in ("gamma", "uniform"):
        with pytest.raises(UsageError, match=f"rl_plus: {name} is -1"):
            methods.load("rl_plus").Config(**{name: -1.0})


def test_it_trains_a_language_model_on_the_datas_solutions(tiny: Any, tmp_path: Path) -> None:
    words = [*tiny.words, "knobs.expert_column=answer", "knobs.clip_low=1", "knobs.clip_high=inf", "train.updates=2"]
    outcome = train("rl_plus", task=tiny.task, model=str(tiny.model), steps=2, settings=words, out=tmp_path / "run")
    assert outcome.metrics[-1]["clip_fraction"] == 0
    stored = read_yaml(tmp_path / "run" / "config.yaml")
    again = train("rl_plus", config=stored, out=tmp_path / "again")
    assert again.metrics[-1]["loss"] == outcome.metrics[-1]["loss"]
