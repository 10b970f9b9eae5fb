"""Operators that look values up, or write them, at places given by numbers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..equations import Equations, TrackedTensor
from ..nodes import Node
from .abstract_values import compress, expand_along, full_shape, make_uniform
from .rows import NoRule, NotCovered, Operator, shape_of

aten = torch.ops.aten
LOOKUPS = {aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_select.default, aten.gather.default}
"""Operators that fail at places which an axis does not have, but not without data."""


def index_channels(
    equations: Equations, node: Node, x: TrackedTensor, indices: Sequence[TrackedTensor | None]
) -> TrackedTensor:
    """Axes of a table that are looked up stay; in the result, the axes of the indices take their place."""
    looked_up = [dim for dim, index in enumerate(indices) if index is not None]
    _refuse_flags(node, looked_up)
    for dim in looked_up:
        equations.pin(x.ids[dim], "looked up by a fixed number")
        _pin_indices(equations, indices[dim])
    first, last = looked_up[0], looked_up[-1]
    if last - first + 1 != len(looked_up):
        raise NotCovered("index of axes that are not neighbors")
    shape = shape_of(node)
    new_axes = len(shape) - len(x.shape) + len(looked_up)
    return TrackedTensor(shape, (*x.ids[:first], *(None,) * new_axes, *x.ids[last + 1 :]))


def _pin_indices(equations: Equations, indices: TrackedTensor | None) -> None:
    """Each channel of the indices says what is looked up, and the result has an axis for them without channels."""
    for ids in indices.ids if indices is not None else ():
        equations.pin(ids, "looks up by its value")


def _refuse_flags(node: Node, looked_up: Sequence[int]) -> None:
    """Indices that are flags take the place of as many axes as they have themselves."""
    indices: Any = node.args[1]
    if not looked_up or any(indices[dim].meta["val"].dtype in (torch.bool, torch.uint8) for dim in looked_up):
        raise NotCovered("index by flags, or by nothing")


def index_select_channels(
    equations: Equations, node: Node, x: TrackedTensor, dim: int, indices: TrackedTensor
) -> TrackedTensor:
    """An axis that is looked up stays."""
    _pin_indices(equations, indices)
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


def gather_constant(node: Node, x: Tensor, dim: int, indices: Tensor, **options: Any) -> Tensor:
    """Whatever is looked up along an axis of equal values has that value."""
    dim %= max(x.dim(), 1)
    x = make_uniform(x, [dim])
    full, taken = full_shape(node), shape_of(node)
    shorter = [axis for axis in range(x.dim()) if axis != dim and taken[axis] < full[axis]]
    return make_uniform(x, shorter)


def index_constant(node: Node, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """The entries that are looked up; where nobody knows which they are, what all entries have in common."""
    looked_up = [dim for dim, index in enumerate(indices) if index is not None]
    _refuse_flags(node, looked_up)
    full = full_shape(node)
    if all(_are_known_places(indices[dim], full[dim]) for dim in looked_up):
        return compress(aten.index.Tensor(expand_along(node, x, *looked_up), indices))
    # Nobody knows which entries will be looked up.  All of them are alike along these axes, so the first one serves.
    first_places: list[Tensor | None] = []
    for index in indices:
        first_places.append(None if index is None else torch.zeros([1] * index.dim(), dtype=torch.long))
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


WRITTEN = NoRule("it writes to places that are given by number, and which of them depends on the values of a tensor")

OPERATORS = (
    Operator((aten.index.Tensor, aten._unsafe_index.Tensor), index_channels, index_constant),
    Operator((aten.index_select.default,), index_select_channels, index_select_constant),
    Operator((aten.gather.default,), gather_channels, gather_constant),
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
