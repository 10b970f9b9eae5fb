"""A network in a file of a run folder: its tensors and, where training may have shrunk it, the sizes of its modules.

The recipe of the folder says which network it is, so the file has less to say than one of `storage.save`.
"""

import json
from pathlib import Path

from torch import nn

from .. import models
from ..errors import FileFormatError
from ..files import load_tensors, save_tensors
from ..preprocessing import read_values
from ..shrinking import read_attributes, resize_

SIZES = "nni_sparsevd.sizes"
"""Metadata key of the sizes: a JSON object, module name -> attribute -> value."""


def write_network(model: nn.Module, path: Path, *, resized: bool = False) -> None:
    """Write the state of a network.

    Args:
        model: The network.
        path: A .safetensors file.
        resized: Whether the network may have other sizes than the recipe gives it.
    """
    metadata = {models.PREPROCESSING: json.dumps(read_values(model))}
    if resized:
        metadata[SIZES] = json.dumps(read_attributes(model))
    save_tensors(model.state_dict(), path, metadata)


def read_network_(model: nn.Module, path: Path) -> nn.Module:
    """Put the state from a file into a network, in place, at the sizes that it has in the file.

    Args:
        model: A network made by the same recipe.
        path: A file from `write_network`.

    Returns:
        `model`.

    Raises:
        FileFormatError: The file is missing or damaged.
        ModelError: The file is that of another network.
    """
    tensors, metadata = load_tensors(path)
    if SIZES in metadata:
        try:
            sizes = json.loads(metadata[SIZES])
        except json.JSONDecodeError as error:
            raise FileFormatError(f"{path}: its sizes are damaged: {error}") from None
        resize_(model, tensors, sizes, path)
    # Called after `resize_`, too: it refuses tensors that are missing or left over.
    models.load_weights_(model, tensors, path)
    return model
