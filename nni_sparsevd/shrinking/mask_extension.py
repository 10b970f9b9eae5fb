"""From masks on the weights that write a channel to masks on everything that makes it heard."""

import copy

import numpy as np
from torch import nn

from ..graph import Axis, ChannelGraph
from ..masks import Masks, apply_masks_, mask_group_channels_, validate_masks
from ..nn import output_dim


def extend_masks(model: nn.Module, masks: Masks, graph: ChannelGraph) -> Masks:
    """`masks`, and for each channel that no weight writes any more also its biases and its norms' scales and shifts.

    Pruners that look at weights alone leave these: the channel then carries a constant, which may keep it from being
    removed.  Silencing changes what the network computes, to what the pruner's user had in mind.  The last channel of
    an axis is left as it is.

    Raises `MaskError` for masks that do not fit.
    """
    validate_masks(model, masks)
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    extended = {name: {key: mask.float().clone() for key, mask in targets.items()} for name, targets in masks.items()}
    for group in graph.groups:
        written = [
            graph.positions_in_group(axis, group)[alive]
            for axis in group.axes
            if (alive := _alive(masked, axis)) is not None
        ]
        if not group.pinned and written:
            dead = np.delete(group.channels, np.setdiff1d(np.concatenate(written), [-1]))
            if 0 < dead.size < group.channels.size:
                mask_group_channels_(extended, masked, graph, group, dead)
    return extended


def _alive(model: nn.Module, axis: Axis) -> np.ndarray | None:
    """Which outputs of a weight any element still writes; None for an axis that is no output of a weight."""
    name, dim = axis
    owner, _, key = name.rpartition(".")
    layer = model.get_submodule(owner)
    weight = layer._parameters.get(key)
    if weight is None or key != "weight" or weight.dim() < 2 or dim != output_dim(layer):
        return None
    alive: np.ndarray = (weight.detach() != 0).movedim(dim, 0).flatten(1).any(1).cpu().numpy()
    return alive
