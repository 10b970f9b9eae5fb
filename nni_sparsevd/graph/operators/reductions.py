"""Operators that reduce axes to one number: sums, means, extremes, norms."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..equations import Equations, TrackedTensor
from ..links import IndexIds
from .abstract_values import expand_along
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


def _reduced_ids(
    equations: Equations, node: Node, x: TrackedTensor, dims: Sequence[int] | None, keepdim: bool
) -> tuple[IndexIds | None, ...]:
    rank = len(x.shape)
    if rank == 0:
        return ()
    reduced = {dim % rank for dim in dims} if dims else set(range(rank))
    for dim in reduced:
        equations.pin(x.ids[dim], f"{operator_name(node)} over the channels")
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


def _reduce(
    node: Node, x: Tensor, dims: Sequence[int] | None, settings: tuple[Any, ...], options: dict[str, Any]
) -> Tensor:
    target: Any = node.target
    full = expand_along(node, x, *(dims or range(x.dim())))
    options = {name: None if name == "dtype" else value for name, value in options.items()}  # float64 stays float64
    value: Tensor = target(full, *settings, **options)
    return value


OPERATORS = (
    Operator((aten.mean.dim, aten.sum.dim_IntList), reduction_channels, reduction_constant),
    Operator((aten.amax.default, aten.amin.default, aten.logsumexp.default), reduction_channels, reduction_constant),
    Operator((aten.var.correction,), reduction_channels, variance_constant),
    Operator((aten.linalg_vector_norm.default,), norm_channels, norm_constant),
    Operator(
        (aten.max.dim, aten.min.dim),
        extreme_channels,
        NoRule("it also says where the extreme is, which depends on the input where the extreme does not"),
    ),
)
