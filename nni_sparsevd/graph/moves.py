"""Rules of operators that pool, pad, resize, reduce or rearrange: where each channel axis goes."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from torch.fx import Node

from .labels import Atoms, Equations, Tracked
from .rules import aten, op_name, rule, shape_of

# Space: pooling, resizing, padding.


@rule(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.max_pool1d.default)
@rule(aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default, aten.max_pool3d.default, aten.avg_pool3d.default)
@rule(aten.adaptive_avg_pool3d.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec)
@rule(aten.upsample_bicubic2d.vec)
def spatial(eq: Equations, node: Node, x: Tracked, *settings: Any, **options: Any) -> Tracked:
    shape = shape_of(node)
    for dim, atoms in enumerate(x.atoms):
        if shape[dim] != x.shape[dim]:
            eq.pin(atoms, "resized axis")
    return Tracked(shape, tuple(a if shape[d] == x.shape[d] else None for d, a in enumerate(x.atoms)))


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(eq: Equations, node: Node, x: Tracked, *settings: Any, **options: Any) -> Tracked:
    return spatial(eq, node, x)


@rule(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default)
def reduction(
    eq: Equations, node: Node, x: Tracked, dims: Sequence[int], keepdim: bool = False, **options: Any
) -> Tracked:
    reduced = {dim % len(x.shape) for dim in dims}
    for dim in reduced:
        eq.pin(x.at(dim), f"{op_name(node)} over the channels")
    kept = [None if dim in reduced else atoms for dim, atoms in enumerate(x.atoms) if keepdim or dim not in reduced]
    return Tracked(shape_of(node), tuple(kept))


# Rearrangements.


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def view(eq: Equations, node: Node, x: Tracked, *settings: Any) -> Tracked:
    """Axes that are merged or split: a merged channel axis repeats its atoms, a split one must repeat alike."""
    shape = shape_of(node)
    result: list[Atoms | None] = [None] * len(shape)
    for before, after in _segments(x.shape, shape):
        tracked = [dim for dim in before if x.at(dim) is not None and x.shape[dim] > 1]
        if len(tracked) > 1:
            for dim in tracked:
                eq.pin(x.at(dim), "reshape merges two channel axes")
        elif tracked:
            source = x.at(tracked[0])
            assert source is not None
            aligned = source.reshape([-1 if dim == tracked[0] else 1 for dim in before])
            merged = np.broadcast_to(aligned, [x.shape[dim] for dim in before]).ravel()
            _split(eq, merged, shape, after, result)
    return Tracked(shape, tuple(result))


def _split(eq: Equations, merged: Atoms, shape: tuple[int, ...], dims: Sequence[int], result: list[Any]) -> None:
    block = merged.reshape([shape[dim] for dim in dims])
    for position, dim in enumerate(dims):
        first = np.moveaxis(block, position, 0).reshape(shape[dim], -1)
        if shape[dim] > 1 and (first == first[:, :1]).all():
            result[dim] = first[:, 0]
            return
    eq.pin(merged, "reshape splits the channels")


def _segments(old: tuple[int, ...], new: tuple[int, ...]) -> list[tuple[list[int], list[int]]]:
    """Match runs of old axes with runs of new ones of the same number of elements."""
    segments, i, j = [], 0, 0
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
        segments.append((before, after))
    return segments


@rule(aten.permute.default)
def permute(eq: Equations, node: Node, x: Tracked, order: Sequence[int]) -> Tracked:
    return Tracked(shape_of(node), tuple(x.at(dim) for dim in order))


@rule(aten.transpose.int)
def transpose(eq: Equations, node: Node, x: Tracked, first: int, second: int) -> Tracked:
    atoms = list(x.atoms)
    atoms[first], atoms[second] = atoms[second], atoms[first]
    return Tracked(shape_of(node), tuple(atoms))


@rule(aten.unsqueeze.default)
def unsqueeze(eq: Equations, node: Node, x: Tracked, dim: int) -> Tracked:
    atoms = list(x.atoms)
    atoms.insert(dim % (len(atoms) + 1), None)
    return Tracked(shape_of(node), tuple(atoms))


@rule(aten.squeeze.dim, aten.squeeze.dims)
def squeeze(eq: Equations, node: Node, x: Tracked, dims: int | Sequence[int]) -> Tracked:
    chosen = {dim % len(x.shape) for dim in ([dims] if isinstance(dims, int) else dims)}
    gone = {dim for dim in chosen if x.shape[dim] == 1}
    for dim in gone:
        eq.pin(x.at(dim), "squeezed axis")
    return Tracked(shape_of(node), tuple(a for dim, a in enumerate(x.atoms) if dim not in gone))


@rule(aten.expand.default)
def expand(eq: Equations, node: Node, x: Tracked, *settings: Any, **options: Any) -> Tracked:
    shape = shape_of(node)
    lead = len(shape) - len(x.shape)
    atoms = []
    for dim, size in enumerate(x.shape):
        same = shape[lead + dim] == size
        if not same:
            eq.pin(x.at(dim), "expanded axis")
        atoms.append(x.at(dim) if same else None)
    return Tracked(shape, (*(None,) * lead, *atoms))


@rule(aten.cat.default)
def cat(eq: Equations, node: Node, parts: Sequence[Tracked], dim: int = 0) -> Tracked:
    rank = len(parts[0].shape)
    dim %= rank
    atoms: list[Atoms | None] = []
    for axis in range(rank):
        if axis == dim:
            atoms.append(_concatenate(eq, parts, axis))
            continue
        joined = parts[0].at(axis)
        for part in parts[1:]:
            joined = eq.equate(joined, part.at(axis), "concatenated with something that is no channel")
        atoms.append(joined)
    return Tracked(shape_of(node), tuple(atoms))


def _concatenate(eq: Equations, parts: Sequence[Tracked], axis: int) -> Atoms | None:
    if all(part.at(axis) is None for part in parts):
        return None
    pieces = []
    for part in parts:
        atoms = part.at(axis)
        if atoms is None:
            atoms = eq.fresh(part.shape[axis])
            eq.pin(atoms, "concatenated with something that is no channel")
        pieces.append(atoms)
    return np.concatenate(pieces)


@rule(aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int)
def split(eq: Equations, node: Node, x: Tracked, *settings: Any) -> list[Tracked]:
    """A piece cut by a size written in the code must keep that size, so a split pins the axis that it cuts."""
    values = node.meta["val"]
    dim = settings[-1] if op_name(node) == "unbind" and settings else settings[1] if len(settings) > 1 else 0
    atoms = _without(eq, node, x, dim)
    return [Tracked(tuple(value.shape), atoms) for value in values]


@rule(aten.select.int, aten.slice.Tensor)
def cut(eq: Equations, node: Node, x: Tracked, dim: int = 0, *settings: Any) -> Tracked:
    shape = shape_of(node)
    if shape == x.shape:
        return x
    return Tracked(shape, _without(eq, node, x, dim))


def _without(eq: Equations, node: Node, x: Tracked, dim: int) -> tuple[Atoms | None, ...]:
    """Pin the axis that is cut; what is left of it is no channel axis, or no axis at all."""
    eq.pin(x.at(dim), f"{op_name(node)} of the channels at a fixed place")
    atoms = list(x.atoms)
    if op_name(node) in ("unbind", "select"):
        del atoms[dim]
    else:
        atoms[dim] = None
    return tuple(atoms)
