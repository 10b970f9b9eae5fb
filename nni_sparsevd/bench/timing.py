"""How many times faster a network has become: in PyTorch and, where it is installed, in ONNX Runtime."""

import tempfile
from pathlib import Path

from torch import Tensor, nn

from ..errors import SettingError
from ..export import Run, export, opened
from ..report import latencies


class Deployed(nn.Module):
    """A file that runs elsewhere, as a module."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._run = run

    def forward(self, x: Tensor) -> Tensor:
        """What the file makes of it."""
        return self._run((x,))


def faster(dense: nn.Module, small: nn.Module, example: Tensor) -> dict[str, float]:
    """{"torch", "onnx"}: latency of `dense` over that of `small`, interleaved, one thread; no "onnx" without it."""
    networks = {"dense": dense, "small": small}
    found = {"torch": latencies(networks, example)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            deployed: dict[str, nn.Module] = {}
            for name, network in networks.items():
                path = Path(folder) / f"{name}.onnx"
                export(network, path, example, dynamic_batch=False)
                deployed[name] = Deployed(opened(path))
            found["onnx"] = latencies(deployed, example)
    except SettingError:  # not installed
        pass
    return {runtime: times["dense"] / times["small"] for runtime, times in found.items()}
