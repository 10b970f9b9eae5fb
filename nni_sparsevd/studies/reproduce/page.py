"""`reproduce`: the runs of an experiment, then one JSON file, one Markdown page and its pictures."""

from pathlib import Path
from typing import Any

from ...errors import SparseVDError
from ...files import write_bytes, write_json
from ...training import describe_environment
from ..processes import check_seeds
from .experiments import Experiment, read_experiment
from .gathering import gather_runs
from .measures import MEASURES
from .pictures import draw_pictures
from .running import check_recipes, find_jobs, jobs_of, run_jobs
from .tables import format_table, group_by_variant


def reproduce_experiment(
    name: str, data: Path, out: Path, command: list[str], at_once: int = 1, seeds: tuple[int, ...] | None = None
) -> Path:
    """Run what is missing of an experiment, and make its page anew.

    Args:
        name: Name of the experiment, one of `list_experiments`.
        data: Folder of the data sets: `MNIST/raw`, `cifar10/*.tar`.
        out: Folder in which the experiment has a folder of its own name.
        command: The command line, for the record.
        at_once: Number of runs at the same time.
        seeds: With which seeds every variant is run, any whole numbers from 0; None for those that the experiment has.
            The page shows every run that is there.

    Returns:
        The path of the page, in Markdown.

    Raises:
        SettingError: The experiment is unknown, there is no seed or a negative one, or a folder holds a run of another
            recipe.
        SparseVDError: A run failed; the page shows the others.
        FileFormatError: A file of a finished run is damaged.
    """
    experiment = read_experiment(name)
    folder = out / name
    if seeds is not None:
        check_seeds(seeds)
    jobs = jobs_of(experiment, folder, seeds)
    # The runs of other seeds included, because the page shows them, too.
    check_recipes(experiment, find_jobs(experiment, folder))
    failed = run_jobs(experiment, jobs, data, at_once)
    page = folder / f"{name}.md"
    shown = find_jobs(experiment, folder)
    runs = gather_runs(experiment, shown)
    if runs:
        results = {"experiment": name, "environment": describe_environment(command, runs[0]["seed"]), "runs": runs}
        write_json(folder / f"{name}.json", results)
        pictures = draw_pictures(experiment, runs, shown, folder)
        write_bytes(page, "\n".join(_format_page(experiment, runs, pictures)).encode())
    # Only now, because a failed run must not keep the others from being shown.
    if failed:
        reasons = "; ".join(f"{job.name}: {job.last_line()} (see {job.log})" for job in failed)
        raise SparseVDError(f"{len(failed)} of {len(jobs)} runs failed: {reasons}")
    return page


def _format_page(experiment: Experiment, runs: list[dict[str, Any]], pictures: list[Path]) -> list[str]:
    """Lines of the page: the table, the pictures, and a table for each measure and variant."""
    lines = [f"# {experiment.title}", "", experiment.about.strip(), "", *format_table(experiment, runs), ""]
    for picture in pictures:
        lines += [f"![{picture.stem}]({picture.name})", ""]
    for measure_name in experiment.measures:
        measure = MEASURES[measure_name]
        for variant, runs_of_variant in group_by_variant(experiment, runs).items():
            title = experiment.variants[variant].title
            lines += [f"## {title}: {measure.heading}", "", *measure.format_table(runs_of_variant), ""]
    return lines
