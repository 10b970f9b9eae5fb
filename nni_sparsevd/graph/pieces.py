"""Rules of operators that join tensors or take pieces of them."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch.fx import Node

from .labels import Equations, IndexIds, TrackedTensor
from .rules import aten, op_name, opaque, rule, shape_of


@rule(aten.cat.default)
def cat(eq: Equations, node: Node, parts: Sequence[TrackedTensor], dim: int = 0) -> TrackedTensor:
    rank = len(parts[0].shape)
    dim %= rank
    atoms: list[IndexIds | None] = []
    for axis in range(rank):
        if axis == dim:
            atoms.append(_concatenate(eq, parts, axis))
            continue
        joined = parts[0].at(axis)
        for part in parts[1:]:
            joined = eq.equate(joined, part.at(axis), "concatenated with something that is no channel")
        atoms.append(joined)
    return TrackedTensor(shape_of(node), tuple(atoms))


def _concatenate(eq: Equations, parts: Sequence[TrackedTensor], axis: int) -> IndexIds | None:
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


@rule(aten.stack.default)
def stack(eq: Equations, node: Node, parts: Sequence[TrackedTensor], dim: int = 0) -> TrackedTensor:
    atoms = list(parts[0].atoms)
    for part in parts[1:]:
        atoms = [eq.equate(a, b, "stacked on no channel") for a, b in zip(atoms, part.atoms, strict=True)]
    atoms.insert(dim % (len(atoms) + 1), None)
    return TrackedTensor(shape_of(node), tuple(atoms))


@rule(aten.split_with_sizes.default)
def split(eq: Equations, node: Node, x: TrackedTensor, sizes: Sequence[int], dim: int = 0) -> list[TrackedTensor]:
    return _pieces(eq, node, x, sizes, dim)


@rule(aten.split.Tensor, aten.chunk.default)
def chunk(eq: Equations, node: Node, x: TrackedTensor, given: int, dim: int = 0) -> list[TrackedTensor]:
    """Pieces of one size lose the same channels, so that they stay of one size."""
    sizes = [value.shape[dim] for value in node.meta["val"]]
    pieces = _pieces(eq, node, x, sizes if op_name(node) == "split" else [-1] * len(sizes), dim)
    if len(set(sizes)) > 1:
        eq.pin(x.at(dim), f"{op_name(node)} into unequal pieces")
        return pieces
    for piece in pieces[1:]:
        if (first := pieces[0].at(dim)) is not None:
            eq.equate(first, piece.at(dim), "")
    return pieces


def _pieces(eq: Equations, node: Node, x: TrackedTensor, given: Sequence[int], dim: int) -> list[TrackedTensor]:
    pieces, start = [], 0
    for place, (value, size) in enumerate(zip(node.meta["val"], given, strict=True)):
        atoms, stop = list(x.atoms), start + value.shape[dim]
        if (whole := x.at(dim)) is not None:
            atoms[dim] = whole[start:stop]
        eq.write(node, 0 if op_name(node) == "split" else place, size, atoms[dim])
        pieces.append(TrackedTensor(tuple(value.shape), tuple(atoms)))
        start = stop
    return pieces


@rule(aten.unbind.int)
def unbind(eq: Equations, node: Node, x: TrackedTensor, dim: int = 0) -> list[TrackedTensor]:
    atoms = _without(eq, node, x, dim)
    return [TrackedTensor(tuple(value.shape), atoms) for value in node.meta["val"]]


@rule(aten.select.int, aten.slice.Tensor, aten.narrow.default)
def cut(eq: Equations, node: Node, x: TrackedTensor, dim: int = 0, *settings: Any) -> TrackedTensor:
    shape = shape_of(node)
    if shape == x.shape:
        return x
    return TrackedTensor(shape, _without(eq, node, x, dim))


@rule(aten.index.Tensor)
def index(eq: Equations, node: Node, x: TrackedTensor, indices: Sequence[TrackedTensor | None]) -> TrackedTensor:
    """A table of which one axis is looked up keeps that axis."""
    looked_up = [dim for dim, found in enumerate(indices) if found is not None]
    for dim in looked_up:
        eq.pin(x.at(dim), "looked up by a fixed number")
    at = looked_up[0]
    if looked_up != list(range(at, at + len(looked_up))):
        return cast(TrackedTensor, opaque(eq, node, x, reason="index of axes that are not neighbours"))
    shape = shape_of(node)
    new = len(shape) - len(x.shape) + len(looked_up)
    return TrackedTensor(shape, (*x.atoms[:at], *(None,) * new, *x.atoms[at + len(looked_up) :]))


@rule(aten.index_select.default)
def index_select(eq: Equations, node: Node, x: TrackedTensor, dim: int, indices: TrackedTensor) -> TrackedTensor:
    eq.pin(x.at(dim), "looked up by a fixed number")
    return TrackedTensor(shape_of(node), tuple(None if d == dim % len(x.shape) else a for d, a in enumerate(x.atoms)))


@rule(aten.unfold.default)
def unfold(eq: Equations, node: Node, x: TrackedTensor, dim: int, *settings: Any) -> TrackedTensor:
    eq.pin(x.at(dim), "unfold of the channels")
    return TrackedTensor(
        shape_of(node), (*(None if d == dim % len(x.shape) else a for d, a in enumerate(x.atoms)), None)
    )


def _without(eq: Equations, node: Node, x: TrackedTensor, dim: int) -> tuple[IndexIds | None, ...]:
    """Pin the axis that is cut; what is left of it is no channel axis, or no axis at all."""
    eq.pin(x.at(dim), f"{op_name(node)} of the channels at a fixed place")
    atoms = list(x.atoms)
    if op_name(node) in ("unbind", "select"):
        del atoms[dim]
    else:
        atoms[dim] = None
    return tuple(atoms)
