"""Operators that make a tensor of one number, or write over one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..nodes import Node
from .elementwise import broadcast_channels, elementwise_channels
from .rows import NoRule, Operator, shape_of

aten = torch.ops.aten


# How channels pass.


def factory_channels(equations: Equations, node: Node, *arguments: Any, **options: Any) -> TrackedTensor:
    """A tensor of one number may lose any of its indices, if the size that the code gives can follow."""
    # The state that a recurrent layer starts from is such a tensor of zeros: its hidden units are channels there, too.
    shape = shape_of(node)
    ids = tuple(equations.new_ids(size) if size > 1 else None for size in shape)
    for place, size in enumerate(shape):
        equations.record_size(node, place, size, ids[place])
    return TrackedTensor(shape, ids)


def overwrite_channels(
    equations: Equations, node: Node, x: TrackedTensor, source: TrackedTensor, non_blocking: bool = False
) -> TrackedTensor:
    """Every element is written over by that of another tensor, after broadcasting."""
    return broadcast_channels(equations, node, x, source)


# How constants pass.


def zeros_constant(node: Node, *arguments: Any, **options: Any) -> Tensor:
    """Zero everywhere."""
    return _uniform(node, 0)


def ones_constant(node: Node, *arguments: Any, **options: Any) -> Tensor:
    """One everywhere."""
    return _uniform(node, 1)


def full_constant(node: Node, shape: Any, value: Any, **options: Any) -> Tensor:
    """One number everywhere, where the shape is that of a tensor or a list of sizes."""
    return _uniform(node, value)


def new_full_constant(node: Node, like: Tensor, sizes: Sequence[int], value: Any, **options: Any) -> Tensor:
    """One number everywhere."""
    return _uniform(node, value)


def overwrite_constant(node: Node, x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What is written, whatever was there."""
    kind = node.meta["val"].dtype
    written = source.double() if kind.is_floating_point else source.to(kind)
    return written.reshape((*(1,) * (x.dim() - source.dim()), *source.shape))


def _uniform(node: Node, value: Any) -> Tensor:
    like = node.meta["val"]
    kind = torch.float64 if like.dtype.is_floating_point else like.dtype
    return torch.full([1] * like.dim(), value, dtype=kind)


UNSET = NoRule("its memory is not set, so nothing is known of its values until they are written over")

TABLES = NoRule(
    "it makes a table by the places in it, or at random, of a size that the code gives: no channel enters it"
)
VALUES = NoRule("it makes a size, a Python number or positions of values, so the control flow depends on the values")

OPERATORS = (
    Operator(
        (aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default, aten.eye.default,
         aten.eye.m, aten.scalar_tensor.default, aten.rand.default, aten.randn.default, aten.randint.default,
         aten.randint.low, aten.randperm.default, aten.tril_indices.default, aten.triu_indices.default),
        TABLES, TABLES,
    ),
    Operator(
        (aten.nonzero.default, aten._unique2.default, aten._local_scalar_dense.default, aten.masked_select.default),
        VALUES, VALUES,
    ),
    Operator((aten.zeros.default, aten.new_zeros.default), factory_channels, zeros_constant),
    Operator((aten.ones.default, aten.new_ones.default), factory_channels, ones_constant),
    Operator((aten.full.default,), factory_channels, full_constant),
    Operator((aten.new_full.default,), factory_channels, new_full_constant),
    Operator((aten.empty.memory_format, aten.new_empty.default), factory_channels, UNSET),
    Operator((aten.zeros_like.default, aten.zero.default), elementwise_channels, zeros_constant),
    Operator((aten.ones_like.default,), elementwise_channels, ones_constant),
    Operator((aten.full_like.default, aten.fill.Scalar), elementwise_channels, full_constant),
    Operator((aten.fill.Tensor,), elementwise_channels, NoRule("its one number comes from another tensor")),
    Operator((aten.empty_like.default,), elementwise_channels, UNSET),
    Operator((aten.copy.default,), overwrite_channels, overwrite_constant),
)  # fmt: skip
