"""Operators that depend on the order of values along an axis: the largest, sorted, added up one after the other."""

from typing import Any

import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..nodes import Node
from .abstract_values import compress, expand_along, make_uniform, with_live_places
from .elementwise import convert_first
from .rows import NoRule, Operator, argument_of, operator_name, tracked_results

aten = torch.ops.aten


def ordered_channels(
    equations: Equations, node: Node, x: TrackedTensor, *settings: Any, **options: Any
) -> TrackedTensor | list[TrackedTensor]:
    """Elements along an axis in the order of their values, or their positions; the other axes keep their channels."""
    ids = list(x.ids)
    if ids:
        dim = argument_of(node, "dim")
        equations.pin(ids[dim], f"{operator_name(node)} over the channels")
        ids[dim] = None
    return tracked_results(node, ids)


def cumulative_channels(equations: Equations, node: Node, x: TrackedTensor, dim: int, **options: Any) -> TrackedTensor:
    """Elements along an axis are added up one after the other; the other axes keep their channels."""
    if x.shape:
        equations.pin(x.ids[dim], f"{operator_name(node)} over the channels")
    return x


def ordered_constant(node: Node, x: Tensor, *settings: Any, **options: Any) -> Tensor | list[Tensor]:
    """Equal values are in any order; their places are unknown."""
    dims = [argument_of(node, "dim") % x.dim()] if x.dim() else []
    return with_live_places(node, make_uniform(x, dims))


def cumulative_constant(node: Node, x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    """The operator itself at full size."""
    target: Any = node.target
    x = convert_first(node, x)
    return compress(target(expand_along(node, x, dim) if x.dim() else x, dim))


PLACES = NoRule("it says where values are, which depends on the input where the values do not")

OPERATORS = (
    Operator((aten.topk.default, aten.sort.default, aten.sort.stable), ordered_channels, ordered_constant),
    Operator((aten.argsort.default,), ordered_channels, PLACES),
    Operator((aten.cumsum.default, aten.cumprod.default), cumulative_channels, cumulative_constant),
)
