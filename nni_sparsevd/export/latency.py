"""The latency of a network in the runtime that it will run in, as a part of another network's."""

import tempfile
import time
from pathlib import Path
from typing import final

from torch import nn

from ..errors import SettingError
from ..graph import Inputs
from ..measure import measure_latencies
from .exporting import export
from .runtime import open_exported

RUNTIMES = {"onnxruntime": ".onnx", "executorch": ".pte", "litert": ".tflite", "pytorch": ""}
"""Runtime -> the suffix of its files; PyTorch needs none."""


@final
class LatencyMeter:
    """Measures networks beside a reference, on the processor and one thread.

    Args:
        runtime: One of `RUNTIMES`.
        reference: The network whose latency is 1; it is exported at once.
        example_inputs: What the networks are called with.

    Raises:
        SettingError: The runtime is not known, or not installed.
        ModelError: The runtime cannot express the reference.
    """

    def __init__(self, runtime: str, reference: nn.Module, example_inputs: Inputs) -> None:
        if runtime not in RUNTIMES:
            raise SettingError(f"runtime {runtime!r}: there are {', '.join(RUNTIMES)}")
        self._suffix, self._example_inputs = RUNTIMES[runtime], example_inputs
        self._folder = tempfile.TemporaryDirectory(prefix="nni_sparsevd_latency_")
        self._reference = self._deploy(reference, "reference")

    def measure_part(self, model: nn.Module) -> float:
        """Measure the latency of a network as a part of the reference's.

        Args:
            model: An ordinary network.

        Returns:
            The median of its processor time over that of the reference, in interleaved rounds.

        Raises:
            ModelError: The runtime cannot express the network.
        """
        networks = {"network": self._deploy(model, "network"), "reference": self._reference}
        # What other programs take of the machine does not count.
        latencies = measure_latencies(networks, self._example_inputs, rounds=40, clock=time.process_time)
        return latencies["network"] / latencies["reference"]

    def _deploy(self, model: nn.Module, name: str) -> nn.Module:
        if not self._suffix:
            return model
        path = Path(self._folder.name) / f"{name}{self._suffix}"
        export(model, path, self._example_inputs, dynamic_batch=False)
        return open_exported(path)
