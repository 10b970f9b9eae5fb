"""Every run of an experiment: `compress` in a process of its own, resumed where it stopped, not repeated when done."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ...errors import SettingError
from ...recipe import Recipe, read_recipe, write_recipe
from ..processes import stop_at_exit
from .experiments import Experiment

POLL = 0.2  # seconds


@dataclass(frozen=True)
class Job:
    """One variant with one seed, and where it runs."""

    variant: str
    seed: int
    folder: Path

    @property
    def name(self) -> str:
        """As its folder is called."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether its last file is there."""
        return (self.folder / "report.html").exists()

    @property
    def log(self) -> Path:
        """What it said."""
        return self.folder.with_suffix(".log")

    def last_words(self) -> str:
        """The last line of its log."""
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else "said nothing"


def jobs_of(chosen: Experiment, folder: Path, seeds: tuple[int, ...] | None = None) -> list[Job]:
    """All runs of an experiment, or those with `seeds`; seed by seed, so that a table can be made early."""
    pairs = [(seed, variant) for variant in chosen.variants for seed in chosen.seeds_of(variant)]
    ordered = sorted(pairs, key=lambda pair: pair[0])
    return [Job(variant, seed, folder / f"{variant}-{seed}") for seed, variant in ordered if not seeds or seed in seeds]


def run(chosen: Experiment, jobs: list[Job], data: Path, at_once: int) -> list[Job]:
    """Run what is not done, `at_once` at a time with one thread each; returns those that failed.

    Raises `SettingError` for another number than 1 or more.  An interruption reaches the runs, which write checkpoints:
    the same call goes on from there.
    """
    if at_once < 1:
        raise SettingError(f"jobs: 1 or more, found {at_once}")
    waiting = [job for job in jobs if not job.done]
    running: dict[subprocess.Popen[bytes], Job] = {}
    failed: list[Job] = []

    def stop() -> None:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.wait()

    with stop_at_exit(stop):
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                print(f"{job.name}: {'goes on' if _begun(job) else 'begins'}; {job.log}", flush=True)
                running[_start(chosen, job, data)] = job
            time.sleep(POLL)
            for process in [process for process in running if process.poll() is not None]:
                job = running.pop(process)
                failed += [] if process.returncode == 0 else [job]
                print(f"{job.name}: {'done' if process.returncode == 0 else 'failed'}", flush=True)
    return failed


def _begun(job: Job) -> bool:
    return (job.folder / "recipe.toml").exists()


def check(chosen: Experiment, jobs: list[Job]) -> None:
    """Raise `SettingError` where a folder holds a run of other settings than its job's; where data lies is none."""
    for job in jobs:
        now = chosen.recipe_of(job.variant, job.seed, Path())
        if _begun(job) and _portable(read_recipe(job.folder / "recipe.toml")) != _portable(now):
            raise SettingError(
                f"{job.folder}: its run has other settings than {job.name} has now; delete it, or choose another --out"
            )


def _portable(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": None, "test": None})})


def _start(chosen: Experiment, job: Job, data: Path) -> subprocess.Popen[bytes]:
    recipe = job.folder.with_suffix(".toml")
    write_recipe(chosen.recipe_of(job.variant, job.seed, data), recipe)
    command = [sys.executable, "-m", "nni_sparsevd", "compress", "--recipe", str(recipe), "--out", str(job.folder)]
    command += ["--resume"] if _begun(job) else []
    with open(job.log, "ab") as log:
        # a group of its own: Ctrl-C comes to it once, from here
        return subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, start_new_session=True
        )
