"""Classes derived from torch's layers, such as timm's `Conv2dSame`: which of them can carry a posterior, and how."""

import copy
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..graph import copy_module
from .output_axes import find_parameter, spread_over_parameter
from .variational import Variational

aten = torch.ops.aten
OPERATION_OF: dict[type[nn.Module], tuple[Any, ...]] = {
    nn.Linear: (aten.linear.default,),
    nn.Conv1d: (aten.conv1d.default, aten.conv1d.padding),
    nn.Conv2d: (aten.conv2d.default, aten.conv2d.padding),
    nn.Conv3d: (aten.conv3d.default, aten.conv3d.padding),
}
"""What a layer of torch does with its input, weight and bias."""


def repeats_parent(module: nn.Module) -> bool:
    """Whether a derived layer does its parent's operation, with its own weight and bias, on a zero-padded input.

    The layer's forward pass is run without data, in both modes.  Only then is the output linear in input and weight, as
    the estimators of a posterior need it.  torch's own derived classes are left alone: attention reads the weight of
    its output layer without calling the layer.
    """
    parent = next((kind for kind in OPERATION_OF if isinstance(module, kind)), None)
    if parent is None or type(module) is parent or type(module).__module__.startswith("torch."):
        return False
    if module._modules or not set(module._parameters) <= {"weight", "bias"} or module.weight is None:
        return False
    try:
        return all(_repeats_in_mode(module, OPERATION_OF[parent], training) for training in (False, True))
    except Exception:  # whatever a forward of the user's own raises on an input that nobody made for it
        return False


def _repeats_in_mode(module: Any, operations: tuple[Any, ...], training: bool) -> bool:
    """Whether the forward pass does one of the operations, in training or evaluation mode."""
    # 1. A copy runs with parameters that have shapes and no values, so that no value can decide what it does.
    # 2. Every call but the last may only pad with zeros, the input first and then what the call before has made.
    # 3. The last call is the operation, on what was padded and on the very parameters of the layer; what it makes is
    #    returned as it is.  Each tensor is compared by identity: an equal one could be scaled or averaged.
    shadow = copy.copy(module)
    parameters: dict[str, Any] = {}
    for key, value in module._parameters.items():
        parameters[key] = None if value is None else value.to("meta")
    vars(shadow).update(_parameters=parameters, training=training)
    padded = torch.empty(_small_shape(module), device="meta", dtype=module.weight.dtype)
    recorder = _Calls()
    with torch.inference_mode(), recorder:
        output = type(module).forward(shadow, padded)
    if not recorder.calls:
        return False
    *earlier_calls, (operation, arguments, result) = recorder.calls
    for target, (argument, *settings), made in earlier_calls:
        if argument is not padded or not _pads_zeros(target, settings):
            return False
        padded = made
    bias = arguments[2] if len(arguments) > 2 else None
    is_on_input = arguments[0] is padded
    has_own_parameters = arguments[1] is parameters["weight"] and bias is parameters.get("bias")
    return operation in operations and is_on_input and has_own_parameters and output is result


def _pads_zeros(target: Any, settings: list[Any]) -> bool:
    if target == aten.pad.default:
        mode = settings[1] if len(settings) > 1 else "constant"
        return mode == "constant" and not (settings[2] if len(settings) > 2 else 0)
    return target == aten.constant_pad_nd.default and not (settings[1] if len(settings) > 1 else 0)


def scales_outputs(layer: nn.Module, keys: tuple[str, str]) -> bool:
    """Whether a layer's outputs are multiplied where two of its parameters are, output by output.

    Args:
        layer: A linear layer or convolution of any class; it is run on a copy, on random numbers.
        keys: Names of the two parameters; the layer need not have the second.
    """
    if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        return False
    twin: Any = copy_module(layer).double().cpu().eval()
    generator = torch.Generator().manual_seed(0)
    factors = 2.0 + torch.arange(_count_outputs(twin), dtype=torch.float64)
    x = torch.randn(_small_shape(twin), dtype=torch.float64, generator=generator)
    try:
        with torch.no_grad():
            for parameter in twin.parameters():  # which may be 0 where training starts
                parameter.normal_(generator=generator)
            before = twin(x)
            for key in keys:
                parameter = find_parameter(twin, key)
                if parameter is not None:
                    parameter.mul_(spread_over_parameter(factors, twin, key, parameter))
            along = (-1,) if isinstance(twin, nn.Linear) else (-1, *(1,) * (before.dim() - 2))
            return torch.allclose(twin(x), before * factors.view(along), rtol=1e-9, atol=1e-12)
    except Exception:  # whatever a forward of the user's own raises on an input that nobody made for it
        return False


def _count_outputs(layer: Any) -> int:
    outputs: int = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    return outputs


def _small_shape(layer: Any) -> list[int]:
    """The shape of a small input."""
    if isinstance(layer, nn.Linear):
        return [2, layer.in_features]
    extents = zip(layer.kernel_size, layer.dilation, strict=True)
    return [2, layer.in_channels, *(2 * (dilation * (size - 1) + 1) for size, dilation in extents)]


class _Calls(TorchDispatchMode):
    """Remembers the operators that run, with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, Any, Any]] = []

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = target(*args, **(kwargs or {}))
        self.calls.append((target, args, result))
        return result


class DerivedLayer(Variational):
    """What the twins of derived layers share: the forward pass of the class itself, with other weights in place."""

    plain_class: type[nn.Module]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled by the name of the plain class: the twin is made at run time, and no module has it."""
        return _make_empty, (self.plain_class,), vars(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute_output(self._run_plain_forward, x)

    def _run_plain_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # An entry of the instance's own dictionary hides the parameter of that name as long as it is there.
        attributes = vars(self)
        attributes.update(weight=weight, bias=bias)
        try:
            output: Tensor = self.plain_class.forward(self, x)
            return output
        finally:
            del attributes["weight"], attributes["bias"]


@cache
def make_twin(plain: type[nn.Module]) -> type[DerivedLayer]:
    """The variational twin of a derived layer, one for each class."""
    return type(plain.__name__, (DerivedLayer, plain), {"plain_class": plain, "__module__": __name__})


def _make_empty(plain: Any) -> DerivedLayer:
    """A twin without attributes, for pickle to fill."""
    twin = make_twin(plain)
    return twin.__new__(twin)
