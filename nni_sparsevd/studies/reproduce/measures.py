"""What is measured on finished runs, besides what they record: once for each run, and kept in its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import read_json, write_json
from .calibration import format_calibration, measure_calibration
from .finished import FinishedRun, open_finished
from .tradeoff import format_tradeoff, measure_tradeoff


@dataclass(frozen=True)
class Measure:
    """A measurement of a finished run, and its table."""

    heading: str
    """Heading of the table."""
    measure: Callable[[FinishedRun], list[dict[str, Any]]]
    """Finished run -> rows."""
    format_table: Callable[[list[dict[str, Any]]], list[str]]
    """The runs of one variant, each with its rows under the name of the measure -> lines of Markdown."""


MEASURES = {
    "tradeoff": Measure("every threshold, on the test set", measure_tradeoff, format_tradeoff),
    "calibration": Measure("error % · NLL · ECE % of predictions", measure_calibration, format_calibration),
}
"""Name of a measure, as in the files of experiments -> the measure."""


def measure_run(folder: Path, names: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Measure a finished run, or read what was measured before.

    Args:
        folder: The folder of the run, in which each measure has the file NAME.json.
        names: Names of the measures.

    Returns:
        Name of the measure -> rows.

    Raises:
        FileFormatError: A file of the run is missing or damaged.
    """
    missing = [name for name in names if not (folder / f"{name}.json").exists()]
    if missing:
        run = open_finished(folder)
        for name in missing:
            write_json(folder / f"{name}.json", MEASURES[name].measure(run))
    return {name: read_json(folder / f"{name}.json") for name in names}
