"""Random streams by name, and jobs in worker processes."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policydist.errors import MissingExtraError, PolicydistError, UsageError
from policydist.runs import seeds
from policydist.runs.parallel import end_workers, run_jobs

names = st.lists(
    st.text(st.characters(exclude_characters="/", codec="utf-8")) | st.integers(0, 99), min_size=1, max_size=3
)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(0, 2**31), names, names)
def test_streams_differ_exactly_when_seed_or_name_do(first: int, second: int, one: list[Any], two: list[Any]) -> None:
    same = (first, [str(name) for name in one]) == (second, [str(name) for name in two])
    a, b = seeds.derive(first, *one), seeds.derive(second, *two)
    assert (a == b) == same
    assert 0 <= a < 2**63
    draws = [
        torch.rand(4, generator=seeds.torch_generator(seed, *name)) for seed, name in ((first, one), (second, two))
    ]
    assert torch.equal(*draws) == same


def test_streams_are_the_same_on_every_machine() -> None:
    assert seeds.derive(0) == 0x5FECEB66FFC86F38 >> 1  # SHA-256 of "0"
    assert seeds.derive(7, "epoch", 3) == 0x83A8BFB2C6481E01 >> 1
    one, two = (seeds.numpy_generator(3, name).random(1000) for name in ("a", "b"))
    assert abs(float(((one - 0.5) * (two - 0.5)).mean())) < 5 / 12 / 1000**0.5


def work(number: int, fail: bool = False) -> tuple[int, str, int]:
    if fail:
        raise MissingExtraError("reasoning_gym", "tasks")
    return number * number, os.environ["OMP_NUM_THREADS"], torch.get_num_threads()


@pytest.mark.slow
def test_jobs_come_back_under_their_number_and_errors_keep_their_class() -> None:
    ticks: list[int] = []
    found = dict(run_jobs(work, [(n,) for n in range(5)], workers=2, tick=lambda: ticks.append(1)))
    assert found == {n: (n * n, "1", 1) for n in range(5)}
    assert ticks
    with pytest.raises(
        MissingExtraError, match=r"reasoning_gym is not installed: run pip install 'policydist\[tasks\]'"
    ):
        list(run_jobs(work, [(1, True)], workers=1))


def wait_or_fail(seconds: float) -> None:
    if not seconds:
        raise PolicydistError("out of luck")
    time.sleep(seconds)


@pytest.mark.slow
def test_an_error_or_interruption_leaves_no_process_behind() -> None:
    before = set(multiprocessing.active_children())
    start = time.monotonic()
    with pytest.raises(PolicydistError, match="out of luck"):
        list(run_jobs(wait_or_fail, [(200,), (0,)], workers=2))
    assert time.monotonic() - start < 100  # the other job was not waited for
    assert not set(multiprocessing.active_children()) - before

    def interrupt() -> None:
        raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):  # the pool has the second job in its queue already
        list(run_jobs(wait_or_fail, [(3,), (200,)], workers=1, tick=interrupt))
    assert time.monotonic() - start < 100
    assert not set(multiprocessing.active_children()) - before


def process(number: int) -> tuple[int, int]:
    return number, os.getpid()


@pytest.mark.slow
def test_each_job_may_have_a_process_of_its_own() -> None:
    before = set(multiprocessing.active_children())
    found = dict(run_jobs(process, [(n,) for n in range(3)], workers=2, fresh=True))
    assert [found[n][0] for n in range(3)] == [0, 1, 2]
    assert len({pid for _, pid in found.values()} | {os.getpid()}) == 4
    assert not set(multiprocessing.active_children()) - before


INTERRUPTED = """
import os, signal, sys, threading
from policydist.runs.parallel import run_jobs

def work(number):
    print("begun", number, flush=True)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are born deaf to it
    threading.Timer(float(sys.argv[1]), lambda: os.killpg(0, signal.SIGINT)).start()
    try:
        for _ in run_jobs(work, [(n,) for n in range(50)], workers=1, fresh=True):
            pass
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.2, 3.0])  # as the interpreter starts, later
def test_ctrl_c_while_a_process_starts_is_quiet(tmp_path: Path, seconds: float) -> None:
    script = tmp_path / "jobs.py"
    script.write_text(INTERRUPTED)
    ran = subprocess.run(
        [sys.executable, str(script), str(seconds)], capture_output=True, text=True, timeout=100, start_new_session=True
    )
    assert ran.stdout.endswith("interrupted\n")
    assert not ran.stderr
    assert ran.stdout.count("begun") < 50


def test_workers_are_ended_even_if_the_thread_of_the_pool_takes_their_exit_status(monkeypatch) -> None:
    monkeypatch.setattr(BaseProcess, "join", lambda self, timeout=None: None)  # as if another had been told already
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))
    jobs = [pool.submit(abs, number) for number in range(4)]
    assert jobs[-1].result() == 3
    end_workers([pool], before)
    assert not set(multiprocessing.active_children()) - before


def test_no_jobs_and_no_workers() -> None:
    assert list(run_jobs(work, [])) == []
    with pytest.raises(UsageError, match="workers is 0"):
        list(run_jobs(work, [(1,)], workers=0))
