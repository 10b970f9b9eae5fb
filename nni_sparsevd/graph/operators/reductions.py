"""Operators that reduce axes to one number: sums, means, extremes, norms."""

from typing import Any

import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..links import IndexIds
from ..nodes import Node
from .abstract_values import expand_along, with_live_places
from .elementwise import convert_first
from .rows import NoRule, NotCovered, Operator, argument_of, operator_name, tracked_results

aten = torch.ops.aten


def reduction_channels(
    equations: Equations, node: Node, x: TrackedTensor, *settings: Any, **options: Any
) -> TrackedTensor | list[TrackedTensor]:
    """Channels along the reduced axes are mixed; the other axes keep theirs."""
    reduced = _reduced_dims(node, len(x.shape))
    kept: list[IndexIds | None] = []
    for dim, ids in enumerate(x.ids):
        if dim not in reduced:
            kept.append(ids)
            continue
        equations.mix(node, ids, f"{operator_name(node)} over the channels")
        if argument_of(node, "keepdim"):
            kept.append(None)
    return tracked_results(node, kept)


def _reduced_dims(node: Node, rank: int) -> set[int]:
    """The dimensions of a tensor that an operator reduces: all of them where it names none."""
    dims = argument_of(node, "dim")
    named = [dims] if isinstance(dims, int) else dims
    return {dim % rank for dim in named} if named and rank else set(range(rank))


def reduction_constant(node: Node, x: Tensor, *settings: Any, **options: Any) -> Tensor | list[Tensor]:
    """The operator itself over the axes at their full size: live where anything that it reduces is live."""
    target: Any = node.target
    options.pop("dtype", None)
    result = target(_expand_reduced(node, convert_first(node, x)), *settings, **options)
    return list(result) if isinstance(result, tuple) else result


def norm_constant(node: Node, x: Tensor, order: float = 2, *settings: Any, **options: Any) -> Any:
    """As other reductions.  A norm of order 0 counts what is not 0, NaN too, and a number near 0 as any other."""
    if order == 0:
        raise NotCovered("a norm of order 0")
    return reduction_constant(node, x, order, *settings, **options)


def product_constant(node: Node, x: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """As a sum, except that zero times anything is zero."""
    full = _expand_reduced(node, convert_first(node, x))
    has_zero = (full == 0).any(dim, keepdim)
    return torch.where(has_zero, torch.zeros((), dtype=full.dtype), full.prod(dim, keepdim))


def extreme_constant(node: Node, x: Tensor, *settings: Any) -> Tensor | list[Tensor]:
    """The extreme of values that are known; its place is unknown."""
    target: Any = node.target
    values, _ = target(_expand_reduced(node, x), *settings)
    return with_live_places(node, values)


def _expand_reduced(node: Node, x: Tensor) -> Tensor:
    return expand_along(node, x, *_reduced_dims(node, x.dim()))


FLAGS = NoRule("it makes a flag, and a flag is no channel's constant; a flag that is known is computed")
PLACES = NoRule("it says where the extreme is, which depends on the input where the extreme does not")

OPERATORS = (
    Operator(
        (aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.logsumexp.default,
         aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction,
         aten.sum.default, aten.mean.default, aten.max.default, aten.min.default, aten.prod.default),
        reduction_channels, reduction_constant,
    ),
    Operator((aten.linalg_vector_norm.default,), reduction_channels, norm_constant),
    Operator((aten.prod.dim_int,), reduction_channels, product_constant),
    Operator((aten.max.dim, aten.min.dim), reduction_channels, extreme_constant),
    Operator((aten.argmax.default, aten.argmin.default), reduction_channels, PLACES),
    Operator((aten.any.dim, aten.all.dim, aten.any.default, aten.all.default), reduction_channels, FLAGS),
)  # fmt: skip
