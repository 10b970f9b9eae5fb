"""torch.export: a .pt2 file that runs without the code that built the network."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .exporting import Arrays, Run

Shapes = tuple[dict[int, torch.export.Dim], ...] | None


def shapes(inputs: Arrays, dynamic_batch: bool) -> Shapes:
    """What may vary, as tracing wants it: with a dynamic batch, the first dimension of every input."""
    return tuple({0: torch.export.Dim("batch")} for _ in inputs) if dynamic_batch else None


def program(model: nn.Module, inputs: Arrays, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """The traced network."""
    return torch.export.export(model, inputs, dynamic_shapes=shapes(inputs, dynamic_batch))


def write(model: nn.Module, inputs: Arrays, path: Path, dynamic_batch: bool) -> None:
    """Write the traced network."""
    torch.export.save(program(model, inputs, dynamic_batch), path)


def opened(path: Path) -> Run:
    """Run it."""
    module = torch.export.load(path).module()

    def run(inputs: Arrays) -> Tensor:
        with torch.no_grad():
            found: Tensor = module(*inputs)
        return found

    return run
