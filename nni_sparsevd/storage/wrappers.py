"""Networks inside wrappers, whose names have no place in a file."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from torch import nn


@contextlib.contextmanager
def without_wrappers(model: nn.Module) -> Iterator[nn.Module]:
    """Take the wrappers of `torch.compile` and of data parallelism off a network and its modules, for a while.

    A wrapper puts a name of its own before the names of all that is in it, as in `_orig_mod.head.weight`.

    Args:
        model: The network, wrapped or not.  When the block ends, the wrappers are where they were.

    Yields:
        The network inside; `model` itself where it has no wrapper.
    """
    network = _unwrap(model)
    wrapped = []
    for owner in list(network.modules()):
        for name, child in owner._modules.items():
            if child is not None and _find_inner(child) is not None:
                wrapped.append((owner, name, child, _unwrap(child)))
    try:
        for owner, name, _, inner in wrapped:
            owner._modules[name] = inner
        yield network
    finally:
        for owner, name, child, inner in wrapped:
            # A module that was replaced in the meantime stays: the wrapper still holds the one before.
            if owner._modules[name] is inner:
                owner._modules[name] = child


def _unwrap(module: nn.Module) -> nn.Module:
    while (inner := _find_inner(module)) is not None:
        module = inner
    return module


def _find_inner(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None for a module that is no wrapper."""
    inner: nn.Module
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        inner = module.module
        return inner
    compiler: Any = sys.modules.get("torch._dynamo")  # not imported for this: that takes longer than most networks do
    if compiler is not None and isinstance(module, compiler.OptimizedModule):
        inner = module._orig_mod
        return inner
    return None
