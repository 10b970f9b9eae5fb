"""Survivors that keep their noise: a variational network from which masks have taken the rest."""

import torch
from torch import nn

from ..masks import Masks, apply_masks_
from ..nn import Variational, named_posteriors

SILENT = -40.0
"""Log sigma^2 of no noise; log alpha of a weight of zero is still far above any threshold then."""


def mask_posterior_(model: nn.Module, masks: Masks) -> None:
    """Take the means and the noise of what is removed, in place; what is left learns on as it did.

    Training has to keep the means at zero (`apply_masks_`); the noise stays where it is, for nothing pulls on it.
    """
    apply_masks_(model, masks)
    with torch.no_grad():
        for name, layer in named_posteriors(model):
            if isinstance(layer, Variational) and "weight" in masks.get(name, {}):
                layer.log_sigma2.masked_fill_(masks[name]["weight"] == 0, SILENT)
