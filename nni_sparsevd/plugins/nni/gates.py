"""Gates on the channels that an NNI config selects: one posterior a coupled channel, behind its normalisation."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ...convert import attach_gate_, gateable
from ...errors import SettingError
from ...graph import ChannelGraph, Inputs, channel_graph
from ...nn import ChannelGate, gate_sites, output_dim, scale_channels_
from ...recipe import Posterior


@dataclass(frozen=True)
class Places:
    """Where gates belong in an ordinary network; found before NNI wraps its layers, which hides them from a trace."""

    graph: ChannelGraph
    layers: dict[str, nn.Module]

    def attach_(self, model: nn.Module, posterior: Posterior) -> "Gates":
        """Put one gate behind the last writers of each group."""
        gates = Gates(model, {}, {})
        for group in gateable(self.graph, set(self.layers)):
            gate = attach_gate_(model, posterior, group)
            gates.writers.update({writer.site: self.layers[writer.module] for writer in group.writers})
            for name, dim in group.axes:
                layer = self.layers.get(name.rpartition(".")[0])
                whole = np.array_equal(self.graph.axes[name, dim], group.labels)
                if layer is not None and name.endswith(".weight") and dim == output_dim(layer) and whole:
                    gates.by_layer[layer] = gate
        return gates


def find_places(
    model: nn.Module, layers: dict[str, nn.Module], example_inputs: Inputs | None, *, everywhere: bool
) -> Places:
    """Trace `model` for the channel groups that `layers` write.

    Raises `SettingError` where there are no inputs to trace with, or, if a gate is wanted `everywhere`, where the
    channels of a layer cannot have one.
    """
    if example_inputs is None:
        raise SettingError("posterior.granularity: gates trace the network; give the evaluator a dummy_input")
    places = Places(channel_graph(model, example_inputs), layers)
    gated = {axis for group in gateable(places.graph, set(layers)) for axis in group.axes}
    for group in places.graph.groups:
        for name, dim in group.axes:
            layer = name.rpartition(".")[0]
            if everywhere and layer in layers and dim == output_dim(layers[layer]) and (name, dim) not in gated:
                reason = group.pinned or "layers that no entry selects write them, too"
                raise SettingError(
                    f"config_list: the channels of {layer!r} cannot have a gate ({reason}); exclude it, or use the "
                    "posterior granularity 'weight' or 'both'"
                )
    return places


@dataclass(frozen=True)
class Gates:
    """All gates of a network."""

    model: nn.Module
    by_layer: dict[nn.Module, ChannelGate]
    """Layer -> the gate of its output channels."""
    writers: dict[str, nn.Module]
    """Layer or norm that a gate scales -> the layer that writes its channels."""

    def all(self) -> list[ChannelGate]:
        """Each gate once."""
        return list(dict.fromkeys(self.by_layer.values()))

    def fold_(self, kept: dict[nn.Module, Tensor]) -> None:
        """Replace every gate by its mean, 0 where a channel is masked, in the parameters of what it scales.

        `kept` has a vector of 0 and 1 a layer, shape (channels,).  A norm then shifts by nothing where its channel is
        masked: the channel is silent, and any speedup of it exact.
        """
        for scaled, site, gate in list(gate_sites(self.model)):
            layer, mean = self.model.get_submodule(scaled), gate.mu.detach()
            gate.detach_(site)
            wrapper = getattr(layer, "_nni_wrapper", None)  # while a layer is wrapped, NNI keeps its targets there
            holders = (layer,) if wrapper is None else (wrapper, layer)
            scale_channels_(layer, mean * kept.get(self.writers[scaled], torch.ones_like(mean)), holders)
