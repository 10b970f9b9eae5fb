"""A variational network from which masks have removed weights, while what is left keeps its noise."""

import torch
from torch import nn

from ..masks import Masks, apply_masks_
from ..nn import Variational, named_posteriors

NO_NOISE = -40.0
"""Log sigma^2 of a removed weight: next to no noise, and with a mean of 0 its log alpha, about 47, is far above any
threshold."""


def mask_posterior_(model: nn.Module, masks: Masks) -> None:
    """Remove the means and the noise of what `masks` remove, in place; what is left learns on as before.

    Training has to keep the means at zero (`apply_masks_`). The noise stays where it is: at this
    log alpha neither the loss nor the KL has a gradient for it.

    Args:
        model: A variational network.
        masks: {module: {target: tensor of 0 and 1}}, as `compute_masks` returns them.
    """
    apply_masks_(model, masks)
    with torch.no_grad():
        for name, layer in named_posteriors(model):
            if isinstance(layer, Variational) and "weight" in masks.get(name, {}):
                layer.log_sigma2.masked_fill_(masks[name]["weight"] == 0, NO_NOISE)
