"""Walking over a network: where gates sit, and the same network without posteriors."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..graph import copy_module
from .gate import ChannelGate, gates_on
from .layers import to_plain_
from .output_axes import find_parameter, scaling_keys, spread_over_parameter
from .variational import Variational


def is_variational(model: nn.Module) -> bool:
    """Whether anything in `model` carries a posterior."""
    return any(isinstance(module, Variational | ChannelGate) for module in model.modules())


def gate_sites(model: nn.Module) -> Iterator[tuple[str, nn.Module, ChannelGate]]:
    """Walk over every place where a gate is attached.

    Args:
        model: The network.

    Yields:
        The name of the layer or norm whose channels the gate scales, the module that the gate is attached to, and the
        gate. The first two differ for timm's norms with an activation inside: the gate is attached to the empty slot
        between norm and activation.
    """
    for name, site in model.named_modules():
        for gate in gates_on(site):
            site_has_weight = isinstance(getattr(site, "weight", None), Tensor)
            yield (name if site_has_weight else name.rpartition(".")[0]), site, gate


def to_plain_network_(model: nn.Module) -> nn.Module:
    """Make every layer ordinary again, in place, and mask nothing.

    Args:
        model: The network. The mean of every gate is multiplied into the layer or norm that the gate scales.

    Returns:
        `model`.
    """
    for scaled_name, site, gate in list(gate_sites(model)):
        factors = gate.spread(gate.mean(), site)
        gate.detach_(site)
        scaled = model.get_submodule(scaled_name)
        scale_channels_(scaled, factors, (scaled,))
    for module in list(model.modules()):
        if isinstance(module, Variational):
            to_plain_(module)
    return model


def scale_channels_(layer: nn.Module, scale: Tensor, holders: tuple[nn.Module, ...]) -> None:
    """Scale the output channels of a layer, or scale and shift of a norm, in place.

    Args:
        layer: The layer or norm.
        scale: Factors, shape (channels,).
        holders: Modules that may hold weight and bias of the layer; the first that has a parameter of the name counts.
    """
    with torch.no_grad():
        for key in scaling_keys(layer):
            parameter = _first_parameter(holders, key)
            if parameter is not None:
                parameter.mul_(spread_over_parameter(scale, layer, key, parameter).to(parameter))


def _first_parameter(modules: tuple[nn.Module, ...], key: str) -> nn.Parameter | None:
    for module in modules:
        parameter = find_parameter(module, key)
        if parameter is not None:
            return parameter
    return None


def make_plain_copy(model: nn.Module) -> nn.Module:
    """Make an ordinary copy of a network, without masks; the network stays as it is."""
    return to_plain_network_(copy_module(model))
