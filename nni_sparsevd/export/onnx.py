"""ONNX: one file that ONNX has checked, for ONNX Runtime."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .exporting import Arrays, Run
from .torch_export import dynamic_shapes


def write(model: nn.Module, inputs: Arrays, path: Path, dynamic_batch: bool) -> None:
    """Write one file, weights included, and let ONNX check it."""
    import onnx

    shapes = dynamic_shapes(inputs, dynamic_batch)
    torch.onnx.export(model, inputs, path, dynamo=True, dynamic_shapes=shapes, external_data=False, verbose=False)
    onnx.checker.check_model(path)


def open_file(path: Path) -> Run:
    """Open a file in ONNX Runtime, on the CPU, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def run(inputs: Arrays) -> Tensor:
        arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return run
