"""`load`: one way in for every file and folder that this package writes."""

from pathlib import Path

from torch import nn

from . import storage


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Read a file of `save`, packed or not, or one of `export` (.onnx, .pte, .tflite); gives back a module to call.

    A file of `save` becomes an ordinary network in evaluation mode; `model`, for networks that timm does not know, is a
    fresh, unpruned instance: it is changed in place and returned.  A file of `export` becomes a module that runs it.

    Raises `FileFormatError` when the file is missing, truncated, of another format or version, or does not fit;
    `SettingError` for a missing runtime, and for .pt2, which can run code when it is opened.
    """
    from .export import FORMATS, deployed  # not before a file asks for it: it draws reports too

    return deployed(path) if Path(path).suffix in FORMATS else storage.load(path, model)
