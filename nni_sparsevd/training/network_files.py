"""A network in a file of a run folder: its tensors and, where training shrank it, the sizes of its modules."""

import json
from pathlib import Path

from torch import nn

from .. import models
from ..errors import FileFormatError
from ..files import load_tensors, save_tensors
from ..shrinking import read_attributes, resize_

SIZES = "nni_sparsevd.sizes"


def write_network(model: nn.Module, path: Path, *, resized: bool = False) -> None:
    """Write the state of `model`; a network that is `resized` has other sizes than the recipe gives it."""
    save_tensors(model.state_dict(), path, {SIZES: json.dumps(read_attributes(model))} if resized else None)


def read_network_(model: nn.Module, path: Path) -> nn.Module:
    """Put what `write_network` wrote into `model`, made by the same recipe, at the sizes that it has there; returns it.

    Raises `FileFormatError` for a file that is missing or damaged, `ModelError` for one of another network.
    """
    tensors, metadata = load_tensors(path)
    if SIZES in metadata:
        try:
            sizes = json.loads(metadata[SIZES])
        except json.JSONDecodeError as error:
            raise FileFormatError(f"{path}: its sizes are damaged: {error}") from None
        resize_(model, tensors, sizes, path)
    models.load_weights_(model, tensors, path)
    return model
