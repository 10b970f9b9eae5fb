"""The table of an experiment: rows of the papers, and means over our seeds."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...report.tables import format_row, format_spread
from .experiments import Experiment

Run = dict[str, Any]
"""A row of `gathering.gather_runs`."""


@dataclass(frozen=True)
class Column:
    """A column of the table of an experiment."""

    title: str
    """Its heading."""
    format_cell: Callable[[list[Run]], str]
    """The runs of one variant -> the cell."""


def _error_before_sparsifying(runs: list[Run]) -> str:
    """Error on the training labels at the end of dense training; empty where a run had none."""
    errors = []
    for run in runs:
        dense_epochs = [epoch for epoch in run["epochs"] if epoch["stage"] == "dense"]
        if not dense_epochs:
            return ""
        errors.append(100 * (1 - dense_epochs[-1]["train_accuracy"]))
    return format_spread(errors, 2)


def _by_layer(runs: list[Run], value: Callable[[dict[str, Any]], float], digits: int) -> str:
    """Means over the runs of a value of each layer, with dashes between the layers."""
    layers = zip(*(run["layers"] for run in runs), strict=True)
    return " - ".join(f"{statistics.mean(value(layer) for layer in same_layer):.{digits}f}" for same_layer in layers)


def _count_units(layer: dict[str, Any]) -> float:
    """Channels that a convolution writes, or neurons that a dense layer reads."""
    return float(layer["outputs"] if len(layer["shape"]) > 2 else layer["inputs"])


def _spread_of(digits: int, value: Callable[[Run], float]) -> Callable[[list[Run]], str]:
    """A cell with mean and standard deviation of a value of each run."""
    return lambda runs: format_spread([value(run) for run in runs], digits)


COLUMNS: dict[str, Column] = {
    "error": Column("error %", _spread_of(2, lambda run: run["error"])),
    "dense_error": Column("dense error %", _spread_of(2, lambda run: run["dense_error"])),
    "learnt": Column("error on training labels before %", _error_before_sparsifying),
    "train_error": Column("error on training labels %", _spread_of(2, lambda run: run["train_error"])),
    "sparsity": Column("removed by layer %", lambda runs: _by_layer(runs, lambda layer: 100 * layer["sparsity"], 1)),
    "removed": Column(
        "removed %", _spread_of(2, lambda run: 100 - 100 * run["weights"]["kept"] / run["weights"]["total"])
    ),
    "kept": Column("weights kept", _spread_of(0, lambda run: run["weights"]["kept"])),
    "compression": Column("times fewer weights", _spread_of(0, lambda run: run["weights"]["compression"])),
    "units": Column("units", lambda runs: _by_layer(runs, _count_units, 0)),
    "parameters": Column("parameters after shrinking", _spread_of(0, lambda run: run["parameters"][1])),
    "macs": Column("times fewer MACs", _spread_of(1, lambda run: run["macs"][0] / run["macs"][1])),
    "latency": Column("times faster", _spread_of(1, lambda run: run["latency_ms"][0] / run["latency_ms"][1])),
    "seconds": Column("processor seconds", _spread_of(0, lambda run: run["processor_seconds"])),
}
"""Key in an experiment's file -> column; a published row has its own cells under the same keys."""


def group_by_variant(experiment: Experiment, runs: list[Run]) -> dict[str, list[Run]]:
    """Name of a variant -> its runs, in the order of the experiment; variants without runs are left out."""
    groups: dict[str, list[Run]] = {}
    for name in experiment.variants:
        runs_of_variant = [run for run in runs if run["variant"] == name]
        if runs_of_variant:
            groups[name] = runs_of_variant
    return groups


def format_table(experiment: Experiment, runs: list[Run]) -> list[str]:
    """The table of an experiment: for each variant the published rows, then ours.

    Args:
        experiment: The experiment.
        runs: The runs of its results file.

    Returns:
        Lines of Markdown; our cells are mean ± standard deviation over seeds.
    """
    columns = [COLUMNS[key] for key in experiment.columns]
    lines = [f"| | {' | '.join(column.title for column in columns)} |", "|---|" + "--:|" * len(columns)]
    runs_by_variant = group_by_variant(experiment, runs)
    for name, variant in experiment.variants.items():
        for paper in variant.published:
            printed = paper.model_dump()
            cells = [printed.get(key, "") for key in experiment.columns]
            lines.append(format_row([f"{variant.title}: {paper.method}", *cells]))
        if name in runs_by_variant:
            lines.append(_format_own_row(variant.title, runs_by_variant[name], columns))
    return lines


def _format_own_row(title: str, runs: list[Run], columns: list[Column]) -> str:
    """The row of our own runs of a variant, in bold type."""
    seeds = "1 seed" if len(runs) == 1 else f"{len(runs)} seeds"
    row = [f"**{title}** ({seeds})"]
    for column in columns:
        cell = column.format_cell(runs)
        row.append(f"**{cell}**" if cell else "")
    return format_row(row)
