"""What can be done with the folder of a finished run: find a network, export the small one, and check it."""

from pathlib import Path

import torch

from ..errors import FileFormatError, SettingError
from ..export import Comparison, export
from ..files import read_json, write_json
from ..report import write_report
from ..shrinking import CheckResult, check
from ..storage import load

FILES = {"dense": "dense.safetensors", "masked": "masked.safetensors", "shrunk": "small.safetensors"}
"""Network, as result.json names it -> its file: of the dense one in the run folder, else in that of its level."""


def find_network_folder(folder: Path, level: float | None = None) -> Path:
    """Find the files of one network of a run.

    Args:
        folder: The folder of a finished run.
        level: The level of its budget whose network is meant; None: the network that the run has chosen.

    Returns:
        The run folder, or the folder of a level where there are several.

    Raises:
        FileFormatError: The run is not finished.
        SettingError: The run has no such level.
    """
    if not (folder / "result.json").exists():
        raise FileFormatError(f"{folder}: has no result.json; is it the folder of a finished run?")
    result = read_json(folder / "result.json")
    try:
        levels, own = [row["level"] for row in result["front"][1:]], result["level"]
    except (TypeError, LookupError) as error:
        raise FileFormatError(f"{folder / 'result.json'}: not that of a finished run: no {error}") from error
    if level is not None and level not in (levels or [own]):
        known = ", ".join(f"{part:g}" for part in levels) or "one network only"
        raise SettingError(f"--level={level:g}: the run in {folder} has no such level, it has {known}")
    if not levels:
        return folder
    return folder / "levels" / f"{own if level is None else level:g}"


def export_run(folder: Path, path: Path, *, level: float | None = None, dynamic_batch: bool = True) -> Comparison:
    """Export a small network of a run folder, and add the comparison to exports.json and to the report there.

    Args:
        folder: The folder of a finished run.
        path: The file to write; its suffix chooses the runtime, as in `export`.
        level: The level of the budget whose network is exported; None: the network that the run has chosen.
        dynamic_batch: Whether the exported network accepts batches of any size, as far as the runtime can.

    Returns:
        The largest differences between the small network and the exported file.

    Raises:
        FileFormatError: The run is not finished, or a file of it is damaged.
        SettingError: The suffix or the level is not known, or the runtime is not installed.
        ModelError: The runtime cannot express the network, or the exported file computes something else.
    """
    network_folder = find_network_folder(folder, level)
    shape = read_json(network_folder / "result.json")["input"]
    small = load(network_folder / FILES["shrunk"])
    comparison = export(small, path, torch.zeros(1, *shape), dynamic_batch=dynamic_batch)
    record = folder / "exports.json"
    rows = read_json(record) if record.exists() else {}
    write_json(record, {**rows, path.name: comparison.to_dict()})
    write_report(folder)
    return comparison


def check_run(folder: Path, level: float | None = None) -> CheckResult:
    """Compare the masked and the small network of a run folder.

    Args:
        folder: The folder of a finished run.
        level: The level of the budget whose networks are compared; None: those that the run has chosen.

    Returns:
        The largest differences of their outputs.

    Raises:
        FileFormatError: The run is not finished, or a file of it is damaged.
        SettingError: The run has no such level.
    """
    folder = find_network_folder(folder, level)
    for name in (FILES["masked"], FILES["shrunk"]):
        if not (folder / name).exists():
            raise FileFormatError(f"{folder}: has no {name}; is it the folder of a finished run?")
    shape = read_json(folder / "result.json")["input"]
    return check(load(folder / FILES["masked"]), load(folder / FILES["shrunk"]), torch.zeros(2, *shape))
