"""Operators that merge and split axes, or put them in another order: where each channel axis goes."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor, repeat_ids
from ..links import IndexIds
from ..moves import SHAPE_OF_SECOND
from ..nodes import Node
from .abstract_values import compress, expand_along, full_shape
from .elementwise import broadcast_channels
from .rows import NotCovered, Operator, operator_name, shape_of

aten = torch.ops.aten
WHOLE_ROWS = "a reshape of the channels loses whole rows or columns of them"
"""What channels are linked by that a reshape merges or splits."""
SIZES_FIRST = {aten.view.default, aten.reshape.default, aten._unsafe_view.default}
"""Reshapes whose first setting is the new shape."""


# Merging and splitting.


def view_channels(equations: Equations, node: Node, x: TrackedTensor, *settings: Any) -> TrackedTensor:
    """Axes that are merged or split."""
    # 1. Old and new axes are matched run by run: a run of old axes has as many elements as the run of new axes that it
    #    becomes, so nothing crosses from one run to the next.
    # 2. The axes of a run are merged into one long axis; see `_merged_axes`.
    # 3. The long axis is split into the new axes of the run; see `split_axis`.  One axis in and one out is the same
    #    axis.
    # 4. A size that the code gives as a number has to follow the axis; it is recorded after the ids along it are known.
    shape = shape_of(node)
    result: list[IndexIds | None] = [None] * len(shape)
    for old_dims, new_dims in match_axes(x.shape, shape):
        merged = _merged_axes(equations, x, old_dims)
        if merged is not None:
            split = split_axis(equations, merged, [shape[dim] for dim in new_dims])
            for dim, ids in zip(new_dims, split, strict=True):
                result[dim] = ids
    first_dim, sizes = _sizes_in_code(node, settings, len(shape))
    for place, size in enumerate(sizes):
        equations.record_size(node, place, size, result[first_dim + place])
    if node.target in SHAPE_OF_SECOND:  # the channels of that tensor leave together with those of the result
        (other,) = settings
        for dim, ids in enumerate(other.ids):
            result[dim] = equations.equate(result[dim], ids, f"{operator_name(node)} something that is no channel")
    return TrackedTensor(shape, tuple(result))


def _sizes_in_code(node: Node, settings: tuple[Any, ...], rank: int) -> tuple[int, Sequence[Any]]:
    """The sizes that the code of the network gives, and the new axis that the first of them is for."""
    if node.target == aten.unflatten.int:
        dim, sizes = settings
        return dim % (rank - len(sizes) + 1), sizes
    if node.target in SIZES_FIRST:
        return 0, settings[0]
    return 0, ()


def _merged_axes(equations: Equations, x: TrackedTensor, dims: Sequence[int]) -> IndexIds | None:
    """The ids along several axes that become one long axis, shape (product of their sizes,)."""
    # 1. An axis without channels, or of size 1, says nothing; if all are such, the long axis has no channels.
    # 2. One channel axis among them repeats its ids: all elements of a channel live and die with it.
    # 3. Two or more make a new channel for each combination of their ids, linked to these as its owners: an element of
    #    the long axis leaves when its head or its dimension leaves.  Combinations are counted by value, not by place,
    #    so that an id which an axis has twice gives the same combination twice.
    tracked = [dim for dim in dims if _has_channels(x, dim)]
    if not tracked:
        return None
    sizes = [x.shape[dim] for dim in dims]
    columns = [_repeat_over_block(x.ids[dim], dims.index(dim), sizes) for dim in tracked]
    if len(tracked) == 1:
        return columns[0]
    combination = columns[0]
    for column in columns[1:]:
        combination = combination * equations.num_ids + column
    _, first, combination_at = np.unique(combination, return_index=True, return_inverse=True)
    members = equations.new_ids(first.size)
    equations.link(members, [column[first] for column in columns], WHOLE_ROWS)
    return members[combination_at]


def _has_channels(x: TrackedTensor, dim: int) -> bool:
    return x.ids[dim] is not None and x.shape[dim] > 1


def _repeat_over_block(ids: IndexIds | None, position: int, sizes: Sequence[int]) -> IndexIds:
    """The ids of one axis of a block at each place of the block, flat."""
    assert ids is not None  # the caller has chosen axes that are tracked
    if len(sizes) == 1:
        return ids
    other_dims = [dim for dim in range(len(sizes)) if dim != position]
    return np.broadcast_to(np.expand_dims(ids, other_dims), sizes).ravel()


def split_axis(equations: Equations, long_axis: IndexIds, sizes: Sequence[int]) -> list[IndexIds | None]:
    """The ids along each of the axes that a long axis is split into."""
    # 1. One axis stays what it is.
    # 2. Where the ids repeat alike along all axes but one, that one gets them back and the others have no channels: so
    #    merging channels with places, and splitting them again, gives the same channels.
    # 3. Otherwise each axis longer than 1 gets new ids, linked to the ids of the long axis as their owners.
    if len(sizes) == 1:
        return [long_axis]
    block = long_axis.reshape(sizes)
    result: list[IndexIds | None] = [None] * len(sizes)
    for dim, size in enumerate(sizes):
        rows = np.moveaxis(block, dim, 0).reshape(size, -1)
        if size > 1 and (rows == rows[:, :1]).all():
            result[dim] = rows[:, 0]
            return result
    for dim, size in enumerate(sizes):
        if size > 1:
            result[dim] = equations.new_ids(size)
    equations.link_block(block, result, WHOLE_ROWS)
    return result


def match_axes(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match runs of old axes with the shortest runs of new axes that have the same number of elements.

    Args:
        old: Sizes before the reshape.
        new: Sizes after it, of the same number of elements.

    Returns:
        Pairs (old dimensions, new dimensions) in order; together they have every dimension once.
    """
    if prod(old) != prod(new) or 0 in old:
        raise NotCovered("reshape of a tensor without elements")
    # Whichever run has fewer elements takes the next axis in, until both have the same number: so each run is as short
    # as it can be, and an axis that the reshape leaves alone is matched with itself.
    runs = []
    old_end = new_end = 0
    while old_end < len(old) or new_end < len(new):
        old_start, new_start = old_end, new_end
        old_end = min(old_end + 1, len(old))
        new_end = min(new_end + 1, len(new))
        while prod(old[old_start:old_end]) != prod(new[new_start:new_end]):
            if prod(old[old_start:old_end]) < prod(new[new_start:new_end]):
                old_end += 1
            else:
                new_end += 1
        runs.append((list(range(old_start, old_end)), list(range(new_start, new_end))))
    return runs


def view_constant(node: Node, x: Tensor, *settings: Any) -> Tensor:
    """Only runs of axes along which anything varies are brought to their full size."""
    old, new = full_shape(node), shape_of(node)
    before, after = list(x.shape), [1] * len(new)
    for old_dims, new_dims in match_axes(old, new):
        if any(x.shape[dim] > 1 for dim in old_dims):
            for dim in old_dims:
                before[dim] = old[dim]
            for dim in new_dims:
                after[dim] = new[dim]
    return compress(x.expand(before).reshape(after))


# Another order.


def permute_channels(equations: Equations, node: Node, x: TrackedTensor, order: Sequence[int]) -> TrackedTensor:
    """Axes take their ids along."""
    return TrackedTensor(shape_of(node), tuple(x.ids[dim] for dim in order))


def transpose_channels(equations: Equations, node: Node, x: TrackedTensor, first: int, second: int) -> TrackedTensor:
    """Two axes change places."""
    ids = list(x.ids)
    if ids:
        ids[first], ids[second] = ids[second], ids[first]
    return TrackedTensor(shape_of(node), tuple(ids))


def move_axis_channels(
    equations: Equations, node: Node, x: TrackedTensor, source: int, destination: int
) -> TrackedTensor:
    """One axis goes to another place, the others close up."""
    ids = list(x.ids)
    if ids:
        ids.insert(destination % len(ids), ids.pop(source))
    return TrackedTensor(shape_of(node), tuple(ids))


def transpose_last_two_channels(equations: Equations, node: Node, x: TrackedTensor) -> TrackedTensor:
    """The last two axes change places; a vector stays as it is."""
    return TrackedTensor(shape_of(node), (*x.ids[:-2], *x.ids[-2:][::-1]))


def reverse_axes_channels(equations: Equations, node: Node, x: TrackedTensor) -> TrackedTensor:
    """All axes in reverse order."""
    return TrackedTensor(shape_of(node), x.ids[::-1])


def flip_channels(equations: Equations, node: Node, x: TrackedTensor, dims: Sequence[int]) -> TrackedTensor:
    """The ids along a flipped axis are in reverse order."""
    ids = list(x.ids)
    flipped = {dim % len(ids) for dim in dims} if ids else set()
    for dim in flipped:
        along = ids[dim]
        ids[dim] = None if along is None else along[::-1]
    return TrackedTensor(x.shape, tuple(ids))


def roll_channels(
    equations: Equations, node: Node, x: TrackedTensor, shifts: Any, dims: Sequence[int] = ()
) -> TrackedTensor:
    """An axis that is rolled by a number stays, because the number would have to change with its size."""
    for dim in dims or range(len(x.shape)):
        equations.pin(x.ids[dim], "roll of the channels by a fixed number")
    return x


def unsqueeze_channels(equations: Equations, node: Node, x: TrackedTensor, dim: int) -> TrackedTensor:
    """A new axis of size 1 has no channels."""
    ids = list(x.ids)
    ids.insert(dim % (len(ids) + 1), None)
    return TrackedTensor(shape_of(node), tuple(ids))


def squeeze_channels(equations: Equations, node: Node, x: TrackedTensor, dims: int | Sequence[int]) -> TrackedTensor:
    """An axis of size 1 that is dropped must stay of size 1."""
    rank = len(x.shape)
    named = [dims] if isinstance(dims, int) else dims
    dropped = {dim % rank for dim in named if x.shape[dim] == 1} if rank else set()
    kept: list[IndexIds | None] = []
    for dim, ids in enumerate(x.ids):
        if dim in dropped:
            equations.pin(ids, "squeezed axis")
        else:
            kept.append(ids)
    return TrackedTensor(shape_of(node), tuple(kept))


def same_move_constant(node: Node, x: Tensor, *settings: Any) -> Tensor:
    """The operator itself: what is uniform along an axis stays so, wherever the axis goes."""
    target: Any = node.target
    moved: Tensor = target(x, *settings)
    return moved


def squeeze_constant(node: Node, x: Tensor, dims: int | Sequence[int]) -> Tensor:
    """Only axes of size 1 in the network are dropped, not those that are stored with size 1."""
    full = full_shape(node)
    if not full:
        return x
    named = [dims] if isinstance(dims, int) else dims
    return x.squeeze([dim for dim in named if full[dim] == 1])


def roll_constant(node: Node, x: Tensor, shifts: Any, dims: Sequence[int] = ()) -> Tensor:
    """Rolled at full size."""
    full = expand_along(node, x, *(dims or range(x.dim())))
    return compress(aten.roll.default(full, shifts, dims))


# Repeating.


def expand_channels(
    equations: Equations, node: Node, x: TrackedTensor, sizes: Sequence[int], *, implicit: bool = False
) -> TrackedTensor:
    """An axis that is stretched must stay of size 1; the others keep their channels."""
    shape = shape_of(node)
    new_axes = len(shape) - len(x.shape)
    kept: list[IndexIds | None] = [None] * new_axes
    for dim, size in enumerate(x.shape, start=new_axes):
        ids = x.ids[dim - new_axes]
        if shape[dim] != size:
            equations.pin(ids, "expanded axis")
            ids = None
        kept.append(ids)
        equations.record_size(node, dim, sizes[dim], ids)
    return TrackedTensor(shape, tuple(kept))


def repeat_channels(equations: Equations, node: Node, x: TrackedTensor, times: Sequence[int]) -> TrackedTensor:
    """The copies of a channel live and die with it."""
    shape = shape_of(node)
    new_axes = len(shape) - len(x.shape)
    times = _times_for_each_axis(times, len(shape))
    tiled = [None if ids is None else np.tile(ids, times[new_axes + dim]) for dim, ids in enumerate(x.ids)]
    return TrackedTensor(shape, (*(None,) * new_axes, *tiled))


def _times_for_each_axis(times: Sequence[int], rank: int) -> tuple[int, ...]:
    """`tile` may name the last axes only."""
    return (*(1,) * (rank - len(times)), *times)


def repeat_interleave_channels(
    equations: Equations,
    node: Node,
    x: TrackedTensor,
    times: int,
    dim: int | None = None,
    *,
    output_size: int | None = None,
) -> TrackedTensor:
    """Each channel several times in a row."""
    if dim is None:
        raise NotCovered("repeat_interleave of all elements")
    ids = list(x.ids)
    ids[dim] = repeat_ids(ids[dim], times)
    return TrackedTensor(shape_of(node), tuple(ids))


def expand_constant(node: Node, x: Tensor, *settings: Any, **options: Any) -> Tensor:
    """A stretched axis is uniform, so it is stored with size 1 as before; new axes come first."""
    new_axes = len(shape_of(node)) - x.dim()
    return x.reshape(*(1,) * new_axes, *x.shape)


def repeat_constant(node: Node, x: Tensor, times: Sequence[int]) -> Tensor:
    """Repeated at full size, along the axes that are repeated."""
    rank = len(shape_of(node))
    times = _times_for_each_axis(times, rank)
    new_axes = rank - x.dim()
    repeated_dims = [dim for dim in range(x.dim()) if times[new_axes + dim] > 1]
    return compress(expand_along(node, x, *repeated_dims).repeat(times))


def repeat_interleave_constant(
    node: Node, x: Tensor, times: int, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """Repeated at full size."""
    if dim is None:
        raise NotCovered("repeat_interleave of all elements")
    return compress(expand_along(node, x, dim).repeat_interleave(times, dim))


OPERATORS = (
    Operator(
        (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
         aten.reshape_as.default, aten.view_as.default, aten.unflatten.int),
        view_channels, view_constant,
    ),
    Operator((aten.permute.default,), permute_channels, same_move_constant),
    Operator((aten.transpose.int,), transpose_channels, same_move_constant),
    Operator((aten.movedim.int,), move_axis_channels, same_move_constant),
    Operator((aten.t.default, aten.mT.default), transpose_last_two_channels, same_move_constant),
    Operator((aten.numpy_T.default,), reverse_axes_channels, same_move_constant),
    Operator((aten.flip.default,), flip_channels, same_move_constant),
    Operator((aten.roll.default,), roll_channels, roll_constant),
    Operator((aten.unsqueeze.default,), unsqueeze_channels, same_move_constant),
    Operator((aten.squeeze.dim, aten.squeeze.dims), squeeze_channels, squeeze_constant),
    Operator((aten.expand.default,), expand_channels, expand_constant),
    Operator((aten.expand_as.default,), broadcast_channels, expand_constant),
    Operator((aten.repeat.default, aten.tile.default), repeat_channels, repeat_constant),
    Operator((aten.repeat_interleave.self_int,), repeat_interleave_channels, repeat_interleave_constant),
)  # fmt: skip
