"""Weigh the KL of each weight and channel by the multiply-accumulates that it costs."""

import math

from torch import nn

from ..graph import Inputs
from ..nn import ChannelGate, Variational, named_posteriors
from .costs import count_gate_costs, count_layer_macs

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
    # 2. A channel costs its part of all layers that write or read it: a first layer may be cheap, and the next one,
    #    which reads its channels, expensive.
    # 3. Why the square root for channels: in proportion, the layers with the most expensive channels would be cut to a
    #    few of them before other layers lose any.
    # 4. Why weights and channels are scaled apart: they are in different units, and the KL of one weight and of one
    #    channel should stay as large on average as the settings ask for.
    macs = count_layer_macs(model, example_inputs)
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
