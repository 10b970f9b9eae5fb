"""ONNX: one file, checked, run in ONNX Runtime."""

from pathlib import Path

import torch
from torch import Tensor, nn

from .exporting import Arrays, Run
from .torch_export import shapes


def write(model: nn.Module, inputs: Arrays, path: Path, dynamic_batch: bool) -> None:
    """Write one file, weights included, and let ONNX check it."""
    import onnx

    varying = shapes(inputs, dynamic_batch)
    torch.onnx.export(model, inputs, path, dynamo=True, dynamic_shapes=varying, external_data=False, verbose=False)
    onnx.checker.check_model(path)


def opened(path: Path) -> Run:
    """Run it on the processor, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]

    def run(inputs: Arrays) -> Tensor:
        given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run
