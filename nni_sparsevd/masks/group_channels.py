"""Masks of coupled channels, in everything that writes them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..graph import Axis, ChannelGraph, ChannelGroup, Writer
from ..nn import ChannelGate, Variational, gate_sites, output_dim
from ..settings import MaskSettings
from .format import Masks
from .scores import ChannelScore, choose_channel_score, score_elements
from .selection import select_kept


def mask_channels_by_group(model: nn.Module, graph: ChannelGraph, chosen: MaskSettings) -> Masks:
    """Decide about coupled channels, by the score of their gate, or of all the weights that write them."""
    gates = find_group_gates(model, graph)
    channel_score = choose_channel_score(chosen)
    scores: dict[str, Tensor] = {}
    thresholds: dict[str, float] = {}
    for group in graph.groups:
        if group.pinned:
            continue
        gate = gates.get(group.name)
        if gate is None:
            score = _group_score(model, graph, group, channel_score)
        else:
            score = score_elements(gate, chosen).cpu()  # where the scores of weights are
        if score is not None:
            scores[group.name] = score
            thresholds[group.name] = _group_threshold(model, group, gate)
    if not scores:
        raise ModelError(f"{type(model).__name__} has no channel group with a posterior that could be removed")
    kept_by_group = select_kept(scores, chosen, thresholds)
    masks: Masks = {}
    for group in graph.groups:
        if group.name not in kept_by_group:
            continue
        kept = kept_by_group[group.name]
        if not chosen.allow_empty and not kept.any():
            kept = scores[group.name] == scores[group.name].min()  # the most relevant channel stays
        mask_group_channels_(masks, model, graph, group, group.channels[~kept.cpu().numpy()])
    return masks


def find_group_gates(model: nn.Module, graph: ChannelGraph) -> dict[str, ChannelGate]:
    """Find the gate of each channel group that has one.

    Args:
        model: A variational network.
        graph: The channel graph of its plain copy.

    Returns:
        Name of a channel group -> the gate behind its writers.
    """
    gates_at: dict[str, list[tuple[nn.Module, ChannelGate]]] = {}
    for name, site, gate in gate_sites(model):
        gates_at.setdefault(name, []).append((site, gate))
    group_gates: dict[str, ChannelGate] = {}
    for group in graph.groups:
        for writer in group.writers:
            for site, gate in gates_at.get(writer.site, ()):
                if group.name not in group_gates and _stands_on_group(graph, group, writer, gate, site):
                    group_gates[group.name] = gate
    return group_gates


def _stands_on_group(
    graph: ChannelGraph, group: ChannelGroup, writer: Writer, gate: ChannelGate, site: nn.Module
) -> bool:
    """Whether a gate scales the outputs of a writer by the positions of their channels in a group."""
    if len(gate.mu) != len(group):
        return False
    positions = graph.positions_of(graph.value_channels[writer.site_node][writer.channel_dim], group)
    places = gate.read_places(site)
    scaling = np.arange(len(group)) if places is None else places.cpu().numpy()
    if scaling.size != positions.size:
        return False
    return bool((positions == scaling)[scaling >= 0].all())


def _group_threshold(model: nn.Module, group: ChannelGroup, gate: ChannelGate | None) -> float:
    """The threshold of the gate of a group, or of the first layer with a posterior that writes it."""
    if gate is not None:
        return gate.threshold
    return next(layer.threshold for layer, _ in _written_by_posteriors(model, group))


def _written_by_posteriors(model: nn.Module, group: ChannelGroup) -> Iterator[tuple[Variational, Axis]]:
    """Walk over the layers with a posterior whose outputs are in a group, each with the axis of these outputs."""
    for name, dim in group.axes:
        module_name, _, key = name.rpartition(".")
        layer = model.get_submodule(module_name)
        if isinstance(layer, Variational) and key == "weight" and dim == output_dim(layer):
            yield layer, (name, dim)


def _group_score(
    model: nn.Module, graph: ChannelGraph, group: ChannelGroup, channel_score: ChannelScore
) -> Tensor | None:
    """The score of each channel over all variational weights that write it; None without any."""
    sums = [torch.zeros(len(group), dtype=torch.float64) for _ in channel_score.summands]
    has_posterior = False
    for layer, axis in _written_by_posteriors(model, group):
        has_posterior = True
        # An output of the layer may be none of this group's channels, and several outputs may be one channel.
        position = torch.from_numpy(graph.positions_in_group(axis, group))
        inside = position >= 0
        inputs = [dim for dim in range(layer.weight.dim()) if dim != output_dim(layer)]
        for total, summand in zip(sums, channel_score.summands, strict=True):
            total.index_add_(0, position[inside], summand(layer).sum(inputs).cpu()[inside])
    return channel_score.combine(*sums) if has_posterior else None


def mask_group_channels_(
    masks: Masks, model: nn.Module, graph: ChannelGraph, group: ChannelGroup, removed: np.ndarray
) -> None:
    """Mask everything that writes a removed channel or shifts it on its way, in place.

    Weights, biases, norms, position embeddings and layer scales are masked; what only reads the channel is not.

    Args:
        masks: The masks to extend; targets without a mask get one.
        model: The network.
        graph: Its channel graph.
        group: The channel group.
        removed: The channels to remove, from `group.channels`.
    """
    # An encoder may share its weight with the decoder, which then reads along the axis that the encoder writes along.
    written_axes = {writer.axis for writer in graph.writers}
    reading_axes = {(reader.weight, reader.input_dim) for reader in graph.readers} - written_axes
    for name, dim in group.axes:
        module_name, _, key = name.rpartition(".")
        parameter = model.get_submodule(module_name)._parameters.get(key)
        # The columns of an embedding whose weight a linear layer shares are written by the one, and read by the other.
        is_read_only = (name, dim) in reading_axes and not _is_table(model.get_submodule(module_name), dim)
        # Of weight norm's two parts only the length is masked: a direction without length is NaN.
        if parameter is None or is_read_only or name in graph.directions:
            continue
        indices = torch.from_numpy(graph.indices_along((name, dim), removed))
        mask = masks.setdefault(module_name, {}).setdefault(key, torch.ones(parameter.shape))
        mask.index_fill_(dim, indices, 0.0)


def _is_table(module: nn.Module, dim: int) -> bool:
    """Whether a module writes channels along this dimension of its weight without reading any."""
    return isinstance(module, nn.Embedding) and dim == output_dim(module)
