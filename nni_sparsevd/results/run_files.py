"""What can be done with the folder of a finished run: export its small network, and check it."""

from pathlib import Path

import torch

from ..errors import FileFormatError
from ..export import Comparison, export
from ..files import read_json, write_json
from ..report import write_report
from ..shrinking import CheckResult, check
from ..storage import load

FILES = {"dense": "dense.safetensors", "masked": "masked.safetensors", "shrunk": "small.safetensors"}
"""Network, as result.json names it -> its file in the run folder."""


def export_run(folder: Path, path: Path, *, dynamic_batch: bool = True) -> Comparison:
    """Export the small network of a run folder, and add the comparison to exports.json and to the report there.

    Args:
        folder: The folder of a finished run.
        path: The file to write; its suffix chooses the runtime, as in `export`.
        dynamic_batch: Whether the exported network accepts batches of any size, as far as the runtime can.

    Returns:
        The largest differences between the small network and the exported file.

    Raises:
        FileFormatError: The run is not finished, or a file of it is damaged.
        SettingError: The suffix is not known, or the runtime is not installed.
        ModelError: The runtime cannot express the network, or the exported file computes something else.
    """
    shape = read_json(folder / "result.json")["input"]
    small = load(folder / FILES["shrunk"])
    comparison = export(small, path, torch.zeros(1, *shape), dynamic_batch=dynamic_batch)
    record = folder / "exports.json"
    rows = read_json(record) if record.exists() else {}
    write_json(record, {**rows, path.name: comparison.to_dict()})
    write_report(folder)
    return comparison


def check_run(folder: Path) -> CheckResult:
    """Compare the masked and the small network of a run folder.

    Args:
        folder: The folder of a finished run.

    Returns:
        The largest differences of their outputs.

    Raises:
        FileFormatError: The run is not finished, or a file of it is damaged.
    """
    for name in ("result.json", FILES["masked"], FILES["shrunk"]):
        if not (folder / name).exists():
            raise FileFormatError(f"{folder}: has no {name}; is it the folder of a finished run?")
    shape = read_json(folder / "result.json")["input"]
    return check(load(folder / FILES["masked"]), load(folder / FILES["shrunk"]), torch.zeros(2, *shape))
