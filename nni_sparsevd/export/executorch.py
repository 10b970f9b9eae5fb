"""ExecuTorch: a .pte file for phones, its operators lowered to XNNPACK where XNNPACK has them."""

from pathlib import Path

from torch import Tensor, nn

from .exporting import Arrays, Run
from .torch_export import program


def write(model: nn.Module, inputs: Arrays, path: Path, dynamic_batch: bool) -> None:
    """Lower and write; the batch is fixed."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    traced = program(model, inputs, dynamic_batch)
    lowered = to_edge_transform_and_lower(traced, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def opened(path: Path) -> Run:
    """Run it in ExecuTorch's own runtime."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def run(inputs: Arrays) -> Tensor:
        found: Tensor = method.execute(list(inputs))[0]
        return found.clone()

    return run
