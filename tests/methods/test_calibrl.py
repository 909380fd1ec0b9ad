"""CalibRL's recipe in the real trainer: its limits GRPO and twice GRPO, the expert as a level only, both gap forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from policydist.errors import UsageError
from policydist.language import guided, methods
from policydist.language.methods import calibrl
from policydist.language.recipe import Context, Shuffled
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Rollouts
from policydist.language.worlds.steered import ExpertPrompts, ExpertTree, traced

CONFIG = TrainConfig(steps=4, lr=0.05, grad_clip=0, seed=2)


def final(slug: str, config: TrainConfig = CONFIG, world: ExpertTree | None = None, **knobs: Any) -> torch.Tensor:
    world = world or ExpertTree.draw(1)
    traced(slug, knobs, world.policy, world.setting(10), config, dict)
    return world.policy.core.logits.detach()


def credited(world: ExpertTree | None = None, **knobs: Any) -> tuple[Context, Any, Rollouts]:
    world = world or ExpertTree.draw(4)
    setting = world.setting(10)
    recipe = calibrl.build(calibrl.Config(**knobs), setting)
    ctx = Context(world.policy, 4)
    rollouts = recipe.sampler(Shuffled(setting.source, 8, 10).select(ctx), ctx)
    return ctx, recipe, recipe.credit(world.judge(rollouts, ctx), ctx)


def gradient(ctx: Context, recipe: Any, rollouts: Rollouts) -> torch.Tensor:
    ctx.norm = replace(ctx.norm, tokens=float(rollouts.response_mask.sum()))
    loss, _ = recipe.objective(ctx.policy, rollouts, ctx)
    (found,) = torch.autograd.grad(loss, ctx.policy.core.logits)  # type: ignore[attr-defined]
    return found


def test_without_its_weight_it_is_grpo_and_experts_change_nothing() -> None:
    plain = final("grpo", scale="none", dual_clip=3.0)
    torch.testing.assert_close(final("calibrl", lam=0.0), plain)
    other = ExpertTree.draw(1)
    other = replace(other, source=ExpertPrompts(other.source.responses.flip(0)))
    torch.testing.assert_close(final("calibrl", world=other, lam=0.0), plain)


def test_a_linear_gate_is_a_multiple_of_grpo() -> None:
    ctx, recipe, rollouts = credited(alpha=1.0, lam=0.7)
    _, base, same = credited(lam=0.0)
    torch.testing.assert_close(gradient(ctx, recipe, rollouts), 1.7 * gradient(ctx, base, same))
    adam = replace(CONFIG, steps=12)
    torch.testing.assert_close(
        final("calibrl", adam, alpha=1.0, lam=1.0), final("grpo", adam, scale="none"), atol=1e-3, rtol=0
    )


def test_a_certain_expert_gives_right_responses_the_full_push_and_wrong_ones_the_slope() -> None:
    for level, (right, wrong) in ((50.0, (1.0, 0.5)), (-50.0, (0.5, 1.0))):
        ctx, recipe, rollouts = credited(lam=1.0)
        extras = dict(rollouts.extras) | {"expert_logprobs": torch.full_like(rollouts.response_ids, level).float()}
        rollouts = replace(rollouts, extras=extras)
        factor = torch.where(rollouts.extras["passed"], 1 + right, 1 + wrong).unsqueeze(1)
        _, base, _ = credited(lam=0.0)
        scaled = replace(rollouts, advantages=rollouts.advantages * factor)
        torch.testing.assert_close(gradient(ctx, recipe, rollouts), gradient(ctx, base, scaled))


def test_the_expert_reference_is_the_old_policys_position_by_position() -> None:
    ctx, _, rollouts = credited()
    world = ExpertTree.draw(4)
    prompts = world.source.take(torch.arange(8), 1)
    expert = guided.expert_rows(world.source, prompts, ctx)
    assert expert is not None
    scores = world.policy.score(expert).logprobs.detach()
    torch.testing.assert_close(rollouts.extras["expert_logprobs"], scores[rollouts.prompt_ids[:, 0]])
    assert not rollouts.extras["expert_logprobs"].requires_grad
    assert len(rollouts) == 80  # the expert is no row


def test_solved_and_hopeless_groups_teach_nothing_and_correctness_decides_the_sign() -> None:
    for worth in (0.0, 1.0):
        world = ExpertTree.draw(1)
        setting = replace(world.setting(10), judge=lambda r, c, w=worth: replace(r, rewards=torch.full((len(r),), w)))
        traced("calibrl", {"lam": 1.0}, world.policy, setting, CONFIG, dict)
        assert torch.equal(world.policy.core.logits.detach(), ExpertTree.draw(1).policy.core.logits.detach())
    ctx, recipe, rollouts = credited()
    only_form = replace(rollouts, rewards=torch.where(rollouts.rewards > 0, 0.1, 0.0))
    assert not bool(recipe.credit(only_form, ctx).extras["passed"].any())  # 0.1 is not above 0.1


def test_rows_in_another_order_give_the_same_gradient() -> None:
    ctx, recipe, rollouts = credited(lam=1.0)
    shuffled = rollouts.select(torch.randperm(len(rollouts), generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(gradient(ctx, recipe, rollouts), gradient(ctx, recipe, shuffled))


def test_short_experts_count_as_certain_or_are_left_out() -> None:
    world = ExpertTree.draw(4)
    short = ShortExperts(world.source.responses)
    world = replace(world, source=short)
    ctx, zero, rollouts = credited(world, lam=1.0)
    assert bool((rollouts.extras["expert_logprobs"][:, 2] == 0).all())
    assert rollouts.extras["expert_length"].unique().tolist() == [2]
    _, mask, _ = credited(world, lam=1.0, pad_policy="mask")
    late = replace(rollouts, advantages=rollouts.advantages * torch.tensor([0.0, 0.0, 1.0]))
    extras = {**late.extras, "with_expert": torch.zeros(80, dtype=torch.bool)}
    without = gradient(ctx, zero, replace(late, extras=extras))
    masked = mask.objective.counted(late.response_mask, late.extras["with_expert"], late.extras["expert_length"])
    assert masked.all(0).tolist() == [True, True, False]
    assert not torch.allclose(gradient(ctx, zero, late), without)


class ShortExperts(ExpertPrompts):
    def experts(self, prompts: Any) -> Any:
        return [row[:2] for row in self.responses[prompts.ids[:, -1]]]


def test_experts_are_mixed_in_by_chance_or_by_pass_rate() -> None:
    ctx, _, rollouts = credited(mix_ratio=0.5)
    share = ctx.metrics["calibrl/with_expert"]
    assert 0 < share < 1
    kept = rollouts.extras["with_expert"]
    assert all(len(kept[rollouts.group == g].unique()) == 1 for g in range(8))
    _, _, hard = credited(mixup="pass", pass_high=0.0)
    for g in range(8):
        mine = hard.group == g
        assert bool(hard.extras["with_expert"][mine].all()) == (not bool(hard.extras["passed"][mine].any()))


@pytest.mark.parametrize("gap", ["sequence_sum", "sequence_mean"])
def test_whole_responses_can_be_compared(gap: Any) -> None:
    ctx, recipe, rollouts = credited(lam=1.0, gap=gap)
    extras = {**rollouts.extras, "expert_total": torch.full((80,), 50.0)}
    certain = replace(rollouts, extras=extras)
    _, base, _ = credited(lam=0.0)
    # One loss a response on each of its three tokens; the mean form divides the gap, hence the gradient, by three.
    per = 3.0 if gap == "sequence_sum" else 1.0
    factor = torch.where(rollouts.extras["passed"], 1 + per, 1 + 0.5 * per).unsqueeze(1)
    scaled = replace(certain, advantages=certain.advantages * factor)
    torch.testing.assert_close(gradient(ctx, recipe, certain), gradient(ctx, base, scaled))


def test_baselines_that_imitate() -> None:
    world = ExpertTree.draw(2)
    setting = world.setting(10)
    for slug, extra in (("luffy", {"scale": "none"}), ("grpo_sft", {"coef": 0.1, "scale": "none"})):
        method = methods.load(slug)
        trainer = Trainer(world.policy, method.build(method.Config(**extra), setting), CONFIG)
        ctx = trainer.ctx
        rollouts = world.judge(trainer.recipe.sampler(Shuffled(setting.source, 8, 10).select(ctx), ctx), ctx)
        rollouts = trainer.recipe.credit(rollouts, ctx)
        expert = rollouts.extras["auxiliary"]
        assert torch.bincount(rollouts.group).tolist() == [11] * 8
        assert bool((rollouts.rewards[expert] == 1).all())
        ctx.norm = replace(ctx.norm, tokens=float(rollouts.response_mask.sum()))
        loss = trainer.recipe.objective(ctx.policy, rollouts, ctx)[0].detach()
        logp = world.policy.score(rollouts).logprobs.detach()
        if slug == "luffy":
            p = logp.exp()
            expected = torch.where(expert.unsqueeze(1), -rollouts.advantages * p / (p + 0.1), -rollouts.advantages)
            assert float(loss) == pytest.approx(float(expected.mean()), abs=1e-6)
        else:
            own = rollouts.select(~expert)
            mean = torch.stack([own.rewards[own.group == g].mean() for g in range(8)])[own.group]
            plain = -(own.rewards - mean).mean()
            assert float(loss) == pytest.approx(float(plain) - 0.1 * float(logp[expert].mean()), abs=1e-6)


def setting_of(tiny: Any, rows: list[dict[str, Any]]) -> Any:
    from policydist.language.policies.loading import load_policy
    from policydist.language.prompts import TextPrompts
    from policydist.language.recipe import Setting
    from policydist.language.types import Sampling

    policy = load_policy(str(tiny.model), device="cpu")
    judge = lambda r, ctx: replace(r, rewards=(torch.arange(len(r)) % 2).float())  # noqa: E731
    return policy, Setting(TextPrompts(rows, policy.tokenizer, 32), judge, Sampling(3), 2, 4)


def test_expert_columns_are_checked_or_skipped(tiny: Any) -> None:
    good, none, long = ({"prompt": "1+1=", "gold": "2"}, {"prompt": "1+2="}, {"prompt": "1+3=", "gold": "4444"})
    config = calibrl.Config(expert_column="gold")
    with pytest.raises(UsageError, match=r"row 1 has no expert response in column 'gold' \(it has prompt\)"):
        calibrl.build(config, setting_of(tiny, [good, none])[1])
    with pytest.raises(UsageError, match="row 1 has 5 tokens with its end, more than the 3"):
        calibrl.build(config, setting_of(tiny, [good, long])[1])
    skip = replace(config, missing_expert="skip", long_expert="skip")
    with pytest.raises(UsageError, match="no row has an expert response of at most 3 tokens"):
        calibrl.build(skip, setting_of(tiny, [none, long])[1])
    policy, setting = setting_of(tiny, [good, none])
    row = Trainer(policy, calibrl.build(skip, setting), CONFIG).step()
    assert row["calibrl/with_expert"] == 0.5
    with pytest.raises(UsageError, match="alpha is 2"):
        calibrl.Config(alpha=2.0)


def test_a_run_from_a_file_through_the_front_door(tiny: Any, tmp_path: Any) -> None:
    from policydist.language.experiment import train

    words = [*tiny.words, "knobs.expert_column=completion", "knobs.lam=1.0"]
    outcome = train("calibrl", task=tiny.task, model=str(tiny.model), steps=1, settings=words, out=tmp_path / "run")
    assert outcome.metrics[-1]["calibrl/with_expert"] == 1.0
    with pytest.raises(UsageError, match="no expert response in column 'gold'"):
        train("luffy", task=tiny.task, model=str(tiny.model), settings=[*tiny.words, "knobs.expert_column=gold"])
