"""From a network to its channel graph."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from .code_sizes import pin_what_code_cannot_follow, runs_alike_again
from .equations import TrackedTensor
from .example_inputs import Inputs
from .groups import ChannelGraph, CodeSize, Product, Reader
from .links import ChannelIds, IndexIds
from .nodes import Node
from .norms import find_replaceable_norms, solve_norms
from .operators import bias_of, channel_dim
from .preconditions import require_traceable
from .traces import Trace
from .tracing import trace
from .walk import Walk


def channel_graph(model: nn.Module, example_inputs: Inputs, *, remember_norms: bool = False) -> ChannelGraph:
    """Find the coupled channel groups of a network: what would have to be removed together, and what never can be.

    The network is run once in evaluation mode, as a rule without data.  Neither its parameters nor its modes change.

    Args:
        model: Any network that PyTorch can run on the inputs.  Its control flow must not depend on their values.
        example_inputs: What the network is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or
            a pair (args, kwargs), in any nesting.  The values of the tensors do not matter.
        remember_norms: Also offer the channels that a norm mixes, such as the width of a transformer.  When some of
            them are removed, a norm takes its place that remembers what they contributed to its statistics.

    Returns:
        The graph.  Its `groups` come in the order in which the network writes them; a group whose `pinned` is a reason
        can lose nothing.

    Raises:
        ModelError: The network is quantized, scripted, exported, lazy or without data, or an input is empty.
        TraceError: The network fails on the inputs, or its control flow depends on their values.

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
    tighter = pin_what_code_cannot_follow(model, graph)
    # What was pinned because the code failed may be due to a function that keeps tensors from one call to the next: the
    # second call then runs fewer operators than the first.  From the second call on they are the same.
    if tighter is not graph and not runs_alike_again(model, graph):
        tighter = pin_what_code_cannot_follow(model, _build_graph(model, trace(model, example_inputs), remember_norms))
    return tighter


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
        readers=_make_readers(walk, value_channels, never),
        products=_make_products(walk, value_channels),
        scales=tuple(replace(scale, dimensions=channel_of[scale.dimensions]) for scale in equations.scales),
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


def _make_readers(walk: Walk, value_channels: dict[Node, Any], never: int) -> tuple[Reader, ...]:
    readers = []
    for node in walk.readers:
        x, weight, dim = node.args[0], walk.recorded.state(node.args[1]), channel_dim(node)
        inputs, outputs = value_channels[x][dim], value_channels[node][dim]
        if outputs is None:
            outputs = np.full(node.meta["val"].shape[dim], never)
        readers.append(Reader(node, weight, inputs, outputs, _find_bias(walk.recorded, node, weight)))
    return tuple(readers)


def _find_bias(recorded: Trace, node: Node, weight: str | None) -> str | None:
    """The parameter that a reader adds, or the one that its module could be given."""
    bias = bias_of(node)
    if bias is not None:
        return recorded.state(bias)
    # A new bias takes part only where one of torch's own layers was called.  Code that takes the weight of a layer and
    # calls the operator itself would not see it.
    module, _, key = (weight or "").rpartition(".")
    called_as_layer = key == "weight" and node.meta["module"] == module and module in recorded.layers
    return f"{module}.bias" if called_as_layer else None


def _make_products(walk: Walk, value_channels: dict[Node, Any]) -> tuple[Product, ...]:
    products = []
    for node, dims in walk.equations.products:
        left, along = node.args[0], value_channels[node]
        heads = {dim - len(along): channels for dim, channels in enumerate(along[:-2]) if channels is not None}
        products.append(Product(node, value_channels[left][dims[0]], dims, heads))
    return tuple(products)


def _solve_sizes(walk: Walk, channel_of: ChannelIds, padded_norms: list[str]) -> tuple[CodeSize, ...]:
    """The sizes in the code, but for that of norms which go on to see all channels."""
    nothing: IndexIds = np.empty(0, np.int64)
    sizes = []
    for size in walk.equations.sizes:
        if size.node.meta["module"] not in padded_norms:
            sizes.append(CodeSize(size.node, size.origin, channel_of[nothing if size.ids is None else size.ids]))
    return tuple(sizes)
