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
from .rows import NotCovered, Operator, operator_name, shape_of

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
    return _cut_along(equations, node, x, dict(enumerate(sizes)), dim)


def split_channels(equations: Equations, node: Node, x: TrackedTensor, size: int, dim: int = 0) -> list[TrackedTensor]:
    """Pieces of one size, which has to follow the channels of all pieces alike."""
    return _equal_pieces(equations, node, x, size, dim)


def chunk_channels(
    equations: Equations, node: Node, x: TrackedTensor, chunks: int, dim: int = 0
) -> list[TrackedTensor]:
    """A number of pieces of one size; what that is follows of itself."""
    return _equal_pieces(equations, node, x, None, dim)


def _equal_pieces(
    equations: Equations, node: Node, x: TrackedTensor, size: int | None, dim: int
) -> list[TrackedTensor]:
    """Pieces of one size lose the same channels, so that they stay of one size."""
    pieces = _cut_along(equations, node, x, {}, dim)
    if size is not None:
        for piece in pieces:
            equations.record_size(node, 0, piece.shape[dim], piece.ids[dim])
    if len({piece.shape[dim] for piece in pieces}) > 1:
        equations.pin(x.ids[dim], f"{operator_name(node)} into unequal pieces")
        return pieces
    first = pieces[0].ids[dim]
    for piece in pieces[1:]:
        if first is not None:
            equations.equate(first, piece.ids[dim], "")
    return pieces


def _cut_along(
    equations: Equations, node: Node, x: TrackedTensor, sizes_in_code: dict[int, int], dim: int
) -> list[TrackedTensor]:
    pieces, start = [], 0
    for place, value in enumerate(node.meta["val"]):
        ids, stop = list(x.ids), start + value.shape[dim]
        along = ids[dim]
        ids[dim] = None if along is None else along[start:stop]
        if place in sizes_in_code:
            equations.record_size(node, place, sizes_in_code[place], ids[dim])
        pieces.append(TrackedTensor(tuple(value.shape), tuple(ids)))
        start = stop
    return pieces


def unbind_channels(equations: Equations, node: Node, x: TrackedTensor, dim: int = 0) -> list[TrackedTensor]:
    """One tensor for each index, so the axis stays."""
    ids = list(x.ids)
    equations.pin(ids.pop(dim), _at_a_fixed_place(node))
    return [TrackedTensor(tuple(value.shape), tuple(ids)) for value in node.meta["val"]]


def select_channels(equations: Equations, node: Node, x: TrackedTensor, dim: int, index: int) -> TrackedTensor:
    """One index of an axis, by its number, so the axis stays."""
    ids = list(x.ids)
    equations.pin(ids.pop(dim), _at_a_fixed_place(node))
    return TrackedTensor(shape_of(node), tuple(ids))


def slice_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> TrackedTensor:
    """Indices by their numbers, so the axis stays, unless all of it is taken."""
    shape = shape_of(node)
    if shape == x.shape:
        return x
    ids = list(x.ids)
    equations.pin(ids[dim], _at_a_fixed_place(node))
    ids[dim] = None
    return TrackedTensor(shape, tuple(ids))


def narrow_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int, start: int, length: int
) -> TrackedTensor:
    """As a slice."""
    return slice_channels(equations, node, x, dim)


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
    """The operator itself at full size along the axis that is cut; every other axis may stay as it is stored.

    The operator's schema knows at which place the axis is named, and what it is where the call does not name it.
    """
    target: Any = node.target
    place = [argument.name for argument in target._schema.arguments].index("dim")
    named_by_place = place - 1 < len(settings)  # x itself is not among the settings
    dim = settings[place - 1] if named_by_place else options.get("dim", 0)
    return map_tensors(compress, target(expand_along(node, x, dim), *settings, **options))


OPERATORS = (
    Operator((aten.cat.default,), cat_channels, cat_constant),
    Operator((aten.stack.default,), stack_channels, stack_constant),
    Operator(
        (aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default), split_with_sizes_channels, piece_constant
    ),
    Operator((aten.split.Tensor, aten.unsafe_split.Tensor), split_channels, piece_constant),
    Operator((aten.chunk.default,), chunk_channels, piece_constant),
    Operator((aten.unbind.int,), unbind_channels, piece_constant),
    Operator((aten.select.int,), select_channels, piece_constant),
    Operator((aten.slice.Tensor,), slice_channels, piece_constant),
    Operator((aten.narrow.default,), narrow_channels, piece_constant),
    Operator((aten.tril.default, aten.triu.default), triangle_channels, triangle_constant),
)
