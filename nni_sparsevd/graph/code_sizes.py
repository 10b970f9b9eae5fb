"""Which sizes the code of a network can follow.

A reshape gets its sizes as numbers: from an attribute such as `num_heads`, from the shape of another tensor, or written
out.  An attribute can be brought up to date, a number cannot.  So the network is run once more without data, without
some channels of every kind and with the attributes set accordingly.  Where that fails, or a shape is not what it should
be, those channels stay.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node

from .groups import ChannelGraph, CodeSize, SizeAttribute
from .labels import ChannelIds, Flags
from .origins import Origin
from .resize import cut_, remaining_sizes
from .tracing import Trace, make_traceable_copy, record

aten = torch.ops.aten
SUPERFLUOUS = {aten.contiguous.default, aten.alias.default, aten.clone.default}


def resolve_sizes(model: nn.Module, graph: ChannelGraph) -> ChannelGraph:
    """`graph` with the attributes that have to follow its channels, and without those that the code cannot follow."""
    draw = np.random.default_rng(0)  # different numbers, so that two axes do not agree by accident
    failed = False  # code that failed once may depend on more than the sizes that it gives
    while True:
        removed = np.zeros(graph.num_channels, np.bool_)
        for group in graph.groups:
            if not group.pinned and len(group) > 1:
                gone = removed.copy()
                gone[graph.with_members(draw.choice(group.channels, draw.integers(1, len(group)), replace=False))] = (
                    True
                )
                if not any(gone[graph.axes[axis]].all() for axis in group.axes):
                    removed = gone
        feasible = graph.drop_infeasible(removed)
        fitted = _fails(model, graph, feasible) if failed else tighten_graph(model, graph, feasible)
        if fitted is None:
            free = graph.removable()
            return replace(
                graph, size_attributes=_attributes([one for one in graph.code_sizes if free[one.channels].any()])
            )
        graph, failed = fitted, True


def tighten_graph(model: nn.Module, graph: ChannelGraph, removed: Flags) -> ChannelGraph | None:
    """None where the code can follow this removal, else `graph` with more pins.

    The network without these channels is run without data, unless its code gives no sizes at all.
    """
    return _fails(model, graph, removed) if graph.code_sizes and removed.any() else None


def _fails(model: nn.Module, graph: ChannelGraph, removed: Flags) -> ChannelGraph | None:
    free = graph.removable()
    given = [one for one in graph.code_sizes if free[one.channels].any()]
    sizes = _attributes(given)
    failed = _try(model, graph, sizes, removed)
    if failed is None:
        return None
    kind = type(model.get_submodule(failed.module)).__name__
    blamed = _blamed(failed, model, graph, given, {size.origin for size in sizes}, free)
    if blamed.size:
        pins = graph.pins.with_pins(blamed, f"a size in the code of {kind} cannot follow")
    else:  # nothing that it meets can be blamed
        pins = graph.pins.with_pins(np.flatnonzero(free), f"the code of {kind} cannot follow")
    return replace(graph, pins=pins.propagated(graph.links), size_attributes=())


def _attributes(given: Sequence[CodeSize]) -> tuple[SizeAttribute, ...]:
    """The attributes that sizes are read from; all axes that one of them stands for are coupled."""
    found = {one.origin: one.channels for one in given if one.origin is not None}
    return tuple(SizeAttribute(origin, labels) for origin, labels in found.items())


@dataclass(frozen=True)
class _Failure:
    """Where a smaller network fails: at an operator, or in the code of a module between two of them."""

    module: str
    node: Node | None


def _try(model: nn.Module, graph: ChannelGraph, sizes: Iterable[SizeAttribute], removed: Flags) -> _Failure | None:
    """Where the smaller network fails, or makes a tensor of another shape than it should."""
    small = make_traceable_copy(model, graph.trace.device)
    cuts = {axis: np.flatnonzero(removed[labels]).tolist() for axis, labels in graph.axes.items()}
    cut_(small, {axis: indices for axis, indices in cuts.items() if indices}, remaining_sizes(sizes, removed))
    attempt = record(small, graph.trace.inputs, graph.trace.device)
    before, after = _compared(graph.trace), _compared(attempt.trace)
    for old, new in zip(before, after, strict=False):
        if old.target != new.target or not _as_expected(
            new.meta["val"], old.meta["val"], graph.value_channels[old], removed
        ):
            return _Failure(old.meta["module"], old)
    if attempt.error is None:
        return None if len(before) == len(after) else _Failure("", None)
    return _Failure(attempt.place, before[len(after)] if attempt.in_operator else None)


def _compared(trace: Trace) -> list[Node]:
    """All operators but those that PyTorch leaves out where an axis of size 1 makes them superfluous."""
    return [node for node in trace.graph.nodes if node.op != "output" and node.target not in SUPERFLUOUS]


def _as_expected(found: Any, before: Any, axes: Any, removed: Flags) -> bool:
    if isinstance(before, list | tuple):
        return all(_as_expected(*each, removed) for each in zip(found, before, axes, strict=True))
    if not isinstance(before, Tensor):
        return True
    sizes = [
        size if along is None else int((~removed[along]).sum()) for size, along in zip(before.shape, axes, strict=True)
    ]
    return list(found.shape) == sizes


def _blamed(
    failed: _Failure,
    model: nn.Module,
    graph: ChannelGraph,
    given: Sequence[CodeSize],
    followed: set[Origin],
    free: Flags,
) -> ChannelIds:
    """Free classes whose size the failed operator is given, or else those that it meets; and in modules of its kind."""
    kind = type(model.get_submodule(failed.module))
    inside = [
        node
        for node in graph.trace.graph.nodes
        if node.op != "output" and type(model.get_submodule(node.meta["module"])) is kind
    ]
    at = None if failed.node is None else (failed.node.target, failed.node.meta["step"])
    alike = {node for node in inside if at is None or at == (node.target, node.meta["step"])}
    own = [(one.channels, one.origin in followed) for one in given if one.node in alike]
    met = [
        along for node in alike for one in (node, *node.all_input_nodes) for along in _flat(graph.value_channels[one])
    ]
    near = [one.channels for one in given if type(model.get_submodule(one.node.meta["module"])) is kind]
    parts = tuple(f"{name}." for name, module in model.named_modules() if type(module) is kind)
    below = [node for node in graph.trace.graph.nodes if f"{node.meta.get('module')}.".startswith(parts)]
    around = [
        along for node in below for one in (node, *node.all_input_nodes) for along in _flat(graph.value_channels[one])
    ]
    for blamed in ([labels for labels, bound in own if not bound], [labels for labels, _ in own], met, near, around):
        labels: ChannelIds = np.unique(np.concatenate([*blamed, np.empty(0, np.int64)]))
        labels = labels[free[labels]]
        if labels.size:
            return labels
    return np.empty(0, np.int64)


def _flat(axes: Any) -> list[ChannelIds]:
    if axes is None or isinstance(axes, np.ndarray):
        return [] if axes is None else [axes]
    return [one for part in axes for one in _flat(part)]
