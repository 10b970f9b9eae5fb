"""What Torch-Pruning must cut along with a weight: its log sigma^2, and the gate of its channels.

Torch-Pruning knows torch's layers by `isinstance`, so it finds ours, cuts their weights, and leaves alone what it does
not know.  Every cut goes through one function; here it also reaches what hangs on the weight.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch_pruning.dependency import DependencyGraph
from torch_pruning.pruner.function import BasePruningFunc

from ...nn import ChannelGate, Variational, gate_sites, is_variational, output_dim


@dataclass(frozen=True)
class Companions:
    """What belongs to a weight."""

    layer: nn.Module
    gate: ChannelGate | None

    def cut_(self, pruner: Any, cut: Any, size: int, kept: list[int], dim: int) -> None:
        """After `size` channels along `dim` of the weight have become those in `kept`."""
        if isinstance(self.layer, Variational) and self.layer.log_sigma2.shape[dim] == size:
            self.layer.log_sigma2 = cut(pruner, self.layer.log_sigma2, kept, dim)
        gate = self.gate
        if gate is None or dim != output_dim(self.layer) or len(gate.mu) * len(gate.parts) != size:
            return  # a gate on several writers is cut with the first of them
        first = [index for index in kept if index < len(gate.mu)]  # the other parts are cut at the same places
        gate.mu = cut(pruner, gate.mu, first, 0)
        gate.log_sigma2 = cut(pruner, gate.log_sigma2, first, 0)


def companions_of(layer: nn.Module) -> Companions | None:
    """What belongs to the weight of a layer, in a network that Torch-Pruning has traced."""
    found: Companions | None = getattr(getattr(layer, "weight", None), "companions", None)
    return found


def register() -> None:
    """Teach Torch-Pruning our layers and gates; networks without posteriors see nothing of it."""
    build, cut = DependencyGraph.build_dependency, BasePruningFunc._prune_parameter_and_grad

    def build_dependency(self: Any, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        gates = {model.get_submodule(name): gate for name, _, gate in gate_sites(model)}
        ours = is_variational(model)
        for layer in model.modules():
            if isinstance(layer, Variational) or layer in gates:
                layer.weight.companions = Companions(layer, gates.get(layer))  # type: ignore[union-attr]
            elif ours and isinstance(layer, nn.LayerNorm):  # whose channels Torch-Pruning may put into another order
                for parameter in layer.parameters(recurse=False):
                    parameter.companions = Companions(layer, None)  # type: ignore[attr-defined]
        return build(self, model, *args, **kwargs)

    def cut_along(self: Any, weight: Tensor, kept: list[int], dim: int) -> nn.Parameter:
        companions = getattr(weight, "companions", None)
        if companions is not None:
            kept = sorted(int(index) for index in kept)  # a LayerNorm's come as a set gives them
        small: nn.Parameter = cut(self, weight, kept, dim)
        if companions is not None:
            small.companions = companions  # type: ignore[attr-defined]
            companions.cut_(self, cut, weight.shape[dim], kept, dim)
        return small

    DependencyGraph.build_dependency = build_dependency
    BasePruningFunc._prune_parameter_and_grad = cut_along
