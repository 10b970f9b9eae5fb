"""The networks in the folder of a finished run: where they are, and whether the small one is the masked one."""

from pathlib import Path

import torch

from ..errors import FileFormatError, SettingError
from ..files import read_json
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
    # Folders are called by the level as it is written with six digits.
    names = [f"{part:g}" for part in levels or [own] if part is not None]
    if level is not None and f"{level:g}" not in names:
        known = ", ".join(names) if levels else "one network only"
        raise SettingError(f"--level={level:g}: the run in {folder} has no such level, it has {known}")
    if not levels:
        return folder
    return folder / "levels" / f"{own if level is None else level:g}"


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
