"""PyTorch's multi-head attention in a form that can lose heads, and dimensions of its queries, keys and values."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .names import list_modules

FREE_SIZES = ("value_head_dim", "scale")
"""Attributes that the form has and `nn.MultiheadAttention` does not."""


class ShrinkableMultiheadAttention(nn.MultiheadAttention):
    """What `nn.MultiheadAttention` computes, with the same parameters, whatever number of rows they have.

    PyTorch's own insists that there are `embed_dim` rows of queries, of keys and of values.  Here `num_heads` heads
    have `head_dim` dimensions of queries and keys, and `value_head_dim` of values, and the products of queries and keys
    are multiplied by `scale`, which stays what it was when dimensions leave.
    """

    value_head_dim: int
    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the attention; arguments and results are those of `nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal says what attn_mask is, and there is none")
        has_batch = query.dim() == 3
        batch_dim = 0 if self.batch_first or not has_batch else 1
        # One tensor that is all three stays one, so that a single product makes all projections of it.
        is_self_attention = query is key and key is value
        query = _with_batch_first(query, batch_dim)
        key, value = (query, query) if is_self_attention else (_with_batch_first(x, batch_dim) for x in (key, value))
        if is_causal and key_padding_mask is None and not need_weights:
            attn_mask = None  # as PyTorch's own does, which matters where tokens are added to the keys
        else:
            is_causal = False
        mask = self._merge_masks(query, key, attn_mask, key_padding_mask if has_batch else _unsqueeze(key_padding_mask))
        queries, keys, values = self._project(query, key, value)
        if need_weights:
            heads, weights = self._weigh(queries, keys, values, mask)
        else:
            dropout = self.dropout if self.training else 0.0
            heads = F.scaled_dot_product_attention(queries, keys, values, mask, dropout, is_causal, scale=self.scale)
            weights = None
        output = F.linear(heads.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not has_batch:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if batch_dim == 0 else output.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Queries, keys and values of each head, shape (batch, heads, tokens, dimensions)."""
        sizes = [self.num_heads * self.head_dim, self.num_heads * self.head_dim, self.num_heads * self.value_head_dim]
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.split(sizes)
        # 1. Inputs of different sizes have a weight each.
        # 2. Self-attention makes all three projections in one product, which is faster.
        # 3. Else the rows of the one weight are those of the queries, the keys and the values, in this order.
        if self.in_proj_weight is None:  # 1
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            parts = [F.linear(*part) for part in zip((query, key, value), weights, biases, strict=True)]
        elif query is key and key is value:  # 2
            parts = list(F.linear(query, self.in_proj_weight, self.in_proj_bias).split(sizes, -1))
        else:  # 3
            weights = self.in_proj_weight.split(sizes)
            parts = [F.linear(*part) for part in zip((query, key, value), weights, biases, strict=True)]
        if self.bias_k is not None and self.bias_v is not None:
            for place, token in ((1, self.bias_k), (2, self.bias_v)):
                parts[place] = torch.cat([parts[place], token.expand(len(query), -1, -1)], 1)
        heads = []
        for part, dimensions in zip(parts, (self.head_dim, self.head_dim, self.value_head_dim), strict=True):
            split = part.unflatten(-1, (self.num_heads, dimensions)).transpose(1, 2)
            if self.add_zero_attn and part is not parts[0]:  # keys and values, not queries
                split = torch.cat([split, split.new_zeros(len(query), self.num_heads, 1, dimensions)], 2)
            heads.append(split)
        return heads

    def _merge_masks(
        self, query: Tensor, key: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None
    ) -> Tensor | None:
        """One mask to be added to the scores, shape (batch or 1, heads or 1, tokens or 1, tokens of the keys)."""
        more = (self.bias_k is not None) + self.add_zero_attn
        mask = None
        if attn_mask is not None:
            mask = F.pad(_as_numbers(attn_mask, query), (0, more))
            by_head = mask.dim() == 3
            mask = mask.view(len(query), self.num_heads, *mask.shape[1:]) if by_head else mask[None, None]
        if key_padding_mask is not None:
            padding = F.pad(_as_numbers(key_padding_mask, query), (0, more))[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask

    def _weigh(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each head makes, and its weights, which `scaled_dot_product_attention` does not tell."""
        scores = (query * self.scale) @ key.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        weights = F.dropout(weights, self.dropout, self.training)
        return weights @ value, weights


def _with_batch_first(x: Tensor, batch_dim: int) -> Tensor:
    if x.dim() == 2:
        return x.unsqueeze(0)
    return x if batch_dim == 0 else x.transpose(0, 1)


def _unsqueeze(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.unsqueeze(0)


def _as_numbers(mask: Tensor, like: Tensor) -> Tensor:
    """A mask of flags as numbers to be added: minus infinity where attention is not allowed."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def free_attentions_(model: nn.Module, names: Iterable[str] | None = None) -> list[nn.MultiheadAttention]:
    """Give PyTorch's attentions the form that can lose heads and dimensions, in place.

    Args:
        model: The network.
        names: Names of the modules, None for all of PyTorch's own class.

    Returns:
        The modules whose class was changed.
    """
    modules = dict(list_modules(model))
    freed: list[nn.MultiheadAttention] = []
    for name in modules if names is None else names:
        attention = modules[name]
        if type(attention) is not nn.MultiheadAttention:
            continue
        attention.__class__ = ShrinkableMultiheadAttention
        attention.value_head_dim, attention.scale = attention.head_dim, float(attention.head_dim) ** -0.5
        # PyTorch's encoder layers otherwise hand the weights to a kernel that knows but the full size.
        attention._qkv_same_embed_dim = False
        freed.append(attention)
    for encoder in modules.values():
        if isinstance(encoder, nn.TransformerEncoder) and any(module in freed for module in encoder.modules()):
            encoder.use_nested_tensor = False
    return freed


def bind_attentions_(attentions: Iterable[nn.MultiheadAttention]) -> None:
    """Undo `free_attentions_` for attentions that have lost nothing."""
    for attention in attentions:
        attention.__class__ = nn.MultiheadAttention
        attention._qkv_same_embed_dim = attention.in_proj_weight is not None
        for name in FREE_SIZES:
            delattr(attention, name)
