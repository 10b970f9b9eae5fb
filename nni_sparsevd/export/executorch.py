"""ExecuTorch: a .pte file for phones; operators that XNNPACK has are lowered to it."""

from pathlib import Path

from torch import Tensor, nn

from .exporting import Arrays, Run
from .torch_export import trace_program


def write(model: nn.Module, inputs: Arrays, path: Path, dynamic_batch: bool) -> None:
    """Lower the network to XNNPACK and write it; the batch is fixed."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    traced = trace_program(model, inputs, dynamic_batch)
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def open_file(path: Path) -> Run:
    """Open a file in ExecuTorch's own runtime."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def run(inputs: Arrays) -> Tensor:
        output: Tensor = method.execute(list(inputs))[0]
        return output.clone()  # the next run writes into the same memory

    return run
