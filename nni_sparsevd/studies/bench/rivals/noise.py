"""Noise that a network trains with (Kingma, Salimans and Welling 2015): on its weights, or on what its layers read."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..arena import Batch, Loss


def noisy_weights(alpha: float) -> Loss:
    """Cross entropy of a network whose weights, not its biases, are noisy: w (1 + sqrt(alpha) epsilon)."""

    def loss(batch: Batch, model: nn.Module) -> Tensor:
        noisy = {
            name: _noisy(weight, alpha) if weight.dim() > 1 else weight for name, weight in model.named_parameters()
        }
        return F.cross_entropy(functional_call(model, noisy, (batch[0],)), batch[1])

    return loss


def gaussian_dropout(alpha: float, loss: Loss) -> Loss:
    """`loss` of a network whose linear and convolution layers read x (1 + sqrt(alpha) epsilon) instead of x."""

    def noise(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_noisy(inputs[0], alpha), *inputs[1:])

    def noisy(batch: Batch, model: nn.Module) -> Tensor:
        layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
        hooks = [layer.register_forward_pre_hook(noise) for layer in layers]
        try:
            return loss(batch, model)
        finally:
            for hook in hooks:
                hook.remove()

    return noisy


def _noisy(value: Tensor, alpha: float) -> Tensor:
    return value * (1 + math.sqrt(alpha) * torch.randn_like(value))
