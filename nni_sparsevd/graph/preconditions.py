"""Networks that cannot be worked on, refused by name before anything is changed."""

import torch
from torch import nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.fx import GraphModule
from torch.nn.parameter import UninitializedParameter

from ..errors import ModelError
from .example_inputs import CallArguments, Inputs, as_arguments


def require_convertible(model: nn.Module) -> None:
    """Refuse a network whose layers are not PyTorch's ordinary ones any more, or not yet.

    Args:
        model: The network.

    Raises:
        ModelError: A module is quantized, prepared for quantization, exported or lazy; the message names it, and says
            what to do.
    """
    for name, module in model.named_modules():
        remedy = _find_remedy(module)
        if remedy is not None:
            what = f"{type(model).__name__} itself" if module is model else name
            raise ModelError(f"{what} ({type(module).__name__}) {remedy}")


def require_traceable(model: nn.Module, example_inputs: Inputs) -> None:
    """Refuse a network that cannot be traced and copied, or inputs that show nothing.

    Args:
        model: The network.
        example_inputs: What it is called with.

    Raises:
        ModelError: What `require_convertible` raises; or a module is a ScriptModule or a DistributedDataParallel, a
            parameter or buffer has no data, parameters are on several devices, or an input is empty or holds NaN.
    """
    require_convertible(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{name or 'the network itself'} is a ScriptModule, whose code cannot be followed: work on the module "
                "that torch.jit.script or torch.jit.trace was given, and compile the smaller network afterwards"
            )
        if isinstance(module, nn.parallel.DistributedDataParallel):
            raise ModelError(
                f"{name or 'the network itself'} is a DistributedDataParallel, which goes on to hold the parameters "
                "that it was made of: work on its `.module`, and wrap the smaller one anew"
            )
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_meta:
            raise ModelError(
                f"{name} is on the meta device and has no values: materialize the network with "
                "model.to_empty(device=...) and load its weights first"
            )
    _require_one_device(model)
    _require_full_inputs(as_arguments(example_inputs))


def _require_one_device(model: nn.Module) -> None:
    parameters = list(model.named_parameters())
    for name, value in parameters:
        first_name, first = parameters[0]
        if value.device != first.device:
            raise ModelError(
                f"{first_name} is on {first.device} and {name} is on {value.device}: move the network to one device "
                "with model.to(...) first, and spread the smaller one over several afterwards"
            )


def _require_full_inputs(arguments: CallArguments) -> None:
    for place, (name, value) in enumerate(arguments.named_tensors):
        called = f"example input {place if name.isdigit() else name}"
        if value.layout != torch.strided:
            raise ModelError(f"{called} is sparse, and what becomes of sparse tensors is not followed: pass it dense")
        if value.numel() == 0:
            raise ModelError(f"{called} has the shape {tuple(value.shape)}, which is empty: pass at least one sample")
        if value.is_floating_point() and not value.is_meta and bool(value.isnan().any()):
            raise ModelError(f"{called} holds NaN, of which no network makes a number: pass a sample without")


def require_parameters(model: nn.Module) -> None:
    """Refuse a network from which nothing could be removed.

    Args:
        model: The network.

    Raises:
        ModelError: It has neither parameters nor buffers.
    """
    if next(model.parameters(), None) is None and next(model.buffers(), None) is None:
        raise ModelError(
            f"{type(model).__name__} has no parameters, so it has no channels that could be removed; are its layers "
            "in a list or dict, where PyTorch does not find them? nn.ModuleList and nn.ModuleDict are for that"
        )


def require_numbers(model: nn.Module) -> None:
    """Refuse a network with NaN or infinite numbers in its parameters: nothing can be compared with it.

    Args:
        model: The network.

    Raises:
        ModelError: A parameter is not finite; the message names it.
    """
    for name, value in model.named_parameters():
        if not value.is_floating_point() or value.is_meta or bool(value.isfinite().all()):
            continue
        what, count = "NaN", int(value.isnan().sum())
        if not count:
            what, count = "infinite", int(value.isinf().sum())
        raise ModelError(
            f"{name} holds {count} {what} of {value.numel()} numbers, so the network's outputs mean nothing: "
            "go back to a checkpoint from before they came up"
        )


def _find_remedy(module: nn.Module) -> str | None:
    """What is the matter with a module, and what to do; None for an ordinary one."""
    home = type(module).__module__
    if isinstance(module, FakeQuantizeBase | ObserverBase) or home.startswith("torch.ao.nn.qat"):
        return (
            "is prepared for quantization, and its scales belong to the present channels: sparsify and shrink the "
            "network first, and call torch.ao.quantization.prepare or prepare_qat on the smaller one"
        )
    if home.startswith(("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized")):
        return (
            "is quantized, and its packed weights cannot be cut: sparsify and shrink the floating-point network, and "
            "quantize the smaller one"
        )
    # `torch.export.export(...).module()` refuses to change its mode; other graph modules are ordinary networks.
    if isinstance(module, GraphModule) and "train" in vars(module) and "eval" in vars(module):
        return (
            "was made by torch.export, which has written the sizes into its code: work on the network that was "
            "exported, and export the smaller one"
        )
    if any(isinstance(value, UninitializedParameter) for value in module._parameters.values()):
        return "is lazy and has no weights yet: run the network once on an example input, then call again"
    return None
