"""Independent jobs on all cores: fresh processes with one computing thread each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import Any

from policydist.errors import UsageError


def one_thread() -> None:
    """Restrict this process to one computing thread, so that as many processes as cores do not fight for them."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"
    import torch

    torch.set_num_threads(1)


def run_jobs(
    function: Callable[..., Any],
    jobs: Sequence[tuple[Any, ...]],
    workers: int | None = None,
    tick: Callable[[], None] | None = None,
) -> Iterator[tuple[int, Any]]:
    """Yield (number of the job, its result) as jobs finish; ``tick`` is called about twice a second meanwhile.

    ``function`` must be importable by name. An interruption, or an error in one job, cancels the jobs not yet begun.

    Raises:
        UsageError: for ``workers`` below one.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers is {workers}; it must be at least 1")
    if not jobs:
        return
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=one_thread) as pool:
        waiting: dict[Future[Any], int] = {pool.submit(function, *job): number for number, job in enumerate(jobs)}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                if tick:
                    tick()
                for future in done:
                    yield waiting.pop(future), future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
