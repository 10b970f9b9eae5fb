"""What learns: variational twins of torch's layers, and the channel gate.

Both are posteriors: they have `log_sigma2`, `log_alpha`, `mask`, `kl` and `add_kl_gradient_`, and `named_posteriors`
walks over them.  In the order in which to read:

- `noise`: how a layer samples its outputs, or its weights.
- `variational`: `Variational`, what all layers with a posterior on their weights share.
- `layers`: the twins of torch's layers, and switching a layer to its twin and back; `subclasses` does it for classes
  that are derived from torch's.
- `gate`: `ChannelGate`, one posterior for each channel, multiplied into the outputs of a module.
- `output_axes`, `sites`: where outputs are in parameters, where gates are in a network.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .gate import ChannelGate, gates_on
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
    register_layer,
    share_posterior_,
    to_plain_,
    to_variational_,
)
from .noise import Operation, local_reparameterization, sample_weights
from .output_axes import find_parameter, output_dim, scaling_keys, spread_over_parameter
from .sites import (
    gate_sites,
    is_variational,
    make_plain_copy,
    scale_channels_,
    to_plain_network_,
)
from .subclasses import scales_outputs
from .variational import Variational, kl_beside_row, make_log_sigma2

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
    "find_gates",
    "find_parameter",
    "gate_sites",
    "gates_on",
    "is_convertible",
    "is_variational",
    "kl",
    "kl_beside_row",
    "local_reparameterization",
    "make_log_sigma2",
    "make_plain_copy",
    "named_posteriors",
    "output_dim",
    "register_layer",
    "regularize_",
    "sample_weights",
    "scale_channels_",
    "scales_outputs",
    "scaling_keys",
    "share_posterior_",
    "spread_over_parameter",
    "to_plain_",
    "to_plain_network_",
    "to_variational_",
]


def named_posteriors(model: nn.Module) -> Iterator[tuple[str, Variational | ChannelGate]]:
    """Walk over every posterior, each once however often the network uses it.

    Args:
        model: The network.

    Yields:
        The name of the layer or gate, and the layer or gate.  Layers that share a weight share its posterior: the first
        of them stands for all.
    """
    seen: set[Tensor] = set()
    for name, module in model.named_modules():
        # a tuple: torch.compile of torch 2.6 does not know unions of types
        if isinstance(module, (Variational, ChannelGate)) and module.log_sigma2 not in seen:
            seen.add(module.log_sigma2)
            yield name, module


def find_gates(model: nn.Module) -> list[ChannelGate]:
    """Find the gates of a network, each once, in the order of `named_posteriors`."""
    return [module for _, module in named_posteriors(model) if isinstance(module, ChannelGate)]


def kl(model: nn.Module) -> Tensor:
    """KL of all posteriors of a network from their priors.

    The training objective is mean loss + kl(model) / N with N training samples (the paper, eq. 2-3).

    Args:
        model: A variational network.

    Returns:
        A scalar with gradient, in nats.

    Raises:
        ModelError: The network has no posterior.

    Example:
        ```python
        import nni_sparsevd as svd
        import torch
        from torch import nn

        model = svd.sparsify_(nn.Linear(8, 2))
        x, y = torch.randn(16, 8), torch.randint(2, (16,))
        loss = nn.functional.cross_entropy(model(x), y) + svd.kl(model) / 60_000
        loss.backward()
        ```
    """
    return torch.stack([module.kl() for module in _posteriors(model)]).sum()


def regularize_(model: nn.Module, weight: float) -> None:
    """Add the gradient of `weight * kl(model)` to the `.grad` of the parameters.

    The same as `kl` in the loss for half of its cost: neither the value nor a graph is made.  Call it once per step,
    after the last `backward` and before the optimizer's step.  With several processes, gradients are averaged by then,
    and every process adds the same.

    Args:
        model: A variational network.
        weight: 1 / N with N training samples, or a part of it; where gradients still carry the factor of a loss scaler,
            times that factor.

    Raises:
        ModelError: The network has no posterior.

    Example:
        ```python
        import nni_sparsevd as svd
        import torch
        from torch import nn

        model = svd.sparsify_(nn.Linear(8, 2))
        x, y = torch.randn(16, 8), torch.randint(2, (16,))
        nn.functional.cross_entropy(model(x), y).backward()
        svd.regularize_(model, 1 / 60_000)
        ```
    """
    for module in _posteriors(model):
        module.add_kl_gradient_(weight)


def _posteriors(model: nn.Module) -> list[Variational | ChannelGate]:
    posteriors = [module for _, module in named_posteriors(model)]
    if not posteriors:
        raise ModelError(f"{type(model).__name__} has no posterior; call sparsify_ first")
    return posteriors
