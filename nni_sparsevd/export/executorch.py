"""ExecuTorch: a .pte file for phones; operators that XNNPACK has are lowered to it."""

from pathlib import Path

from torch import Tensor, nn

from ..graph import CallArguments
from .arguments import Outputs, Tracing, number_outputs
from .exporting import Run
from .torch_export import trace_program


def write(model: nn.Module, tracing: Tracing, path: Path) -> None:
    """Lower the network to XNNPACK and write it; the batch is fixed."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    traced = trace_program(model, tracing)
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def open_file(path: Path) -> Run:
    """Open a file in ExecuTorch's own runtime."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def run(arguments: CallArguments) -> Outputs:
        outputs = method.execute(list(arguments.tensors))
        # Copies, as the next run writes into the same memory.
        return number_outputs([value.clone() for value in outputs if isinstance(value, Tensor)])

    return run
