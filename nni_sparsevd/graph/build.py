"""From a network to its channel graph."""

from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from .code_sizes import resolve_sizes
from .groups import ChannelGraph, CodeSize, Product, Reader, RememberingNorm, Writer
from .labels import ChannelIds, TrackedTensor
from .rules import aten
from .scales import AttentionScale, query_rows
from .tracing import Inputs, Trace, trace
from .walk import Walk


def channel_graph(model: nn.Module, example_inputs: Inputs, *, remember_norms: bool = False) -> ChannelGraph:
    """Trace `model` and find its coupled channel groups, in the order in which the network writes them.

    With `remember_norms`, channels that a layer norm mixes may go, too: `shrink` then puts a norm in its place that
    remembers them.

    Raises `TraceError` when the network cannot be traced.
    """
    recorded = trace(model, example_inputs)
    walk = Walk(recorded, _mere_norms(model, recorded) if remember_norms else ())
    classes, links, pins = walk.equations.solve()

    def solved(value: Any) -> Any:
        """The classes along each axis of a value, None for the axes that are not tracked."""
        if isinstance(value, TrackedTensor):
            return tuple(None if atoms is None else classes[atoms] for atoms in value.atoms)
        return [solved(one) for one in value] if isinstance(value, list | tuple) else ()

    axes = {node: solved(value) for node, value in walk.values.items()}
    writers = {node: Writer(*found) for node, found in walk.writers.items()}
    never = len(classes)
    readers = [
        Reader(node, weight, classes[inputs], _outputs(node, axes, never), bias)
        for node, inputs, weight, bias in walk.readers
    ]
    products = [
        Product(one.node, classes[one.inputs], one.dims, _heads(axes[one.node])) for one in walk.equations.contractions
    ]
    graph = ChannelGraph(
        trace=recorded,
        axes={axis: classes[atoms] for axis, atoms in walk.equations.axes.items()},
        num_channels=never + 1,
        links=links,
        pins=pins.propagated(links),
        readers=tuple(readers),
        products=tuple(products),
        size_attributes=(),
        scales=tuple(_scale(node, classes[atoms]) for node, atoms in walk.equations.scales),
        remembering_norms=tuple(
            _remembered(recorded, node, classes[atoms]) for node, atoms in walk.equations.remembered
        ),
        writers=tuple(writers.values()),
        last_writers=tuple(writer for node, writer in writers.items() if node in walk.read),
        code_sizes=tuple(
            CodeSize(one.node, one.origin, classes[:0] if one.atoms is None else classes[one.atoms])
            for one in walk.equations.written
        ),
        value_channels=axes,
    )
    return resolve_sizes(model, graph)


def _outputs(node: Node, axes: dict[Node, Any], never: int) -> ChannelIds:
    """The class of each output of a reader; `never` where it is no channel that could be removed."""
    dim = -1 if node.target == aten.linear.default else 1
    found, size = axes[node][dim], node.meta["val"].shape[dim]
    return np.full(size, never) if found is None else found


def _scale(node: Any, dimensions: ChannelIds) -> AttentionScale:
    found = query_rows(node.args[0])
    assert found is not None  # or the rule would have pinned the dimensions
    return AttentionScale(node.meta["module"], *found, dimensions)


def _mere_norms(model: nn.Module, recorded: Trace) -> set[str]:
    """Layer norms that do nothing else: timm has some with an activation inside."""
    names = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    nodes = [node for node in recorded.graph.nodes if node.op == "call_function"]
    busy = [node.meta["module"] for node in nodes if node.target not in {aten.layer_norm.default, aten.permute.default}]
    return {name for name in names if not any(f"{module}.".startswith(f"{name}.") for module in busy)}


def _remembered(recorded: Trace, norm: Node, channels: ChannelIds) -> RememberingNorm:
    own = [node for node in recorded.graph.nodes if node.meta.get("module") == norm.meta["module"]]
    permutes = any(node.target == aten.permute.default for node in own)
    return RememberingNorm(norm, 1 if permutes else -1, channels)


def _heads(along: tuple[ChannelIds | None, ...]) -> dict[int, ChannelIds]:
    """Classes along the batch dimensions of a product, by dimension from the end."""
    return {dim - len(along): labels for dim, labels in enumerate(along[:-2]) if labels is not None}
