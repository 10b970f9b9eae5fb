"""Where the code of a network fails once channels are removed, or makes what it should not."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .code_numbers import find_numbers
from .cuts import cut_
from .groups import ChannelGraph
from .links import Flags
from .nodes import Node
from .traces import Trace, find_unused
from .tracing import make_traceable_copy, record

aten = torch.ops.aten
LEFT_OUT = {aten.contiguous.default, aten.alias.default, aten.clone.default}
"""Operators that PyTorch leaves out where an axis of size 1 makes them superfluous."""


@dataclass(frozen=True)
class Failure:
    """Where a smaller network fails."""

    module: str
    node: Node | None
    """The operator that fails, or None for the code of the module between two operators."""
    has_other_number: bool = False
    """Whether the operator runs but computes with another number."""


def find_failure(model: nn.Module, graph: ChannelGraph, removed: Flags) -> Failure | None:
    """The first place where the smaller network fails, or makes a tensor of another shape than it should."""
    small = make_traceable_copy(model, on_meta=graph.trace.on_meta)
    cuts = {axis: np.flatnonzero(removed[channels]).tolist() for axis, channels in graph.axes.items()}
    cut_(small, {axis: indices for axis, indices in cuts.items() if indices}, graph.remaining_sizes(removed))
    padded_norms = {norm.module for norm in graph.remembering_norms if not norm.is_layer_norm}
    for name in padded_norms:  # which will see all channels, as before, and return those that are left
        small.set_submodule(name, _PassOn().eval())
    attempt = record(small, graph.trace.inputs, on_meta=graph.trace.on_meta)
    before, after = _compared_nodes(graph.trace, padded_norms), _compared_nodes(attempt.trace, padded_norms)
    unused = find_unused(graph.trace)
    for old, new in zip(before, after, strict=False):  # a run that failed is shorter
        if old.target != new.target:
            return Failure(old.meta["module"], old)
        if old in unused:
            continue
        if not _has_expected_shape(new.meta["val"], old.meta["val"], graph.value_channels[old], removed):
            return Failure(old.meta["module"], old)
        if find_numbers(new) != find_numbers(old):
            return Failure(old.meta["module"], old, has_other_number=True)
    if attempt.error is not None:
        return Failure(attempt.place, before[len(after)] if attempt.in_operator else None)
    return None if len(before) == len(after) else Failure("", None)


class _PassOn(nn.Module):
    """Stands for a norm where only shapes count."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _compared_nodes(trace: Trace, without: Collection[str]) -> list[Node]:
    """The nodes that are compared: none of those in the modules `without`, or in modules inside them."""
    prefixes = tuple(f"{name}." for name in without)
    compared = []
    for node in trace.graph.nodes:
        if node.op == "output" or node.target in LEFT_OUT:
            continue
        if not f"{node.meta.get('module')}.".startswith(prefixes):
            compared.append(node)
    return compared


def _has_expected_shape(after: Any, before: Any, axes: Any, removed: Flags) -> bool:
    if isinstance(before, list | tuple):
        values = zip(after, before, axes, strict=True)
        return all(_has_expected_shape(new, old, old_axes, removed) for new, old, old_axes in values)
    if not isinstance(before, Tensor):
        return True
    expected = []
    for size, channels in zip(before.shape, axes, strict=True):
        expected.append(size if channels is None else int((~removed[channels]).sum()))
    return list(after.shape) == expected
