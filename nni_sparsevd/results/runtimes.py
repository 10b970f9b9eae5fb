"""The networks of a finished run in the runtimes that are installed: bytes, milliseconds and accuracy, int8 too."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..data import DataSets
from ..errors import ModelError, SettingError
from ..export import FORMATS, Quantization, export, open_exported
from ..files import write_json
from ..measure import measure_latencies
from ..preprocessing import set_values_
from ..recipe import RECIPE_FILE, ModelSettings, read_recipe
from ..report import DENSE, FLOAT, INT8, list_int8_remarks, write_report
from ..storage import load
from ..training import describe_environment, read_network_
from .run_data import CALIBRATION, choose_calibration, read_run_data
from .run_files import FILES, list_levels, read_result
from .runtime_scores import Candidate, score_candidates

RUNTIMES = {".onnx": "ONNX Runtime", ".pte": "ExecuTorch", ".tflite": "LiteRT"}
"""Suffix of a format -> the runtime that is measured, beside PyTorch."""
PYTORCH = "PyTorch"
RUNTIMES_FILE = "runtimes.json"
ROUNDS = 40
"""How often each network is timed."""


@dataclass(frozen=True)
class _Material:
    """What all runtimes are measured with."""

    files: dict[str, Path]
    """Network -> its file in the run folder, from `_list_files`."""
    networks: dict[str, nn.Module]
    """The same networks, in PyTorch and in float32."""
    data: DataSets
    calibration: Tensor
    example: Tensor


@dataclass
class _Written:
    """Networks that a runtime can run."""

    title: str
    candidates: dict[tuple[str, str], Candidate] = field(default_factory=dict)
    """(network, precision) -> what runs it."""
    sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    """(network, precision) -> bytes of its file."""
    passed_over: dict[str, str] = field(default_factory=dict)
    """What could not be made -> why."""


def measure_run(
    folder: Path,
    command: list[str],
    *,
    calibration: int = CALIBRATION,
    report: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Measure the dense and the small networks of a run in every runtime that is installed, as floats and as int8.

    Within a runtime the networks take turns, on one thread whose processor time counts, so that the ratios hold on a
    machine that others use.  What is found goes into runtimes.json and into the report of the folder.

    Args:
        folder: The folder of a finished run.
        command: The command line, for the record.
        calibration: Training photos on which the ranges of int8 are measured, chosen by the seed of the run.
        report: Is told each line as soon as it is known.

    Returns:
        A row for each runtime, network and precision.

    Raises:
        FileFormatError: The run is not finished, or a file of it is damaged.
        DataError: The photos of the run are no longer there.
        SettingError: The recipe in the folder is damaged.
    """
    result = read_result(folder)
    data = read_run_data(folder)
    material = _Material(
        _list_files(folder),
        read_networks(folder, data),
        data,
        choose_calibration(data, calibration, result["seed"]),
        torch.zeros(1, *result["input"]),
    )
    is_tuned = read_recipe(folder / RECIPE_FILE).quantize.aware
    rows: list[dict[str, Any]] = []
    passed_over: dict[str, str] = {}
    for suffix in (None, *RUNTIMES):
        made, missed = _measure_runtime(suffix, material)
        missed_lines = (f"{name}: {reason}" for name, reason in missed.items())
        remarks = list_int8_remarks({}, made, is_tuned=is_tuned)
        for line in [*map(describe_row, made), *remarks, *missed_lines]:
            report(line)
        rows, passed_over = rows + made, passed_over | missed
    values = {
        "rows": rows,
        "passed_over": passed_over,
        "calibration": len(material.calibration),
        "images": len(data.test),
        "environment": describe_environment(command, result["seed"]),
    }
    write_json(folder / RUNTIMES_FILE, values)
    write_report(folder)
    return rows


def read_networks(folder: Path, data: DataSets) -> dict[str, nn.Module]:
    """Read the dense network of a run, and the small one of each level of its budget.

    Args:
        folder: The folder of a finished run.
        data: Its photos.

    Returns:
        dense, and shrunk or shrunk PART for each level, in evaluation mode.

    Raises:
        FileFormatError: A file is missing or damaged.
    """
    settings = read_recipe(folder / RECIPE_FILE).model
    untrained = ModelSettings(name=settings.name, arguments=settings.arguments)
    dense = models.create_model(untrained, data.num_classes, data.in_chans, data.image_size)
    set_values_(dense, data.preprocessing.to_dict())
    files = _list_files(folder)
    networks = {DENSE: read_network_(dense, files.pop(DENSE)).eval()}
    return networks | {name: load(path).eval() for name, path in files.items()}


def _list_files(folder: Path) -> dict[str, Path]:
    """Network -> its file: dense, and shrunk or shrunk PART for each level."""
    levels = list_levels(folder)
    small = {f"shrunk {level}": folder / "levels" / level / FILES["shrunk"] for level in levels}
    return {DENSE: folder / FILES["dense"], **(small or {"shrunk": folder / FILES["shrunk"]})}


def _measure_runtime(suffix: str | None, material: _Material) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Rows of one runtime, None being PyTorch, and why others are not there."""
    with tempfile.TemporaryDirectory() as temporary:
        written = _write_files(suffix, material, Path(temporary)) if suffix else _take_networks(material)
        if not written.candidates:
            return [], written.passed_over
        candidates = {f"{name} {precision}": value for (name, precision), value in written.candidates.items()}
        networks = {key: candidate.runs for key, candidate in candidates.items()}
        times = measure_latencies(networks, material.example, ROUNDS, threads=1, clock=time.process_time)
        scores = score_candidates(candidates, material.networks, material.data)
    dense = times.get(f"{DENSE} {FLOAT}")
    rows = []
    for name, precision in written.candidates:
        key = f"{name} {precision}"
        row: dict[str, Any] = {"runtime": written.title, "network": name, "precision": precision}
        row |= {"bytes": written.sizes[name, precision], "milliseconds": times[key]}
        rows.append({**row, "times_faster": dense and dense / times[key], **scores[key].to_dict()})
    return rows, written.passed_over


def _take_networks(material: _Material) -> _Written:
    """The networks as they are, in PyTorch, which has no int8 here."""
    written = _Written(PYTORCH)
    for name, network in material.networks.items():
        written.candidates[name, FLOAT] = Candidate(network, name, single=False)
        written.sizes[name, FLOAT] = material.files[name].stat().st_size
    return written


def _write_files(suffix: str, material: _Material, folder: Path) -> _Written:
    """Each network as a file of one runtime, in floats and in integers."""
    chosen = FORMATS[suffix]
    written = _Written(RUNTIMES[suffix])
    for precision, quantization in ((FLOAT, None), (INT8, Quantization(material.calibration))):
        missing = chosen.list_missing(precision == INT8)
        if missing:
            written.passed_over[f"{written.title}, {precision}"] = f"needs {', '.join(missing)}: {chosen.install}"
            continue
        for name, network in material.networks.items():
            path = folder / f"{name} {precision}{suffix}"
            try:
                export(network, path, material.example, quantization=quantization)
            except (ModelError, SettingError) as error:
                written.passed_over[f"{written.title}, {name}, {precision}"] = str(error)
                continue
            written.candidates[name, precision] = Candidate(open_exported(path), name, not chosen.dynamic)
            written.sizes[name, precision] = path.stat().st_size
    return written


def describe_row(row: dict[str, Any]) -> str:
    """Describe a network in a runtime in one line."""
    faster = "" if row["times_faster"] is None else f" ({row['times_faster']:.2f}x)"
    return (
        f"{row['runtime']:13} {row['network']:12} {row['precision']:7} {row['bytes']:>12,} bytes "
        f"{row['milliseconds']:9.3f} ms{faster}  {100 * row['accuracy']:6.2f} % right, "
        f"{100 * row['agreement']:6.2f} % as in PyTorch"
    )
