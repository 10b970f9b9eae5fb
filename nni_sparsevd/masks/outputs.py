"""What masks of weights and of channels have in common: the layers with a posterior, and masks of their outputs."""

import torch
from torch import Tensor, nn

from ..nn import Variational, find_parameter, named_posteriors, scaling_keys, spread_over_parameter
from .format import Masks


def find_variational(model: nn.Module) -> dict[str, Variational]:
    """Find the layers with a posterior, by name; the first of those that share one."""
    return {name: module for name, module in named_posteriors(model) if isinstance(module, Variational)}


def mask_outputs_(masks: Masks, model: nn.Module, name: str, kept: Tensor) -> None:
    """Mask the outputs of a layer, or scale and shift of a norm, where `kept` is False; on top of masks it has."""
    module = model.get_submodule(name)
    for key in scaling_keys(module):
        parameter = find_parameter(module, key)
        if parameter is None:
            continue
        mask = spread_over_parameter(kept, module, key, parameter).expand_as(parameter).to(torch.float32)
        holder, _, own_key = f"{name}.{key}".removeprefix(".").rpartition(".")  # of a parametrization in the module
        targets = masks.setdefault(holder, {})
        targets[own_key] = targets[own_key] * mask if own_key in targets else mask.clone()
