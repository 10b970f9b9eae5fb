"""int8: what a network is calibrated with, and how a file of integers is compared with the network."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from ..errors import ModelError, SettingError
from ..graph import CallArguments
from .arguments import Outputs, Tracing
from .file_comparison import Comparison, LargestDifferences

TOLERANCE = 1.0
"""A file whose outputs are off by more than their largest value computes something else, whatever was rounded."""
AT_ONCE = 16
"""Calibration inputs in a batch, of a file that takes any batch size."""


@dataclass(frozen=True)
class Quantization:
    """Weights and activations become integers of eight bits, by the quantizer of the runtime, after training."""

    calibration: Tensor
    """Inputs of the network, shape (count, ...), made as in training; the range of every activation is measured on
    them.  A few hundred are enough."""


def check_quantization(network: nn.Module, example: CallArguments, quantization: Quantization) -> None:
    """See that a network can be calibrated with these inputs.

    Args:
        network: The network.
        example: What it is called with.
        quantization: The inputs for the calibration.

    Raises:
        ModelError: The network is not in float32, or has several inputs.
        SettingError: There are no calibration inputs, or they do not fit the network.
    """
    types = {value.dtype for value in network.parameters() if value.is_floating_point()}
    if types - {torch.float32}:
        named = ", ".join(sorted(str(dtype) for dtype in types))
        raise ModelError(
            f"int8 is made from a network in float32, {type(network).__name__} is in {named}: model.float()"
        )
    if len(example.tensors) != 1:
        raise ModelError(f"int8 is for networks of one input; {type(network).__name__} takes {len(example.tensors)}")
    expected, found = example.tensors[0], quantization.calibration
    count = len(found) if found.dim() else 0
    if count < len(expected):
        raise SettingError(
            f"quantization.calibration: {count} inputs, at least {len(expected)} are needed; give some hundred of "
            "those that the network was trained on"
        )
    if found.shape[1:] != expected.shape[1:] or found.dtype != expected.dtype:
        raise SettingError(
            f"quantization.calibration: inputs of {tuple(found.shape[1:])}, {found.dtype}; the network takes "
            f"{tuple(expected.shape[1:])}, {expected.dtype}"
        )
    if not bool(found.isfinite().all()):
        raise SettingError("quantization.calibration: holds NaN or infinite values, whose range has no integers")


def split_calibration(quantization: Quantization, tracing: Tracing) -> Iterator[CallArguments]:
    """The calibration inputs as calls of the size that the file takes; what is left over of a fixed batch is not used.

    Args:
        quantization: The inputs.
        tracing: How the network is traced.

    Yields:
        Arguments of one call.
    """
    size = AT_ONCE if tracing.dynamic_batch else len(tracing.arguments.tensors[0])
    for batch in quantization.calibration.detach().cpu().split(size):
        if tracing.dynamic_batch or len(batch) == size:
            yield tracing.arguments.with_tensors((batch,))


@final
class QuantizedComparison:
    """Compares a network with its file of integers on the calibration inputs: no random input has a known range.

    Args:
        model: The network, on the CPU and in evaluation mode.
        title: The format of the file.
    """

    def __init__(self, model: nn.Module, title: str) -> None:
        self._title, self._differences = title, LargestDifferences(model, title)
        self._tolerances: dict[str, float] = {}
        self._same = self._places = 0
        self._batches: set[int] = set()

    def add(self, computed: Outputs, arguments: CallArguments) -> None:
        """Compare one batch.

        Args:
            computed: What the file gives.
            arguments: The batch.

        Raises:
            ModelError: The file has other outputs than the network.
        """
        self._batches.add(len(arguments.tensors[0]))
        for name, (expected, file_value) in self._differences.add(computed, arguments).items():
            self._tolerances[name] = TOLERANCE
            if expected.dim() > 1:
                same = file_value.double().argmax(1) == expected.double().argmax(1)
                self._same, self._places = self._same + int(same.sum()), self._places + same.numel()

    def result(self, size: int) -> Comparison:
        """What all batches together show.

        Args:
            size: Bytes of the file.

        Returns:
            The comparison.
        """
        agreement = self._same / self._places if self._places else None
        batches = tuple(sorted(self._batches))
        return self._differences.compare(f"{self._title} int8", self._tolerances, batches, size, agreement)
