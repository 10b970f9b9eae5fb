"""Masks of single weights, and of N in M."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..nn import ChannelGate, Variational, gate_sites, output_dim
from ..settings import MaskSettings
from .format import Masks
from .outputs import find_variational, gate_key, mask_outputs_
from .scores import score_elements
from .selection import select_kept


def mask_weights(model: nn.Module, chosen: MaskSettings) -> Masks:
    """Decide about every weight and every gate by itself."""
    layers = find_variational(model)
    masks: Masks = {}
    for name, kept in _select_kept_elements(layers, chosen).items():
        masks[name] = {"weight": layers[name].fill_fixed_row(kept, True).float()}
    # Beside weights a ratio counts weights, and gates keep to the threshold. Of gates alone it counts the channels.
    _mask_gates_(masks, model, chosen.model_copy(update={"ratio": None}) if layers else chosen)
    return masks


def _mask_gates_(masks: Masks, model: nn.Module, chosen: MaskSettings) -> None:
    """Decide about every gate by itself; on top of the masks that there are."""
    gates = {gate_key(gate): gate for _, _, gate in gate_sites(model)}
    kept_channels = _select_kept_elements(gates, chosen)
    for scaled, site, gate in gate_sites(model):
        mask_outputs_(masks, model, scaled, gate.spread(kept_channels[gate_key(gate)], site))


def _select_kept_elements(
    posteriors: Mapping[str, Variational | ChannelGate], chosen: MaskSettings
) -> dict[str, Tensor]:
    """What is kept of the weights of each layer, or of the channels of each gate: booleans under the same names."""
    scores = {name: score_elements(posterior, chosen) for name, posterior in posteriors.items()}
    thresholds = {name: posterior.threshold for name, posterior in posteriors.items()}
    return select_kept(scores, chosen, thresholds)


def mask_blocks(model: nn.Module, chosen: MaskSettings) -> Masks:
    """Decide about `keep` of every `block` weights along the input axis of each layer; gates keep to the threshold."""
    masks: Masks = {}
    layers = find_variational(model)
    if not layers:
        raise ModelError(
            f"masks.structure = 'n:m' decides about weights, and {type(model).__name__} has gates alone: take "
            "posterior.granularity = 'weight' or 'both'"
        )
    for name, layer in layers.items():
        input_dim = 1 - output_dim(layer)
        kept = _keep_n_of_m(layer.log_alpha(), input_dim, chosen)
        masks[name] = {"weight": layer.fill_fixed_row(kept, True).float()}
    _mask_gates_(masks, model, chosen)
    return masks


def _keep_n_of_m(score: Tensor, axis: int, chosen: MaskSettings) -> Tensor:
    """True at the `keep` lowest of every `block` along an axis; what is no whole number of blocks stays whole."""
    if score.dim() < 2 or score.shape[axis] % chosen.block:
        return torch.ones_like(score, dtype=torch.bool)
    blocks = score.movedim(axis, -1).unflatten(-1, (-1, chosen.block))
    lowest = blocks.argsort(dim=-1, stable=True)[..., : chosen.keep]
    kept = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, lowest, True)
    return kept.flatten(-2).movedim(-1, axis).contiguous()
