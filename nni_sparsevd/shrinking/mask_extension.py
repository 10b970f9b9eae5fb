"""From masks on the weights that write a channel to masks on everything that still makes it a constant."""

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..graph import Axis, ChannelGraph, ChannelGroup, ChannelIds, copy_module
from ..masks import Masks, apply_masks_, mask_group_channels_, validate_masks
from ..nn import output_dim


def extend_masks(model: nn.Module, masks: Masks, graph: ChannelGraph) -> Masks:
    """Mask, for each channel that no weight writes any more, also its biases and the scales and shifts of its norms.

    Pruners that look at weights alone leave these: the channel then carries a constant, which may keep it from being
    removed.  The extended masks change what the network computes, to what the pruner's user had in mind.  The last
    channel of an axis is left as it is.

    Args:
        model: The network; it is left as it is.
        masks: Masks in NNI's format, {module: {parameter: tensor}}, each in the shape of its parameter.
        graph: The network's channel graph.

    Returns:
        New masks in the same format: those of `masks`, and more.

    Raises:
        MaskError: The masks do not fit the network.
    """
    validate_masks(model, masks)
    masked = copy_module(model)
    apply_masks_(masked, masks)
    extended = {name: {key: mask.float().clone() for key, mask in targets.items()} for name, targets in masks.items()}
    for group in graph.groups:
        if group.pinned:
            continue
        unwritten = _find_unwritten(masked, graph, group)
        if 0 < unwritten.size < group.channels.size:
            mask_group_channels_(extended, masked, graph, group, unwritten)
    return extended


def _find_unwritten(model: nn.Module, graph: ChannelGraph, group: ChannelGroup) -> ChannelIds:
    """Channels of a group that no weight writes; none where no weight is known to write the group."""
    written = []
    for axis in group.axes:
        alive = _read_written_outputs(model, axis)
        if alive is not None:
            written.append(graph.positions_in_group(axis, group)[alive])
    if not written:
        return group.channels[:0]
    positions = np.setdiff1d(np.concatenate(written), [-1])  # -1 is an index that no channel of the group takes along
    return np.delete(group.channels, positions)


def _read_written_outputs(model: nn.Module, axis: Axis) -> NDArray[np.bool_] | None:
    """Which outputs of a weight any of its entries still writes; None for an axis that is no output of a weight."""
    name, dim = axis
    owner, _, key = name.rpartition(".")
    layer = model.get_submodule(owner)
    weight = layer._parameters.get(key)
    if weight is None or key != "weight" or weight.dim() < 2 or dim != output_dim(layer):
        return None
    written: NDArray[np.bool_] = (weight.detach() != 0).movedim(dim, 0).flatten(1).any(1).cpu().numpy()
    return written
