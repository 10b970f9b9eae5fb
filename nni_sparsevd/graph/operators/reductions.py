"""Operators that reduce axes to one number: sums, means, extremes, norms."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..links import IndexIds
from ..nodes import Node
from .abstract_values import expand_along, live_like
from .rows import NoRule, Operator, operator_name, shape_of

aten = torch.ops.aten


# How channels pass.


def reduction_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    dims: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
    correction: Any = None,
) -> TrackedTensor:
    """Axes that are summed over stay as they are, the others keep their channels.  No axis named means all axes."""
    return TrackedTensor(shape_of(node), _reduced_ids(equations, node, x, dims, keepdim))


def norm_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    order: float = 2,
    dims: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> TrackedTensor:
    """As a sum."""
    return reduction_channels(equations, node, x, dims, keepdim)


def extreme_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int, keepdim: bool = False
) -> list[TrackedTensor]:
    """The largest or smallest values along one axis, and where they were."""
    ids = _reduced_ids(equations, node, x, [dim], keepdim)
    return [TrackedTensor(tuple(value.shape), ids) for value in node.meta["val"]]


def index_of_extreme_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int | None = None, keepdim: bool = False
) -> TrackedTensor:
    """Where the largest or smallest value along an axis is."""
    dims = None if dim is None else [dim]
    return TrackedTensor(shape_of(node), _reduced_ids(equations, node, x, dims, keepdim))


def one_axis_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int, keepdim: bool = False, *, dtype: Any = None
) -> TrackedTensor:
    """As a sum along one axis."""
    return TrackedTensor(shape_of(node), _reduced_ids(equations, node, x, [dim], keepdim))


def all_axes_channels(equations: Equations, node: Node, x: TrackedTensor, *, dtype: Any = None) -> TrackedTensor:
    """As a sum over all axes."""
    return TrackedTensor((), _reduced_ids(equations, node, x, None, False))


def pair_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    dims: Sequence[int] | None = None,
    *,
    correction: Any = None,
    keepdim: bool = False,
) -> list[TrackedTensor]:
    """Two results of one reduction: the variance and the mean."""
    ids = _reduced_ids(equations, node, x, dims, keepdim)
    return [TrackedTensor(tuple(value.shape), ids) for value in node.meta["val"]]


def _reduced_ids(
    equations: Equations, node: Node, x: TrackedTensor, dims: Sequence[int] | None, keepdim: bool
) -> tuple[IndexIds | None, ...]:
    rank = len(x.shape)
    if rank == 0:
        return ()
    reduced = {dim % rank for dim in dims} if dims else set(range(rank))
    for dim in reduced:
        equations.mix(node, x.ids[dim], f"{operator_name(node)} over the channels")
    kept: list[IndexIds | None] = []
    for dim, ids in enumerate(x.ids):
        if dim not in reduced:
            kept.append(ids)
        elif keepdim:
            kept.append(None)
    return tuple(kept)


# How constants pass.


def reduction_constant(
    node: Node, x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False, **options: Any
) -> Tensor:
    """The operator itself over the axes at their full size: live where anything that it sums is live."""
    return _reduce(node, x, dims, (dims, keepdim), options)


def norm_constant(
    node: Node,
    x: Tensor,
    order: float = 2,
    dims: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: Any = None,
) -> Tensor:
    """As a sum."""
    return _reduce(node, x, dims, (order, dims, keepdim), {})


def variance_constant(
    node: Node,
    x: Tensor,
    dims: Sequence[int] | None = None,
    *,
    correction: Any = None,
    keepdim: bool = False,
) -> Tensor:
    """As a sum."""
    return _reduce(node, x, dims, (dims,), {"correction": correction, "keepdim": keepdim})


def pair_constant(
    node: Node,
    x: Tensor,
    dims: Sequence[int] | None = None,
    *,
    correction: Any = None,
    keepdim: bool = False,
) -> list[Tensor]:
    """As a sum, twice."""
    target: Any = node.target
    full = expand_along(node, x, *(dims or range(x.dim())))
    return list(target(full, dims, correction=correction, keepdim=keepdim))


def extreme_constant(node: Node, x: Tensor, dim: int, keepdim: bool = False) -> list[Tensor]:
    """The extreme of values that are known; its place is unknown."""
    reduce = torch.amax if node.target == aten.max.dim else torch.amin
    return [reduce(expand_along(node, x, dim), dim, keepdim), live_like(node.meta["val"][1])]


def one_axis_constant(node: Node, x: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """As a sum along one axis; a product with a factor of zero is zero."""
    full = expand_along(node, x, dim)
    has_zero = (full == 0).any(dim, keepdim)
    return torch.where(has_zero, torch.zeros((), dtype=full.dtype), full.prod(dim, keepdim))


def all_axes_constant(node: Node, x: Tensor, *, dtype: Any = None) -> Tensor:
    """As a sum over all axes."""
    target: Any = node.target
    value: Tensor = target(expand_along(node, x, *range(x.dim())))
    return value


def _reduce(
    node: Node, x: Tensor, dims: Sequence[int] | None, settings: tuple[Any, ...], options: dict[str, Any]
) -> Tensor:
    target: Any = node.target
    full = expand_along(node, x, *(dims or range(x.dim())))
    options = {name: None if name == "dtype" else value for name, value in options.items()}  # float64 stays float64
    value: Tensor = target(full, *settings, **options)
    return value


FLAGS = NoRule("it makes a flag, and a flag is no channel's constant; a flag that is known is computed")
PLACES = NoRule("it says where the extreme is, which depends on the input where the extreme does not")

OPERATORS = (
    Operator((aten.mean.dim, aten.sum.dim_IntList), reduction_channels, reduction_constant),
    Operator((aten.amax.default, aten.amin.default, aten.logsumexp.default), reduction_channels, reduction_constant),
    Operator((aten.var.correction, aten.std.correction), reduction_channels, variance_constant),
    Operator((aten.var_mean.correction, aten.std_mean.correction), pair_channels, pair_constant),
    Operator((aten.linalg_vector_norm.default,), norm_channels, norm_constant),
    Operator((aten.prod.dim_int,), one_axis_channels, one_axis_constant),
    Operator(
        (aten.sum.default, aten.mean.default, aten.max.default, aten.min.default, aten.prod.default),
        all_axes_channels,
        all_axes_constant,
    ),
    Operator((aten.max.dim, aten.min.dim), extreme_channels, extreme_constant),
    Operator((aten.argmax.default, aten.argmin.default), index_of_extreme_channels, PLACES),
    Operator((aten.any.dim, aten.all.dim), one_axis_channels, FLAGS),
    Operator((aten.any.default, aten.all.default), all_axes_channels, FLAGS),
)
