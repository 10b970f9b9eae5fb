"""What Torch-Pruning must cut along with a weight: its log sigma^2, and the gate of its channels.

Torch-Pruning knows torch's layers by `isinstance`. So it finds our layers and cuts their weights, but it leaves alone
what it does not know. `enable` teaches it the rest, also what to count, and `disable` undoes that; importing this
module changes nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch_pruning.utils
from torch import Tensor, nn
from torch_pruning.dependency.group import Group
from torch_pruning.pruner.function import BasePruningFunc
from torch_pruning.utils import op_counter

from ...nn import ChannelGate, Variational, gate_sites, is_variational, output_dim
from ..patching import Patch
from .counting import count_plain_networks

CutParameter = Callable[[Any, Tensor, list[int], int], nn.Parameter]
"""Torch-Pruning's function (its object for the layer type, parameter, indices to keep, dimension) -> smaller parameter.

It is the one function that makes all smaller parameters in Torch-Pruning.
"""

_patch = Patch()
_enabled = False


def enable() -> None:
    """Let every pruner of Torch-Pruning cut posteriors along with weights, until `disable`.

    Making or using a `SparseVDImportance` or a `SparseVDPruner` calls this function. Call it yourself only if you prune
    a network that has posteriors with nothing but Torch-Pruning's own pruners and importances. A second call does
    nothing. Networks without posteriors are cut as Torch-Pruning cuts them.

    What is cut along is what belongs to a group of the dependency graph. Torch-Pruning's functions for a single layer,
    such as `tp.prune_conv_out_channels(layer, idxs)`, cut the weight alone.

    `tp.utils.count_ops_and_params` then counts a network with posteriors as the ordinary network that it is without.
    """
    global _enabled
    if _enabled:
        return
    # 1. Why `Group.prune`: all pruners cut through this one function, and a group knows the network. A network without
    #    posteriors goes straight on to the host's own function.
    # 2. Why the function below it is changed only while a group is cut: that function knows which indices stay, but it
    #    is given a parameter and not a layer. The layers of the group say whose parameter it is.
    # 3. Why nothing is written on parameters or remembered about them: copies and new parameters would need it, too.
    host_prune = Group.prune

    def prune(self: Group, idxs: Any = None, record_history: bool = True) -> None:
        # With indices of its own, the host makes another group of them and calls this function again, for that group.
        has_posteriors = self._DG is not None and is_variational(self._DG.model)
        if idxs is not None or not has_posteriors:
            host_prune(self, idxs, record_history)
            return
        layers = [dependency.layer for dependency, _ in self if _needs_help(dependency.layer)]
        with Patch() as patch:
            cut_parameter = _follow_weights(BasePruningFunc._prune_parameter_and_grad, layers)
            patch.set(BasePruningFunc, "_prune_parameter_and_grad", cut_parameter)
            host_prune(self, idxs, record_history)

    _patch.set(Group, "prune", prune)
    for module in (op_counter, torch_pruning.utils):
        _patch.set(module, "count_ops_and_params", count_plain_networks(module.count_ops_and_params))
    _enabled = True


def disable() -> None:
    """Undo `enable`: Torch-Pruning is what was installed, until one of our classes is used again."""
    global _enabled
    _patch.undo()
    _enabled = False


def find_gates_behind(layer: nn.Module) -> list[tuple[nn.Module, ChannelGate]]:
    """Find the gates on the outputs of a layer or norm, each with the module that it is attached to."""
    # Only the layer itself has no name here; the others are modules inside it.
    return [(site, gate) for name, site, gate in gate_sites(layer) if not name]


def _needs_help(layer: object) -> bool:
    """Whether something must be cut along with the weight of `layer`, or its channels must be kept in order."""
    if not isinstance(layer, nn.Module):  # a parameter that belongs to no layer
        return False
    return isinstance(layer, Variational | nn.LayerNorm) or bool(find_gates_behind(layer))


def _follow_weights(cut_parameter: CutParameter, layers: list[nn.Module]) -> CutParameter:
    """Make a `cut_parameter` that also cuts what belongs to a weight of one of these `layers`."""

    def cut_along(self: Any, parameter: Tensor, kept: Any, dim: int) -> nn.Parameter:
        layer = _find_owner(parameter, layers)
        if layer is None:
            return cut_parameter(self, parameter, kept, dim)
        # Torch-Pruning takes the indices that a LayerNorm keeps in the order of a set of integers, which is not
        # ascending where few of many are left: scale and shift would end up beside other channels than the weights.
        in_order = sorted(int(index) for index in kept)
        size = parameter.shape[dim]
        if isinstance(layer, Variational) and layer.log_sigma2.shape[dim] == size:
            # With one variance per output channel there is nothing to cut along the other dimensions.
            layer.log_sigma2 = cut_parameter(self, layer.log_sigma2, in_order, dim)
        if dim == output_dim(layer):
            for site, gate in find_gates_behind(layer):
                _cut_gate_(gate, site, size, in_order, lambda values, indices: cut_parameter(self, values, indices, 0))
        return cut_parameter(self, parameter, in_order, dim)

    return cut_along


def _find_owner(parameter: Tensor, layers: list[nn.Module]) -> nn.Module | None:
    """The layer whose weight `parameter` is, or the LayerNorm whose scale or shift it is; None where there is none."""
    for layer in layers:
        if layer._parameters.get("weight") is parameter:
            return layer
        if isinstance(layer, nn.LayerNorm) and layer.bias is parameter:
            return layer
    return None


def _cut_gate_(
    gate: ChannelGate,
    site: nn.Module,
    size: int,
    kept: list[int],
    cut: Callable[[nn.Parameter, list[int]], nn.Parameter],
) -> None:
    """Cut the gate behind a weight that has `size` output channels, of which `kept` stay."""
    # A gate on several writers is cut with the first of them. With the others its channels are those that are left.
    places = gate.read_places(site)
    if places is None:
        channels = kept if len(gate.mu) == size else list(range(len(gate.mu)))
    else:
        smaller = places[kept]
        lost = set(places.tolist()) - set(smaller.tolist())
        channels = [channel for channel in range(len(gate.mu)) if channel not in lost]
        setattr(gate, str(gate.places_name(site)), smaller)
    if len(channels) == len(gate.mu):
        return
    gate.renumber_(torch.tensor(channels))
    gate.mu = cut(gate.mu, channels)
    gate.log_sigma2 = cut(gate.log_sigma2, channels)
