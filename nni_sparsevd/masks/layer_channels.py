"""Masks of output channels, layer by layer."""

from torch import Tensor, nn

from ..nn import ChannelGate, Variational, gate_sites, output_dim
from ..settings import MaskSettings
from .format import Masks
from .outputs import find_variational, mask_outputs_
from .scores import ChannelScore, choose_channel_score, score_elements
from .selection import select_kept


def mask_channels_by_layer(model: nn.Module, chosen: MaskSettings) -> Masks:
    """Decide about the output channels of each layer by itself, and about the channels of gates."""
    scores: dict[Variational | ChannelGate, Tensor] = {}
    sites = list(gate_sites(model))
    layers = find_variational(model)
    for name, _, _ in sites:  # where there is a gate, the gate decides
        layers.pop(name, None)
    channel_score = choose_channel_score(chosen)
    for layer in layers.values():
        scores[layer] = _score_outputs(layer, channel_score)
    for _, _, gate in sites:
        scores[gate] = score_elements(gate, chosen)
    kept = select_kept(scores, chosen, {posterior: posterior.threshold for posterior in scores})
    masks: Masks = {}
    for name, layer in layers.items():
        mask_outputs_(masks, model, name, kept[layer])
    for name, site, gate in sites:
        mask_outputs_(masks, model, name, gate.spread(kept[gate], site))
    return masks


def _score_outputs(layer: Variational, channel_score: ChannelScore) -> Tensor:
    """The score of all weights that write an output channel together, shape (channels,)."""
    return channel_score.combine(*(_sum_over_inputs(layer, summand(layer)) for summand in channel_score.summands))


def _sum_over_inputs(layer: Variational, values: Tensor) -> Tensor:
    """The sums of what the weights of each output channel have, shape (channels,)."""
    groups = getattr(layer, "groups", 1)
    if output_dim(layer) == 1 and groups > 1:
        # A transposed convolution: the outputs of a group lie beside the inputs of that group.
        values = values.unflatten(0, (groups, -1))
        return values.sum([1, *range(3, values.dim())]).flatten()
    return values.sum([dim for dim in range(values.dim()) if dim != output_dim(layer)])
