"""A file that another runtime runs, as a module: what `load` gives back for the files of `export`."""

from pathlib import Path

from torch import Tensor, nn

from ..errors import FileFormatError, SettingError, describe_error
from .exporting import FORMATS, Run, opened


class Deployed(nn.Module):
    """Runs the file; has no parameters and no gradient."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the file makes of the inputs."""
        return self._run(inputs)


def open_exported(path: Path | str) -> Deployed:
    """Open a file of `export`, whose suffix tells its runtime.

    Raises `SettingError` for an unknown suffix or a missing package, and for .pt2, which can run code when it is
    opened; `FileFormatError` for a file that is missing or that its runtime does not understand.
    """
    path = Path(path)
    known = FORMATS.get(path.suffix)
    if known is not None and known.runs_code:
        raise SettingError(f"{path}: opening it can run code that it holds; if you trust it, use torch.export.load")
    if known is not None and not path.is_file():
        raise FileFormatError(f"{path}: no such file")
    try:
        return Deployed(opened(path))
    except SettingError:
        raise
    except Exception as error:  # of the runtime, whatever it raises
        raise FileFormatError(
            f"{path}: {FORMATS[path.suffix].title} cannot open it: {describe_error(error)}"
        ) from error
