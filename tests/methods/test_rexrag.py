"""REX-RAG's recipe in the real trainer: its limit GRPO, the trie, the mixture's ratios, the exact correction, the filter."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.claims import rexrag as claim
from policydist.errors import UsageError
from policydist.functional import (
    HintPool,
    keep_likely,
    mixture_logprobs,
    most_resumed,
    moving_average,
    resumed_mixture,
    trajectory_weights,
)
from policydist.language import origins
from policydist.language.hints import HINTS, read_hints
from policydist.language.methods import rexrag
from policydist.language.mixed_objective import MIXTURE
from policydist.language.recipe import Context, Shuffled
from policydist.language.trainer import TrainConfig, Trainer
from policydist.language.types import Rollouts
from policydist.language.worlds.deadends import DeadEnds
from policydist.language.worlds.steered import traced

CONFIG = TrainConfig(steps=4, lr=0.05, grad_clip=0, seed=2)
POOLS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), min_size=1, max_size=8)


def sampled(**knobs: Any) -> tuple[Context, DeadEnds, Rollouts]:
    """What the sampler hands to the credit, with every failure resumed."""
    world = DeadEnds.draw(3, questions=6, hint_logit=-3.0)
    config, setting = rexrag.Config(kl_coef=0.0, **{"p_rev": 1.0, "keep_init": 0.15, **knobs}), world.setting()
    sampler: Any = rexrag.build(config, setting).sampler
    ctx = Context(world.policy, 3)
    return ctx, world, sampler(Shuffled(setting.source, 6, 5).select(ctx), ctx)


def final(slug: str, **knobs: Any) -> torch.Tensor:
    world = DeadEnds.draw(1)
    traced(slug, {"kl_coef": 0.0, **knobs}, world.policy, world.setting(), CONFIG, dict)
    return world.policy.core.logits.detach()


@pytest.mark.parametrize("knobs", [{"p_rev": 0.0}, {"keep_init": 0.0}])
def test_without_resumed_episodes_it_is_grpo(knobs: dict[str, float]) -> None:
    assert torch.equal(final("rexrag", **knobs), final("grpo"))
    assert not torch.equal(final("rexrag", p_rev=1.0), final("grpo"))


@given(POOLS)
def test_the_tries_conditionals_make_up_the_pools_shares(pool: list[list[int]]) -> None:
    hints = HintPool(pool)
    counts = Counter(map(tuple, pool))
    for hint, count in counts.items():
        parts = hints.token_logprobs(hint)
        assert sum(parts) == pytest.approx(math.log(count / len(pool)))
        assert hints.logprob(hint) == pytest.approx(sum(parts))
        first = sum(other[0] == hint[0] for other in pool) / len(pool)
        assert len(hint) == 1 or parts[0] == pytest.approx(math.log(first))
    assert sum(math.exp(hints.logprob(hint)) for hint in counts) == pytest.approx(1)
    assert hints.logprob([0, 1, 2, 0]) == -math.inf
    # Behind every prefix: what goes on and what stops there.
    for prefix in {hint[:n] for hint in counts for n in range(len(hint))}:
        following = {hint[len(prefix)] for hint in counts if hint[: len(prefix)] == prefix and len(hint) > len(prefix)}
        shares = [hints.prefixes[(*prefix, token)] / hints.prefixes[prefix] for token in following]
        stopping = hints.ends[prefix] / hints.prefixes[prefix]
        assert sum(shares) + stopping == pytest.approx(1)


def test_a_hint_that_begins_another_keeps_its_share() -> None:
    hints = HintPool([[1, 2], [1, 2, 3], [1, 2, 3]])
    assert hints.token_logprobs([1, 2]) == pytest.approx([0.0, math.log(1 / 3)])
    assert hints.token_logprobs([1, 2, 3]) == pytest.approx([0.0, 0.0, math.log(2 / 3)])
    assert hints.token_logprobs([2]) == [-math.inf]


def test_an_empty_pool_is_refused(tmp_path: Any) -> None:
    file = tmp_path / "hints.txt"
    file.write_text(" \n\n")
    with pytest.raises(UsageError, match=r"hints.txt is empty"):
        read_hints(str(file))
    with pytest.raises(UsageError, match="cannot read the hints"):
        read_hints(str(tmp_path / "none.txt"))
    with pytest.raises(UsageError, match="pool is empty"):
        HintPool([])
    with pytest.raises(UsageError, match="without tokens"):
        HintPool([[1], []])
    assert len(set(HINTS)) == 30
    assert all(hint.startswith("<think>") for hint in HINTS)


def masks(before: int, hint: int, after: int) -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.arange(before + hint + after).unsqueeze(0)
    return place < before, (place >= before) & (place < before + hint)


@settings(max_examples=30)
@given(st.integers(0, 4), st.floats(0.01, 0.9), st.floats(0.05, 1.0))
def test_ratios_at_the_old_policy(before: int, share: float, failing: float) -> None:
    old = torch.log(torch.rand(1, before + 4, dtype=torch.float64) * 0.9 + 0.05)
    head, hint = masks(before, 2, 2)
    pool = torch.where(hint, -0.7, 0.0).double()
    mixed = resumed_mixture(old, torch.tensor([True]), head, hint, pool, share, failing)
    ratio = (old - mixed).exp()[0]
    torch.testing.assert_close(ratio[before + 2 :], torch.ones(2, dtype=torch.float64))
    if before:
        expected = ((1 - share) + share * failing ** (-1 / before)) ** -before
        assert float(ratio[:before].prod()) == pytest.approx(expected)
        assert float(ratio[:before].prod()) <= 1  # mu above 1 is not cut off
    pi = old.exp()[0, before : before + 2]
    torch.testing.assert_close(ratio[before : before + 2], pi / ((1 - share) * pi + share * math.exp(-0.7)))
    original = resumed_mixture(old, torch.tensor([False]), head, hint, pool, share, failing)
    torch.testing.assert_close((old - original).exp(), torch.full_like(old, 1 / (1 - share)))


def test_a_vanishing_share_changes_only_what_the_policy_never_writes() -> None:
    head, hint = masks(2, 1, 1)
    old = torch.tensor([[-1.0, -2.0, -3.0, -0.5]], dtype=torch.float64)
    pool = torch.zeros_like(old)
    one = torch.tensor([True])
    torch.testing.assert_close(resumed_mixture(old, one, head, hint, pool, 1e-12, 0.5), old, atol=1e-9, rtol=0)
    assert torch.equal(resumed_mixture(old, one, head, hint, pool, 0.0, 0.5), old)
    never = torch.where(hint, -math.inf, old)
    mixed = resumed_mixture(never, one, head, hint, pool, 1e-12, 0.5)
    assert float(mixed[0, 2]) == pytest.approx(math.log(1e-12))


def test_nothing_failed_yet_something_was_resumed() -> None:
    head, hint = masks(1, 1, 1)
    with pytest.raises(UsageError, match="nothing failed"):
        resumed_mixture(torch.zeros(1, 3), torch.tensor([True]), head, hint, torch.zeros(1, 3), 0.1, 0.0)
    fine = resumed_mixture(torch.zeros(1, 3), torch.tensor([False]), head, hint, torch.zeros(1, 3), 0.1, 0.0)
    assert bool(torch.isfinite(fine).all())


def test_the_moving_average_and_the_filter() -> None:
    assert moving_average(0.08, 1.0) == pytest.approx(0.9 * 0.08 + 0.1)
    old = torch.tensor([[-1.0, -9.0], [-5.0, -1.0], [-2.0, -1.0], [-0.1, -1.0]])
    hint = torch.tensor([[True, False]] * 4)
    resumed = torch.tensor([False, True, True, True])
    assert keep_likely(old, hint, resumed, 2).tolist() == [True, False, True, True]
    assert keep_likely(old, hint, resumed, 99).tolist() == [True] * 4
    assert keep_likely(old, hint, resumed, 0).tolist() == [True, False, False, False]


@given(st.integers(1, 500), st.sampled_from([0.1, 0.2, 0.28]))
def test_no_original_begins_outside_the_clip_range(originals: int, clip: float) -> None:
    most = most_resumed(originals, clip)
    assert 1 / (1 - most / (originals + most)) < 1 + clip + 1e-12
    assert most + 1 >= clip * originals - 1e-6  # and not fewer than need be


@pytest.mark.parametrize("hint", [-7.0, -5.0, 0.0])
def test_weighing_whole_trajectories_is_unbiased_and_the_density_is_one(hint: float) -> None:
    world = DeadEnds.draw(4, questions=1, searches=3, hints=2, hint_logit=hint, dtype=torch.float64)
    logits = world.policy.core.logits
    (exact,) = torch.autograd.grad(world.value(logits).sum(), logits)
    wrong = {
        name: float((claim.expected_update(world, name, 0.2, 0.3) - exact).norm() / exact.norm())  # type: ignore[arg-type]
        for name in ("none", "token_mixture", "trajectory_mis")
    }
    assert wrong["trajectory_mis"] < 1e-10
    assert min(wrong["none"], wrong["token_mixture"]) > 0.05
    rows, mass, failing = world.resumed()
    assert float(mass.sum()) == pytest.approx(1)
    assert float(
        world.responses().old_logprobs.exp().masked_fill(~world.responses().response_mask, 1).prod(1).sum()
    ) == (pytest.approx(1))
    # The weights' own density: mu / pi of resumed rows is what the recipe computes.
    pool = HintPool(world.source.hints)
    weighted = rexrag.weighted(rexrag.flagged(rows, True), pool, world.source, 0.2, failing)
    ratio = mass / rows.old_logprobs.sum(1).exp()
    torch.testing.assert_close(weighted.extras[rexrag.WEIGHT], 1 / (0.8 + 0.2 * ratio))
    torch.testing.assert_close(trajectory_weights(ratio.log(), 0.2), 1 / (0.8 + 0.2 * ratio))


def test_originals_stay_and_resumed_ones_have_no_answer_of_their_own() -> None:
    _, world, rows = sampled()
    probe = rows.extras["auxiliary"]
    own = rows.select(~probe)
    assert torch.bincount(own.group).tolist() == [5] * 6
    kept = rows.select(probe)
    assert len(kept) == 4  # floor(30 * 0.15)
    assert bool((kept.response_ids != world.policy.answer).all())
    assert bool((origins.of(kept)[:, 1] == origins.FORCED).all())
    assert bool(kept.response_mask[:, 1].all())
    failed = {
        (int(g), int(ids[0])) for g, ids, r in zip(own.group, own.response_ids, own.rewards, strict=True) if r < 1
    }
    assert all((int(g), int(ids[0])) in failed for g, ids in zip(kept.group, kept.response_ids, strict=True))


def test_resumed_episodes_are_not_taken_for_the_policys_own() -> None:
    ctx, _, rows = sampled()
    probe, share = rows.extras["auxiliary"], float(rows.extras["auxiliary"].float().mean())
    assert ctx.metrics["rexrag/alpha"] == pytest.approx(share)
    assert share < 1 - 1 / 1.2
    mixed, old = rows.extras[MIXTURE], rows.old_logprobs
    own = rows.response_mask & ~probe.unsqueeze(1)
    torch.testing.assert_close((old - mixed)[own].exp(), torch.full((int(own.sum()),), 1 / (1 - share)))
    failing = 1 - float((rows.rewards[~probe] >= 1).float().mean())
    first = mixture_logprobs(old[probe, 0], old[probe, 0] - math.log(failing), share)
    torch.testing.assert_close(mixed[probe, 0], first)
    torch.testing.assert_close(mixed[probe, 2], old[probe, 2])
    torch.testing.assert_close(mixed[probe, 1], mixture_logprobs(old[probe, 1], torch.tensor(1 / 3).log(), share))
    _, _, plain = sampled(correction="none")
    assert MIXTURE not in plain.extras
    _, _, whole = sampled(correction="trajectory_mis")
    weights = whole.extras[rexrag.WEIGHT]
    assert bool((weights[whole.extras["auxiliary"]] < 1).all())


def test_hints_can_be_left_out_of_the_loss_and_the_share_adapts() -> None:
    ctx, _, rows = sampled(in_loss_hints=False)
    probe = rows.extras["auxiliary"]
    assert not bool(rows.response_mask[probe, 1].any())
    assert bool(rows.response_attention[probe, 1].all())
    expected = moving_average(0.15, float((rows.rewards[probe] >= 1).float().mean()))
    assert ctx.metrics["rexrag/keep"] == pytest.approx(expected)


def test_the_share_is_saved_and_restored() -> None:
    world = DeadEnds.draw(1)
    recipe = rexrag.build(rexrag.Config(kl_coef=0.0, p_rev=1.0), world.setting())
    trainer = Trainer(world.policy, recipe, CONFIG)
    trainer.step()
    sampler: Any = recipe.sampler
    assert trainer.stateful()["sampler"].state_dict() == {"keep": sampler.keep}
    assert sampler.keep != 0.08
    sampler.load_state_dict({"keep": 0.5})
    assert sampler.keep == 0.5


def test_several_updates_and_a_kl_term_run() -> None:
    world = DeadEnds.draw(4)
    rows = traced("rexrag", {"p_rev": 1.0}, world.policy, world.setting(), replace(CONFIG, updates=2, epochs=2), dict)
    assert rows[-1]["kl"] >= 0
    assert bool(torch.isfinite(world.policy.core.logits[:, 0, :5]).all())


def test_it_leaves_dead_ends() -> None:
    reached = {}
    for slug, knobs in (("rexrag", {"p_rev": 0.5, "keep_init": 0.19}), ("grpo", {})):
        world = DeadEnds.draw(0, questions=6)
        config = replace(CONFIG, steps=60, lr=0.1)
        traced(slug, {"kl_coef": 0.0, **knobs}, world.policy, world.setting(), config, dict)
        reached[slug] = world.success()
    assert reached["rexrag"] > reached["grpo"] + 0.3


@pytest.mark.parametrize(
    "knobs",
    [
        {"p_rev": 1.5},
        {"keep_init": -0.1},
        {"timeout": 0.0},
        {"retries": -1},
        {"max_turns": 0},
        {"invalid": "</answer>"},
    ],
)
def test_settings_out_of_range_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        rexrag.Config(**knobs)
