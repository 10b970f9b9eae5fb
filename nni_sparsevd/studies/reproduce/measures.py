"""What is measured on finished runs, besides what they record: once a run, kept in its folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...files import read_json, write_json
from .calibration import calibration_table, measure_calibration
from .finished import Finished, open_finished
from .tradeoff import measure_tradeoff, tradeoff_table


@dataclass(frozen=True)
class Measure:
    """How it is measured, and how a page shows it for the runs of one variant."""

    heading: str
    rows: Callable[[Finished], list[dict[str, Any]]]
    table: Callable[[list[dict[str, Any]]], list[str]]


MEASURES = {
    "tradeoff": Measure("every threshold, on the test set", measure_tradeoff, tradeoff_table),
    "calibration": Measure("error % · NLL · ECE % of predictions", measure_calibration, calibration_table),
}


def measured(run: Path, names: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Rows of each measure of a finished run, from NAME.json in its folder where it is there already."""
    missing = [name for name in names if not (run / f"{name}.json").exists()]
    if missing:
        done = open_finished(run)
        for name in missing:
            write_json(run / f"{name}.json", MEASURES[name].rows(done))
    return {name: read_json(run / f"{name}.json") for name in names}
