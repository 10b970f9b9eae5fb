"""A batch normalization after a linear map is part of that map: on request, for networks about to be exported."""

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ShrinkError
from ..graph import READERS, TRANSPOSED, Inputs, as_arguments, channel_graph, copy_model
from .comparison import check
from .running import as_numbers_of, copy_as

aten = torch.ops.aten


def fuse(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """Make a copy for evaluation in which convolutions and linear layers do what their batch norms did.

    W' = W gamma / sqrt(var + eps) and b' = (b - mean) gamma / sqrt(var + eps) + beta, with the running mean and
    variance of the batch norm, its scale gamma and its shift beta.

    A batch norm is fused where it alone reads a layer that runs once.  It leaves its activation behind where it has one
    inside, as timm's do.  Fuse last: a fused network no longer has the modules that training, `save` or another round
    of shrinking would want.

    Args:
        model: Any network.  It is left as it is.
        example_inputs: What `model` is called with; see `shrink`.

    Returns:
        The fused copy, in evaluation mode.

    Raises:
        TraceError: The network cannot be traced.
        ShrinkError: The fused network gives other outputs.

    Example:
        ```python
        import torch
        from torch import nn

        import nni_sparsevd as svd

        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()).eval()
        images = torch.randn(2, 3, 8, 8)
        fused = svd.fuse(model, images)
        assert isinstance(fused[1], nn.Identity) and fused[0].bias is not None
        torch.testing.assert_close(fused(images), model(images))
        ```
    """
    fused = copy_model(model).eval()
    for node in channel_graph(model, example_inputs).trace.graph.nodes:
        layer = _find_layer_before(node)
        if layer is None:
            continue
        norm_name = node.meta["module"]
        norm: Any = fused.get_submodule(norm_name)
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
            output_dim = 1 if layer.target in TRANSPOSED else 0
            _absorb_norm_(fused.get_submodule(layer.meta["module"]), norm, output_dim)
            fused.set_submodule(norm_name, _make_rest(norm))
    result = check(model, fused, example_inputs, rounds=1)
    if result.ok:
        return fused
    if result.stored_in_64 or result.half is not None or not result.runs_in_64:
        raise ShrinkError(f"the fused {type(model).__name__} gives other outputs, {result}")
    # Every fused weight is rounded once to the type in which it is stored, and the roundings of many layers add up.
    # Stored in float64, the same network has to be fused exactly.
    exact = copy_as(model, torch.float64)
    fuse(exact, as_numbers_of(exact, as_arguments(example_inputs)))
    return fused


def _find_layer_before(norm: Any) -> Any:
    """The operator of the layer that a batch norm can be fused into; None for any other operator than such a norm."""
    # 1. The norm alone may read the layer's output: any other reader would see it normalized.
    # 2. The layer's weight and bias must be parameters that are used once.  Those of a layer that runs twice, or that
    #    shares them with another layer, would be changed for all uses.
    if norm.target != aten.batch_norm.default:
        return None
    layer = norm.args[0]
    if layer.target not in READERS or len(layer.users) > 1:  # 1
        return None
    states = [state for state in layer.args[1:3] if state is not None]
    for state in states:  # 2
        if state.op != "get_attr" or "constant" in state.meta or len(state.users) > 1:
            return None
    return layer if states[0].target == f"{layer.meta['module']}.weight" else None


def _absorb_norm_(layer: Any, norm: Any, output_dim: int) -> None:
    """Multiply the weight and set the bias in float64, rounded once at the end."""
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * factor
    if norm.weight is not None:
        factor, shift = factor * norm.weight.double(), shift * norm.weight.double() + norm.bias.double()
    weight: Tensor = layer.weight
    shape = [1] * weight.dim()
    shape[output_dim] = -1
    bias = shift if layer.bias is None else shift + layer.bias.double() * factor
    with torch.no_grad():
        weight.copy_(weight.double() * factor.view(shape))
    layer.bias = nn.Parameter(bias.detach().to(weight), requires_grad=weight.requires_grad)


def _make_rest(norm: nn.Module) -> nn.Module:
    """What a norm does besides normalizing: timm's have dropout and an activation inside."""
    rest = []
    for name in ("drop", "act"):
        module = getattr(norm, name, None)
        if isinstance(module, nn.Module) and not isinstance(module, nn.Identity):
            rest.append(module)
    return nn.Sequential(*rest) if rest else nn.Identity()
