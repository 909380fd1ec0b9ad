"""Independent jobs on all cores: fresh processes with one computing thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import Any

from policydist.errors import UsageError

_stop: Event | None = None  # set in a worker process by `begin_worker`


def one_thread() -> None:
    """Restrict this process to one computing thread, so that as many processes as cores do not fight for them."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    import torch

    torch.set_num_threads(1)


def begin_worker(stop: Event) -> None:
    """Prepare a worker process: one thread, and deaf to Ctrl-C while it has no job, or its pool would break."""
    global _stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    one_thread()
    _stop = stop


def perform(function: Callable[..., Any], job: tuple[Any, ...]) -> Any:
    """One job in a worker; after an interruption none is begun, though the pool has one more in its queue."""
    if _stop is not None and _stop.is_set():
        return None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return function(*job)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: int | None = None,
    tick: Callable[[], None] | None = None,
    fresh: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the job, its result) as jobs finish; ``tick`` is called about twice a second meanwhile.

    ``function`` must be importable by name. With ``fresh`` every job has a process of its own, whose memory is then its own
    too; otherwise ``workers`` processes do them all, which small jobs need, as starting a process takes seconds.
    No process is left behind: an error in one job ends the others at once; after an interruption the jobs not yet begun are
    dropped, and those at work, which Ctrl-C reached too, end as they do by it.

    Raises:
        UsageError: for ``workers`` below one.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}; it must be at least 1")
    if not jobs:
        return
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    stop = context.Event()
    waiting = list(enumerate(jobs))[::-1]
    running: dict[Future[Any], tuple[int, ProcessPoolExecutor]] = {}

    def begin(processes: int, count: int) -> None:
        """The next ``count`` jobs, in a pool of their own."""
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=begin_worker, initargs=(stop,))
        for _ in range(min(count, len(waiting))):
            number, job = waiting.pop()
            running[_submit(pool, function, job)] = number, pool

    try:
        for processes, count in [(1, 1)] * workers if fresh else [(workers, len(jobs))]:
            begin(processes, count)
        while running:
            done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            if tick:
                tick()
            for future in done:
                result = future.result()
                number, pool = running.pop(future)
                if not any(other is pool for _, other in running.values()):
                    pool.shutdown()
                    if waiting:
                        begin(1, 1)
                yield number, result
    except KeyboardInterrupt:
        stop.set()
        for pool in {pool for _, pool in running.values()}:
            pool.shutdown(wait=True, cancel_futures=True)
        raise
    except BaseException:
        end_workers([pool for _, pool in running.values()], before)
        raise


def _submit(pool: ProcessPoolExecutor, function: Callable[..., Any], job: tuple[Any, ...]) -> Future[Any]:
    """Submit a job, which may start a process: it is born with Ctrl-C held back, until `begin_worker` lets it in."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(perform, function, job)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def end_workers(pools: Iterable[ProcessPoolExecutor], before: Collection[BaseProcess]) -> None:
    """Stop pools at once: their processes are those of this process that are not among the children ``before`` them.

    Returns when none is left. A pool's own thread waits for them too, and may be the one that is told of an end; joining a
    process here could then return before that thread has noted it.
    """
    for pool in pools:
        pool.shutdown(wait=False, cancel_futures=True)
    children = set(multiprocessing.active_children()) - set(before)
    for child in children:
        child.terminate()
    while children & set(multiprocessing.active_children()):
        time.sleep(0.005)
