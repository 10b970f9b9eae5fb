"""Networks whose comparison means something: no branch is hidden behind zeros, and values stay of moderate size."""

from typing import Any

import torch
from torch import Tensor, nn

from ..graph import Inputs, as_arguments


def randomize_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw norms, biases and layer scales at random, in place.

    Fresh networks hide mistakes: timm's start with zeros in their last norms and layer scales, so that whole branches
    do not matter. Weights that are not all zero stay as they are.

    Args:
        model: Any network.
        seed: Seed of the random numbers.

    Returns:
        `model`.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for name, tensor in module.named_parameters(recurse=False):
                _randomize_parameter_(name, tensor, generator)
            for name, buffer in module.named_buffers(recurse=False):
                if name == "running_var":
                    buffer.uniform_(0.5, 1.5, generator=generator)
                elif name == "running_mean":
                    buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
    return model


def _randomize_parameter_(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    if not tensor.is_floating_point():
        return
    holds_one_number_per_channel = sum(size > 1 for size in tensor.shape) <= 1
    if holds_one_number_per_channel:
        center = 1.0 if name in ("weight", "gamma") else 0.0
        tensor.copy_(center + 0.3 * torch.randn(tensor.shape, generator=generator))
    elif not tensor.any():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))


def draw_like(value: Tensor, generator: torch.Generator) -> Tensor:
    """Draw random numbers in the shape, type and device of an input.

    Args:
        value: The input.
        generator: Where the numbers come from.

    Returns:
        Normal numbers; whole numbers and flags are those of the input.
    """
    if not value.is_floating_point():
        return value
    return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value)


def settle_(model: nn.Module, example_inputs: Inputs, seed: int = 0) -> nn.Module:
    """Set the statistics of batch norms to those of random inputs, disturbed at random, in place.

    With statistics that have nothing to do with what arrives, values grow from layer to layer, up to 1e11 in timm's
    inception_v3, and rounding errors grow with them: float32 alone is then wrong by more than the difference that a
    test looks for.

    Args:
        model: Any network.
        example_inputs: What the network is called with; random inputs have the shapes, types and devices of these.
        seed: Seed of the random numbers.

    Returns:
        `model`.
    """
    generator = torch.Generator().manual_seed(seed)

    def set_statistics(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0].detach().transpose(0, 1).flatten(1)
        size = x.square().mean(1).sqrt() + 1e-3
        disturbance = 0.3 * torch.randn(2, len(size), generator=generator).to(x)
        norm.running_mean.copy_(x.mean(1) + disturbance[0] * size)
        norm.running_var.copy_((size * (1 + disturbance[1]).clamp_min(0.3)).square())

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(set_statistics) for norm in norms if norm.running_mean is not None]
    try:
        with torch.no_grad():
            as_arguments(example_inputs).map_tensors(lambda value: draw_like(value, generator)).call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return model
