"""What layers and channels cost: multiply-accumulates, or weights."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import (
    ATTENTION,
    PRODUCTS,
    ChannelGraph,
    ChannelGroup,
    ChannelIds,
    Inputs,
    channel_graph,
    evaluation_mode,
    take_first_sample,
)
from ..masks import find_group_gates
from ..nn import ChannelGate, find_gates, make_plain_copy, output_dim

CountedCost = Literal["macs", "parameters"]
"""The costs that are counted layer by layer; a latency is measured."""


def count_layer_macs(model: nn.Module, example_inputs: Inputs) -> dict[nn.Module, float]:
    """Count what each linear layer and convolution spends.

    Args:
        model: The network.
        example_inputs: What the network is called with; of one tensor the first sample.

    Returns:
        Layer -> multiply-accumulates.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)]
    macs: dict[nn.Module, float] = dict.fromkeys(layers, 0.0)

    # A hook, since a layer that is used several times costs several times.
    def count(layer: Any, inputs: Any, output: Tensor) -> None:
        fan_in = layer.weight.numel() / layer.weight.shape[output_dim(layer)]
        macs[layer] += output.numel() * fan_in

    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with evaluation_mode(model), torch.no_grad():
            take_first_sample(example_inputs).call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return macs


def count_gate_costs(model: nn.Module, example_inputs: Inputs, kind: CountedCost) -> dict[ChannelGate, float]:
    """Count what is spent on the channels of each gate: by layers that write or read them, and by products of tensors.

    Args:
        model: The network with gates.
        example_inputs: What the network is called with.
        kind: Multiply-accumulates of one example input, or weights.

    Returns:
        Gate -> cost of all its channels together.
    """
    costs_by_layer = _count_layer_costs(model, example_inputs, kind)
    costs = {}
    for owner in find_gates(model):
        costs[owner] = sum(costs_by_layer.get(writer, 0.0) for writer in owner.writers)
    graph = channel_graph(make_plain_copy(model), example_inputs)
    products = list(_list_product_axes(graph)) if kind == "macs" else []
    samples = len(example_inputs) if isinstance(example_inputs, Tensor) else 1
    gate_behind = find_group_gates(model, graph)
    for group in graph.groups:
        gate = gate_behind.get(group.name)
        if gate is None or len(gate.mu) != len(group):
            continue
        spent = _count_spent_by_layers(graph, group, costs_by_layer)
        members = graph.with_members(group.channels)
        for product_macs, channels in products:
            spent += product_macs / samples * np.isin(channels, members).mean()
        costs[gate] = float(spent) or costs[gate]  # 0 where the axes are those of parameters that no layer here owns
    return costs


def _count_layer_costs(model: nn.Module, example_inputs: Inputs, kind: CountedCost) -> dict[str, float]:
    """Name of each linear layer and convolution -> what it costs."""
    macs = count_layer_macs(model, example_inputs)
    costs = {}
    for name, layer in model.named_modules():
        if layer in macs:
            costs[name] = macs[layer] if kind == "macs" else float(layer.get_parameter("weight").numel())
    return costs


def _count_spent_by_layers(graph: ChannelGraph, group: ChannelGroup, costs_by_layer: dict[str, float]) -> float:
    """What all layers spend on the channels of a group.

    The channels, and those that leave with them where they are heads or groups of a convolution, are a part of the
    indices of each axis that they stand on. What a layer spends on the group is that part of its cost.
    """
    spent = 0.0
    for axis in group.axes:
        layer_name = axis[0].removesuffix(".weight")
        part = len(graph.indices_along(axis, group.channels)) / len(graph.axes[axis])
        spent += costs_by_layer.get(layer_name, 0.0) * part
    return spent


def _list_product_axes(graph: ChannelGraph) -> Iterator[tuple[float, ChannelIds]]:
    """For each axis of each product of two computed tensors its multiply-accumulates, and the channels along the axis.

    Where a part of the channels leaves, so does that part of the multiply-accumulates.
    """
    for node in graph.trace.graph.nodes:
        if node.target in PRODUCTS:  # (..., n, k) times (..., k, m)
            left = node.args[0]
            macs = node.meta["val"].numel() * left.meta["val"].shape[-1]
            axes = [*graph.value_channels[node], graph.value_channels[left][-1]]
            yield from ((macs, channels) for channels in axes if channels is not None)
        elif node.target == ATTENTION:
            query, key, value = node.args[:3]
            keys = key.meta["val"].shape[-2]
            *heads, _, _ = graph.value_channels[query]
            # Queries times keys, and what comes of them times values.
            for factor, result in ((query, query), (value, node)):
                macs = result.meta["val"].numel() * keys
                axes = [*heads, graph.value_channels[factor][-1]]
                yield from ((macs, channels) for channels in axes if channels is not None)
