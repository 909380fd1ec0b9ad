"""DUMP's bandit over sources in the real trainer: probabilities, counting, its limits, and an exact resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from policydist.errors import UsageError
from policydist.language.methods import dump
from policydist.language.prompts import ContextPrompts
from policydist.language.recipe import Setting
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.worlds.pool import Pool
from policydist.runs.directory import Run

CONFIG = TrainConfig(steps=6, lr=0.5, optimiser="sgd", grad_clip=0, seed=3)


def chains(prompts: int = 16, samples: int = 4, pure: bool = True, count: int = 3, **knobs: object) -> Trainer:
    pool = Pool.chains(count, each=4, pure=pure)
    return Trainer(pool.policy, dump.build(dump.Config(**knobs), pool.setting(prompts, samples)), CONFIG)  # type: ignore[arg-type]


def curriculum(work: Trainer) -> dump.SourceBandit:
    found = work.recipe.curriculum
    assert isinstance(found, dump.SourceBandit)
    return found


def told(sources: Sequence[str], **knobs: object) -> dump.SourceBandit:
    pool = Pool.items(0, len(sources), 0.0, 1.0)
    setting = replace(pool.setting(64, 2), source=ContextPrompts(len(sources), sources))
    return dump.SourceBandit(dump.Config(**knobs), setting)  # type: ignore[arg-type]


def feed(bandit: dump.SourceBandit, **sizes: tuple[int, float]) -> None:
    for name, (count, advantage) in sizes.items():
        key = torch.full((count,), bandit.names.index(name))
        bandit.statistics.observe(key, torch.zeros(count), torch.full((count,), advantage))


def test_without_data_sources_are_equal_whatever_their_sizes() -> None:
    bandit = told(["a"] * 9 + ["b"])
    assert bandit.probabilities().tolist() == [0.5, 0.5]


def test_probabilities_by_hand() -> None:
    bandit = told(["a", "b", "c"])
    feed(bandit, a=(4, -0.8), b=(2, 0.4))
    n = torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64)
    ucb = torch.tensor([0.8, 0.4, 0.0], dtype=torch.float64) + (2 * torch.tensor(7.0).double().log() / (n + 1)).sqrt()
    torch.testing.assert_close(bandit.probabilities(), (ucb / 0.1).softmax(0), atol=1e-7, rtol=1e-6)
    assert told(["a", "b"], tau=0.0).probabilities().tolist() == [0.5, 0.5]


def test_responses_are_counted_for_ever_and_the_window_holds_the_last() -> None:
    bandit = told(["a", "b"], window=5)
    feed(bandit, a=(30, 1.0))
    feed(bandit, a=(3, 0.0))
    assert bandit.statistics.seen.tolist() == [33, 0]
    assert float(bandit.statistics.learnability()[0]) == pytest.approx(2 / 5)


def test_one_entry_a_response_with_the_size_of_its_advantage() -> None:
    work = chains()
    row = work.step()
    store = curriculum(work).statistics
    assert int(store.seen.sum()) == 64
    solved, hopeless = (curriculum(work).names.index(name) for name in ("solved", "hopeless"))
    assert store.learnability()[[solved, hopeless]].tolist() == [0.0, 0.0]
    assert float(store.learnability().max()) > 0.1
    assert sum(value for name, value in row.items() if name.startswith("dump/share/")) == pytest.approx(1.0)


def test_signed_advantages_would_see_nothing() -> None:
    from policydist.claims.dump import signed

    work = chains(kl_coef=0.0)
    pool = Pool.chains(3, each=4, pure=True)
    mutant = dump.SourceBandit(dump.Config(kl_coef=0.0), pool.setting(16, 4), signed)
    object.__setattr__(work.recipe, "curriculum", mutant)
    work.step()
    assert float(mutant.statistics.learnability().max()) < 1e-6


def test_slots_follow_the_probabilities_with_replacement() -> None:
    bandit = told(["rare"] + ["often"] * 4, tau=0.5)
    feed(bandit, rare=(5000, 1.0), often=(5000, 0.0))
    share = float(bandit.probabilities()[0])
    work = chains()
    drawn = []
    for step in range(40):
        work.ctx.step = step
        drawn += bandit.select(work.ctx).index.tolist()
    assert sum(row == 0 for row in drawn) / len(drawn) == pytest.approx(share, abs=0.03)
    assert share > 0.8  # the single row of "rare" is drawn many times in a batch


def test_all_sources_pure_is_uniform_and_trains() -> None:
    for fixed in (0.0, 1.0):
        pool = Pool.chains(2, each=3)
        pool = replace(pool, fixed=torch.full((6,), fixed))
        work = Trainer(pool.policy, dump.build(dump.Config(kl_coef=0.0), pool.setting(40, 4)), CONFIG)
        rows = work.train()
        assert rows[-1]["effective_groups"] == 0.0
        assert rows[-1]["dump/share/0"] == pytest.approx(0.5, abs=0.2)


def test_more_slots_than_rows_and_a_single_row_a_source() -> None:
    work = chains(prompts=50, pure=False, count=2)
    assert work.step()["tokens"] > 0
    assert len(told(["a", "b"]).select(chains().ctx)) == 64


def test_sources_that_are_missing_or_empty_are_refused() -> None:
    setting = Pool.items(0, 4, 0.0, 1.0).setting(2, 2)
    with pytest.raises(UsageError, match=r"mix tasks \(task\.name=mix:"):
        dump.build(dump.Config(), setting)
    none = Setting(ContextPrompts(0, []), setting.judge, setting.sampling)
    with pytest.raises(UsageError, match="no rows, or no sources"):
        dump.build(dump.Config(), none)
    with pytest.raises(UsageError, match="tau is -1"):
        dump.Config(tau=-1.0)
    with pytest.raises(UsageError, match="bonus is -1"):
        dump.Config(bonus=-1.0)
    with pytest.raises(UsageError, match="window is 0"):
        told(["a"], window=0)


def test_another_mixture_does_not_resume() -> None:
    with pytest.raises(UsageError, match="checkpoint is of sources a, b"):
        told(["a", "c"]).load_state_dict(told(["a", "b"]).state_dict())


STAGES = {"stages": ("hopeless", 2, "1", 0, "solved"), "stage_steps": 2}


def test_static_stages_draw_one_source_after_the_other_and_stay_at_the_last() -> None:
    work = chains(**STAGES)
    found = []
    for step in range(12):
        work.ctx.step = step
        rows = curriculum(work).select(work.ctx).index
        source = curriculum(work).owner[rows].unique()
        assert len(source) == 1
        name = curriculum(work).names[int(source)]
        assert work.ctx.metrics[f"dump/share/{name}"] == 1.0
        found.append(name)
    assert found == [name for name in ("hopeless", "2", "1", "0", "solved") for _ in range(2)] + ["solved"] * 2


def test_a_stage_without_a_length_draws_as_often_as_its_source_has_rows() -> None:
    bandit = told(["a"] * 130 + ["b"] * 64 + ["c"], stages=("b", "a", "c"))
    assert bandit.lengths == [1, 3, 1]
    names = [bandit.names[int(bandit.shares(step).argmax())] for step in range(7)]
    assert names == ["b", "a", "a", "a", "c", "c", "c"]


def test_failures_rank_sources_by_what_is_not_solved() -> None:
    work = chains(signal="failure", prompts=40)
    for _ in range(3):
        work.step()
    found, names = curriculum(work).statistics.learnability(), curriculum(work).names
    assert float(found[names.index("solved")]) == 0.0
    assert float(found[names.index("hopeless")]) == 1.0  # where advantages see nothing
    level = [float(found[names.index(str(d))]) for d in range(3)]
    assert 0 < level[0] < level[1] < level[2]


def test_stages_that_do_not_fit_the_sources_are_refused() -> None:
    for stages in (("a",), ("a", "c"), ("a", "b", "b"), ()):
        with pytest.raises(UsageError, match="must name each source once: a, b"):
            told(["a", "b"], stages=stages)
    for knobs in ({"stage_steps": 3}, {"stages": ("a",), "stage_steps": 0}):
        with pytest.raises(UsageError, match=r"stage_steps is \d; it must be at least 1, and needs stages"):
            dump.Config(**knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize("knobs", [{}, STAGES, {"signal": "failure"}])
def test_a_resumed_run_draws_as_if_never_stopped(tmp_path: Path, knobs: dict[str, object]) -> None:
    rows = chains(**knobs).train()
    pool = Pool.chains(3, each=4, pure=True)
    recipe = dump.build(dump.Config(**knobs), pool.setting(16, 4))  # type: ignore[arg-type]
    part = Trainer(pool.policy, recipe, CONFIG, run=Run.create(tmp_path / "r", CONFIG))
    for _ in range(4):
        part.step()
    part.save()
    again = chains(**knobs)
    again.restore(next((tmp_path / "r" / "checkpoints").glob("step-*")))
    for one, other in zip(rows[4:], again.train(), strict=True):
        for name in ("reward", "loss", "kl", "dump/share/0", "dump/learnability/1"):
            assert one[name] == other[name]
