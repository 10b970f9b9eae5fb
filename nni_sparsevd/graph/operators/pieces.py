"""Operators that join tensors, or take pieces of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..links import IndexIds
from ..nodes import Node
from .abstract_values import compress, expand_along, map_tensors
from .rows import NotCovered, Operator, argument_of, operator_name, shape_of, tracked_results

aten = torch.ops.aten


# Joining: how channels pass.


def cat_channels(equations: Equations, node: Node, tensors: Sequence[TrackedTensor], dim: int = 0) -> TrackedTensor:
    """The ids of all tensors one after the other; along every other axis they have the same channels."""
    rank = len(tensors[0].shape)
    if any(len(tensor.shape) != rank for tensor in tensors):
        raise NotCovered("cat of tensors of different ranks")
    dim %= rank
    joined: list[IndexIds | None] = []
    for axis in range(rank):
        if axis == dim:
            joined.append(_concatenated_ids(equations, tensors, axis))
            continue
        ids = tensors[0].ids[axis]
        for other in tensors[1:]:
            ids = equations.equate(ids, other.ids[axis], "concatenated with something that is no channel")
        joined.append(ids)
    return TrackedTensor(shape_of(node), tuple(joined))


def _concatenated_ids(equations: Equations, tensors: Sequence[TrackedTensor], axis: int) -> IndexIds | None:
    """The ids along the axis that grows; a tensor without channels there gets ids of its own that never leave."""
    if all(tensor.ids[axis] is None for tensor in tensors):
        return None
    parts = []
    for tensor in tensors:
        ids = tensor.ids[axis]
        if ids is None:
            ids = equations.new_ids(tensor.shape[axis])
            equations.pin(ids, "concatenated with something that is no channel")
        parts.append(ids)
    return np.concatenate(parts)


def stack_channels(equations: Equations, node: Node, tensors: Sequence[TrackedTensor], dim: int = 0) -> TrackedTensor:
    """All tensors have the same channels; the new axis has none."""
    ids = list(tensors[0].ids)
    for other in tensors[1:]:
        ids = [equations.equate(a, b, "stacked on no channel") for a, b in zip(ids, other.ids, strict=True)]
    ids.insert(dim % (len(ids) + 1), None)
    return TrackedTensor(shape_of(node), tuple(ids))


# Joining: how constants pass.


def cat_constant(node: Node, tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Joined at full size along `dim`.

    Along each other axis the tensors are brought to one size: 1 if all of them are uniform there, else the full size.
    """
    sources: Any = node.args[0]
    rank = node.meta["val"].dim()
    if any(tensor.dim() != rank for tensor in tensors):
        raise NotCovered("cat of tensors of different ranks")
    sizes = [max(tensor.shape[axis] for tensor in tensors) for axis in range(rank)]
    expanded = []
    for tensor, source in zip(tensors, sources, strict=True):
        sizes[dim] = source.meta["val"].shape[dim]
        expanded.append(tensor.expand(sizes))
    return compress(torch.cat(expanded, dim))


def stack_constant(node: Node, tensors: list[Tensor], dim: int = 0) -> Tensor:
    """Stacked at the size that all of them have room in."""
    return compress(torch.stack(list(torch.broadcast_tensors(*tensors)), dim))


# Taking pieces: how channels pass.


def split_with_sizes_channels(
    equations: Equations, node: Node, x: TrackedTensor, sizes: Sequence[int], dim: int = 0
) -> list[TrackedTensor]:
    """Each piece keeps its channels; its size has to follow them."""
    pieces = _cut_along(node, x, dim)
    for place, (size, piece) in enumerate(zip(sizes, pieces, strict=True)):
        equations.record_size(node, place, size, piece.ids[dim])
    return pieces


def split_channels(equations: Equations, node: Node, x: TrackedTensor, size: int, dim: int = 0) -> list[TrackedTensor]:
    """Pieces of one size, which has to follow the channels of all pieces alike."""
    pieces = chunk_channels(equations, node, x, size, dim)
    for piece in pieces:
        if piece.shape[dim] == size:  # the last one, or the only one, may be smaller than the code says
            equations.record_size(node, 0, size, piece.ids[dim])
    return pieces


def chunk_channels(
    equations: Equations, node: Node, x: TrackedTensor, chunks: int, dim: int = 0
) -> list[TrackedTensor]:
    """Pieces of one size lose the same channels, so that they keep one size; PyTorch computes it from the axis."""
    pieces = _cut_along(node, x, dim)
    if len({piece.shape[dim] for piece in pieces}) > 1:
        equations.pin(x.ids[dim], f"{operator_name(node)} into unequal pieces")
        return pieces
    first = pieces[0].ids[dim]
    for piece in pieces[1:]:
        if first is not None:
            equations.equate(first, piece.ids[dim], "")
    return pieces


def _cut_along(node: Node, x: TrackedTensor, dim: int) -> list[TrackedTensor]:
    pieces, start = [], 0
    for value in node.meta["val"]:
        ids, stop = list(x.ids), start + value.shape[dim]
        along = ids[dim]
        ids[dim] = None if along is None else along[start:stop]
        pieces.append(TrackedTensor(tuple(value.shape), tuple(ids)))
        start = stop
    return pieces


def select_channels(
    equations: Equations, node: Node, x: TrackedTensor, *settings: Any
) -> TrackedTensor | list[TrackedTensor]:
    """One index of an axis by its number, or each one by itself, so the axis stays."""
    ids = list(x.ids)
    equations.pin(ids.pop(argument_of(node, "dim")), _at_a_fixed_place(node))
    return tracked_results(node, ids)


def slice_channels(equations: Equations, node: Node, x: TrackedTensor, *settings: Any) -> TrackedTensor:
    """Indices by their numbers, so the axis stays, unless all of it is taken."""
    shape, dim = shape_of(node), argument_of(node, "dim")
    if shape == x.shape:
        # A slice may end behind its axis, but `narrow` insists on its length, the third of its settings.
        equations.record_size(node, 2, argument_of(node, "length"), x.ids[dim])
        return x
    ids = list(x.ids)
    equations.pin(ids[dim], _at_a_fixed_place(node))
    ids[dim] = None
    return TrackedTensor(shape, tuple(ids))


def _at_a_fixed_place(node: Node) -> str:
    return f"{operator_name(node)} of the channels at a fixed place"


def triangle_channels(equations: Equations, node: Node, x: TrackedTensor, diagonal: int = 0) -> TrackedTensor:
    """A triangle of the last two axes is set to zero, by their places; the other axes keep their channels."""
    for ids in x.ids[-2:]:
        equations.pin(ids, _at_a_fixed_place(node))
    return x


# Taking pieces: how constants pass.


def triangle_constant(node: Node, x: Tensor, diagonal: int = 0) -> Tensor:
    """The operator itself at full size."""
    target: Any = node.target
    return compress(target(expand_along(node, x, -2, -1), diagonal))


def piece_constant(node: Node, x: Tensor, *settings: Any, **options: Any) -> Any:
    """The operator itself at full size along the axis that is cut; every other axis may stay as it is stored."""
    target: Any = node.target
    return map_tensors(compress, target(expand_along(node, x, argument_of(node, "dim")), *settings, **options))


OPERATORS = (
    Operator((aten.cat.default,), cat_channels, cat_constant),
    Operator((aten.stack.default,), stack_channels, stack_constant),
    Operator(
        (aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default), split_with_sizes_channels, piece_constant
    ),
    Operator((aten.split.Tensor, aten.unsafe_split.Tensor), split_channels, piece_constant),
    Operator((aten.chunk.default,), chunk_channels, piece_constant),
    Operator((aten.select.int, aten.unbind.int), select_channels, piece_constant),
    Operator((aten.slice.Tensor, aten.narrow.default), slice_channels, piece_constant),
    Operator((aten.tril.default, aten.triu.default), triangle_channels, triangle_constant),
)
