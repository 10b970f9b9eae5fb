"""Every family of the zoo in a process of its own, under limits; results that are there are not made again."""

import multiprocessing as mp
import time
import traceback
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import torch

from ..errors import SettingError
from ..files import read_json, write_json
from .families import Member, families, smallest
from .trial import KILLS, Row, trial

POLL = 0.2  # seconds


@dataclass(frozen=True)
class Limits:
    """What one network may take."""

    seconds: float = 600.0
    gibibytes: float = 16.0


def run_zoo(out: Path, pattern: str = "*", jobs: int = 1, limits: Limits | None = None, seed: int = 0) -> list[Row]:
    """Rows of all families that match `pattern`, written to a file a family as soon as they are known.

    Raises `SettingError` when no family matches or `jobs` is none, `FileFormatError` for a file that cannot be read or
    written.
    """
    if jobs < 1:
        raise SettingError(f"jobs: 1 or more, found {jobs}")
    paths = {family: out / f"{family}.json" for family in families(pattern)}
    waiting = [family for family, path in paths.items() if not path.exists()]
    context = mp.get_context("forkserver")  # imports once, and has no threads that a fork would lose
    context.set_forkserver_preload([f"{__package__}.trial"])
    running: dict[BaseProcess, tuple[str, float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                family = waiting.pop(0)
                process: BaseProcess = context.Process(target=_work, args=(family, paths[family], seed))
                process.start()
                running[process] = family, time.monotonic()
            time.sleep(POLL)
            for process, (family, began) in list(running.items()):
                if _ended(process, family, paths[family], began, limits or Limits()):
                    del running[process]
                    for row in read_json(paths[family]):
                        print(f"{family} ({row['model']}), {row['kill']}: {row['verdict']}", flush=True)
    finally:
        for process in running:
            process.kill()
    return [Row(**row) for path in paths.values() for row in read_json(path)]


def _ended(process: BaseProcess, family: str, path: Path, began: float, limits: Limits) -> bool:
    """Whether the process is over; one that exceeds a limit is ended, and one without rows gets one."""
    verdict = None
    if time.monotonic() - began > limits.seconds:
        verdict = f"not finished in {limits.seconds:g} s"
    elif _gibibytes(process) > limits.gibibytes:
        verdict = f"took more than {limits.gibibytes:g} GiB"
    if verdict:
        process.kill()
    elif process.is_alive():
        return False
    process.join()
    if not path.exists():
        row = Row(family, "", "", verdict or f"ended with exit code {process.exitcode}")
        write_json(path, [row.to_dict()])
    return True


def _gibibytes(process: BaseProcess) -> float:
    try:
        return float(psutil.Process(process.pid).memory_info().rss) / 2**30
    except psutil.NoSuchProcess:
        return 0.0


def _work(family: str, path: Path, seed: int) -> None:
    torch.set_num_threads(1)
    member = smallest(family)
    kills = KILLS if member.layer_norms else KILLS[:2]
    write_json(path, [_row(member, kill, seed).to_dict() for kill in kills])


def _row(member: Member, kill: str, seed: int) -> Row:
    try:
        return trial(member, kill, seed)
    except Exception as error:  # a row has to say it, whatever it is
        traceback.print_exc()
        said = (str(error).splitlines() or [""])[0]
        return Row(member.family, member.model, kill, f"failed: {type(error).__name__}: {said}")
