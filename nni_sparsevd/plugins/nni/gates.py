"""Gates on the channels that an NNI config selects: one posterior a coupled channel, behind its normalisation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nni.compression.base.config import select_modules_by_config, trans_legacy_config_list
from nni.compression.utils.evaluator import Evaluator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...convert import attach_gate_, find_gateable_groups
from ...errors import SettingError
from ...graph import ChannelGraph, ChannelGroup, channel_graph
from ...nn import ChannelGate, gate_sites, output_dim, scale_channels_
from ...settings import PosteriorSettings
from .config import check_config


@dataclass(frozen=True)
class Places:
    """Where gates belong in an ordinary network; found before NNI wraps its layers, which hides them from a trace."""

    model: nn.Module
    graph: ChannelGraph
    layers: dict[str, nn.Module]
    """Those that the config_list selects."""
    groups: list[ChannelGroup]
    """Those that these layers alone write: each can have a gate."""

    def attach_(self, posterior: PosteriorSettings) -> "Gates":
        """Put one gate behind the last writers of each group."""
        model = self.model
        gates = Gates(model, {}, {})
        for group in self.groups:
            gate = attach_gate_(model, posterior, group)
            gates.writers.update({writer.site: self.layers[writer.module] for writer in group.writers})
            for name, dim in group.axes:
                layer = self.layers.get(name.rpartition(".")[0])
                whole = np.array_equal(self.graph.axes[name, dim], group.channels)
                if layer is not None and name.endswith(".weight") and dim == output_dim(layer) and whole:
                    gates.by_layer[layer] = gate
        return gates


def find_places(model: nn.Module, config_list: Any, evaluator: Evaluator | None, granularity: str) -> Places:
    """Trace `model` with the evaluator's dummy input for the channel groups that the selected layers write.

    Raises `SettingError` where there is no input to trace with, where blocks are not output channels, or, with the
    granularity "gate", where the channels of a layer cannot have one.
    """
    inner, prefix = (model.module, "module.") if isinstance(model, DistributedDataParallel) else (model, "")
    legible = trans_legacy_config_list(config_list)
    check_config(model, legible)
    layers: dict[str, nn.Module] = {}
    refused: dict[str, str] = {}
    for index, entry in enumerate(legible):
        if entry.get("granularity", "default") not in ("default", "out_channel"):
            where = f"config_list[{index}].granularity"
            raise SettingError(f"{where}: {entry['granularity']!r}, but gates are on output channels")
        for name, module in select_modules_by_config(model, entry)[0].items():
            if module.weight.dim() > 1 and output_dim(module) == 0:
                layers[name.removeprefix(prefix)] = module
            elif module.weight.dim() > 1:
                refused[name] = "the first axis of its weight, which NNI calls out_channel, is not that of its outputs"
    example = None if evaluator is None else evaluator.get_dummy_input()
    if example is None:
        raise SettingError("posterior.granularity: gates trace the network; give the evaluator a dummy_input")
    graph = channel_graph(inner, example)
    places = Places(inner, graph, layers, find_gateable_groups(graph, set(layers)))
    gated = {axis for group in places.groups for axis in group.axes}
    for group in graph.groups:
        for name, dim in group.axes:
            layer = name.rpartition(".")[0]
            if layer in layers and dim == 0 and name.endswith(".weight") and (name, dim) not in gated:
                refused[layer] = group.pinned or "layers that no entry selects write them, too"
    if refused and granularity == "gate":
        layer, reason = next(iter(refused.items()))
        raise SettingError(
            f"config_list: the channels of {layer!r} cannot have a gate ({reason}); exclude it, or use the posterior "
            "granularity 'weight' or 'both'"
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
            mean = mean * kept.get(self.writers[scaled], torch.ones_like(mean))
            scale_channels_(layer, gate.repeat_over_parts(mean), holders)
