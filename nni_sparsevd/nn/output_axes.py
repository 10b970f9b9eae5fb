"""Where the outputs of a layer are in its parameters, and which parameters scale them."""

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm


def output_dim(layer: nn.Module) -> int:
    """The dimension of `layer.weight` that holds its outputs; those of an embedding are its columns."""
    return 1 if getattr(layer, "transposed", False) or isinstance(layer, nn.Embedding) else 0


def scaling_keys(layer: nn.Module) -> tuple[str, str]:
    """Find the parameters that scale the outputs of a layer or norm when both are scaled.

    Args:
        layer: The layer or norm.

    Returns:
        The names "weight" and "bias", whether or not the layer has both.  A layer that standardizes its weight has a
        gain behind that, which stands for the weight: timm's ScaledStdConv2d.  So have the lengths of weight norm,
        which torch keeps in the layer, or below it as a parametrization.
    """
    if isinstance(layer._parameters.get("gain"), Tensor):
        return "gain", "bias"
    if any(isinstance(hook, WeightNorm) and hook.name == "weight" for hook in layer._forward_pre_hooks.values()):
        return "weight_g", "bias"
    if parametrize.is_parametrized(layer, "weight"):
        makers = layer.get_submodule("parametrizations.weight").children()
        if [type(maker) for maker in makers] == [_WeightNorm]:
            return "parametrizations.weight.original0", "bias"
    return "weight", "bias"


def find_parameter(layer: nn.Module, key: str) -> nn.Parameter | None:
    """Find a parameter of a layer by its name within the layer; None where there is none.

    Args:
        layer: The layer or norm.
        key: One of its `scaling_keys`.
    """
    holder: nn.Module | None = layer
    *children, name = key.split(".")
    for child in children:
        holder = None if holder is None else holder._modules.get(child)
    return None if holder is None else holder._parameters.get(name)


def spread_over_parameter(values: Tensor, layer: nn.Module, key: str, parameter: Tensor) -> Tensor:
    """Bring one value per output channel into a shape that is broadcast to a parameter.

    Args:
        values: The values, shape (channels,).
        layer: The layer or norm.
        key: One of its `scaling_keys`.
        parameter: The parameter of that name.

    Returns:
        The values along the dimension of the outputs.
    """
    dim = output_dim(layer) if key == "weight" else 0
    groups = getattr(layer, "groups", 1)
    if dim == 1 and groups > 1:  # a transposed convolution: the outputs of a group beside the inputs of the group
        by_group = values.view(groups, 1, -1).expand(-1, len(parameter) // groups, -1)
        return by_group.flatten(0, 1).view(len(parameter), -1, *[1] * (parameter.dim() - 2))
    shape = [1] * parameter.dim()
    shape[dim] = -1
    return values.view(shape)
