"""Products of two computed tensors: matrix products and attention."""

from typing import Any

import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..links import IndexIds
from ..nodes import Node
from ..scales import AttentionScale, find_query_rows
from .abstract_values import LIVE, expand_along, keep_zeros, make_uniform
from .elementwise import broadcast_axis
from .rows import NotCovered, Operator, argument_of, operator_name, shape_of

aten = torch.ops.aten
PRODUCTS = (aten.matmul.default, aten.bmm.default, aten.mm.default)
"""Products of two tensors, of which the second may be a weight that no layer of PyTorch's uses."""
ATTENTION = aten.scaled_dot_product_attention.default


def matmul_channels(equations: Equations, node: Node, x: TrackedTensor, y: TrackedTensor) -> TrackedTensor:
    """The last axis of the one and the second-last of the other are contracted; the rest is kept."""
    if len(x.shape) < 2 or len(y.shape) < 2:
        raise NotCovered("matmul with a vector")
    shape = shape_of(node)
    equations.contract(node, x, y, (-1, -2), "matmul with something that is no channel")
    batch = [broadcast_axis(equations, x, y, dim - len(shape), "matmul") for dim in range(len(shape) - 2)]
    return TrackedTensor(shape, (*batch, x.ids[-2], y.ids[-1]))


def attention_channels(
    equations: Equations,
    node: Node,
    query: TrackedTensor,
    key: TrackedTensor,
    value: TrackedTensor,
    attn_mask: TrackedTensor | None = None,
    *settings: Any,
    **options: Any,
) -> TrackedTensor:
    """Dimensions of queries and keys are contracted, those of the values are kept, head by head."""
    # 1. Attention divides by the root of the number of dimensions, unless the code gives a scale.  When dimensions
    #    leave, the rows that write the queries are multiplied to make up for that; where more than one layer writes the
    #    queries, there are no such rows, and the dimensions stay.
    # 2. Tokens are no channels: softmax runs over those of the keys.
    # 3. Scores share the heads of queries, keys, values and mask; whichever of them knows the heads names them.
    if argument_of(node, "enable_gqa") and query.shape[-3] != key.shape[-3]:
        raise NotCovered("attention with shared keys")
    shape = shape_of(node)
    equations.contract(node, query, key, (-1, -1), "attention with something that is no channel")
    dimensions = query.ids[-1]
    if argument_of(node, "scale") is None and dimensions is not None:
        _record_scale(equations, node, dimensions)
    for tokens in (query.ids[-2], key.ids[-2], value.ids[-2]):
        equations.pin(tokens, "attention over the channels")
    scores = TrackedTensor((*shape[:-1], key.shape[-2]), (None,) * len(shape))
    for side in (query, key, value):
        heads = TrackedTensor((*side.shape[:-2], 1, 1), (*side.ids[:-2], None, None))
        scores = _joined_scores(equations, scores, heads)
    if attn_mask is not None:
        scores = _joined_scores(equations, scores, attn_mask)
    # 4. A mask that is made of a parameter, as a table of positions is, knows its tokens: they are no channels either.
    for tokens in scores.ids[-2:]:
        equations.pin(tokens, "attention over the channels")
    return TrackedTensor(shape, (*scores.ids[:-1], value.ids[-1]))


def _record_scale(equations: Equations, node: Node, dimensions: IndexIds) -> None:
    query: Any = node.args[0]
    written = find_query_rows(query)
    if written is None:
        reason = "attention is scaled by the number of dimensions, and more than a layer writes its queries"
        equations.pin(dimensions, reason)
    else:
        equations.scales.append(AttentionScale(node.meta["module"], *written, dimensions))


def _joined_scores(equations: Equations, scores: TrackedTensor, other: TrackedTensor) -> TrackedTensor:
    """Attention scores and something that is broadcast to them: an axis that one side alone knows is that side's."""
    joined = list(scores.ids)
    for dim in range(-len(other.shape), 0):
        ids = other.ids[dim]
        if ids is None:
            continue
        if other.shape[dim] == 1:
            equations.pin(ids, "broadcast axis")
        elif joined[dim] is None:
            joined[dim] = ids
        else:
            joined[dim] = equations.equate(joined[dim], ids, "")
    return TrackedTensor(scores.shape, tuple(joined))


def softmax_channels(equations: Equations, node: Node, x: TrackedTensor, dim: int, *settings: Any) -> TrackedTensor:
    """Every index of the axis takes part in the sum, so all of them stay."""
    equations.pin(x.ids[dim] if x.shape else None, "softmax over the channels")
    return x


def matmul_constant(node: Node, x: Tensor, y: Tensor) -> Tensor:
    """A sum of products is live where a live factor meets one that is not zero."""
    if x.dim() < 2 or y.dim() < 2:
        raise NotCovered("matmul with a vector")
    x, y = expand_along(node, x, -1).double(), expand_along(node, y, -2, argument=1).double()
    x_used, y_used = (x != 0).double(), (y != 0).double()
    live = x.isnan().double() @ y_used + x_used @ y.isnan().double()
    return (x.nan_to_num() @ y.nan_to_num()).masked_fill(live > 0, LIVE)


def attention_constant(
    node: Node,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *settings: Any,
    **options: Any,
) -> Tensor:
    """An average over the tokens: of equal values that value.

    A mask may leave a token nothing, which gives zero, and with dropout the weights no longer add up to 1.
    """
    if argument_of(node, "enable_gqa"):
        raise NotCovered("attention with shared keys")
    value = make_uniform(value, [value.dim() - 2])
    return value if attn_mask is None and not argument_of(node, "dropout_p") else keep_zeros(value)


def softmax_constant(node: Node, x: Tensor, dim: int, *settings: Any, **options: Any) -> Tensor:
    """Each value is divided by a sum over its row, so one that depends on the input makes the whole row do so."""
    if not x.dim():
        raise NotCovered("softmax of a single number")
    row = expand_along(node, x, dim).double()
    return row.log_softmax(dim) if "log" in operator_name(node) else row.softmax(dim)


OPERATORS = (
    Operator(PRODUCTS, matmul_channels, matmul_constant),
    Operator((ATTENTION,), attention_channels, attention_constant),
    Operator((aten.softmax.int, aten._softmax.default, aten.log_softmax.int), softmax_channels, softmax_constant),
)
