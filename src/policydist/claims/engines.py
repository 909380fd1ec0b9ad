"""Where jobs run: a pool of processes on this machine, or a Ray cluster. Results do not depend on the choice."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from policydist.claims.jobs import THREAD_VARIABLES, Task, perform, single_thread
from policydist.errors import MissingExtraError, PolicydistError
from policydist.runs.parallel import end_workers


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local(tasks: Sequence[Task], workers: int) -> Iterator[dict[str, Any]]:
    """Results as they finish, from ``workers`` spawned processes; with one worker, in this process.

    Leaving the iterator early (an error, Ctrl-C) ends the workers at once.
    """
    if workers == 1 or len(tasks) < 2:
        yield from _here(tasks)
        return
    context = multiprocessing.get_context("spawn")
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(min(workers, len(tasks)), mp_context=context, initializer=single_thread)
    try:
        for future in as_completed([pool.submit(perform, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool:
        raise PolicydistError(
            "a worker process died (out of memory?); finished jobs are kept, run the claim again with fewer workers"
        ) from None
    except BaseException:
        end_workers([pool], before)
        raise
    finally:
        pool.shutdown()


def _here(tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
    from threadpoolctl import threadpool_limits

    torch: Any = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else None
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # for libraries that the experiment loads itself
    try:
        with threadpool_limits(1):
            for task in tasks:
                yield perform(task)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if threads is not None:
            torch.set_num_threads(threads)


def ray(tasks: Sequence[Task], workers: int) -> Iterator[dict[str, Any]]:
    """Results as they finish, from Ray tasks of one core each; a cluster that is already joined is used, else a local
    one starts.

    Raises:
        MissingExtraError: if Ray is not installed.
    """
    try:
        import ray as cluster
    except ImportError:
        raise MissingExtraError("ray", "ray") from None
    started = not cluster.is_initialized()
    if started:
        variables = dict.fromkeys(THREAD_VARIABLES, "1")
        path = os.pathsep.join(_search_path())
        cluster.init(
            num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False,
            runtime_env={"env_vars": {**variables, "PYTHONPATH": path}},
        )  # fmt: skip
    waiting: list[Any] = []
    try:
        remote = cluster.remote(num_cpus=1, max_retries=0)(perform)
        waiting = [remote.remote(task) for task in tasks]
        while waiting:
            finished, waiting = cluster.wait(waiting)
            try:
                yield cluster.get(finished[0])
            except cluster.exceptions.RayTaskError as problem:
                raise PolicydistError(str(problem.cause)) from None
    finally:
        for reference in waiting:  # none are left unless the iterator was abandoned
            cluster.cancel(reference, force=True)
        if started:
            cluster.shutdown()


def _search_path() -> list[str]:
    """Ray workers begin in another folder, so relative entries are resolved here."""
    return [os.path.abspath(entry) for entry in sys.path if not entry.endswith(".zip")]
