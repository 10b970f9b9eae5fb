"""Weighing the KL of each weight and channel by the multiplications that it costs."""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..graph import Inputs, channel_graph, evaluation_mode, take_first_sample
from ..masks import find_group_gates
from ..nn import ChannelGate, Variational, find_gates, make_plain_copy, named_posteriors, output_dim

Weighed = list[tuple[Variational | ChannelGate, float]]
"""(layer or gate, factor on the KL of each of its weights or channels)."""


def weigh_by_macs_(model: nn.Module, example_inputs: Inputs) -> None:
    """Set each `kl_weight` by multiplications: in proportion for weights, by the square root for channels.

    The mean factor over all weights stays what it was, and so does the mean over all channels.

    Args:
        model: The network with posteriors, changed in place.
        example_inputs: What the network is called with; of one tensor the first sample.
    """
    # 1. A weight of a convolution costs one multiplication for each position of its output.
    # 2. A channel costs its part of all layers that write or read it: a first layer may be cheap, and yet what it
    #    writes is dear to read.
    # 3. Why the square root for channels: in proportion, the layers with the dearest channels would be cut to a few of
    #    them before other layers lose any.
    # 4. Why weights and channels are scaled apart: they are in different units, and the KL of one weight and of one
    #    channel should stay as large on average as the settings ask for.
    macs = _count_layer_macs(model, example_inputs)
    channel_macs = count_gate_costs(model, example_inputs, "macs")
    layers: Weighed = []
    gates: Weighed = []
    for _, module in named_posteriors(model):
        if isinstance(module, ChannelGate):
            gates.append((module, math.sqrt(channel_macs[module] / len(module.mu))))
        else:
            layers.append((module, macs.get(module, 0.0) / module.weight.numel()))
    _scale_kl_weights_(layers)
    _scale_kl_weights_(gates)


def _scale_kl_weights_(weighed: Weighed) -> None:
    """Multiply each `kl_weight` by its factor over the mean factor, where each weight or channel counts once."""
    sizes = [len(module.mu) if isinstance(module, ChannelGate) else module.weight.numel() for module, _ in weighed]
    total = sum(factor * size for (_, factor), size in zip(weighed, sizes, strict=True))
    mean = total / max(sum(sizes), 1)
    for module, factor in weighed:
        module.kl_weight *= factor / mean if mean else 1.0


def _count_layer_macs(model: nn.Module, example_inputs: Inputs) -> dict[nn.Module, float]:
    """Linear layer or convolution -> multiply-accumulates that it spends on one example input."""
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


def count_gate_costs(
    model: nn.Module, example_inputs: Inputs, kind: Literal["macs", "parameters"]
) -> dict[ChannelGate, float]:
    """Count what all layers that write or read the channels of each gate spend on them.

    Args:
        model: The network with gates.
        example_inputs: What the network is called with.
        kind: Multiply-accumulates of one example input, or weights.

    Returns:
        Gate -> cost of all its channels together.
    """
    layers = dict(model.named_modules())
    macs = _count_layer_macs(model, example_inputs)
    costs_by_layer = {name: macs[layer] for name, layer in layers.items() if layer in macs}
    if kind == "parameters":
        costs_by_layer = {name: float(layers[name].get_parameter("weight").numel()) for name in costs_by_layer}
    costs = {}
    for owner in find_gates(model):
        costs[owner] = sum(costs_by_layer.get(writer, 0.0) for writer in owner.writers)
    # The channels of a group, and those that leave with them where they are heads or groups of a convolution, are a
    # part of the indices of each axis that they stand on. What a layer spends on the group is that part of its cost.
    graph = channel_graph(make_plain_copy(model), example_inputs)
    gate_behind = find_group_gates(model, graph)
    for group in graph.groups:
        gate = gate_behind.get(group.name)
        if gate is None or len(gate.mu) != len(group):
            continue
        spent = []
        for axis in group.axes:
            layer_name = axis[0].removesuffix(".weight")
            part = len(graph.indices_along(axis, group.channels)) / len(graph.axes[axis])
            spent.append(costs_by_layer.get(layer_name, 0.0) * part)
        costs[gate] = sum(spent) or costs[gate]  # 0 where the axes are those of parameters that no layer here owns
    return costs
