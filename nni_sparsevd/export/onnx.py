"""ONNX: one file that ONNX has checked, for ONNX Runtime."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def write_int8(model: nn.Module, tracing: Tracing, path: Path, calibration: Iterator[CallArguments]) -> None:
    """Write a file with nodes that round to eight bits and back (QDQ), by ONNX Runtime's static quantizer.

    Weights are signed, with a scale for each output channel, activations unsigned, with a scale for each tensor: for
    this pair x86 has an instruction (VNNI), and ARM multiplies either.  Ranges are the smallest and the largest value.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calls(CalibrationDataReader):  # type: ignore[misc]
        """The calibration, as the quantizer asks for it."""

        def get_next(self) -> dict[str, Any] | None:
            """One call: {name of an input: array}; None at the end."""
            arguments = next(calibration, None)
            if arguments is None:
                return None
            feed = order_inputs(list(tracing.input_names), CallArguments(arguments.tensors, {}))
            return {name: value.numpy() for name, value in feed.items()}

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        plain, prepared = Path(folder) / "float.onnx", Path(folder) / "prepared.onnx"
        write(model, tracing, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            Calls(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )


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
