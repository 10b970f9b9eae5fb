"""What learns: variational twins of torch's layers, and the channel gate."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .gate import ChannelGate
from .layers import (
    VARIATIONAL,
    Conv1d,
    Conv2d,
    Conv3d,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    Embedding,
    Linear,
    is_convertible,
    to_plain_,
    to_variational_,
)
from .sites import gate_sites, is_variational, make_plain_copy, scale_channels_, to_plain_network_
from .variational import Operation, Variational, local_reparameterization, make_log_sigma2, output_dim, sample_weights

__all__ = [
    "VARIATIONAL",
    "ChannelGate",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Embedding",
    "Linear",
    "Operation",
    "Variational",
    "gate_sites",
    "is_convertible",
    "is_variational",
    "kl",
    "local_reparameterization",
    "make_log_sigma2",
    "make_plain_copy",
    "named_posteriors",
    "output_dim",
    "regularize_",
    "sample_weights",
    "scale_channels_",
    "to_plain_",
    "to_plain_network_",
    "to_variational_",
]


def named_posteriors(model: nn.Module) -> Iterator[tuple[str, Variational | ChannelGate]]:
    """Every layer and gate with a posterior, by name, each once however often it is used."""
    for name, module in model.named_modules():
        if isinstance(module, Variational | ChannelGate):
            yield name, module


def kl(model: nn.Module) -> Tensor:
    """KL of all posteriors of `model` from their priors, in nats: a scalar with gradient.

    The training objective is mean loss + kl(model) / N, N training samples.  Raises `ModelError` without posteriors.
    """
    return torch.stack([module.kl() for module in _posteriors(model)]).sum()


def regularize_(model: nn.Module, weight: float) -> None:
    """Add the gradient of weight * kl(model) to what `loss.backward()` has left; `weight` is 1 / N, or a part of it.

    The same as `kl` in the loss for half of its cost: neither its value nor a graph is made.  Call it once a step,
    between the last `backward` and the optimizer; where gradients still carry a loss scaler's factor, it belongs in
    `weight`.  Processes that average their gradients have done so by then, and all add the same.  Raises `ModelError`
    without posteriors.
    """
    for module in _posteriors(model):
        module.add_kl_gradient_(weight)


def _posteriors(model: nn.Module) -> list[Variational | ChannelGate]:
    found = [module for _, module in named_posteriors(model)]
    if not found:
        raise ModelError(f"{type(model).__name__} has no posterior; call sparsify_ first")
    return found
