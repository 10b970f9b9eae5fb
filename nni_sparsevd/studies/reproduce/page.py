"""`reproduce`: the runs of an experiment, then one JSON file, one Markdown page and its pictures."""

from pathlib import Path
from typing import Any

from ...errors import SettingError, SparseVDError
from ...files import write_bytes, write_json
from ...training.environment import describe_environment
from .experiments import Experiment, read_experiment
from .gathering import gather
from .measures import MEASURES
from .pictures import draw
from .running import check, jobs_of, run
from .tables import by_variant, format_table


def reproduce_experiment(
    name: str, data: Path, out: Path, command: list[str], at_once: int = 1, seeds: tuple[int, ...] | None = None
) -> Path:
    """Run what is missing of the experiment `name` below `out`, and make its page anew; returns the page.

    `data` holds the data sets (MNIST/raw, cifar10/*.tar).  Raises `SettingError` for an unknown name, seeds that the
    experiment does not have, or a folder that holds another recipe's run; `SparseVDError` when a run failed.
    """
    chosen = read_experiment(name)
    folder = out / name
    every, wanted = jobs_of(chosen, folder), jobs_of(chosen, folder, seeds)
    if not wanted:
        known = sorted({job.seed for job in every})
        raise SettingError(f"seeds: {name} has the seeds {known}, found {list(seeds or ())}")
    page = folder / f"{name}.md"
    check(chosen, every)
    failed = run(chosen, wanted, data, at_once)
    rows = gather(chosen, every)
    if rows:  # what is there is shown, also when a run failed
        values = {"experiment": name, "environment": describe_environment(command, rows[0]["seed"]), "runs": rows}
        write_json(folder / f"{name}.json", values)
        pictures = draw(chosen, rows, every, folder)
        write_bytes(page, "\n".join(_page(chosen, rows, pictures)).encode())
    if failed:
        told = "; ".join(f"{job.name}: {job.last_words()} (see {job.log})" for job in failed)
        raise SparseVDError(f"{len(failed)} of {len(wanted)} runs failed: {told}")
    return page


def _page(chosen: Experiment, runs: list[dict[str, Any]], pictures: list[Path]) -> list[str]:
    lines = [f"# {chosen.title}", "", chosen.about.strip(), "", *format_table(chosen, runs), ""]
    for picture in pictures:
        lines += [f"![{picture.stem}]({picture.name})", ""]
    for measure in (MEASURES[name] for name in chosen.measures):
        for name, of in by_variant(chosen, runs).items():
            lines += [f"## {chosen.variants[name].title}: {measure.heading}", "", *measure.table(of), ""]
    return lines
