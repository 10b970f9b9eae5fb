"""LiteRT, formerly TensorFlow Lite: a .tflite file for phones."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .exporting import Arrays, Run


def write(model: nn.Module, inputs: Arrays, path: Path, dynamic_batch: bool) -> None:
    """Convert and write; the batch is fixed."""
    import litert_torch

    litert_torch.convert(model, inputs).export(str(path))


def opened(path: Path) -> Run:
    """Run it in LiteRT's interpreter, with one thread."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()

    def run(inputs: Arrays) -> Tensor:
        for place, value in zip(interpreter.get_input_details(), inputs, strict=True):
            interpreter.set_tensor(place["index"], value.numpy())
        interpreter.invoke()
        return torch.from_numpy(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).copy())

    return run
