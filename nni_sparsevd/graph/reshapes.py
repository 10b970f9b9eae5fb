"""Rules of operators that rearrange a tensor: where each channel axis goes."""

from collections.abc import Sequence
from math import prod
from typing import Any, cast

import numpy as np
from torch.fx import Node

from .labels import Equations, IndexIds, TrackedTensor
from .rules import aten, op_name, opaque, rule, shape_of


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints)
@rule(aten.reshape_as.default, aten.view_as.default, aten.unflatten.int)
def view(eq: Equations, node: Node, x: TrackedTensor, *settings: Any) -> TrackedTensor:
    """Axes that are merged or split.

    One channel axis among those merged repeats its atoms; what repeats alike can be split again.  Everything else
    becomes a link: between the elements of the long axis and an index of each of the short ones.
    """
    shape = shape_of(node)
    result: list[IndexIds | None] = [None] * len(shape)
    for before, after in match_axes(x.shape, shape):
        tracked = [dim for dim in before if x.at(dim) is not None and x.shape[dim] > 1]
        if tracked:
            _split(eq, _merged(eq, x, before, tracked), shape, after, result)
    sizes, first = _given(node, settings, len(shape))
    for place, size in enumerate(sizes):
        eq.write(node, place, size, result[first + place])
    return TrackedTensor(shape, tuple(result))


def _given(node: Node, settings: tuple[Any, ...], rank: int) -> tuple[Sequence[Any], int]:
    """The sizes that the code gives, and the axis of the first of them."""
    name = op_name(node)
    if name == "unflatten":
        return settings[1], settings[0] % (rank - len(settings[1]) + 1)
    return (settings[0], 0) if name in ("view", "reshape", "_unsafe_view") else ((), 0)


def _merged(eq: Equations, x: TrackedTensor, dims: Sequence[int], tracked: Sequence[int]) -> IndexIds:
    """The atoms along several axes as one: those of one axis repeated, or one for each pair of two axes' atoms."""
    sizes = [x.shape[dim] for dim in dims]
    along = [x.at(dim) for dim in tracked]
    if len(dims) == 1:
        return along[0]  # type: ignore[return-value]
    at = [dims.index(dim) for dim in tracked]
    grid = [
        np.broadcast_to(np.expand_dims(atoms, [d for d in range(len(dims)) if d != place]), sizes).ravel()  # type: ignore[arg-type]
        for place, atoms in zip(at, along, strict=True)
    ]
    if len(tracked) == 1:
        return grid[0]
    key = grid[0]
    for atoms in grid[1:]:
        key = key * eq.count + atoms
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    elements = eq.fresh(first.size)
    eq.link(elements, [atoms[first] for atoms in grid])
    return elements[inverse]


def _split(eq: Equations, merged: IndexIds, shape: tuple[int, ...], dims: Sequence[int], result: list[Any]) -> None:
    if len(dims) == 1:
        result[dims[0]] = merged
        return
    block = merged.reshape([shape[dim] for dim in dims])
    for position, dim in enumerate(dims):
        first = np.moveaxis(block, position, 0).reshape(shape[dim], -1)
        if shape[dim] > 1 and (first == first[:, :1]).all():
            result[dim] = first[:, 0]
            return
    for dim in dims:
        result[dim] = eq.fresh(shape[dim]) if shape[dim] > 1 else None
    eq.link_block(block, [result[dim] for dim in dims])


@rule(aten.pixel_shuffle.default)
def pixel_shuffle(eq: Equations, node: Node, x: TrackedTensor, factor: int) -> TrackedTensor:
    shape = shape_of(node)
    result: list[IndexIds | None] = [*x.atoms[:-3], None, None, None]
    if (atoms := x.at(-3)) is not None:
        result[-3] = eq.fresh(shape[-3])
        eq.link_block(atoms.reshape(shape[-3], factor**2), [result[-3], None])
    return TrackedTensor(shape, tuple(result))


@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(eq: Equations, node: Node, x: TrackedTensor, factor: int) -> TrackedTensor:
    return TrackedTensor(shape_of(node), (*x.atoms[:-3], _repeated(x.at(-3), factor**2), None, None))


@rule(aten.im2col.default)
def im2col(eq: Equations, node: Node, x: TrackedTensor, kernel: Sequence[int], *settings: Any) -> TrackedTensor:
    return TrackedTensor(shape_of(node), (*x.atoms[:-3], _repeated(x.at(-3), prod(kernel)), None))


@rule(aten.col2im.default)
def col2im(
    eq: Equations, node: Node, x: TrackedTensor, size: Any, kernel: Sequence[int], *settings: Any
) -> TrackedTensor:
    shape = shape_of(node)
    result: list[Any] = [*x.atoms[:-2], None, None, None]
    if (atoms := x.at(-2)) is not None:
        _split(eq, atoms, (*shape[:-2], prod(kernel)), [len(shape) - 3, len(shape) - 2], result)
        if result[-2] is not None:
            eq.pin(result[-2], "col2im sums over it")
            result[-2] = None
    return TrackedTensor(shape, tuple(result))


def _repeated(atoms: IndexIds | None, times: int) -> IndexIds | None:
    return None if atoms is None else np.repeat(atoms, times)


def match_axes(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Match runs of old axes with runs of new ones of the same number of elements."""
    match_axes, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        before, after = [], []
        if i < len(old):
            before.append(i)
            i += 1
        if j < len(new):
            after.append(j)
            j += 1
        while prod(old[d] for d in before) != prod(new[d] for d in after):
            if prod(old[d] for d in before) < prod(new[d] for d in after):
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        match_axes.append((before, after))
    return match_axes


@rule(aten.permute.default)
def permute(eq: Equations, node: Node, x: TrackedTensor, order: Sequence[int]) -> TrackedTensor:
    return TrackedTensor(shape_of(node), tuple(x.at(dim) for dim in order))


@rule(aten.transpose.int, aten.movedim.int)
def transpose(eq: Equations, node: Node, x: TrackedTensor, first: int, second: int) -> TrackedTensor:
    atoms = list(x.atoms)
    if op_name(node) == "movedim":
        atoms.insert(second % len(x.shape), atoms.pop(first))
    else:
        atoms[first], atoms[second] = atoms[second], atoms[first]
    return TrackedTensor(shape_of(node), tuple(atoms))


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default)
def last_two(eq: Equations, node: Node, x: TrackedTensor) -> TrackedTensor:
    return TrackedTensor(shape_of(node), (*x.atoms[:-2], *x.atoms[-2:][::-1]))


@rule(aten.flip.default)
def flip(eq: Equations, node: Node, x: TrackedTensor, dims: Sequence[int]) -> TrackedTensor:
    turned = {dim % len(x.shape) for dim in dims}
    return TrackedTensor(x.shape, tuple(a[::-1] if a is not None and d in turned else a for d, a in enumerate(x.atoms)))


@rule(aten.roll.default)
def roll(eq: Equations, node: Node, x: TrackedTensor, shifts: Any, dims: Sequence[int] = ()) -> TrackedTensor:
    for dim in dims or range(len(x.shape)):
        eq.pin(x.at(dim), "roll of the channels by a fixed number")
    return x


@rule(aten.unsqueeze.default)
def unsqueeze(eq: Equations, node: Node, x: TrackedTensor, dim: int) -> TrackedTensor:
    atoms = list(x.atoms)
    atoms.insert(dim % (len(atoms) + 1), None)
    return TrackedTensor(shape_of(node), tuple(atoms))


@rule(aten.squeeze.dim, aten.squeeze.dims)
def squeeze(eq: Equations, node: Node, x: TrackedTensor, dims: int | Sequence[int]) -> TrackedTensor:
    chosen = {dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims)}
    gone = {dim for dim in chosen if x.shape[dim] == 1}
    for dim in gone:
        eq.pin(x.at(dim), "squeezed axis")
    return TrackedTensor(shape_of(node), tuple(a for dim, a in enumerate(x.atoms) if dim not in gone))


@rule(aten.expand.default)
def expand(eq: Equations, node: Node, x: TrackedTensor, sizes: Sequence[int], **options: Any) -> TrackedTensor:
    shape = shape_of(node)
    lead = len(shape) - len(x.shape)
    atoms = []
    for dim, size in enumerate(x.shape):
        same = shape[lead + dim] == size
        if not same:
            eq.pin(x.at(dim), "expanded axis")
        atoms.append(x.at(dim) if same else None)
        eq.write(node, lead + dim, sizes[lead + dim], atoms[-1])
    return TrackedTensor(shape, (*(None,) * lead, *atoms))


@rule(aten.repeat.default, aten.tile.default)
def repeat(eq: Equations, node: Node, x: TrackedTensor, times: Sequence[int]) -> TrackedTensor:
    shape = shape_of(node)
    lead, times = len(shape) - len(x.shape), (*(1,) * (len(x.shape) - len(times)), *times)
    tiled = [a if a is None else np.tile(a, times[lead + dim]) for dim, a in enumerate(x.atoms)]
    return TrackedTensor(shape, (*(None,) * lead, *tiled))


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(
    eq: Equations, node: Node, x: TrackedTensor, times: int, dim: int | None = None, **options: Any
) -> TrackedTensor:
    if dim is None:
        return cast(TrackedTensor, opaque(eq, node, x, reason="repeat_interleave of all elements"))
    along = dim % len(x.shape)
    return TrackedTensor(shape_of(node), tuple(_repeated(a, times) if d == along else a for d, a in enumerate(x.atoms)))
