"""A file that another runtime runs, as a module: what `load` gives back for the files of `export`."""

from pathlib import Path
from typing import Any

from torch import nn

from ..errors import FileFormatError, SettingError, describe_error
from ..graph import CallArguments
from ..preprocessing import set_values_
from .arguments import SINGLE
from .exporting import FORMATS, Run, open_file
from .inputs import read_inputs


class Deployed(nn.Module):
    """Runs an exported file; it has neither parameters nor gradients.

    Args:
        run: What runs the file: from the arguments of a call to the outputs by name.
    """

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Run the file.

        Args:
            *inputs: What the network takes, in the order of the file's inputs.
            **keywords: What it takes by name.

        Returns:
            The output; a tuple where the network returned one; else a dict of all outputs by their names, such as
            "logits" or "features.0".
        """
        outputs = self._run(CallArguments(inputs, keywords).map_tensors(lambda value: value.detach().cpu()))
        if list(outputs) == [SINGLE]:
            return outputs[SINGLE]
        numbered = [f"{SINGLE}_{place}" for place in range(len(outputs))]
        return tuple(outputs.values()) if list(outputs) == numbered else outputs


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
        deployed = Deployed(open_file(path))
    except SettingError:
        raise
    except Exception as error:  # runtimes raise errors of many types, and none is ours
        raise FileFormatError(
            f"{path}: {FORMATS[path.suffix].title} cannot open it: {describe_error(error)}"
        ) from error
    values = read_inputs(path)
    if values:
        set_values_(deployed, values)
    return deployed
