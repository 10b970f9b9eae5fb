"""torch.export: a .pt2 file that runs without the code that built the network."""

from pathlib import Path

import torch
from torch import nn

from ..graph import CallArguments
from .arguments import Outputs, Tracing, describe_dynamic_shapes, name_outputs
from .exporting import Run


def trace_program(model: nn.Module, tracing: Tracing) -> torch.export.ExportedProgram:
    """Trace the network."""
    arguments = tracing.arguments
    shapes = describe_dynamic_shapes(model, tracing)
    return torch.export.export(model, arguments.args, dict(arguments.kwargs), dynamic_shapes=shapes)


def write(model: nn.Module, tracing: Tracing, path: Path) -> None:
    """Trace the network and write it."""
    torch.export.save(trace_program(model, tracing), path)


def open_file(path: Path) -> Run:
    """Open a file in PyTorch."""
    module = torch.export.load(path).module()

    def run(arguments: CallArguments) -> Outputs:
        with torch.no_grad():
            return name_outputs(arguments.call(module))

    return run
