"""ExecuTorch: a .pte file for phones; operators that XNNPACK has are lowered to it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..graph import CallArguments
from .arguments import Outputs, Tracing, number_outputs
from .exporting import Run
from .torch_export import trace_program

aten = torch.ops.aten
CLAMPS = (aten.hardtanh.default, aten.hardtanh_.default)
LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.linear.default)
SMALLEST_SCALE = 2.0**-12
"""Of XNNPACK, which scales products by fixed-point numbers."""


def write(model: nn.Module, tracing: Tracing, path: Path) -> None:
    """Lower the network to XNNPACK and write it; the batch is fixed."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    traced = trace_program(model, tracing)
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def write_int8(model: nn.Module, tracing: Tracing, path: Path, calibration: Iterator[CallArguments]) -> None:
    """Round to eight bits by ExecuTorch's quantizer for XNNPACK, through torchao's PT2E, lower and write it.

    Weights are signed, with a scale for each output channel, activations signed, with a scale for each tensor.  Ranges
    are the smallest and the largest value: they are the same for every batch size, and fast to find.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    prepared = prepare_pt2e(trace_program(model, tracing).module(), _make_quantizer())
    with torch.no_grad():
        for arguments in calibration:
            arguments.call(prepared)
    write(convert_pt2e(prepared), tracing, path)


def _make_quantizer() -> Any:
    """ExecuTorch's quantizer, which also takes a clamp (ReLU6) for a part of the layer before it.

    Alone, it gives the layer's output a scale of its own, as wide as the values before the clamp.  With one scale for
    both, from the values behind it, tf_efficientnet_lite0 gave the class of the float network to 98.8 % of 400 photos
    of Imagenette, without to 90.3 % (executorch 1.5.1).  XNNPACK computes layer and clamp as one.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    class Quantizer(XNNPACKQuantizer):  # type: ignore[misc]
        def annotate(self, model: torch.fx.GraphModule) -> torch.fx.GraphModule:
            """Say which values are rounded, and which share a scale."""
            super().annotate(model)
            for node in model.graph.nodes:
                layer = node.args[0] if node.target in CLAMPS else None
                if (
                    layer is None
                    or layer.target not in LAYERS
                    or len(layer.users) > 1
                    or Q_ANNOTATION_KEY not in layer.meta
                ):
                    continue
                # The scale of the layer's output becomes that of the clamp's, and the layer itself is left without.
                of_layer = layer.meta[Q_ANNOTATION_KEY]
                of_clamp = QuantizationAnnotation(output_qspec=of_layer.output_qspec, _annotated=True)
                node.meta[Q_ANNOTATION_KEY] = of_clamp
                of_layer.output_qspec = None
            return model

    settings = get_symmetric_quantization_config(is_per_channel=True)
    observer = MinMaxObserver.with_args(eps=SMALLEST_SCALE)
    activations = replace(settings.output_activation, observer_or_fake_quant_ctr=observer)
    return Quantizer().set_global(replace(settings, input_activation=activations, output_activation=activations))


def open_file(path: Path) -> Run:
    """Open a file in ExecuTorch's own runtime, with one thread."""
    from executorch.extension.pybindings._C import _unsafe_reset_threadpool  # the only way to choose the threads
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(1)
    method = Runtime.get().load_program(path).load_method("forward")

    def run(arguments: CallArguments) -> Outputs:
        outputs = method.execute(list(arguments.tensors))
        # Copies, as the next run writes into the same memory.
        return number_outputs([value.clone() for value in outputs if isinstance(value, Tensor)])

    return run
