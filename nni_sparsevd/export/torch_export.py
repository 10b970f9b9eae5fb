"""torch.export: a .pt2 file that runs without the code that built the network."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .exporting import Arrays, Run

Shapes = tuple[dict[int, torch.export.Dim], ...] | None


def dynamic_shapes(inputs: Arrays, dynamic_batch: bool) -> Shapes:
    """Say which sizes may vary, as PyTorch's exporters want it: the first dimension of every input, or none."""
    if not dynamic_batch:
        return None
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in inputs)


def trace_program(model: nn.Module, inputs: Arrays, dynamic_batch: bool) -> torch.export.ExportedProgram:
    """Trace the network."""
    return torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes(inputs, dynamic_batch))


def write(model: nn.Module, inputs: Arrays, path: Path, dynamic_batch: bool) -> None:
    """Trace the network and write it."""
    torch.export.save(trace_program(model, inputs, dynamic_batch), path)


def open_file(path: Path) -> Run:
    """Open a file in PyTorch."""
    module = torch.export.load(path).module()

    def run(inputs: Arrays) -> Tensor:
        with torch.no_grad():
            output: Tensor = module(*inputs)
        return output

    return run
