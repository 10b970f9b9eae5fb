"""Run tasks in processes of their own, a few at a time, under limits.

A task that crashes, hangs or fills the memory ends its own process and no other.
"""

import multiprocessing as mp
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import TypeVar

import psutil

from ..errors import SettingError

POLL = 0.2
"""Seconds between two looks at the processes."""
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one task may take before its process is ended."""

    seconds: float = 600.0
    """Wall-clock time."""
    gibibytes: float = 16.0
    """Resident memory."""


@contextmanager
def stop_at_exit(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at the end of the block, also when the block ends by an error, Ctrl-C or a termination signal."""
    # SIGTERM would end the interpreter without running `finally`; inside the block it raises KeyboardInterrupt instead.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        stop()
        signal.signal(signal.SIGTERM, before)


def check_jobs(jobs: int) -> None:
    """Raise `SettingError` unless at least one process may run at a time."""
    if jobs < 1:
        raise SettingError(f"jobs: 1 or more, found {jobs}")


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise `SettingError` unless there are seeds, whole numbers from 0."""
    if not seeds or min(seeds) < 0:
        raise SettingError(f"seeds: give whole numbers from 0, found {list(seeds)}")


def run_isolated(
    work: Callable[[T], None], tasks: Sequence[T], at_once: int, limits: Limits, preload: str
) -> Iterator[tuple[T, str]]:
    """Call `work` on every task, each in a process of its own.

    Closing the iterator ends the processes that still run.

    Args:
        work: Function of a module, so that another process can import it.
        tasks: Arguments of `work`, one for each process; they can be pickled.
        at_once: Number of processes that run at the same time.
        limits: What each process may take.
        preload: Name of the module that all tasks need; the processes share one import of it.

    Yields:
        Each task as its process ends, with the reason why the process ended early, or "" where `work` returned.

    Raises:
        SettingError: `at_once` is less than 1.
    """
    check_jobs(at_once)
    # "forkserver" imports `preload` once, and forks from a process without threads, which a fork would lose.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload([preload])
    waiting = list(tasks)
    running: dict[BaseProcess, tuple[T, float]] = {}

    def stop() -> None:
        # Killed, not terminated: a process that hangs in compiled code does not heed a termination signal.
        for process in running:
            process.kill()

    with stop_at_exit(stop):
        while waiting or running:
            while waiting and len(running) < at_once:
                task = waiting.pop(0)
                process: BaseProcess = context.Process(target=work, args=(task,))
                process.start()
                running[process] = task, time.monotonic()
            time.sleep(POLL)
            # A copy, because processes that have ended leave `running` within the loop.
            for process, (task, started) in list(running.items()):
                ending = _end_of(process, started, limits)
                if ending is not None:
                    del running[process]
                    yield task, ending


def _end_of(process: BaseProcess, started: float, limits: Limits) -> str | None:
    """None while the process runs, "" when it has done its work, else why it ended.

    A process that exceeds a limit is ended here.
    """
    exceeded = _exceeded_limit(process, started, limits)
    if exceeded:
        process.kill()
        process.join()
        return exceeded
    if process.is_alive():
        return None
    process.join()
    return f"ended with exit code {process.exitcode}" if process.exitcode else ""


def _exceeded_limit(process: BaseProcess, started: float, limits: Limits) -> str:
    if time.monotonic() - started > limits.seconds:
        return f"not finished in {limits.seconds:g} s"
    if _gibibytes(process) > limits.gibibytes:
        return f"took more than {limits.gibibytes:g} GiB"
    return ""


def _gibibytes(process: BaseProcess) -> float:
    """Resident memory of a process; 0 when it has ended."""
    try:
        return float(psutil.Process(process.pid).memory_info().rss) / 2**30
    except psutil.NoSuchProcess:
        return 0.0
