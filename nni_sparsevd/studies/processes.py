"""Work in processes of its own, a few at a time, under limits: what one breaks, the others do not feel."""

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

POLL = 0.2  # seconds
T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """What one piece of work may take."""

    seconds: float = 600.0
    gibibytes: float = 16.0


@contextmanager
def leaving_nothing_behind(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` however the block ends; a termination signal is a Ctrl-C inside, else it would not be called."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        stop()
        signal.signal(signal.SIGTERM, before)


def run_isolated(
    work: Callable[[T], None], tasks: Sequence[T], at_once: int, limits: Limits, preload: str
) -> Iterator[tuple[T, str]]:
    """Call `work` on every task, `at_once` at a time; gives (task, what ended it early or nothing) as they end.

    `preload` is the module that all processes need: it is imported once.  Closing the iterator ends what runs.
    Raises `SettingError` for another `at_once` than 1 or more.
    """
    if at_once < 1:
        raise SettingError(f"jobs: 1 or more, found {at_once}")
    context = mp.get_context("forkserver")  # imports once, and has no threads that a fork would lose
    context.set_forkserver_preload([preload])
    waiting = list(tasks)
    running: dict[BaseProcess, tuple[T, float]] = {}

    def stop() -> None:
        for process in running:
            process.kill()

    with leaving_nothing_behind(stop):
        while waiting or running:
            while waiting and len(running) < at_once:
                task = waiting.pop(0)
                process: BaseProcess = context.Process(target=work, args=(task,))
                process.start()
                running[process] = task, time.monotonic()
            time.sleep(POLL)
            for process, (task, began) in list(running.items()):
                ended = _ended(process, began, limits)
                if ended is not None:
                    del running[process]
                    yield task, ended


def _ended(process: BaseProcess, began: float, limits: Limits) -> str | None:
    """None while it runs, "" when it is done, else what ended it; one that exceeds a limit is ended here."""
    verdict = ""
    if time.monotonic() - began > limits.seconds:
        verdict = f"not finished in {limits.seconds:g} s"
    elif _gibibytes(process) > limits.gibibytes:
        verdict = f"took more than {limits.gibibytes:g} GiB"
    if verdict:
        process.kill()
    elif process.is_alive():
        return None
    process.join()
    return verdict or (f"ended with exit code {process.exitcode}" if process.exitcode else "")


def _gibibytes(process: BaseProcess) -> float:
    try:
        return float(psutil.Process(process.pid).memory_info().rss) / 2**30
    except psutil.NoSuchProcess:
        return 0.0
