"""A file that another runtime runs, as a module: what `load` gives back for the files of `export`."""

from pathlib import Path

from torch import Tensor, nn

from ..errors import FileFormatError, SettingError, describe_error
from .exporting import FORMATS, Run, open_file


class Deployed(nn.Module):
    """Runs an exported file; it has neither parameters nor gradients.

    Args:
        run: What runs the file: from a tuple of inputs to the output.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def forward(self, *inputs: Tensor) -> Tensor:
        """Give the file's output for the inputs."""
        return self._run(inputs)


def open_exported(path: Path | str) -> Deployed:
    """Open a file of `export` as a module.

    Args:
        path: The file; its suffix says the runtime.

    Returns:
        A module that takes the network's inputs and gives its output.

    Raises:
        SettingError: The suffix is unknown, a package is missing, or the file is a .pt2, which can run code when it is
            opened.
        FileFormatError: The file is missing, or its runtime does not understand it.
    """
    path = Path(path)
    known = FORMATS.get(path.suffix)
    if known is not None and known.runs_code:
        raise SettingError(f"{path}: opening it can run code that it holds; if you trust it, use torch.export.load")
    if known is not None and not path.is_file():
        raise FileFormatError(f"{path}: no such file")
    try:
        return Deployed(open_file(path))
    except SettingError:
        raise
    except Exception as error:  # runtimes raise errors of many types, and none is ours
        raise FileFormatError(
            f"{path}: {FORMATS[path.suffix].title} cannot open it: {describe_error(error)}"
        ) from error
