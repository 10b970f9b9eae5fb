"""From a network to its channel graph."""

from typing import Any

import numpy as np
import torch
from torch import nn

from .code_sizes import resolve_sizes, runs_alike_again
from .equations import TrackedTensor
from .example_inputs import Inputs
from .groups import ChannelGraph, CodeSize, Product, Reader
from .links import ChannelIds, IndexIds
from .nodes import Node
from .norms import find_replaceable_norms, solve_norms
from .operators import channel_dim
from .preconditions import require_traceable
from .scales import AttentionScale, find_query_rows
from .traces import Trace
from .tracing import trace
from .walk import Walk

aten = torch.ops.aten


def channel_graph(model: nn.Module, example_inputs: Inputs, *, remember_norms: bool = False) -> ChannelGraph:
    """Find the coupled channel groups of a network: what would have to be removed together, and what never can be.

    The network is run once in evaluation mode, as a rule without data.  Neither its parameters nor its modes change.

    Args:
        model: Any network that PyTorch can run on the inputs.  Its way must not depend on their values.
        example_inputs: What the network is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or
            a pair (args, kwargs), in any nesting.  The values of the tensors do not matter.
        remember_norms: Also offer the channels that a norm mixes, such as the width of a transformer.  When some of
            them are removed, a norm takes its place that remembers what they contributed to its statistics.

    Returns:
        The graph.  Its `groups` come in the order in which the network writes them; a group whose `pinned` is a reason
        can lose nothing.

    Raises:
        ModelError: The network is quantized, scripted, exported, lazy or without data, or an input is empty.
        TraceError: The network fails on the inputs, or its way depends on their values.

    Example:
        ```python
        import torch
        from torch import nn
        import nni_sparsevd as svd

        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5))
        graph = svd.channel_graph(model, torch.zeros(2, 4))
        hidden, output = graph.groups
        assert len(hidden) == 6 and hidden.axes == (("0.weight", 0), ("0.bias", 0), ("2.weight", 1))
        assert output.pinned == "output of the network"
        ```
    """
    require_traceable(model, example_inputs)
    graph = _build_graph(model, trace(model, example_inputs), remember_norms)
    resolved = resolve_sizes(model, graph)
    # What was pinned because the code failed may be due to a function that keeps tensors from one call to the next: the
    # second call then runs fewer operators than the first.  From the second call on they are the same.
    if resolved.pins is not graph.pins and not runs_alike_again(model, graph):
        resolved = resolve_sizes(model, _build_graph(model, trace(model, example_inputs), remember_norms))
    return resolved


def _build_graph(model: nn.Module, recorded: Trace, remember_norms: bool) -> ChannelGraph:
    """The channel graph of a traced network, which may lose what its code cannot follow."""
    # 1. The walk writes down, operator by operator, which indices are one channel, and which may not be removed.
    # 2. Solving gives each class of equal indices the number of a channel.
    # 3. A norm that mixes channels pins them, unless it is one that can remember those which it loses.
    # 4. Pins spread over links, and all else that the walk has found is told in channels instead of indices.
    walk = Walk(recorded, find_replaceable_norms(model, recorded) if remember_norms else ())
    equations = walk.equations
    channel_of, links, pins = equations.solve()
    never = len(channel_of)  # the number of the channel that stands for what never leaves
    value_channels = {node: _solve_value(value, channel_of) for node, value in walk.values.items()}
    norms, pins = solve_norms(model, walk, value_channels, channel_of, pins)
    return ChannelGraph(
        trace=recorded,
        axes={axis: channel_of[ids] for axis, ids in equations.axes.items()},
        num_channels=never + 1,
        links=links,
        pins=pins.propagated(links),
        readers=_solve_readers(walk, channel_of, value_channels, never),
        products=_solve_products(walk, channel_of, value_channels),
        size_attributes=(),
        scales=tuple(_solve_scale(node, channel_of[ids]) for node, ids in equations.scales),
        remembering_norms=norms,
        writers=tuple(walk.writers.values()),
        last_writers=tuple(writer for node, writer in walk.writers.items() if node in walk.last_writers),
        code_sizes=_solve_sizes(walk, channel_of, [norm.module for norm in norms if not norm.is_layer_norm]),
        value_channels=value_channels,
    )


def _solve_value(value: Any, channel_of: ChannelIds) -> Any:
    """The channels along each axis of a value, None for an axis without; for several values a list."""
    if isinstance(value, TrackedTensor):
        return tuple(None if ids is None else channel_of[ids] for ids in value.ids)
    if isinstance(value, list | tuple):
        return [_solve_value(item, channel_of) for item in value]
    return ()


def _solve_readers(
    walk: Walk, channel_of: ChannelIds, value_channels: dict[Node, Any], never: int
) -> tuple[Reader, ...]:
    readers = []
    for reading in walk.readings:
        node = reading.node
        dim = channel_dim(node)
        outputs = value_channels[node][dim]
        if outputs is None:
            outputs = np.full(node.meta["val"].shape[dim], never)
        readers.append(Reader(node, reading.weight, channel_of[reading.inputs], outputs, reading.bias))
    return tuple(readers)


def _solve_products(walk: Walk, channel_of: ChannelIds, value_channels: dict[Node, Any]) -> tuple[Product, ...]:
    products = []
    for contraction in walk.equations.contractions:
        along = value_channels[contraction.node]
        heads = {dim - len(along): channels for dim, channels in enumerate(along[:-2]) if channels is not None}
        products.append(Product(contraction.node, channel_of[contraction.inputs], contraction.dims, heads))
    return tuple(products)


def _solve_sizes(walk: Walk, channel_of: ChannelIds, padded_norms: list[str]) -> tuple[CodeSize, ...]:
    """The sizes in the code, but for that of norms which go on to see all channels."""
    nothing: IndexIds = np.empty(0, np.int64)
    sizes = []
    for size in walk.equations.sizes:
        if size.node.meta["module"] not in padded_norms:
            sizes.append(CodeSize(size.node, size.origin, channel_of[nothing if size.ids is None else size.ids]))
    return tuple(sizes)


def _solve_scale(node: Node, dimensions: ChannelIds) -> AttentionScale:
    query: Any = node.args[0]
    rows = find_query_rows(query)
    assert rows is not None  # or the attention's rule would have pinned the dimensions
    return AttentionScale(node.meta["module"], *rows, dimensions)
