"""Noise to train with (Kingma, Salimans and Welling 2015): on the weights, or on what the layers read."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..arena import Batch, Loss


def noisy_weights(alpha: float) -> Loss:
    """Cross entropy of a network whose weights w are w (1 + sqrt(alpha) epsilon); biases have no noise."""

    def loss(batch: Batch, model: nn.Module) -> Tensor:
        values: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            values[name] = _add_noise(parameter, alpha) if parameter.dim() > 1 else parameter
        return F.cross_entropy(functional_call(model, values, (batch[0],)).float(), batch[1])

    return loss


def gaussian_dropout(alpha: float, loss: Loss) -> Loss:
    """`loss` of a network whose linear and convolution layers read x (1 + sqrt(alpha) epsilon) instead of x."""

    def add_noise_to_input(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_add_noise(inputs[0], alpha), *inputs[1:])

    def loss_with_dropout(batch: Batch, model: nn.Module) -> Tensor:
        layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
        hooks = [layer.register_forward_pre_hook(add_noise_to_input) for layer in layers]
        try:
            return loss(batch, model)
        finally:
            for hook in hooks:
                hook.remove()

    return loss_with_dropout


def _add_noise(value: Tensor, alpha: float) -> Tensor:
    return value * (1 + math.sqrt(alpha) * torch.randn_like(value))
