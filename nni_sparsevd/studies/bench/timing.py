"""How many times faster a network has become, in PyTorch and, where it is installed, in ONNX Runtime."""

import contextlib
import tempfile
from pathlib import Path

from torch import Tensor, nn

from ...errors import SettingError
from ...export import export, open_exported
from ...measure import measure_latencies


def measure_speedups(dense: nn.Module, small: nn.Module, example: Tensor) -> dict[str, float]:
    """Latency of `dense` over that of `small`, measured in turns on one thread.

    Args:
        dense: The network before pruning.
        small: The network after pruning.
        example: One input, (1, channels, height, width).

    Returns:
        Runtime -> times faster; the runtimes are "torch" and, where ONNX Runtime is installed, "onnx".
    """
    networks = {"dense": dense, "small": small}
    latencies = {"torch": measure_latencies(networks, example)}
    with contextlib.suppress(SettingError):  # ONNX Runtime is not installed, and `export` says so
        latencies["onnx"] = _measure_in_onnx(networks, example)
    return {runtime: times["dense"] / times["small"] for runtime, times in latencies.items()}


def _measure_in_onnx(networks: dict[str, nn.Module], example: Tensor) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        exported: dict[str, nn.Module] = {}
        for name, network in networks.items():
            path = Path(folder) / f"{name}.onnx"
            export(network, path, example, dynamic_batch=False)  # the latency of one image is measured
            exported[name] = open_exported(path)
        return measure_latencies(exported, example)
