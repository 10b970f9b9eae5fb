"""FSDP2: every process holds and moves its part of each parameter, gradient and moment, and the whole is gathered."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

CONTAINERS = (nn.Sequential, nn.ModuleList)


def sharded(model: nn.Module) -> nn.Module:
    """A copy of `model` that trains, with every parameter split along its first dimension over all processes.

    Its blocks come together one at a time, when their forward or backward needs them.
    """
    from torch.distributed.fsdp import fully_shard  # takes a second to import

    parts = copy.deepcopy(model)
    blocks = list(_blocks(parts))
    places = Counter(module for block in blocks for module in block.modules())
    shared = [module for module, count in places.items() if count > 1 and any(True for _ in module.parameters(False))]
    for block in (*shared, *blocks, parts):
        fully_shard(block)
    return parts


def _blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of containers: called as a whole, whatever they do with the layers in them."""
    for child in model.children():
        if not isinstance(model, CONTAINERS) or isinstance(child, CONTAINERS):
            yield from _blocks(child)
        elif any(True for _ in child.parameters()):
            yield child


def gather_(model: nn.Module, parts: nn.Module) -> None:
    """Put into `model` what all processes hold of it; running statistics are the first process's, as under DDP."""
    found = dict(parts.named_parameters())
    with torch.no_grad():
        for name, value in model.named_parameters():
            value.copy_(whole(found[name]))
        statistics = dict(parts.named_buffers())
        for name, buffer in model.named_buffers():
            buffer.copy_(statistics[name])
    agree_(model)


def agree_(model: nn.Module) -> None:
    """Give every process the first one's running statistics: each has those of the images that it saw."""
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


def whole(value: Any) -> Any:
    """All of a tensor of which this process may hold a part; what is none stays as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """Give this process's part of `value`, which all have, where `parameter` is one of parts and has its shape."""
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    placements = parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
