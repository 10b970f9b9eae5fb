"""LiteRT, formerly TensorFlow Lite: a .tflite file for phones."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .exporting import Arrays, Run


def write(model: nn.Module, inputs: Arrays, path: Path, dynamic_batch: bool) -> None:
    """Convert the network and write it; the batch is fixed."""
    import litert_torch

    litert_torch.convert(model, inputs).export(str(path))


def open_file(path: Path) -> Run:
    """Open a file in LiteRT's interpreter, with one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()

    def run(inputs: Arrays) -> Tensor:
        for slot, value in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(slot["index"], value.numpy())
        interpreter.invoke()
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        return torch.from_numpy(output.copy())  # the next run writes into the same memory

    return run
