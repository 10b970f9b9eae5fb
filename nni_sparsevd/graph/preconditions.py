"""Networks that cannot be worked on, refused by name before anything is changed."""

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase
from torch.fx import GraphModule
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves

from ..errors import ModelError


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


def require_traceable(model: nn.Module, example_inputs: object) -> None:
    """Refuse a network that cannot be traced and copied, or inputs that show nothing.

    Args:
        model: The network.
        example_inputs: Its inputs, tensors in any nesting.

    Raises:
        ModelError: What `require_convertible` raises; or a module is a ScriptModule, a parameter or buffer has no data,
            or an input is empty.
    """
    require_convertible(model)
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{name or 'the network itself'} is a ScriptModule, whose code cannot be followed: work on the module "
                "that torch.jit.script or torch.jit.trace was given, and compile the smaller network afterwards"
            )
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_meta:
            raise ModelError(
                f"{name} is on the meta device and has no values: materialize the network with "
                "model.to_empty(device=...) and load its weights first"
            )
    for place, value in enumerate(tree_leaves(example_inputs)):
        if isinstance(value, Tensor) and value.numel() == 0:
            raise ModelError(
                f"example input {place} has the shape {tuple(value.shape)}, which is empty: pass at least one sample"
            )


def require_numbers(model: nn.Module) -> None:
    """Refuse a network with NaN in its parameters: nothing can be compared with it.

    Args:
        model: The network.

    Raises:
        ModelError: A parameter holds NaN; the message names it.
    """
    for name, value in model.named_parameters():
        if value.is_floating_point() and bool(value.isnan().any()):
            count = int(value.isnan().sum())
            raise ModelError(
                f"{name} holds {count} NaN of {value.numel()} numbers, so the network's outputs mean nothing: "
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
