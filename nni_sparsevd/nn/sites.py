"""Walking over a network: where gates sit, and the same network without posteriors."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .gate import ChannelGate
from .layers import to_plain_
from .variational import Variational, output_dim


def is_variational(model: nn.Module) -> bool:
    """Whether anything in `model` carries a posterior."""
    return any(isinstance(module, Variational | ChannelGate) for module in model.modules())


def gate_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module, ChannelGate]]:
    """(name of the layer or norm that a gate scales, the module that it hooks on, the gate), for every site.

    The two differ for timm's norms with an activation inside: the gate hooks on the empty slot between the two.
    """
    for name, site in model.named_modules(remove_duplicate=False):
        gate = site._modules.get("gate")
        if isinstance(gate, ChannelGate):
            own = isinstance(getattr(site, "weight", None), Tensor)
            yield (name if own else name.rpartition(".")[0]), site, gate


def to_plain_network_(model: nn.Module) -> nn.Module:
    """Fold every gate's mean into what it follows and make every layer ordinary, masking nothing; returns `model`."""
    for scaled, site, gate in list(gate_sites(model)):
        gate.detach_(site)
        layer = model.get_submodule(scaled)
        scale_channels_(layer, gate.repeat_over_parts(gate.mu), (layer,))
    for module in list(model.modules()):
        if isinstance(module, Variational):
            to_plain_(module)
    return model


def scale_channels_(layer: nn.Module, scale: Tensor, holders: tuple[nn.Module, ...]) -> None:
    """Scale the output channels of a layer, or scale and shift of a norm, in place; `scale` has the shape (channels,).

    Weight and bias are taken from the first of `holders` that has them as parameters.
    """
    with torch.no_grad():
        for key, dim in (("weight", output_dim(layer)), ("bias", 0)):
            parameter = next((found for holder in holders if (found := holder._parameters.get(key)) is not None), None)
            if parameter is not None:
                shape = [1] * parameter.dim()
                shape[dim] = -1
                parameter.mul_(scale.to(parameter).view(shape))


def make_plain_copy(model: nn.Module) -> nn.Module:
    """An ordinary, unmasked copy."""
    return to_plain_network_(copy.deepcopy(model))
