"""Gates on the channels that an NNI config selects: one posterior a coupled channel, behind its normalization."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nni.compression.base.config import select_modules_by_config
from nni.compression.utils.evaluator import Evaluator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...convert import attach_gate_, find_gateable_groups
from ...errors import SettingError
from ...graph import ChannelGraph, ChannelGroup, Silencing, channel_graph
from ...nn import ChannelGate, gate_sites, output_dim, scale_channels_
from ...settings import PosteriorSettings
from .config import check_config
from .dummy_input import read_dummy_input

Layers = dict[str, nn.Module]
"""{module name: layer}."""
Reasons = dict[str, str]
"""{module name: why the channels of this layer cannot have a gate}."""


@dataclass(frozen=True)
class Places:
    """Where gates belong in an ordinary network; found before NNI wraps its layers, which hides them from a trace."""

    model: nn.Module
    graph: ChannelGraph
    layers: Layers
    """The layers that the config_list selects."""
    silencings: list[Silencing]
    """The channel groups that these layers alone write, each of them whole: each can have a gate."""

    def attach_(self, posterior: PosteriorSettings) -> "Gates":
        """Put one gate behind the last writers of each group."""
        model = self.model
        gates = Gates(model, {}, {})
        for silencing in self.silencings:
            group = silencing.group
            gate = attach_gate_(model, posterior, silencing)
            gates.writers.update({writer.site: self.layers[writer.module] for writer in group.writers})
            for layer in self._layers_written_whole(group):
                gates.by_layer[layer] = gate
        return gates

    def _layers_written_whole(self, group: ChannelGroup) -> list[nn.Module]:
        """The selected layers whose outputs are exactly the channels of a group."""
        layers = []
        for name, dim in group.axes:
            owner, _, key = name.rpartition(".")
            layer = self.layers.get(owner)
            if layer is None or key != "weight" or dim != output_dim(layer):
                continue
            if np.array_equal(self.graph.axes[name, dim], group.channels):
                layers.append(layer)
        return layers


def find_places(model: nn.Module, config_list: Any, evaluator: Evaluator | None, granularity: str) -> Places:
    """Trace a network for the channel groups that the selected layers write.

    Args:
        model: The network, not wrapped by NNI yet; DistributedDataParallel may hold it.
        config_list: NNI's list of entries.
        evaluator: Its dummy input is what the network is traced with.
        granularity: With "gate", every selected layer has to have a gate; with "both", those that can.

    Raises:
        SettingError: There is no input to trace with, an entry asks for blocks that are not output channels, or, with
            the granularity "gate", the channels of a layer cannot have a gate.
        TraceError: The network cannot be traced.
    """
    network, prefix = (model.module, "module.") if isinstance(model, DistributedDataParallel) else (model, "")
    layers, reasons = _select_layers(model, config_list, prefix)
    example_inputs = None if evaluator is None else evaluator.get_dummy_input()
    if example_inputs is None:
        raise SettingError("posterior.granularity: gates trace the network; give the evaluator a dummy_input")
    graph = channel_graph(network, read_dummy_input(example_inputs))
    places = Places(network, graph, layers, _find_whole_groups(network, graph, layers))
    reasons |= _layers_without_gate(places)
    if reasons and granularity == "gate":
        layer, reason = next(iter(reasons.items()))
        raise SettingError(
            f"config_list: the channels of {layer!r} cannot have a gate ({reason}); exclude it, or use the posterior "
            "granularity 'weight' or 'both'"
        )
    return places


def _select_layers(model: nn.Module, config_list: Any, prefix: str) -> tuple[Layers, Reasons]:
    """(selected layers with output channels, by their name in the traced network; the layers that gates do not fit)."""
    check_config(model, config_list)
    layers: Layers = {}
    reasons: Reasons = {}
    for index, entry in enumerate(config_list):
        where = f"config_list[{index}]"
        for place, settings in ((where, entry), (f"{where}.target_settings['weight']", _weight_settings(entry))):
            granularity = settings.get("granularity", "default")
            if granularity not in ("default", "out_channel"):
                raise SettingError(f"{place}.granularity: {granularity!r}, but gates are on output channels")
        for name, module in select_modules_by_config(model, entry)[0].items():
            if module.weight.dim() < 2:
                continue
            if output_dim(module) == 0:
                layers[name.removeprefix(prefix)] = module
            else:
                reasons[name] = "the first axis of its weight, which NNI calls out_channel, is not that of its outputs"
    return layers, reasons


def _weight_settings(entry: dict[str, Any]) -> dict[str, Any]:
    """What an entry says of weights alone."""
    settings: dict[str, Any] = entry.get("target_settings", {}).get("weight", {})
    return settings


def _find_whole_groups(network: nn.Module, graph: ChannelGraph, layers: Layers) -> list[Silencing]:
    """The groups that selected layers write, each of them whole: NNI's masks have one entry for each output."""
    whole = []
    for silencing in find_gateable_groups(network, graph, PosteriorSettings()):
        channels = np.arange(len(silencing.group))
        is_whole = all(
            silencer.layer in layers and np.array_equal(silencer.places, channels) for silencer in silencing.silencers
        )
        if is_whole and not silencing.obstacle:
            whole.append(silencing)
    return whole


def _layers_without_gate(places: Places) -> Reasons:
    """The selected layers that write a group without a gate."""
    gated = {axis for silencing in places.silencings for axis in silencing.group.axes}
    reasons: Reasons = {}
    for group in places.graph.groups:
        for name, dim in group.axes:
            layer, _, key = name.rpartition(".")
            if layer in places.layers and key == "weight" and dim == 0 and (name, dim) not in gated:
                reasons[layer] = group.pinned or "layers that no entry selects write them, too"
    return reasons


@dataclass(frozen=True)
class Gates:
    """All gates of a network."""

    model: nn.Module
    by_layer: dict[nn.Module, ChannelGate]
    """Layer -> the gate of its output channels."""
    writers: Layers
    """Name of a layer or norm that a gate scales -> the layer that writes its channels."""

    def all(self) -> list[ChannelGate]:
        """Each gate once."""
        return list(dict.fromkeys(self.by_layer.values()))

    def fold_(self, kept: dict[nn.Module, Tensor]) -> None:
        """Replace every gate by its mean, in the parameters of what it scales.

        A masked channel is scaled by 0.  A norm behind it then neither scales nor shifts it: the channel's output is
        zero, and any speedup that removes it is exact.

        Args:
            kept: Layer -> 1 for each output channel that is kept and 0 for each masked one, shape (channels,).
        """
        for scaled, site, gate in list(gate_sites(self.model)):  # a list: folding removes the sites one by one
            layer, mean = self.model.get_submodule(scaled), gate.spread(gate.mean().detach(), site)
            gate.detach_(site)
            wrapper = getattr(layer, "_nni_wrapper", None)  # while a layer is wrapped, NNI keeps its targets there
            holders = (layer,) if wrapper is None else (wrapper, layer)
            mean = mean * kept.get(self.writers[scaled], torch.ones_like(mean))
            scale_channels_(layer, mean, holders)
