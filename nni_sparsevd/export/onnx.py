"""ONNX: one file that ONNX has checked, for ONNX Runtime."""

from pathlib import Path

import torch
from torch import nn

from ..graph import CallArguments
from .arguments import Outputs, Tracing, describe_dynamic_shapes, order_inputs
from .exporting import Run


def write(model: nn.Module, tracing: Tracing, path: Path) -> None:
    """Write one file, weights included, and let ONNX check it."""
    import onnx

    torch.onnx.export(
        model,
        tracing.arguments.args,
        path,
        kwargs=dict(tracing.arguments.kwargs),
        dynamo=True,
        dynamic_shapes=describe_dynamic_shapes(model, tracing),
        input_names=list(tracing.input_names),
        output_names=list(tracing.output_names),
        external_data=False,
        verbose=False,
    )
    onnx.checker.check_model(path)


def open_file(path: Path) -> Run:
    """Open a file in ONNX Runtime, on the CPU, with one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    input_names = [argument.name for argument in session.get_inputs()]
    output_names = [argument.name for argument in session.get_outputs()]

    def run(arguments: CallArguments) -> Outputs:
        feed = {name: value.numpy() for name, value in order_inputs(input_names, arguments).items()}
        return dict(zip(output_names, map(torch.from_numpy, session.run(None, feed)), strict=True))

    return run
