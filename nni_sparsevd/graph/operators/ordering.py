"""Operators that depend on the order of values along an axis: the largest, sorted, added up one after the other."""

from typing import Any

import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..nodes import Node
from .abstract_values import compress, expand_along, live_like, make_uniform
from .rows import NoRule, Operator, operator_name, shape_of

aten = torch.ops.aten


def largest_channels(
    equations: Equations, node: Node, x: TrackedTensor, count: int, dim: int = -1, *settings: Any
) -> list[TrackedTensor]:
    """Some elements along an axis, ordered by value, and where they were; the other axes keep their channels."""
    return _ordered_channels(equations, node, x, dim)


def sort_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int = -1, descending: bool = False
) -> list[TrackedTensor]:
    """All elements along an axis, ordered by value, and where they were; the other axes keep their channels."""
    return _ordered_channels(equations, node, x, dim)


def stable_sort_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    *,
    stable: bool | None = None,
    dim: int = -1,
    descending: bool = False,
) -> list[TrackedTensor]:
    """As `sort`."""
    return _ordered_channels(equations, node, x, dim)


def argsort_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int = -1, descending: bool = False
) -> TrackedTensor:
    """As `sort`, without the values."""
    return _without_order(equations, node, x, shape_of(node), dim)


def cumulative_channels(equations: Equations, node: Node, x: TrackedTensor, dim: int, **options: Any) -> TrackedTensor:
    """Elements along an axis are added up one after the other; the other axes keep their channels."""
    if x.shape:
        equations.pin(x.ids[dim], f"{operator_name(node)} over the channels")
    return x


def _ordered_channels(equations: Equations, node: Node, x: TrackedTensor, dim: int) -> list[TrackedTensor]:
    return [_without_order(equations, node, x, tuple(value.shape), dim) for value in node.meta["val"]]


def _without_order(
    equations: Equations, node: Node, x: TrackedTensor, shape: tuple[int, ...], dim: int
) -> TrackedTensor:
    ids = list(x.ids)
    if ids:
        equations.pin(ids[dim], f"{operator_name(node)} over the channels")
        ids[dim] = None
    return TrackedTensor(shape, tuple(ids))


def largest_constant(node: Node, x: Tensor, count: int, dim: int = -1, *settings: Any) -> list[Tensor]:
    """Some of equal values are that value; their places are unknown."""
    return [make_uniform(x, [dim % x.dim()] if x.dim() else ()), live_like(node.meta["val"][1])]


def sort_constant(node: Node, x: Tensor, dim: int = -1, descending: bool = False) -> list[Tensor]:
    """Equal values are in any order; their places are unknown."""
    return largest_constant(node, x, 0, dim)


def stable_sort_constant(
    node: Node, x: Tensor, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> list[Tensor]:
    """As `sort`."""
    return largest_constant(node, x, 0, dim)


def cumulative_constant(node: Node, x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """The operator itself at full size."""
    target: Any = node.target
    return compress(target(expand_along(node, x, dim) if x.dim() else x, dim))


PLACES = NoRule("it says where values are, which depends on the input where the values do not")

OPERATORS = (
    Operator((aten.topk.default,), largest_channels, largest_constant),
    Operator((aten.sort.default,), sort_channels, sort_constant),
    Operator((aten.sort.stable,), stable_sort_channels, stable_sort_constant),
    Operator((aten.argsort.default,), argsort_channels, PLACES),
    Operator((aten.cumsum.default, aten.cumprod.default), cumulative_channels, cumulative_constant),
)
