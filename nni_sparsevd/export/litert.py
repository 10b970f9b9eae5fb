"""LiteRT, formerly TensorFlow Lite: a .tflite file for phones."""

import contextlib
import io
import tempfile
from collections.abc import Iterator
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


def write_int8(model: nn.Module, tracing: Tracing, path: Path, calibration: Iterator[CallArguments]) -> None:
    """Convert the network, round to eight bits by LiteRT's quantizer, and write it; inputs and outputs stay floats.

    Weights are signed, with a scale for each output channel, activations signed, with a scale for each tensor.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import qtyping, quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        floats = Path(folder) / "float.tflite"
        write(model, tracing, floats)
        rounding = quantizer.Quantizer(str(floats), recipe.static_wi8_ai8())
        for end in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
            rounding.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
        ((signature, names),) = Interpreter(model_path=str(floats)).get_signature_list().items()
        calls = [{names["inputs"][0]: arguments.tensors[0].numpy()} for arguments in calibration]
        ranges = rounding.calibrate({signature: calls}, num_threads=1)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a table of sizes
            rounding.quantize(ranges).export_model(str(path))


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
