"""A file against the network that it was made of: every output, by its name, within the rounding of its type."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import final

import torch
from torch import Tensor, nn

from ..graph import CallArguments
from ..shrinking import Variant
from .arguments import Outputs, match_outputs, name_output, name_outputs

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest difference between two runtimes for each type, relative to the largest value of the output."""
HALF = (torch.float16, torch.bfloat16)
"""Types whose tolerance is also twice what the network itself loses in them."""
SMALLEST = 1e-30
"""What an output that is 0 is divided by."""


@dataclass(frozen=True)
class OutputDifference:
    """One output of the network against that of the file, over random inputs."""

    name: str
    max_abs: float
    """Largest absolute difference."""
    max_rel: float
    """The same, relative to the largest value of this output."""
    tolerance: float
    """The largest relative difference that counts as rounding; 0 for whole numbers and flags."""

    @property
    def ok(self) -> bool:
        """Whether the two agree as closely as the type of the output lets two runtimes agree."""
        return self.max_rel <= self.tolerance


@dataclass(frozen=True)
class Comparison:
    """The network against its exported file, over random inputs."""

    format: str
    max_abs: float
    """Largest absolute difference between two outputs."""
    max_rel: float
    """Largest difference relative to the largest value of its output."""
    batches: tuple[int, ...]
    """Batch sizes that were compared; empty where the inputs have no tensor with a batch."""
    bytes: int
    """Size of the file."""
    outputs: tuple[OutputDifference, ...]
    """Each output by its name."""
    agreement: float | None = None
    """Of a file of integers: the part of the calibration inputs (or of the places in their outputs) whose class, the
    largest value along dimension 1, is that of the network; None where nothing was rounded to integers."""

    @property
    def ok(self) -> bool:
        """Whether every output agrees as closely as its type lets two runtimes agree."""
        return all(output.ok for output in self.outputs)

    def to_dict(self) -> dict[str, object]:
        """Give all fields and the verdict, ready for JSON."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        sizes = f", batches of {', '.join(str(size) for size in self.batches)}" if self.batches else ""
        worst = max(self.outputs, key=lambda output: output.max_rel - output.tolerance)
        place = f" in {worst.name}" if len(self.outputs) > 1 else ""
        difference = f"largest difference {self.max_abs:.2g} (relative {worst.max_rel:.2g}{place}){sizes}"
        same = "" if self.agreement is None else f"{100 * self.agreement:.1f} % of calibration in the same class, "
        return f"{self.format}: {self.bytes:,} bytes; {same}{difference}"


@final
class LargestDifferences:
    """Over all batches: the largest value of each output, and how far the file is from the network there."""

    def __init__(self, model: nn.Module, title: str) -> None:
        """Begin to compare.

        Args:
            model: The network, on the CPU and in evaluation mode.
            title: The format of the file.
        """
        self._model, self._title = model, title
        self._values: dict[str, float] = {}
        self._differences: dict[str, float] = {}

    def add(self, computed: Outputs, arguments: CallArguments) -> dict[str, tuple[Tensor, Tensor]]:
        """Take one batch in.

        Args:
            computed: What the file gives.
            arguments: The batch in the types that the network takes.

        Returns:
            Name -> what the network gives, and what the file gives.

        Raises:
            ModelError: The file has other outputs than the network.
        """
        with torch.no_grad():
            expected = name_outputs(arguments.map_tensors(torch.clone).call(self._model))
        pairs = {}
        for name, file_value in match_outputs(expected, computed, self._title).items():
            value = as_real(expected[name])
            difference = largest_value(as_real(file_value) - value)
            self._values[name] = max(self._values.get(name, 0.0), largest_value(value))
            self._differences[name] = max(self._differences.get(name, 0.0), difference)
            pairs[name] = expected[name], file_value
        return pairs

    def compare(
        self,
        format_name: str,
        tolerances: Mapping[str, float],
        batches: tuple[int, ...],
        size: int,
        agreement: float | None = None,
    ) -> Comparison:
        """What all batches together show.

        Args:
            format_name: What the comparison calls the format.
            tolerances: Name -> the largest relative difference that counts as rounding.
            batches: Sizes of the batches.
            size: Bytes of the file.
            agreement: That of a file of integers.

        Returns:
            The comparison.
        """
        outputs = []
        for name, difference in self._differences.items():
            relative = difference / max(self._values[name], SMALLEST)
            outputs.append(OutputDifference(name, difference, relative, tolerances[name]))
        largest, largest_relative = max(output.max_abs for output in outputs), max(output.max_rel for output in outputs)
        return Comparison(format_name, largest, largest_relative, batches, size, tuple(outputs), agreement)


@final
class FileComparison:
    """Compares a network with its file, batch by batch.

    Args:
        model: The network, on the CPU and in evaluation mode.
        title: The format of the file.
    """

    def __init__(self, model: nn.Module, title: str) -> None:
        self._title, self._differences = title, LargestDifferences(model, title)
        self._tolerances: dict[str, float] = {}

    def add(self, computed: Outputs, arguments: CallArguments, variant: Variant) -> None:
        """Compare one batch.

        Args:
            computed: What the file gives.
            arguments: The batch in the types that the network takes.
            variant: The same batch, with what the network makes of it in float64.

        Raises:
            ModelError: The file has other outputs than the network.
        """
        exact = {name_output(place): value for place, value in variant.outputs.items()}
        for name, (expected, _) in self._differences.add(computed, arguments).items():
            tolerance = TOLERANCES.get(expected.dtype, 0.0)
            if expected.dtype in HALF:
                value = as_real(expected)
                noise = largest_value(value - as_real(exact[name])) / max(largest_value(value), SMALLEST)
                tolerance = max(tolerance, 2 * noise)
            self._tolerances[name] = max(self._tolerances.get(name, 0.0), tolerance)

    def result(self, batches: tuple[int, ...], size: int) -> Comparison:
        """What all batches together show.

        Args:
            batches: Their sizes.
            size: Bytes of the file.

        Returns:
            The comparison.
        """
        return self._differences.compare(self._title, self._tolerances, batches, size)


def as_real(value: Tensor) -> Tensor:
    """The numbers of a tensor in float64; complex ones as pairs of real ones, in one more dimension."""
    return torch.view_as_real(value.to(torch.complex128)) if value.is_complex() else value.double()


def largest_value(value: Tensor) -> float:
    """Find the largest absolute value; infinite where one is NaN, which is as far away as a number can be."""
    largest = float(value.abs().max()) if value.numel() else 0.0
    return math.inf if math.isnan(largest) else largest
