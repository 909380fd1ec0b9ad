"""Independent jobs on all cores: fresh processes with one computing thread each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
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
    one_thread()
    _stop = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the job, its result) as jobs finish; ``tick`` is called about twice a second meanwhile.

    ``function`` must be importable by name. No process is left behind: an error in one job ends the others at once; after
    an interruption the jobs not yet begun are dropped, and those at work, which Ctrl-C reached too, end as they do by it.

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
    with ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker, initargs=(stop,)) as pool:
        waiting: dict[Future[Any], int] = {
            pool.submit(perform, function, job): number for number, job in enumerate(jobs)
        }
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                if tick:
                    tick()
                for future in done:
                    yield waiting.pop(future), future.result()
        except KeyboardInterrupt:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        except BaseException:
            end_workers(pool, before)
            raise


def end_workers(pool: ProcessPoolExecutor, before: Collection[BaseProcess]) -> None:
    """Stop a pool at once: its processes are those of this process that are not among the children ``before`` it.

    Returns when none is left. The pool's own thread waits for them too, and may be the one that is told of an end;
    joining a process here could then return before that thread has noted it.
    """
    pool.shutdown(wait=False, cancel_futures=True)
    children = set(multiprocessing.active_children()) - set(before)
    for child in children:
        child.terminate()
    while children & set(multiprocessing.active_children()):
        time.sleep(0.005)
