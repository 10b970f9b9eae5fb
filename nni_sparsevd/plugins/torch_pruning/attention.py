"""What Torch-Pruning's examples do to attention by hand: the number of heads before, the remembered sizes after."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ModelError
from ...nn import ChannelGate
from ...settings import PosteriorSettings


@dataclass(frozen=True)
class Attention:
    """One self-attention of timm's kind: a fused projection `qkv`, and sizes written down beside it."""

    name: str
    module: Any
    heads: int
    head_dim: int


def find_attentions(model: nn.Module) -> list[Attention]:
    """All self-attentions of `model` whose heads and head dimensions can be cut."""
    found = []
    for name, module in model.named_modules():
        projection, heads = getattr(module, "qkv", None), getattr(module, "num_heads", None)
        if isinstance(projection, nn.Linear) and isinstance(heads, int):
            found.append(Attention(name, module, heads, projection.out_features // (3 * heads)))
    return found


def attach_gates_(attentions: list[Attention], posterior: PosteriorSettings) -> None:
    """One gate on each dimension of each head: on its query and its value, so that its key has no say either.

    Where queries and keys are normalised, a dimension has a say in the others; there is no gate then.
    """
    for one in attentions:
        projection = one.module.qkv
        normalised = [getattr(one.module, norm, None) for norm in ("q_norm", "k_norm", "norm")]
        if all(norm is None or isinstance(norm, nn.Identity) for norm in normalised):
            weight = projection.weight
            gate = ChannelGate(
                one.heads * one.head_dim, posterior, parts=(True, False, True), device=weight.device, dtype=weight.dtype
            )
            gate.writers = (f"{one.name}.qkv",)
            gate.attach_(projection, -1)


def update_attentions_(attentions: list[Attention], num_heads: dict[nn.Module, int]) -> list[Attention]:
    """After a cut: bring the remembered sizes up to date, and keep the temperature of the softmax.

    Attention divides by the square root of the head's dimension, which fused attention reads from the tensors.  What
    the cut changes in that is put into the queries' weights: the scores stay products of the remaining dimensions.

    Raises `ModelError` for a projection that no longer splits into queries, keys, values and heads.
    """
    updated = []
    for one in attentions:
        module = one.module
        heads = num_heads.get(module.qkv, one.heads)
        head_dim, rest = divmod(module.qkv.out_features, 3 * heads)
        if rest:
            raise ModelError(
                f"{type(module).__name__}: {module.qkv.out_features} outputs of its qkv do not make 3 x {heads} heads; "
                "pass num_heads= of every attention, or ignore it"
            )
        if head_dim != one.head_dim:
            _rescale_queries_(module, heads * head_dim, (head_dim / one.head_dim) ** 0.5)
        sizes = {
            "num_heads": heads,
            "head_dim": head_dim,
            "attn_dim": heads * head_dim,
            "all_head_dim": heads * head_dim,
        }
        for name, size in {**sizes, "scale": head_dim**-0.5}.items():
            if hasattr(module, name):
                setattr(module, name, size)
        updated.append(Attention(one.name, module, heads, head_dim))
    return updated


def _rescale_queries_(module: Any, rows: int, factor: float) -> None:
    with torch.no_grad():
        module.qkv.weight[:rows] *= factor
        if module.qkv.bias is not None:
            module.qkv.bias[:rows] *= factor
        if hasattr(module.qkv, "log_sigma2"):
            module.qkv.log_sigma2[:rows] += 2 * torch.tensor(factor).log()
