"""The networks in the folder of a finished run: where they are, and whether the small one is the masked one."""

from pathlib import Path
from typing import Any

import torch

from ..errors import FileFormatError, SettingError
from ..files import read_json
from ..shrinking import CheckResult, check
from ..storage import load

FILES = {"dense": "dense.safetensors", "masked": "masked.safetensors", "shrunk": "small.safetensors"}
"""Network, as result.json names it -> its file: of the dense one in the run folder, else in that of its level."""
NEEDED = ("front", "level", "input", "seed")
"""Keys of result.json that this room reads again."""


def read_result(folder: Path) -> dict[str, Any]:
    """Read result.json in the folder of a finished run, or of one of its levels.

    Args:
        folder: The folder.

    Returns:
        Its content, with at least the keys of `NEEDED`.

    Raises:
        FileFormatError: The run is not finished, or the file is damaged.
    """
    path = folder / "result.json"
    if not path.exists():
        raise FileFormatError(f"{folder}: has no result.json; is it the folder of a finished run?")
    result = read_json(path)
    if not isinstance(result, dict):
        raise FileFormatError(f"{path}: not that of a finished run: holds a {type(result).__name__}, not a table")
    missing = [key for key in NEEDED if key not in result]
    if missing:
        raise FileFormatError(f"{path}: not that of a finished run: lacks {', '.join(missing)}")
    return result


def list_levels(folder: Path) -> list[str]:
    """List the levels among which a run has chosen, as their folders are called; none where it has one network.

    Args:
        folder: The folder of a finished run.

    Raises:
        FileFormatError: The run is not finished, or its result.json is damaged.
    """
    # Not what lies in `levels/`: a run that went on with other settings may have left out a level that it had before.
    front = read_result(folder)["front"]
    try:
        return [_name_level(row["level"]) for row in front[1:]]
    except (LookupError, TypeError, ValueError) as error:
        raise FileFormatError(f"{folder / 'result.json'}: not that of a finished run: front is {front!r}") from error


def _name_level(part: float) -> str:
    """A level as it is written with six digits."""
    return f"{part:g}"


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
    levels, own = list_levels(folder), read_result(folder)["level"]
    known = levels or ([] if own is None else [_name_level(own)])
    if level is not None and _name_level(level) not in known:
        described = ", ".join(levels) if levels else "one network only"
        raise SettingError(f"--level={level:g}: the run in {folder} has no such level, it has {described}")
    if not levels:
        return folder
    return folder / "levels" / _name_level(own if level is None else level)


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
    shape = read_result(folder)["input"]
    return check(load(folder / FILES["masked"]), load(folder / FILES["shrunk"]), torch.zeros(2, *shape))
