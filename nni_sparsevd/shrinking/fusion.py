"""A batch normalisation after a linear map is part of that map: on request, for networks about to be exported."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShrinkError
from ..graph import READERS, TRANSPOSED, Inputs, channel_graph, copy_model
from .comparison import check

aten = torch.ops.aten


def fuse(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """A copy of `model` for evaluation in which convolutions and linear layers do what their batch norms did.

    W' = W gamma / sqrt(var + eps), b' = (b - mean) gamma / sqrt(var + eps) + beta.  A norm goes where it alone reads a
    layer that runs once, and leaves its activation behind where it has one inside, as timm's do.  Do this last: a
    fused network no longer has the modules that training, `save` or another round of shrinking would want.

    Raises `TraceError` when the network cannot be traced, `ShrinkError` when the result gives other outputs.
    """
    fused = copy_model(model).eval()
    graph = channel_graph(model, example_inputs).trace.graph
    for node in graph.nodes:
        if node.target == aten.batch_norm.default and (layer := _layer_before(node)) is not None:
            norm_name = node.meta["module"]
            norm: Any = fused.get_submodule(norm_name)
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
                _absorb_(fused.get_submodule(layer.meta["module"]), norm, 1 if layer.target in TRANSPOSED else 0)
                _replace_(fused, norm_name, _rest_of(norm))
    result = check(model, fused, example_inputs, rounds=1)
    if not result.ok:
        raise ShrinkError(f"the fused {type(model).__name__} gives other outputs, {result}")
    return fused


def _layer_before(norm: Any) -> Any:
    """The operator that the norm alone reads, if its weight and bias are a module's own and used there only."""
    layer = norm.args[0]
    if layer.target not in READERS or len(layer.users) > 1:
        return None
    held = [state for state in layer.args[1:3] if state is not None]
    own = all(state.op == "get_attr" and "constant" not in state.meta and len(state.users) == 1 for state in held)
    module = layer.meta["module"]
    return layer if own and held[0].target == f"{module}.weight" else None


def _absorb_(layer: Any, norm: Any, dim: int) -> None:
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * factor
    if norm.weight is not None:
        factor, shift = factor * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    weight: Tensor = layer.weight
    shape = [1] * weight.dim()
    shape[dim] = -1
    bias = shift if layer.bias is None else shift + layer.bias.double() * factor
    with torch.no_grad():
        weight.copy_(weight.double() * factor.view(shape))
    layer.bias = nn.Parameter(bias.detach().to(weight), requires_grad=weight.requires_grad)


def _rest_of(norm: nn.Module) -> nn.Module:
    inside = [getattr(norm, name, None) for name in ("drop", "act")]
    rest = [module for module in inside if isinstance(module, nn.Module) and not isinstance(module, nn.Identity)]
    return nn.Sequential(*rest) if rest else nn.Identity()


def _replace_(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, key = name.rpartition(".")
    setattr(model.get_submodule(owner), key, module)
