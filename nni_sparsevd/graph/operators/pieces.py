"""Operators that join tensors, or take pieces of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node

from ..equations import Equations, TrackedTensor
from ..links import IndexIds
from .abstract_values import compress, expand_along, full_shape, live_like, make_uniform, map_tensors
from .rows import NoRule, NotCovered, Operator, operator_name, shape_of

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
    return _pieces(equations, node, x, dict(enumerate(sizes)), dim)


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
    pieces = _pieces(equations, node, x, {}, dim)
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


def _pieces(
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


def index_channels(
    equations: Equations, node: Node, x: TrackedTensor, indices: Sequence[TrackedTensor | None]
) -> TrackedTensor:
    """A table of which some neighboring axes are looked up keeps these; the axes of the indices take their place."""
    looked_up = [dim for dim, index in enumerate(indices) if index is not None]
    _refuse_flags(node, looked_up)
    for dim in looked_up:
        equations.pin(x.ids[dim], "looked up by a fixed number")
    first, last = looked_up[0], looked_up[-1]
    if last - first + 1 != len(looked_up):
        raise NotCovered("index of axes that are not neighbors")
    shape = shape_of(node)
    new_axes = len(shape) - len(x.shape) + len(looked_up)
    return TrackedTensor(shape, (*x.ids[:first], *(None,) * new_axes, *x.ids[last + 1 :]))


def _refuse_flags(node: Node, looked_up: Sequence[int]) -> None:
    """Indices that are flags take the place of as many axes as they have themselves."""
    indices: Any = node.args[1]
    if not looked_up or any(indices[dim].meta["val"].dtype in (torch.bool, torch.uint8) for dim in looked_up):
        raise NotCovered("index by flags, or by nothing")


def index_select_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int, indices: TrackedTensor
) -> TrackedTensor:
    """An axis that is looked up stays."""
    ids = list(x.ids)
    if ids:
        equations.pin(ids[dim], "looked up by a fixed number")
        ids[dim] = None
    return TrackedTensor(shape_of(node), tuple(ids))


def gather_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int, indices: TrackedTensor, **options: Any
) -> TrackedTensor:
    """An axis is looked up, at other places for each element; along every other axis the two go together."""
    if not x.shape:
        raise NotCovered("gather of a number")
    ids = list(indices.ids)
    for axis in range(len(x.shape)):
        if axis == dim % len(x.shape):
            equations.pin(x.ids[axis], "looked up by a fixed number")
        elif x.shape[axis] == indices.shape[axis]:
            ids[axis] = equations.equate(x.ids[axis], ids[axis], "gather at places that are no channels")
        else:
            for along in (x.ids[axis], ids[axis]):
                equations.pin(along, "gather of a part of the channels")
            ids[axis] = None
    return TrackedTensor(shape_of(node), tuple(ids))


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


def triangle_channels(equations: Equations, node: Node, x: TrackedTensor, diagonal: int = 0) -> TrackedTensor:
    """A triangle of the last two axes is set to zero, by their places; the other axes keep their channels."""
    for ids in x.ids[-2:]:
        equations.pin(ids, _at_a_fixed_place(node))
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


# Taking pieces: how constants pass.


def gather_constant(node: Node, x: Tensor, dim: int, indices: Tensor, **options: Any) -> Tensor:
    """Whatever is looked up along an axis of equal values has that value."""
    dim %= max(x.dim(), 1)
    x = make_uniform(x, [dim])
    full, taken = full_shape(node), shape_of(node)
    shorter = [axis for axis in range(x.dim()) if axis != dim and taken[axis] < full[axis]]
    return make_uniform(x, shorter)


def largest_constant(node: Node, x: Tensor, count: int, dim: int = -1, *settings: Any) -> list[Tensor]:
    """Some of equal values are that value; where they were is not told."""
    return [make_uniform(x, [dim % x.dim()] if x.dim() else ()), live_like(node.meta["val"][1])]


def sort_constant(node: Node, x: Tensor, dim: int = -1, descending: bool = False) -> list[Tensor]:
    """Equal values are in any order; where they were is not told."""
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


def index_constant(node: Node, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """A table that is looked up; one whose entries are all alike wherever that is."""
    looked_up = [dim for dim, index in enumerate(indices) if index is not None]
    _refuse_flags(node, looked_up)
    full = full_shape(node)
    if all(_are_known_places(indices[dim], full[dim]) for dim in looked_up):
        return compress(aten.index.Tensor(expand_along(node, x, *looked_up), indices))
    first_places = [None if index is None else torch.zeros([1] * index.dim(), dtype=torch.long) for index in indices]
    return compress(aten.index.Tensor(make_uniform(x, looked_up), first_places))


def index_select_constant(node: Node, x: Tensor, dim: int, indices: Tensor) -> Tensor:
    """The same along one axis."""
    if _are_known_places(indices, full_shape(node)[dim]):
        return compress(expand_along(node, x, dim).index_select(dim, indices))
    return make_uniform(x, [dim])


def _are_known_places(places: Any, size: int) -> bool:
    """Whether places do not depend on the input, and an axis of this size has all of them."""
    # PyTorch looks at places only where there are data, so a size that the network does not take may come this far.
    return not places.is_floating_point() and bool(((places >= -size) & (places < size)).all())


PLACES = NoRule("it says where values are, which depends on the input where the values do not")
WRITTEN = NoRule("it writes to places that are given by number, and which of them depends on the values of a tensor")

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
    Operator((aten.index.Tensor, aten._unsafe_index.Tensor), index_channels, index_constant),
    Operator((aten.index_select.default,), index_select_channels, index_select_constant),
    Operator((aten.gather.default,), gather_channels, gather_constant),
    Operator((aten.topk.default,), largest_channels, largest_constant),
    Operator((aten.sort.default,), sort_channels, sort_constant),
    Operator((aten.sort.stable,), stable_sort_channels, stable_sort_constant),
    Operator((aten.argsort.default,), argsort_channels, PLACES),
    Operator((aten.cumsum.default, aten.cumprod.default), cumulative_channels, cumulative_constant),
    Operator((aten.tril.default, aten.triu.default), triangle_channels, triangle_constant),
    Operator(
        (
            aten.scatter.src,
            aten.scatter.value,
            aten.scatter.reduce,
            aten.scatter_add.default,
            aten.scatter_reduce.two,
            aten.index_put.default,
            aten.index_add.default,
            aten.index_copy.default,
            aten.masked_scatter.default,
        ),
        WRITTEN,
        WRITTEN,
    ),
)
