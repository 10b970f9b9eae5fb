"""Masks as data: their format, what they say of a network, and what they do to it."""

import torch
from torch import Tensor, nn

from ..errors import MaskError

Masks = dict[str, dict[str, Tensor]]
"""Masks in the format of NNI: {module name: {"weight" or "bias": tensor of 0 and 1 in the target's shape}}.

Example:
    ```python
    import nni_sparsevd as svd
    import torch
    from torch import nn

    masks: svd.Masks = {"0": {"weight": torch.eye(4)}}
    model = svd.bake_(nn.Sequential(nn.Linear(4, 4)), masks)
    assert model[0].weight.count_nonzero() == 4
    ```
"""


def validate_masks(model: nn.Module, masks: Masks, *, allow_empty: bool = False) -> None:
    """Check that every mask names a parameter, fits it, holds only 0 and 1, and keeps something.

    Args:
        model: The network.
        masks: The masks.
        allow_empty: Accept masks that remove a whole layer.

    Raises:
        MaskError: A mask does not pass. The message names its module and parameter.
    """
    modules = dict(model.named_modules())
    for name, targets in masks.items():
        if name not in modules:
            raise MaskError(f"masks: {type(model).__name__} has no module {name!r}")
        for key, mask in targets.items():
            _validate_mask(modules[name], name, key, mask, allow_empty)


def _validate_mask(module: nn.Module, name: str, key: str, mask: Tensor, allow_empty: bool) -> None:
    parameter = module._parameters.get(key)
    if parameter is None:
        raise MaskError(f"masks: {name} ({type(module).__name__}) has no parameter {key!r}")
    if mask.shape != parameter.shape:
        raise MaskError(f"masks: {name}.{key} has the shape {tuple(parameter.shape)}, its mask {tuple(mask.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise MaskError(f"masks: the mask of {name}.{key} holds other values than 0 and 1")
    if key == "weight" and not allow_empty and not mask.any():
        raise MaskError(
            f"masks: the mask of {name}.weight removes the whole layer; keep some of its weights, or pass "
            "allow_empty=True for a network whose output no longer depends on its input"
        )


def apply_masks_(model: nn.Module, masks: Masks) -> None:
    """Set what masks remove to zero, in place.

    Args:
        model: The network. What is removed becomes +0.0, never -0.0, also where it was infinite.
        masks: The masks, valid for this network.
    """
    with torch.no_grad():
        for name, targets in masks.items():
            module = model.get_submodule(name)
            for key, mask in targets.items():
                parameter = module.get_parameter(key)
                parameter.masked_fill_(mask.to(parameter.device) == 0, 0.0)


def count_weights(model: nn.Module, masks: Masks) -> tuple[int, int]:
    """Count weights: those of more than one dimension, without biases and norms; a shared weight counts once.

    Args:
        model: The network.
        masks: The masks; a weight without a mask is kept whole.

    Returns:
        How many weights the masks keep, and how many there are.
    """
    kept = total = 0
    seen: set[Tensor] = set()
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.dim() < 2 or weight in seen:
            continue
        seen.add(weight)
        total += weight.numel()
        mask = masks.get(name, {}).get("weight")
        kept += weight.numel() if mask is None else int(mask.count_nonzero())
    return kept, total


def find_holders(model: nn.Module) -> dict[Tensor, list[str]]:
    """Find the names of every parameter of a network: several where modules share it."""
    holders: dict[Tensor, list[str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(parameter, []).append(f"{name}.{key}".removeprefix("."))
    return holders


def flatten_masks(masks: Masks) -> dict[str, Tensor]:
    """Flatten masks to the form in which they are saved: {"module.target": uint8 tensor}."""
    flat: dict[str, Tensor] = {}
    for name, targets in masks.items():
        for key, mask in targets.items():
            flat[f"{name}.{key}"] = mask.to(torch.uint8)
    return flat


def unflatten_masks(tensors: dict[str, Tensor]) -> Masks:
    """Undo `flatten_masks`."""
    masks: Masks = {}
    for path, mask in tensors.items():
        name, _, key = path.rpartition(".")
        masks.setdefault(name, {})[key] = mask.float()
    return masks
