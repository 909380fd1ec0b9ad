"""DoGe: rewards by hand and by enumeration, the frozen Solver, both stages in the real trainer, masks, the pool, endpoints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.errors import PolicydistError, UsageError
from policydist.functional import grpo_advantage
from policydist.functional.solver import context_reward, sometimes_solved
from policydist.language.methods import doge
from policydist.language.recipe import Context, Recipe
from policydist.language.solver import FrozenCopy
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Prompts, Rollouts, Sampling
from policydist.language.worlds.scenes import MENTIONS, TRUST, Shortcut
from policydist.language.worlds.steered import traced

EXACT: dict[str, Any] = {"kl_coef": 0.0, "analysis_temperature": 1.0, "solver_temperature": 1.0, "solver_top_p": 1.0}
CONFIG = TrainConfig(steps=6, lr=0.05, grad_clip=0, seed=2)


def made(world: Shortcut, train: TrainConfig = CONFIG, **knobs: Any) -> tuple[Trainer, doge.Config]:
    config = doge.Config(**{**EXACT, "stage1_steps": 3, "stage2_steps": 3, **knobs})
    return Trainer(world.policy, doge.build(config, world.setting(12, 8)), train), config


def weights(policy: Any) -> list[torch.Tensor]:
    return [p.detach().clone() for p in policy.module.parameters()]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def solver_of(recipe: Recipe) -> FrozenCopy:
    sampler: Any = recipe.sampler
    solver = sampler.solver
    assert isinstance(solver, FrozenCopy)
    return solver


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_the_code_mixes_and_the_paper_adds() -> None:
    rates, formats = torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(context_reward(rates, formats, 0.1, "code"), torch.tensor([0.1, 0.45, 1.0]))
    torch.testing.assert_close(context_reward(rates, formats, 0.1, "paper"), torch.tensor([0.1, 0.5, 1.1]))
    with pytest.raises(UsageError, match=r"beta is 1\.5"):
        context_reward(rates, formats, 1.5)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=8), st.floats(0, 0.9))
@settings(max_examples=50, deadline=None)
def test_bounds_and_equal_advantages_where_all_formats_are_right(right: list[int], beta: float) -> None:
    rates = torch.tensor(right, dtype=torch.float64) / 4
    group, ones = torch.zeros(len(right), dtype=torch.long), torch.ones(len(right), dtype=torch.float64)
    code, paper = (context_reward(rates, ones, beta, form) for form in ("code", "paper"))  # type: ignore[arg-type]
    assert float(code.min()) >= 0
    assert float(code.max()) <= 1 + 1e-12
    assert float(paper.max()) <= 1 + beta + 1e-12
    advantages = [grpo_advantage(reward, group, eps=1e-9) for reward in (code, paper)]
    torch.testing.assert_close(*advantages, atol=1e-6, rtol=1e-6)


def test_the_pool_keeps_both_ends() -> None:
    kept = sometimes_solved(torch.arange(11), 10)
    assert kept.tolist() == [False, True, True, True] + 7 * [False]
    for samples in range(1, 64):  # no rounding may move an end
        assert bool(sometimes_solved(torch.tensor([3 * samples]), 10 * samples)[0])
        assert bool(sometimes_solved(torch.tensor([samples]), 10 * samples)[0])
    with pytest.raises(UsageError, match=r"0\.4 and 0\.3"):
        sometimes_solved(torch.arange(3), 10, 0.4, 0.3)


# --- the frozen Solver -----------------------------------------------------------------------------------------------


def pass_rates(samples: int, **world: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Monte-Carlo and exact success of the Solver with each of some analyses."""
    small = Shortcut.draw(4, **world)
    with torch.no_grad():
        small.policy.core.prior.normal_(generator=torch.Generator().manual_seed(0))
    trainer, _ = made(small, solver_samples=samples)
    sampler: Any = trainer.recipe.sampler
    prompts = trainer.recipe.curriculum.select(trainer.ctx)
    analyses = trainer.ctx.generate(small.source.analysis_prompts(prompts, True), Sampling(MENTIONS), "analysis")
    found, _ = sampler.solve(analyses, trainer.ctx)
    core, row = small.policy.core, analyses.prompt_ids[:, -1]
    asked, answers = core.scenes.asked[row], core.scenes.answers[row]
    about = analyses.response_ids // 2 == asked.unsqueeze(1)
    stated = (analyses.response_ids % 2 * about).sum(1)
    one = torch.sigmoid(core.direct(core.scenes)[row])
    direct = torch.where(answers == 1, one, 1 - one)
    told = torch.where(stated == answers, TRUST, 1 - TRUST)
    return found, torch.where(about.any(1) & (not world.get("ignore")), told, direct).detach()


@pytest.mark.parametrize("ignore", [False, True])
def test_the_pass_rate_tends_to_the_solvers_exact_success(ignore: bool) -> None:
    for samples in (16, 400):
        found, exact = pass_rates(samples, ignore=ignore)
        scaled = (found - exact) * samples**0.5
        assert float(scaled.abs().max()) < 2.5  # 5 standard deviations of at most 1/2


def test_the_solver_stays_bit_identical_and_is_renewed_each_round() -> None:
    world = Shortcut.draw(1)
    trainer, _ = made(world, replace(CONFIG, steps=7))
    start, solver = weights(world.policy), solver_of(trainer.recipe)
    assert solver.own() is not world.policy
    assert solver.own().module is not world.policy.module
    for step in range(6):
        trainer.step()
        assert same(weights(solver.own()), start)
        assert not same(weights(world.policy), start), step
    second = weights(world.policy)
    trainer.step()  # the first of the second round
    assert same(weights(solver.own()), second)
    assert all(p.grad is None for p in solver.own().module.parameters())


def test_a_solver_that_ignores_the_analysis_gives_no_direction() -> None:
    norms = {}
    for ignore in (True, False):
        world = Shortcut.draw(2, ignore=ignore)
        config = doge.Config(**EXACT, solver_samples=1, analyses=64)
        recipe = doge.build(config, world.setting(300, 8))
        trainer = Trainer(world.policy, recipe, CONFIG)
        rollouts = recipe.credit(recipe.sampler(recipe.curriculum.select(trainer.ctx), trainer.ctx), trainer.ctx)
        trainer.ctx.norm = replace(trainer.ctx.norm, tokens=float(rollouts.response_mask.sum()))
        loss, _ = recipe.objective(world.policy, rollouts, trainer.ctx)
        norms[ignore] = float(torch.autograd.grad(loss, world.policy.core.perception)[0].norm())
    assert norms[True] < 0.3 * norms[False]


# --- the stages ------------------------------------------------------------------------------------------------------


def test_stage_one_shows_no_question_and_stage_two_shows_it() -> None:
    world = Shortcut.draw(3)
    trainer, config = made(world)
    ctx, sampler = trainer.ctx, trainer.recipe.sampler
    for step, words, width in ((0, 2, MENTIONS), (2, 2, MENTIONS), (3, 1, 1), (5, 1, 1), (6, 2, MENTIONS)):
        ctx.step = step
        rollouts = sampler(trainer.recipe.curriculum.select(ctx), ctx)
        assert rollouts.prompt_ids.shape[1] == words, step
        assert rollouts.response_ids.shape[1] == width
        assert torch.bincount(rollouts.group).tolist() == [4 if config.analysing(step) else 8] * 12
        assert rollouts.rewards is not None
        assert float(rollouts.rewards.min()) >= 0.1  # format is right in this world


def test_the_masked_thinker_cannot_use_the_text_prior_nor_the_question() -> None:
    world = Shortcut.draw(3)
    core = world.policy.core
    shown = world.source.analysis_prompts(world.source.take(torch.arange(40), 1), True)
    written = torch.randint(12, (40, MENTIONS), generator=torch.Generator().manual_seed(0))
    before = core(shown.ids, shown.mask, written)
    with torch.no_grad():
        core.prior += 3.0
        core.scenes.asked.copy_((core.scenes.asked + 1) % 6)
    assert torch.equal(core(shown.ids, shown.mask, written), before)
    open_question = world.source.analysis_prompts(world.source.take(torch.arange(40), 1), False)
    first = core(open_question.ids, open_question.mask, written)[:, 0].softmax(-1)
    assert torch.equal(first.argmax(1) // 2, core.scenes.asked[:40])


def test_analyses_are_a_distribution_over_distinct_mentions() -> None:
    world = Shortcut.draw(5)
    core = world.policy.core
    with torch.no_grad():
        core.mention.copy_(torch.arange(6.0) / 3)
    places = torch.cartesian_prod(*[torch.arange(12)] * MENTIONS)
    shown = world.source.analysis_prompts(world.source.take(torch.zeros(len(places), dtype=torch.long), 1), True)
    logprobs = core(shown.ids, shown.mask, places).log_softmax(-1).gather(-1, places.unsqueeze(-1))[..., 0].sum(1)
    torch.testing.assert_close(logprobs.detach().exp().sum(), torch.tensor(1.0))
    names = places // 2
    repeated = (names[:, 0] == names[:, 1]) | (names[:, 0] == names[:, 2]) | (names[:, 1] == names[:, 2])
    assert float(logprobs[repeated].detach().exp().sum()) == 0


def test_sampled_and_scored_log_probabilities_agree() -> None:
    world = Shortcut.draw(5)
    trainer, _ = made(world)
    for step in (0, 3):
        trainer.ctx.step = step
        rollouts = trainer.recipe.sampler(trainer.recipe.curriculum.select(trainer.ctx), trainer.ctx)
        scores = world.policy.score(rollouts, entropy=True)
        torch.testing.assert_close(scores.logprobs.detach(), rollouts.behavior_logprobs)
        assert scores.entropy is not None
        assert bool(torch.isfinite(scores.entropy).all())


class Echo(FrozenCopy):
    """Says what the analysis says."""

    def answer(self, prompts: Prompts, sampling: Sampling, ctx: Context) -> Rollouts:
        rollouts = super().answer(replace(prompts, ids=prompts.ids[:, -1:], mask=prompts.mask[:, -1:]), sampling, ctx)
        return replace(rollouts, response_ids=prompts.ids[rollouts.group, :1])


class Answering:
    """A thinker that answers directly: the mask is the identity, and the analysis is the answer."""

    def __init__(self, world: Shortcut) -> None:
        self.plain = world.source

    def __len__(self) -> int:
        return len(self.plain)

    def take(self, rows: torch.Tensor, samples: Any) -> Prompts:
        return self.plain.take(rows, samples)

    def analysis_prompts(self, prompts: Prompts, masked: bool) -> Prompts:
        return prompts

    def solver_prompts(self, analyses: Rollouts) -> Prompts:
        asked = self.plain.take(analyses.prompt_ids[:, -1], 1)
        ids = torch.cat([analyses.response_ids, asked.ids], 1)
        return replace(asked, ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))

    def analysis_formats(self, analyses: Rollouts) -> torch.Tensor:
        return torch.ones(len(analyses))

    answer_formats = analysis_formats


@pytest.mark.parametrize("samples", [1, 3])
def test_without_a_mask_and_with_an_echo_for_a_solver_stage_one_is_stage_two(samples: int) -> None:
    world = Shortcut.draw(6)
    setting = replace(world.setting(12, 4), source=Answering(world))
    config = doge.Config(**EXACT, stage1_steps=1, stage2_steps=0, solver_samples=samples)
    sampler = doge.TwoStages(config, setting, setting.source, solver := Echo())
    ctx = Context(world.policy, 7)
    solver.begin(world.policy, torch.optim.SGD(world.policy.module.parameters(), lr=1.0))
    prompts = setting.source.take(torch.arange(12), 4)
    first = sampler.analyse(prompts, ctx)
    right = world.judge(first, ctx).rewards
    assert right is not None
    torch.testing.assert_close(first.rewards, context_reward(right, torch.ones(48)))


def test_each_stage_has_its_own_clip_and_importance_weights_are_capped() -> None:
    world = Shortcut.draw(3)
    objective = doge.StagedObjective(doge.Config(stage1_steps=1, stage2_steps=1, kl_coef=0.0))
    trainer, _ = made(world)
    ctx = trainer.ctx
    rollouts = trainer.recipe.credit(trainer.recipe.sampler(trainer.recipe.curriculum.select(ctx), ctx), ctx)
    ctx.updates = 2
    ones = torch.ones_like(rollouts.behavior_logprobs) * rollouts.response_mask
    logprobs = world.policy.score(rollouts).logprobs.detach()
    high = replace(rollouts, old_logprobs=logprobs - 0.5, behavior_logprobs=logprobs - 0.5, advantages=ones)
    losses = []
    for ctx.step in (0, 1):
        losses.append(float(objective(world.policy, high, ctx)[0].detach()))
    assert losses[0] / losses[1] == pytest.approx(1.24 / 1.28)
    rare = replace(high, behavior_logprobs=logprobs - 9.0)
    assert float(objective(world.policy, rare, ctx)[0].detach()) == pytest.approx(2 * losses[1])
    plain = doge.StagedObjective(doge.Config(stage1_steps=1, stage2_steps=1, kl_coef=0.0, truncation=None))
    assert float(plain(world.policy, rare, ctx)[0].detach()) == pytest.approx(losses[1])


def test_the_paper_form_takes_the_format_of_the_answers() -> None:
    world = Shortcut.draw(3)
    world.source.answer_formats = lambda answers: torch.zeros(len(answers))  # type: ignore[method-assign]
    for form, bounds in (("code", (0.1, 1.0)), ("paper", (0.0, 1.0))):
        trainer, _ = made(world, reward=form, solver_samples=2)
        rollouts = trainer.recipe.sampler(trainer.recipe.curriculum.select(trainer.ctx), trainer.ctx)
        assert (float(rollouts.rewards.min()), float(rollouts.rewards.max())) == pytest.approx(bounds)


@pytest.mark.parametrize("reward", ["code", "random"])
def test_a_killed_run_resumes_with_the_same_solver_and_pool(tmp_path: Path, reward: str) -> None:
    from policydist.language.experiment import configure
    from policydist.runs.directory import Run

    config = replace(CONFIG, steps=11, save_every=1, keep=20)
    knobs = {"seed_pool": "filter", "pool_low": 0.0, "pool_high": 0.9, "reward": reward}

    def fresh(run: Run | None) -> Trainer:
        trainer, _ = made(Shortcut.draw(8, train=40), config, **knobs)
        trainer.run = run
        return trainer

    whole = fresh(Run.create(tmp_path / "run", configure("doge")))
    rows = whole.train()
    for step in (2, 6, 8):  # within a stage 1, at the start of a round, within its stage 1
        again = fresh(None)
        again.restore(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
        for expected in rows[step:]:
            found = again.step()
            keys = [key for key in expected if not key.startswith(("seconds", "memory"))]
            assert {key: found[key] for key in keys} == {key: expected[key] for key in keys}
        assert same(weights(again.policy), weights(whole.policy))


# --- rewards without a Solver ----------------------------------------------------------------------------------------


def blindly(reward: str, step: int = 0, shift: float = 0.0, seed: int = 2) -> tuple[Trainer, Rollouts]:
    """Analyses of one step under a control reward; nothing may judge them."""
    world = Shortcut.draw(3)
    with torch.no_grad():
        world.policy.core.mention += shift * torch.arange(6.0)

    def judge(rollouts: Rollouts, ctx: Context) -> Rollouts:
        raise AssertionError("stage 1 asked for a judgement")

    setting = replace(world.setting(12, 8), judge=judge)
    config = doge.Config(**EXACT, stage1_steps=9, stage2_steps=1, reward=reward)  # type: ignore[arg-type]
    trainer = Trainer(world.policy, doge.build(config, setting), replace(CONFIG, seed=seed))
    trainer.ctx.step = step
    return trainer, trainer.recipe.sampler(trainer.recipe.curriculum.select(trainer.ctx), trainer.ctx)


def test_control_rewards_ask_no_solver_and_cost_the_analyses_alone() -> None:
    for reward in ("constant", "random"):
        trainer, analyses = blindly(reward)
        assert trainer.ctx.responses == len(analyses) == 12 * 4
        assert trainer.ctx.generated == 48 * MENTIONS
        assert trainer.recipe.extensions == ()
        assert not any(name.startswith("sampler/") for name in trainer.kept())
        assert {"doge/pass_rate", "doge/too_long"}.isdisjoint(trainer.ctx.metrics)
    with_solver, _ = made(Shortcut.draw(3))
    with_solver.step()
    assert with_solver.ctx.responses == 12 * (4 + 4 * 4)


def test_a_random_reward_knows_nothing_of_the_analysis() -> None:
    _, first = blindly("random")
    _, other = blindly("random", shift=2.0)
    assert first.rewards is not None
    assert not torch.equal(first.response_ids, other.response_ids)
    assert torch.equal(first.rewards, other.rewards)  # type: ignore[arg-type]
    for again in (blindly("random", step=1), blindly("random", seed=5)):
        assert not torch.equal(first.rewards, again[1].rewards)  # type: ignore[arg-type]
    drawn = torch.cat([blindly("random", step=step)[1].rewards for step in range(9)])  # type: ignore[misc]
    assert float(drawn.min()) >= 0
    assert float(drawn.max()) < 1
    assert float(drawn.mean()) == pytest.approx(1 / 2, abs=0.06)
    assert float(drawn.std()) == pytest.approx(12**-0.5, abs=0.03)


def test_a_constant_reward_teaches_nothing_until_stage_two() -> None:
    world = Shortcut.draw(3)
    trainer, _ = made(world, reward="constant")
    start = weights(world.policy)
    for _ in range(3):
        assert trainer.step()["reward"] == 1.0
        assert same(weights(world.policy), start)
    trainer.step()
    assert not same(weights(world.policy), start)


# --- the pool --------------------------------------------------------------------------------------------------------


def test_between_rounds_only_sometimes_solved_problems_go_on() -> None:
    world = Shortcut.draw(8, train=40)
    trainer, config = made(world, seed_pool="filter", pool_low=0.5, pool_high=0.7)
    rounds = trainer.recipe.curriculum
    assert isinstance(rounds, doge.Rounds)
    trainer.ctx.step = config.period
    prompts = rounds.select(trainer.ctx)
    answers = world.judge(
        trainer.ctx.generate(world.source.take(torch.arange(40), 10), Sampling(MENTIONS), "pool"), trainer.ctx
    )
    right = answers.rewards.view(40, 10).sum(1).long()
    assert rounds.kept == ((right >= 5) & (right <= 7)).nonzero().flatten().tolist()
    assert 0 < len(rounds.kept) < 40
    assert set(prompts.index.tolist()) <= set(rounds.kept)
    random, _ = made(world, seed_pool="random", pool_low=0.5, pool_high=0.7)
    random.ctx.step = config.period
    random.recipe.curriculum.select(random.ctx)
    assert len(random.recipe.curriculum.kept) == len(rounds.kept)  # type: ignore[attr-defined]
    assert random.recipe.curriculum.kept != rounds.kept  # type: ignore[attr-defined]


def test_an_empty_pool_ends_the_run_in_words() -> None:
    trainer, config = made(Shortcut.draw(8, train=40), seed_pool="filter", pool_low=0.0, pool_high=0.0)
    trainer.ctx.step = config.period
    with pytest.raises(PolicydistError, match=r"no problem has a pass rate of 0\.0 to 0\.0 .*seed_pool=off"):
        trainer.recipe.curriculum.select(trainer.ctx)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"analyses": 1}, "analyses is 1; it must be at least 2"),
        ({"stage1_steps": 0, "stage2_steps": 0}, "both 0"),
        ({"beta": 2.0}, "beta is 2.0"),
        ({"pool_low": 0.5}, "must ascend"),
        ({"truncation": 0.0}, "truncation is 0.0"),
        ({"solver_url": "http://localhost"}, "both solver_url and solver_model"),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        doge.Config(**knobs)


def test_both_stages_learn() -> None:
    world = Shortcut.draw(0, train=100)
    start = world.measure()
    config = replace(CONFIG, steps=60)
    rows = traced(
        "doge", {**EXACT, "stage1_steps": 30, "stage2_steps": 30}, world.policy, world.setting(32, 8), config, dict
    )
    assert rows[29]["doge/pass_rate"] > rows[0]["doge/pass_rate"] + 0.1
    assert world.measure()["accuracy"] > start["accuracy"] + 0.1


def test_rows_of_context_and_question_train_and_resume_from_the_command_line(tmp_path: Path) -> None:
    from policydist.cli.main import main
    from policydist.runs.directory import read_metrics

    data, run = tmp_path / "sums.jsonl", tmp_path / "run"
    rows = [
        {"context": f"{k}+2*3", "question": f"%{m}:", "answer": str((k * 1 + 2) * 3 % m)}
        for k in range(5)
        for m in (5, 7)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    words = {
        "knobs.stage1_steps": 1, "knobs.stage2_steps": 1, "knobs.analysis_prompt": '"{context}:"',
        "knobs.solver_prompt": '"{context}{question}{analysis}"', "rollout.prompts": 2, "rollout.samples": 2,
        "rollout.max_new_tokens": 8, "train.save_every": 1, "train.keep": 5, "eval.rows": 1, "trackers": "[]", "task.test_size": 1,
    }  # fmt: skip
    sets = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
    assert main(["train", "doge", "--task", f"jsonl:{data}", "--steps", "3", "--out", str(run), *sets]) == 0
    stages = [(row["doge/round"], row["doge/stage"]) for row in read_metrics(run)]
    assert stages == [(1, 1), (1, 2), (2, 1)]
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(json.dumps({**row, "context": f"x {row['question']} y"}) for row in rows))
    assert main(["train", "doge", "--task", f"jsonl:{bad}", "--steps", "1", "--out", str(tmp_path / "no"), *sets]) == 2
    assert not (tmp_path / "no").exists()
    assert main(["train", "--resume", str(run / "checkpoints" / "step-00000001")]) == 0
    assert [(row["doge/round"], row["doge/stage"]) for row in read_metrics(run)] == stages
