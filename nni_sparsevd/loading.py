"""`load`: one way in for every file and folder that this package writes, here or on the hub."""

from pathlib import Path

from torch import nn

from . import storage
from .errors import FileFormatError
from .export import FORMATS, open_exported


def load(path: Path | str, model: nn.Module | None = None) -> nn.Module:
    """Open what `save`, `save_folder`, `push` or `export` wrote; nothing is unpickled and no code in a file is run.

    Args:
        path: A file of `save`, packed or not; a file of `export` (.onnx, .pte, .tflite); a folder of `save_folder`; or
            the address of such a folder on the Hugging Face hub, hf-hub:OWNER/NAME or hf-hub:OWNER/NAME@REVISION.
        model: A fresh, unpruned instance of the network, for networks that timm does not know: the file's weights and
            sizes are put into it.

    Returns:
        For a file of `save`, an ordinary network in evaluation mode: `model` itself, changed in place, where it was
        given.  For a file of `export`, a module that runs the file in its runtime.

    Raises:
        FileFormatError: The file is missing, truncated, altered, of another format or version, or does not fit `model`.
        SettingError: A runtime is not installed, the hub does not have the address, or the file is a .pt2, which can
            run code when it is opened.

    Example:
        ```python
        import tempfile
        import torch
        import nni_sparsevd as svd

        model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
        with tempfile.TemporaryDirectory() as folder:
            svd.save(model, f"{folder}/small.safetensors")
            fresh = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
            again = svd.load(f"{folder}/small.safetensors", fresh)
        x = torch.randn(2, 4)
        assert torch.equal(again(x), model(x))
        ```
    """
    if str(path).startswith(storage.PREFIX):
        path = storage.fetch_weights(str(path))
    elif Path(path).is_dir():
        path = Path(path) / storage.WEIGHTS
        if not path.exists():
            raise FileFormatError(f"{path.parent}: has no {path.name}, so it is no folder of save_folder")
    return open_exported(path) if Path(path).suffix in FORMATS else storage.load(path, model)
