"""Masks of single weights, and of N in M."""

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..nn import ChannelGate, Variational, find_gates, gate_sites, output_dim
from ..settings import MaskSettings
from .format import Masks
from .outputs import find_variational, mask_outputs_
from .scores import score_elements
from .selection import select_kept

Posterior = TypeVar("Posterior", Variational, ChannelGate)


def mask_weights(model: nn.Module, chosen: MaskSettings) -> Masks:
    """Decide about every weight and every gate by itself."""
    layers = find_variational(model)
    masks: Masks = {}
    kept = _select_kept_elements(layers.values(), chosen)
    for name, layer in layers.items():
        masks[name] = {"weight": layer.fill_fixed_row(kept[layer], True).float()}
    # Beside weights a ratio counts weights, and gates keep to the threshold. Of gates alone it counts the channels.
    _mask_gates_(masks, model, chosen.model_copy(update={"ratio": None}) if layers else chosen)
    return masks


def _mask_gates_(masks: Masks, model: nn.Module, chosen: MaskSettings) -> None:
    """Decide about every gate by itself; on top of the masks that there are."""
    kept = _select_kept_elements(find_gates(model), chosen)
    for scaled, site, gate in gate_sites(model):
        mask_outputs_(masks, model, scaled, gate.spread(kept[gate], site))


def _select_kept_elements(posteriors: Iterable[Posterior], chosen: MaskSettings) -> dict[Posterior, Tensor]:
    """Which weights of each layer, or channels of each gate, are kept: posterior -> booleans."""
    scores = {posterior: score_elements(posterior, chosen) for posterior in posteriors}
    return select_kept(scores, chosen, {posterior: posterior.threshold for posterior in scores})


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
