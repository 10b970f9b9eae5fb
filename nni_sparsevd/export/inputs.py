"""How the inputs of an exported file are made: in the metadata of an ONNX file, or in FILE.json beside another one."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import FileFormatError, SettingError
from ..files import read_json, write_json
from ..preprocessing import KEYS, check_values, read_values


def write_into_file(model: nn.Module, written: Path) -> None:
    """Put into an ONNX file what a network says of its inputs and classes, each value as JSON; pass over other formats.

    Args:
        model: The network.
        written: The file.
    """
    values = read_values(model)
    if written.suffix != ".onnx" or not values:
        return
    import onnx

    file = onnx.load(written)
    for key, value in values.items():
        entry = file.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    onnx.save(file, written)


def write_beside(model: nn.Module, path: Path) -> None:
    """Write FILE.json beside a file in whose format there is no place for it.

    Args:
        model: The network.
        path: The file.

    Raises:
        FileFormatError: It cannot be written.
    """
    values = read_values(model)
    if values and path.suffix != ".onnx":
        write_json(_find_beside(path), values)


def read_inputs(path: Path) -> dict[str, Any]:
    """Read how the inputs of an exported file are made.

    Args:
        path: The file.

    Returns:
        Values under timm's names; none where nothing is said.

    Raises:
        FileFormatError: What is written there is damaged.
    """
    beside = _find_beside(path)
    try:
        if path.suffix == ".onnx":
            import onnx

            entries = onnx.load(path, load_external_data=False).metadata_props
            return check_values({entry.key: json.loads(entry.value) for entry in entries if entry.key in KEYS})
        return check_values(read_json(beside) if beside.exists() else {})
    except (json.JSONDecodeError, SettingError) as error:
        raise FileFormatError(f"{path}: what is said of its inputs is damaged: {error}") from None


def _find_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
