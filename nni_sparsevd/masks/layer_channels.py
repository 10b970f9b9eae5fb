"""Masks of output channels, layer by layer."""

from torch import Tensor, nn

from ..nn import Variational, gate_sites, output_dim
from ..posterior import group_log_alpha
from ..settings import MaskSettings
from .format import Masks
from .outputs import find_variational, gate_key, mask_outputs_
from .selection import select_kept


def mask_channels_by_layer(model: nn.Module, chosen: MaskSettings) -> Masks:
    """Decide about the output channels of each layer by itself, and about the channels of gates."""
    scores: dict[str, Tensor] = {}
    thresholds: dict[str, float] = {}
    sites = list(gate_sites(model))
    layers = find_variational(model)
    for name, _, _ in sites:  # where there is a gate, the gate decides
        layers.pop(name, None)
    for name, layer in layers.items():
        scores[name] = _score_outputs(layer)
        thresholds[name] = layer.threshold
    for _, _, gate in sites:
        scores[gate_key(gate)], thresholds[gate_key(gate)] = gate.log_alpha(), gate.threshold
    masks: Masks = {}
    selected = select_kept(scores, chosen, thresholds)
    for name in layers:
        mask_outputs_(masks, model, name, selected[name])
    for name, site, gate in sites:
        mask_outputs_(masks, model, name, gate.spread(selected[gate_key(gate)], site))
    return masks


def _score_outputs(layer: Variational) -> Tensor:
    """Log alpha of all weights that write an output channel together, shape (channels,)."""
    weight, log_sigma2 = layer.weight, layer.log_sigma2.expand_as(layer.weight)
    groups = getattr(layer, "groups", 1)
    if output_dim(layer) == 1 and groups > 1:
        # A transposed convolution: the outputs of a group lie beside the inputs of that group.
        weight, log_sigma2 = weight.unflatten(0, (groups, -1)), log_sigma2.unflatten(0, (groups, -1))
        return group_log_alpha(weight, log_sigma2, [1, *range(3, weight.dim())]).flatten()
    inputs = [dim for dim in range(weight.dim()) if dim != output_dim(layer)]
    return group_log_alpha(weight, log_sigma2, inputs)
