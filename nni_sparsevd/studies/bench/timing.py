"""How many times faster a network has become: in PyTorch and, where it is installed, in ONNX Runtime."""

import tempfile
from pathlib import Path

from torch import Tensor, nn

from ...errors import SettingError
from ...export import export, open_exported
from ...measure import measure_latencies


def faster(dense: nn.Module, small: nn.Module, example: Tensor) -> dict[str, float]:
    """{"torch", "onnx"}: latency of `dense` over that of `small`, interleaved, one thread; no "onnx" without it."""
    networks = {"dense": dense, "small": small}
    found = {"torch": measure_latencies(networks, example)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            elsewhere: dict[str, nn.Module] = {}
            for name, network in networks.items():
                path = Path(folder) / f"{name}.onnx"
                export(network, path, example, dynamic_batch=False)
                elsewhere[name] = open_exported(path)
            found["onnx"] = measure_latencies(elsewhere, example)
    except SettingError:  # not installed
        pass
    return {runtime: times["dense"] / times["small"] for runtime, times in found.items()}
