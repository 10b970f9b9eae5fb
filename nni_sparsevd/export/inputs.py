"""How the inputs of an exported file are made: in the metadata of an ONNX file, or in FILE.json beside another one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FileFormatError
from ..files import read_json, write_json
from ..preprocessing import KEYS, check_values


def write_into_file(values: Mapping[str, Any], written: Path) -> None:
    """Put into an ONNX file what a network says of its inputs and classes, each value as JSON; pass over other formats.

    Args:
        values: What it says, under timm's names.
        written: The file.
    """
    if written.suffix != ".onnx" or not values:
        return
    import onnx

    file = onnx.load(written)
    for key, value in values.items():
        entry = file.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    onnx.save(file, written)


def write_beside(values: Mapping[str, Any], path: Path) -> None:
    """Write FILE.json beside a file in whose format there is no place for it; one of an earlier network is deleted.

    Args:
        values: What the network says of its inputs and classes, under timm's names.
        path: The file.

    Raises:
        FileFormatError: It cannot be written.
    """
    if path.suffix == ".onnx":
        return
    if values:
        write_json(_find_beside(path), values)
    else:
        _find_beside(path).unlink(missing_ok=True)


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
    except (ValueError, RecursionError) as error:  # of JSON; a SettingError is a ValueError, too
        raise FileFormatError(f"{path}: what is said of its inputs is damaged: {error}") from None


def _find_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
