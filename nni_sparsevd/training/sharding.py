"""FSDP2: every process holds and moves its shard of each parameter, gradient and moment; the whole is gathered."""

import copy
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

CONTAINERS = (nn.Sequential, nn.ModuleList)


def shard_copy(model: nn.Module) -> nn.Module:
    """Copy `model` for training, with every parameter split along its first dimension over all processes.

    The shards of a block are gathered when its forward or backward pass needs them, one block at a time.
    """
    from torch.distributed.fsdp import fully_shard  # takes a second to import

    shards = copy.deepcopy(model)
    blocks = list(find_blocks(shards))
    # A module that belongs to several blocks (a gate on several layers) becomes a block, and is split first: each of
    # its owners would otherwise split its parameters, which can be done only once.
    owners = Counter(module for block in blocks for module in block.modules())
    shared = [module for module, count in owners.items() if count > 1 and _has_parameters(module, recurse=False)]
    for block in (*shared, *blocks, shards):
        fully_shard(block)
    return shards


def find_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost members of containers: each is called as a whole, whatever it does with its own layers."""
    for child in model.children():
        if not isinstance(model, CONTAINERS) or isinstance(child, CONTAINERS):
            yield from find_blocks(child)
        elif _has_parameters(child, recurse=True):
            yield child


def _has_parameters(module: nn.Module, *, recurse: bool) -> bool:
    return next(module.parameters(recurse), None) is not None


def gather_shards_(model: nn.Module, shards: nn.Module) -> None:
    """Copy into `model` what all processes hold of it; running statistics are those of the first, as under DDP."""
    parameters, buffers = dict(shards.named_parameters()), dict(shards.named_buffers())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(gather_whole(parameters[name]))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    broadcast_buffers_(model)


def broadcast_buffers_(model: nn.Module) -> None:
    """Give every process the buffers of the first one."""
    for buffer in model.buffers():
        dist.broadcast(buffer, 0)


def gather_whole(value: Any) -> Any:
    """The whole of a tensor of which this process may hold a shard; any other value as it is."""
    # DTensor, the class of a shard, takes a second to import, so a shard is told by its method.
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def shard_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Take the shard of `value` that this process holds of `parameter`; `value` itself where nothing is split.

    Every process has all of `value`. A value of another shape than `parameter`, such as a count of steps, stays whole.
    """
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None or value.shape != parameter.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    placements = parameter.placements  # type: ignore[attr-defined]
    return distribute_tensor(value.to(parameter.device), mesh, placements, src_data_rank=None)
