"""What Torch-Pruning's examples do to attention by hand: the number of heads before, the remembered sizes after."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ...nn import ChannelGate, Variational, gates_on
from ...settings import PosteriorSettings

NORMS = ("q_norm", "k_norm", "norm")
"""Attributes of timm's attention that hold a norm of queries, of keys, or of the outputs, or an `Identity`."""


@dataclass(frozen=True)
class Attention:
    """A self-attention of timm's kind: a fused projection `qkv`, and sizes written down beside it."""

    name: str
    module: Any
    heads: int
    head_dim: int
    """Dimensions of each head."""


def find_attentions(model: nn.Module) -> list[Attention]:
    """All self-attentions of `model` whose heads and head dimensions can be cut."""
    attentions = []
    for name, module in model.named_modules():
        projection, heads = getattr(module, "qkv", None), getattr(module, "num_heads", None)
        if isinstance(projection, nn.Linear) and isinstance(heads, int):
            attentions.append(Attention(name, module, heads, projection.out_features // (3 * heads)))
    return attentions


def attach_gates_(attentions: list[Attention], posterior: PosteriorSettings) -> None:
    """Put a gate on each dimension of each head: on query and value, so that the key has no say either.

    An attention with a norm gets no gate: a normalized dimension has a say in all others. The gates of `sparsify_` on
    whole heads, and on a dimension of all heads, leave: Torch-Pruning cuts a dimension of each head by itself.
    """
    for attention in attentions:
        projection = attention.module.qkv
        for gate in list(gates_on(projection)):
            gate.detach_(projection)
        if _has_norm(attention.module):
            continue
        weight = projection.weight
        channels = torch.arange(attention.heads * attention.head_dim)
        gate = ChannelGate(len(channels), posterior, device=weight.device, dtype=weight.dtype)
        gate.writers = (f"{attention.name}.qkv",)
        places = torch.cat([channels, torch.full_like(channels, -1), channels])  # queries, keys, values
        gate.attach_(projection, -1, places)


def update_attentions_(attentions: list[Attention], num_heads: dict[nn.Module, int]) -> list[Attention]:
    """After a cut: bring the remembered sizes up to date, and keep the temperature of the softmax.

    Attention divides the scores by the square root of the heads' dimension, which fused attention reads from the
    tensors. What the cut changes in this factor goes into the weights of the queries, so that the scores stay sums over
    the remaining dimensions.

    Args:
        attentions: The attentions, with their sizes before the cut.
        num_heads: Projection `qkv` -> heads that are left; a projection that is missing has kept its heads.

    Returns:
        The attentions, with their sizes after the cut.

    Raises:
        ModelError: The outputs of a projection do not split into queries, keys, values and heads any more.
    """
    updated = []
    for attention in attentions:
        module = attention.module
        heads = num_heads.get(module.qkv, attention.heads)
        head_dim, remainder = divmod(module.qkv.out_features, 3 * heads)
        if remainder:
            raise ModelError(
                f"{attention.name} ({type(module).__name__}): {module.qkv.out_features} outputs of its qkv do not make "
                f"3 x {heads} heads; pass num_heads= of every attention, or ignore it"
            )
        if head_dim != attention.head_dim:
            _rescale_queries_(module, heads * head_dim, (head_dim / attention.head_dim) ** 0.5)
        _write_sizes_(module, heads, head_dim)
        updated.append(Attention(attention.name, module, heads, head_dim))
    return updated


def _has_norm(module: Any) -> bool:
    norms = [getattr(module, name, None) for name in NORMS]
    return any(norm is not None and not isinstance(norm, nn.Identity) for norm in norms)


def _write_sizes_(module: Any, heads: int, head_dim: int) -> None:
    """Set the sizes that the module remembers; which of them it has depends on its class."""
    sizes = {
        "num_heads": heads,
        "head_dim": head_dim,
        "attn_dim": heads * head_dim,
        "all_head_dim": heads * head_dim,
        "scale": head_dim**-0.5,
    }
    for name, size in sizes.items():
        if hasattr(module, name):
            setattr(module, name, size)


def _rescale_queries_(module: Any, rows: int, factor: float) -> None:
    """Multiply weights, biases and standard deviations of the queries, the first `rows` outputs of qkv."""
    with torch.no_grad():
        module.qkv.weight[:rows] *= factor
        if module.qkv.bias is not None:
            module.qkv.bias[:rows] *= factor
        if isinstance(module.qkv, Variational):  # sigma is scaled as theta is, so that log alpha stays
            module.qkv.log_sigma2[:rows] += 2 * torch.tensor(factor).log()
