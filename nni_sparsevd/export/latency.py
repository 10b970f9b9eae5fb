"""The latency of a network in the runtime that it will run in, as a part of another network's."""

import statistics
import tempfile
import time
from pathlib import Path
from typing import final

import torch
from torch import nn

from ..errors import SettingError
from ..graph import CallArguments, Inputs, as_arguments, evaluation_mode
from ..measure import use_threads
from .exporting import export
from .quantization import Quantization
from .runtime import open_exported

RUNTIMES = {"onnxruntime": ".onnx", "executorch": ".pte", "litert": ".tflite", "pytorch": ""}
"""Runtime -> the suffix of its files; PyTorch needs none."""
COMPARISONS = 3
"""How often two networks are compared; the median counts."""
ROUNDS = 14
"""How often both networks take their turn in a comparison."""
SECONDS = 0.01
"""What a turn takes at least."""


@final
class LatencyMeter:
    """Measures networks beside a reference, on the processor and one thread.

    Args:
        runtime: One of `RUNTIMES`.
        reference: The network whose latency is 1; it is exported at once.
        example_inputs: What the networks are called with.
        int8: Measure both as integers of eight bits. They are calibrated with the example alone: what the integers
            stand for makes no difference to the time.

    Raises:
        SettingError: The runtime is not known, or not installed, or has no int8.
        ModelError: The runtime cannot express the reference.
    """

    def __init__(self, runtime: str, reference: nn.Module, example_inputs: Inputs, *, int8: bool = False) -> None:
        if runtime not in RUNTIMES:
            raise SettingError(f"runtime {runtime!r}: there are {', '.join(RUNTIMES)}")
        if int8 and not RUNTIMES[runtime]:
            raise SettingError(f"runtime {runtime!r} has no int8 here")
        self._suffix, self._example_inputs = RUNTIMES[runtime], example_inputs
        self._quantization = Quantization(as_arguments(example_inputs).tensors[0]) if int8 else None
        self._folder = tempfile.TemporaryDirectory(prefix="nni_sparsevd_latency_")
        self._reference = self._deploy(reference, "reference")

    def measure_part(self, model: nn.Module) -> float:
        """Measure the latency of a network as a part of the reference's.

        Args:
            model: An ordinary network.

        Returns:
            Its processor time over that of the reference, both summed over interleaved rounds; of several such
            comparisons the median.

        Raises:
            ModelError: The runtime cannot express the network.
        """
        network, arguments = self._deploy(model, "network"), as_arguments(self._example_inputs)
        # Channels leave by what is measured, and do not come back: on a busy machine one comparison was seen to say
        # 1.17 of a network that takes 0.48.
        return statistics.median(_compare(network, self._reference, arguments) for _ in range(COMPARISONS))

    def _deploy(self, model: nn.Module, name: str) -> nn.Module:
        if not self._suffix:
            return model
        path = Path(self._folder.name) / f"{name}{self._suffix}"
        export(model, path, self._example_inputs, dynamic_batch=False, quantization=self._quantization)
        return open_exported(path)


def _compare(network: nn.Module, reference: nn.Module, arguments: CallArguments) -> float:
    """Time of one network over the time of the other, which take turns."""
    # 1. The processor's time, because what other programs take of the machine shall not count.
    # 2. Sums and long turns, because that time may be counted in ticks of a millisecond: a median of short turns then
    #    is one tick for either network.
    totals = [0.0, 0.0]
    with use_threads(1), evaluation_mode(network, reference), torch.inference_mode():
        calls = [_count_calls(each, arguments) for each in (network, reference)]
        for _ in range(ROUNDS):
            for index, each in enumerate((network, reference)):
                totals[index] += _run(each, arguments, calls[index]) / calls[index]
    return totals[0] / totals[1]


def _count_calls(network: nn.Module, arguments: CallArguments) -> int:
    """The calls of a turn."""
    # The fastest of three turns counts. One that was disturbed would end the search early, and in short turns a network
    # finds the caches full of the other one.
    calls = 1
    while min(_run(network, arguments, calls) for _ in range(3)) < SECONDS:
        calls *= 2
    return calls


def _run(network: nn.Module, arguments: CallArguments, calls: int) -> float:
    """Seconds of the processor for so many calls."""
    began = time.process_time()
    for _ in range(calls):
        arguments.call(network)
    return time.process_time() - began
