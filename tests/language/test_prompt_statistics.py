"""The store of success and advantage statistics: decay, windows, recent rates, exact restore."""

from __future__ import annotations

import json
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.errors import PolicydistError, UsageError
from policydist.functional import decay_counts
from policydist.language.statistics import Statistics, Window

STEPS = st.lists(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=12), min_size=1, max_size=12)


def step(rows: list[tuple[int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    key = torch.tensor([row[0] for row in rows], dtype=torch.long)
    return key, torch.tensor([float(row[1]) for row in rows], dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_lazy_decay_equals_eager_decay(steps: list[list[tuple[int, bool]]]) -> None:
    lazy = Statistics(5, kept=0.2, idle=0.9)
    alpha, beta = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for rows in steps:
        key, success = step(rows)
        counts = torch.bincount(key, minlength=5)
        hits = torch.bincount(key, weights=success, minlength=5)
        alpha = decay_counts(alpha, hits, counts > 0, 0.2, 0.9)
        beta = decay_counts(beta, counts - hits, counts > 0, 0.2, 0.9)
        lazy.observe(key, success)
    torch.testing.assert_close(lazy.evidence()[0], alpha, rtol=1e-12, atol=0)
    torch.testing.assert_close(lazy.evidence()[1], beta, rtol=1e-12, atol=0)


def test_without_decay_it_counts() -> None:
    store = Statistics(2)
    for success in (1.0, 0.0, 1.0):
        store.observe(torch.tensor([0]), torch.tensor([success]))
    assert [float(side[0]) for side in store.evidence()] == [2.0, 1.0]
    assert store.seen.tolist() == [3, 0]


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 5))
def test_window_keeps_the_last_values_in_order(steps: list[list[tuple[int, bool]]], length: int) -> None:
    window, queues, total = Window(5, length), [deque(maxlen=length) for _ in range(5)], 0
    for rows in steps:
        key = step(rows)[0]
        value = torch.arange(total, total + len(rows), dtype=torch.float64)
        total += len(rows)
        window.append(key, value)
        for k, v in zip(key.tolist(), value.tolist(), strict=True):
            queues[k].append(v)
    for k, queue in enumerate(queues):
        assert window.of(k) == list(queue)
        assert float(window.mean()[k]) == pytest.approx(sum(queue) / len(queue) if queue else 0.0)
    assert int(window.seen.sum()) == total


def test_recent_rates_of_short_and_long_visits() -> None:
    store = Statistics(1, recent=4)

    def visit(*success: float) -> float:
        store.observe(torch.zeros(len(success), dtype=torch.long), torch.tensor(success))
        return float(store.rates()[0])

    assert visit(1.0, 1.0) == 1.0
    assert visit(0.0) == pytest.approx(2 / 3)
    assert visit(0.0, 0.0) == pytest.approx(1 / 4)  # the first success has left
    assert visit(1.0, 0.0, 0.0, 0.0, 0.0) == pytest.approx(1 / 5)  # long enough to stand alone, the whole of it
    assert visit(1.0) == pytest.approx(1 / 4)


def test_learnability_takes_absolute_values() -> None:
    store = Statistics(2, window=3)
    key, success = torch.tensor([0, 0, 0, 0]), torch.zeros(4)
    store.observe(key, success, torch.tensor([9.0, -1.0, 1.0, -1.0]))
    assert store.learnability().tolist() == [1.0, 0.0]


def test_a_restored_store_goes_on_alike() -> None:
    def feed(store: Statistics, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        key = torch.randint(6, (9,), generator=generator)
        store.observe(key, (torch.rand(9, generator=generator) < 0.5).double(), torch.randn(9, generator=generator))

    options = {"kept": 0.3, "idle": 0.95, "recent": 4, "window": 7}
    first = Statistics(6, **options)
    for seed in range(8):
        feed(first, seed)
    second = Statistics(6, **options)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for seed in range(8, 12):
        feed(first, seed)
        feed(second, seed)
    assert first.state_dict() == second.state_dict()
    assert torch.equal(first.rates(), second.rates())
    assert torch.equal(first.learnability(), second.learnability())
    assert torch.equal(first.evidence()[0], second.evidence()[0])


def test_bad_requests_are_named() -> None:
    with pytest.raises(UsageError, match="no rows"):
        Statistics(0)
    with pytest.raises(UsageError, match=r"idle is 1\.5"):
        Statistics(3, idle=1.5)
    with pytest.raises(PolicydistError, match="key 7"):
        Statistics(3).observe(torch.tensor([7]), torch.tensor([1.0]))
    with pytest.raises(PolicydistError, match="3 keys, this run has 4"):
        Statistics(4).load_state_dict(Statistics(3).state_dict())
    with pytest.raises(PolicydistError, match="recent=16"):
        Statistics(3).rates()
