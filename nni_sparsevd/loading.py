"""`load`: one way in for every file and folder that this package writes, here or on the hub."""

from pathlib import Path

from torch import nn

from . import storage
from .errors import FileFormatError


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Read a file of `save`, packed or not, or one of `export` (.onnx, .pte, .tflite); gives back a module to call.

    A folder of `save_folder`, or its address on the Hugging Face hub, hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION,
    stands for the file in it.  A file of `save` becomes an ordinary network in evaluation mode; `model`, for networks
    that timm does not know, is a fresh, unpruned instance: it is changed in place and returned.  A file of `export`
    becomes a module that runs it.

    Raises `FileFormatError` when the file is missing, truncated, of another format or version, or does not fit;
    `SettingError` for a missing runtime, for an address that the hub does not have, and for .pt2, which can run code
    when it is opened.
    """
    from .export import (
        FORMATS,  # not before a file asks for it: it draws reports too
        open_exported,
    )

    if str(path).startswith(storage.PREFIX):
        path = storage.fetch_weights(str(path))
    elif Path(path).is_dir():
        path = Path(path) / storage.WEIGHTS
        if not path.exists():
            raise FileFormatError(f"{path.parent}: has no {path.name}, so it is no folder of save_folder")
    return open_exported(path) if Path(path).suffix in FORMATS else storage.load(path, model)
