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
from ..processes import check_jobs, stop_at_exit
from .experiments import Experiment

POLL = 0.2
"""Seconds between two looks at the processes."""


@dataclass(frozen=True)
class Job:
    """One variant with one seed, and where it runs."""

    variant: str
    """Name of the variant."""
    seed: int
    """One of the variant's seeds."""
    folder: Path
    """The folder of the run."""

    @property
    def name(self) -> str:
        """Name of the run, which is that of its folder."""
        return self.folder.name

    @property
    def started(self) -> bool:
        """Whether its first file is there."""
        return (self.folder / "recipe.toml").exists()

    @property
    def done(self) -> bool:
        """Whether its last file is there."""
        return (self.folder / "report.html").exists()

    @property
    def log(self) -> Path:
        """Path of what the run prints."""
        return self.folder.with_suffix(".log")

    def last_line(self) -> str:
        """The last line of the log that is not empty."""
        lines = [line for line in self.log.read_text().splitlines() if line.strip()]
        return lines[-1] if lines else "printed nothing"


def jobs_of(experiment: Experiment, folder: Path, seeds: tuple[int, ...] | None = None) -> list[Job]:
    """The runs of an experiment, seed by seed, so that a table of all variants is there early.

    Args:
        experiment: The experiment.
        folder: Folder of the experiment, in which each run has a folder.
        seeds: The seeds of every variant; None for those that the experiment has.
    """
    jobs = []
    for variant in experiment.variants:
        chosen = experiment.seeds_of(variant) if seeds is None else tuple(dict.fromkeys(seeds))
        jobs += [Job(variant, seed, folder / f"{variant}-{seed}") for seed in chosen]
    return _sort_by_seed(jobs)


def find_jobs(experiment: Experiment, folder: Path) -> list[Job]:
    """The runs of an experiment and those that its folder holds with other seeds, seed by seed.

    Args:
        experiment: The experiment.
        folder: Folder of the experiment, in which each run has a folder.
    """
    jobs = jobs_of(experiment, folder)
    known = {job.folder for job in jobs}
    for variant in experiment.variants:
        for path in sorted(folder.glob(f"{variant}-*")):
            seed = path.name.removeprefix(f"{variant}-")
            job = Job(variant, int(seed), path) if seed.isdecimal() else None
            if job is not None and job.started and path not in known:
                jobs.append(job)
    return _sort_by_seed(jobs)


def _sort_by_seed(jobs: list[Job]) -> list[Job]:
    # The sort is stable, so variants stay in the experiment's order.
    return sorted(jobs, key=lambda job: job.seed)


def run_jobs(experiment: Experiment, jobs: list[Job], data: Path, at_once: int) -> list[Job]:
    """Run the jobs that are not done, each in a process with one thread.

    An interruption reaches the processes, which write checkpoints: the same call resumes them.

    Args:
        experiment: The experiment.
        jobs: Runs of the experiment.
        data: Folder of the data sets.
        at_once: Number of processes that run at the same time.

    Returns:
        The jobs that failed.

    Raises:
        SettingError: `at_once` is less than 1.
    """
    check_jobs(at_once)
    waiting = [job for job in jobs if not job.done]
    running: dict[subprocess.Popen[bytes], Job] = {}
    failed: list[Job] = []

    def stop() -> None:
        # All are interrupted before the first is waited for: each takes its time to write a checkpoint.
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.wait()

    with stop_at_exit(stop):
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                print(f"{job.name}: {'goes on' if job.started else 'begins'}; {job.log}", flush=True)
                running[_start_process(experiment, job, data)] = job
            time.sleep(POLL)
            ended = [process for process in running if process.poll() is not None]
            for process in ended:
                job = running.pop(process)
                succeeded = process.returncode == 0
                if not succeeded:
                    failed.append(job)
                print(f"{job.name}: {'done' if succeeded else 'failed'}", flush=True)
    return failed


def check_recipes(experiment: Experiment, jobs: list[Job]) -> None:
    """Check that the folders of the jobs hold runs of the experiment's present recipes.

    Where the data lies may differ.

    Raises:
        SettingError: A folder holds a run with other settings.
    """
    for job in jobs:
        if not job.started:
            continue
        expected = experiment.recipe_of(job.variant, job.seed, Path())
        if _without_paths(read_recipe(job.folder / "recipe.toml")) != _without_paths(expected):
            raise SettingError(
                f"{job.folder}: its run has other settings than {job.name} has now; delete it, or choose another --out"
            )


def _without_paths(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"train": None, "test": None})})


def _start_process(experiment: Experiment, job: Job, data: Path) -> subprocess.Popen[bytes]:
    recipe = job.folder.with_suffix(".toml")
    write_recipe(experiment.recipe_of(job.variant, job.seed, data), recipe)
    command = [sys.executable, "-m", "nni_sparsevd", "compress", "--recipe", str(recipe), "--out", str(job.folder)]
    if job.started:
        command.append("--resume")
    with open(job.log, "ab") as log:
        # In a session of its own a process does not get the terminal's Ctrl-C, which `stop` passes on: without it, the
        # process would be interrupted twice, the second time while it writes its checkpoint.
        return subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=log, start_new_session=True
        )
