"""The table of an experiment: rows of the papers, and means over our seeds."""

import statistics
from collections.abc import Callable
from typing import Any

from ...report.tables import format_row, format_spread
from .experiments import Experiment

Run = dict[str, Any]


def _learnt(runs: list[Run]) -> str:
    """Error on the training labels at the end of dense training, where there was any."""
    dense = [[row for row in run["epochs"] if row["stage"] == "dense"] for run in runs]
    return format_spread([100 * (1 - rows[-1]["train_accuracy"]) for rows in dense], 2) if all(dense) else ""


def _by_layer(runs: list[Run], value: Callable[[dict[str, Any]], float], digits: int) -> str:
    layers = zip(*(run["layers"] for run in runs), strict=True)
    return " - ".join(f"{statistics.mean(value(layer) for layer in same):.{digits}f}" for same in layers)


def _units(layer: dict[str, Any]) -> float:
    """Channels that a convolution writes, neurons that a dense layer reads."""
    return float(layer["outputs"] if len(layer["shape"]) > 2 else layer["inputs"])


def _mean(digits: int, value: Callable[[Run], float]) -> Callable[[list[Run]], str]:
    return lambda runs: format_spread([value(run) for run in runs], digits)


COLUMNS: dict[str, tuple[str, Callable[[list[Run]], str]]] = {
    "error": ("error %", _mean(2, lambda run: run["error"])),
    "dense_error": ("dense error %", _mean(2, lambda run: run["dense_error"])),
    "learnt": ("error on training labels before %", _learnt),
    "train_error": ("error on training labels %", _mean(2, lambda run: run["train_error"])),
    "sparsity": ("removed by layer %", lambda runs: _by_layer(runs, lambda layer: 100 * layer["sparsity"], 1)),
    "removed": ("removed %", _mean(2, lambda run: 100 - 100 * run["weights"]["kept"] / run["weights"]["total"])),
    "kept": ("weights kept", _mean(0, lambda run: run["weights"]["kept"])),
    "compression": ("times fewer weights", _mean(0, lambda run: run["weights"]["compression"])),
    "units": ("units", lambda runs: _by_layer(runs, _units, 0)),
    "parameters": ("parameters after shrinking", _mean(0, lambda run: run["parameters"][1])),
    "macs": ("times fewer MACs", _mean(1, lambda run: run["macs"][0] / run["macs"][1])),
    "latency": ("times faster", _mean(1, lambda run: run["latency_ms"][0] / run["latency_ms"][1])),
    "seconds": ("processor seconds", _mean(0, lambda run: run["processor_seconds"])),
}
"""Heading, and cell of our runs of one variant; a published row has its own cells under the same names."""


def by_variant(chosen: Experiment, runs: list[Run]) -> dict[str, list[Run]]:
    """The runs of each variant that has some, in the order of the experiment."""
    found = {name: [run for run in runs if run["variant"] == name] for name in chosen.variants}
    return {name: of for name, of in found.items() if of}


def format_table(chosen: Experiment, runs: list[Run]) -> list[str]:
    """Lines of a Markdown table: per variant the published rows, then ours as mean ± standard deviation over seeds."""
    there = by_variant(chosen, runs)
    lines = [f"| | {' | '.join(COLUMNS[key][0] for key in chosen.columns)} |", "|---|" + "--:|" * len(chosen.columns)]
    for name, variant in chosen.variants.items():
        for row in variant.published:
            lines.append(
                format_row([f"{variant.title}: {row.method}", *(getattr(row, key, "") for key in chosen.columns)])
            )
        if name in there:
            of = there[name]
            cells = [COLUMNS[key][1](of) for key in chosen.columns]
            said = f"**{variant.title}** ({len(of)} seed{'s' if len(of) > 1 else ''})"
            lines.append(format_row([said, *(f"**{cell}**" if cell else "" for cell in cells)]))
    return lines
