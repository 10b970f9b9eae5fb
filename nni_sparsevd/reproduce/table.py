"""The table of an experiment: rows of the papers, and means over our seeds."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from .experiments import Experiment, Published

Run = dict[str, Any]
T = TypeVar("T")


def _over(runs: Sequence[T], value: Callable[[T], float], digits: int) -> str:
    """Mean and, with several seeds, standard deviation."""
    values = [value(run) for run in runs]
    mean = f"{statistics.mean(values):,.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _learnt(runs: list[Run]) -> str:
    """Error on the training labels at the end of dense training, where there was any."""
    dense = [[row for row in run["epochs"] if row["stage"] == "dense"] for run in runs]
    return _over(dense, lambda rows: 100 * (1 - rows[-1]["train_accuracy"]), 2) if all(dense) else ""


def _by_layer(runs: list[Run], value: Callable[[dict[str, Any]], float], digits: int) -> str:
    layers = zip(*(run["layers"] for run in runs), strict=True)
    return " - ".join(f"{statistics.mean(value(layer) for layer in same):.{digits}f}" for same in layers)


def _units(layer: dict[str, Any]) -> float:
    """Channels that a convolution writes, neurons that a dense layer reads."""
    return float(layer["outputs"] if len(layer["shape"]) > 2 else layer["inputs"])


COLUMNS: dict[str, tuple[str, Callable[[Published], str], Callable[[list[Run]], str]]] = {
    "error": ("error %", lambda row: row.error, lambda runs: _over(runs, lambda run: run["error"], 2)),
    "dense_error": ("dense error %", lambda row: "", lambda runs: _over(runs, lambda run: run["dense_error"], 2)),
    "learnt": ("error on training labels before %", lambda row: "", lambda runs: _learnt(runs)),
    "train_error": (
        "error on training labels %",
        lambda row: "",
        lambda runs: _over(runs, lambda run: run["train_error"], 2),
    ),
    "sparsity": (
        "removed by layer %",
        lambda row: row.sparsity,
        lambda runs: _by_layer(runs, lambda layer: 100 * layer["sparsity"], 1),
    ),
    "removed": (
        "removed %",
        lambda row: "",
        lambda runs: _over(runs, lambda run: 100 - 100 * run["weights"]["kept"] / run["weights"]["total"], 2),
    ),
    "kept": ("weights kept", lambda row: "", lambda runs: _over(runs, lambda run: run["weights"]["kept"], 0)),
    "compression": (
        "times fewer weights",
        lambda row: row.compression,
        lambda runs: _over(runs, lambda run: run["weights"]["compression"], 0),
    ),
    "units": ("units", lambda row: row.units, lambda runs: _by_layer(runs, _units, 0)),
    "parameters": (
        "parameters after shrinking",
        lambda row: "",
        lambda runs: _over(runs, lambda run: run["parameters"][1], 0),
    ),
    "macs": (
        "times fewer MACs",
        lambda row: row.macs,
        lambda runs: _over(runs, lambda run: run["macs"][0] / run["macs"][1], 1),
    ),
    "latency": (
        "times faster",
        lambda row: "",
        lambda runs: _over(runs, lambda run: run["latency_ms"][0] / run["latency_ms"][1], 1),
    ),
    "epochs": ("epochs", lambda row: "", lambda runs: _over(runs, lambda run: len(run["epochs"]), 0)),
    "seconds": (
        "processor seconds",
        lambda row: "",
        lambda runs: _over(runs, lambda run: run["processor_seconds"], 0),
    ),
}
"""Heading, cell of a published row, cell of our runs of one variant."""


def table(chosen: Experiment, runs: list[Run]) -> list[str]:
    """Lines of a Markdown table: per variant the published rows, then ours as mean ± standard deviation over seeds."""
    columns = [COLUMNS[name] for name in chosen.columns]
    lines = [f"| | {' | '.join(heading for heading, _, _ in columns)} |", "|---|" + "--:|" * len(columns)]
    for name, variant in chosen.variants.items():
        ours = [run for run in runs if run["variant"] == name]
        lines += [_line(f"{variant.title}: {row.method}", (cell(row) for _, cell, _ in columns))
                  for row in variant.published]  # fmt: skip
        if ours:
            said = f"**{variant.title}** ({len(ours)} seed{'s' if len(ours) > 1 else ''})"
            lines.append(_line(said, (f"**{cell(ours)}**" if cell(ours) else "" for _, _, cell in columns)))
    return lines


def _line(title: str, cells: Iterable[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"
