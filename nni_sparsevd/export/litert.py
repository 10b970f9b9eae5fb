"""LiteRT, formerly TensorFlow Lite: a .tflite file for phones."""

from pathlib import Path

import torch
from torch import nn

from ..graph import CallArguments
from .arguments import Outputs, Tracing, number_outputs
from .exporting import Run


def write(model: nn.Module, tracing: Tracing, path: Path) -> None:
    """Convert the network and write it; the batch is fixed."""
    import litert_torch

    litert_torch.convert(model, tracing.arguments.args).export(str(path))


def open_file(path: Path) -> Run:
    """Open a file in LiteRT's interpreter, with one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()

    def run(arguments: CallArguments) -> Outputs:
        for slot, value in zip(interpreter.get_input_details(), arguments.tensors, strict=True):
            interpreter.set_tensor(slot["index"], value.numpy())
        interpreter.invoke()
        outputs = [interpreter.get_tensor(slot["index"]) for slot in interpreter.get_output_details()]
        # Copies, as the next run writes into the same memory.
        return number_outputs([torch.from_numpy(output.copy()) for output in outputs])

    return run
