"""Which sizes the code of a network can follow.

A reshape gets its sizes as numbers: from an attribute such as `num_heads`, from the shape of another tensor, or written
out.  An attribute can be brought up to date, a number cannot.  So the network is run once more without data, with one
channel less of every kind and the attributes set accordingly.  Where that fails, or a shape is not what it should be,
those channels stay.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.fx import Node

from .groups import ChannelGraph, Size
from .labels import Atoms, Flags
from .origins import Origin
from .resize import cut_, left
from .trace import Inputs, record, run_copy

Given = tuple[Node, Origin | None, Atoms]
"""An operator that is given a size, the attribute that holds it, and the classes along that axis."""


def fit(
    model: nn.Module, inputs: Inputs, graph: ChannelGraph, given: Sequence[Given], axes: dict[Node, Any]
) -> ChannelGraph:
    """`graph` with the attributes that have to follow its channels, and without those that the code cannot follow.

    `axes` has the classes along the axes of every value: per node a tuple, or a list of them.
    """
    while True:
        free = graph.removable()
        open_ones = [one for one in given if free[one[2]].any()]
        if not open_ones:
            return replace(graph, sizes=())
        graph = replace(graph, sizes=_attributes(open_ones))
        failed = _try(model, inputs, graph, axes)
        if failed is None:
            return graph
        kind = type(model.get_submodule(failed.module)).__name__
        blamed = _blamed(failed, model, graph, open_ones, axes, free)
        if blamed.size:
            pins = graph.pins.plus(blamed, f"a size in the code of {kind} cannot follow")
        else:  # nothing that it meets can be blamed
            pins = graph.pins.plus(np.flatnonzero(free), f"the code of {kind} cannot follow")
        graph = replace(graph, pins=pins.spread(graph.links))


def _attributes(given: Sequence[Given]) -> tuple[Size, ...]:
    """The attributes that sizes are read from; one that is the size of different axes cannot follow both."""
    found: dict[Origin, list[Atoms]] = defaultdict(list)
    for _, origin, labels in given:
        if origin is not None:
            found[origin].append(labels)
    return tuple(
        Size(origin, labels[0])
        for origin, labels in found.items()
        if all(np.array_equal(labels[0], other) for other in labels)
    )


@dataclass(frozen=True)
class _Failure:
    """Where a smaller network fails: at an operator, or in the code of a module between two of them."""

    module: str
    node: Node | None


def _try(model: nn.Module, inputs: Inputs, graph: ChannelGraph, axes: dict[Node, Any]) -> _Failure | None:
    """Where the network without one channel of each free group fails, or makes a tensor of another shape."""
    removed = np.zeros(graph.count, np.bool_)
    for group in graph.groups:
        if not group.pinned and len(group) > 1:
            removed[graph.with_elements(group.labels[-1:])] = True
    small = run_copy(model, graph.trace.device)
    cuts = {axis: np.flatnonzero(removed[labels]).tolist() for axis, labels in graph.axes.items()}
    cut_(small, {axis: indices for axis, indices in cuts.items() if indices}, left(graph.sizes, removed))
    attempt = record(small, inputs, graph.trace.device)
    before: list[Node] = [node for node in graph.trace.graph.nodes if node.op != "output"]
    after: list[Node] = [node for node in attempt.trace.graph.nodes if node.op != "output"]
    for old, new in zip(before, after, strict=False):
        if old.target != new.target or not _as_expected(new.meta["val"], old.meta["val"], axes[old], removed):
            return _Failure(old.meta["module"], old)
    if attempt.error is None:
        return None if len(before) == len(after) else _Failure("", None)
    return _Failure(attempt.place, before[len(after)] if attempt.in_operator else None)


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
    failed: _Failure, model: nn.Module, graph: ChannelGraph, given: Sequence[Given], axes: dict[Node, Any], free: Flags
) -> Atoms:
    """Free classes whose size the failed operator is given, or else those that it meets; and in modules of its kind."""
    kind = type(model.get_submodule(failed.module))
    alike = {
        node
        for node in graph.trace.graph.nodes
        if node.op != "output"
        and (failed.node is None or (node.target, node.meta["step"]) == (failed.node.target, failed.node.meta["step"]))
        and type(model.get_submodule(node.meta["module"])) is kind
    }
    known = {size.origin for size in graph.sizes}
    own = [(labels, origin in known) for node, origin, labels in given if node in alike]
    met = [along for node in alike for one in (node, *node.all_input_nodes) for along in _flat(axes[one])]
    for blamed in ([labels for labels, bound in own if not bound], [labels for labels, _ in own], met):
        labels: Atoms = np.unique(np.concatenate([*blamed, np.empty(0, np.int64)]))
        labels = labels[free[labels]]
        if labels.size:
            return labels
    return np.empty(0, np.int64)


def _flat(axes: Any) -> list[Atoms]:
    if axes is None or isinstance(axes, np.ndarray):
        return [] if axes is None else [axes]
    return [one for part in axes for one in _flat(part)]
