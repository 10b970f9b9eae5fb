"""Abstract values: what a tensor holds where it does not depend on the input, and LIVE where it does.

A tensor is stored with size 1 along every dimension in which it is uniform, floating-point numbers in float64.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..nodes import Node

LIVE = float("nan")
"""Stands for "depends on the input".

NaN, because arithmetic and activations spread it by themselves: what depends on something live is live.  A network
that computes NaN from its constants alone is treated as if these depended on the input, which is the safe side.
"""


def to_double(value: Tensor) -> Tensor:
    """The tensor in float64, or as it is where it holds whole numbers or flags.

    Complex numbers are not followed: they become real ones, 0 where they are 0 and LIVE elsewhere.
    """
    if value.is_complex():
        return torch.where(value == 0, torch.zeros((), dtype=torch.float64), LIVE)
    return value.double() if value.is_floating_point() else value


def live_like(like: Tensor) -> Tensor:
    """The abstract value of a tensor that depends on the input everywhere, for the rank of `like`."""
    return torch.full([1] * like.dim(), LIVE, dtype=torch.float64)


def with_live_places(node: Node, value: Tensor) -> Tensor | list[Tensor]:
    """`value`; where `node` also returns the positions of its values, a list of both, with live positions."""
    made = node.meta["val"]
    return value if isinstance(made, Tensor) else [value, live_like(made[1])]


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`function` of every tensor in `value`, a tensor or a list of them; other values as they are."""
    if isinstance(value, list | tuple):
        return [map_tensors(function, item) for item in value]
    return function(value) if isinstance(value, Tensor) else value


def is_known(arguments: Any) -> bool:
    """Whether no tensor among the arguments depends on the input."""
    return not any(isinstance(leaf, Tensor) and has_live(leaf) for leaf in tree_leaves(arguments))


def has_live(value: Tensor) -> bool:
    """Whether any part of a tensor depends on the input."""
    return value.is_floating_point() and bool(value.isnan().any())


def expand_fully(node: Node, values: dict[Node, Any]) -> Tensor:
    """The value of a node at its full size; flags and whole numbers in the type that the network has them in."""
    value: Tensor = values[node]
    made = node.meta["val"]
    if not (made.is_floating_point() or made.is_complex()):
        value = value.to(made.dtype)  # rules may store them as float64, which can be LIVE
    return value.expand(made.shape).contiguous()


def full_shape(node: Node, argument: int = 0) -> tuple[int, ...]:
    """The shape that an argument of `node`, given by its place, has in the network."""
    source: Any = node.args[argument]
    return tuple(source.meta["val"].shape)


def expand_along(node: Node, value: Tensor, *dims: int, argument: int = 0) -> Tensor:
    """`value`, an argument of `node` given by its place, at its full size along `dims`."""
    full = full_shape(node, argument)
    sizes = list(value.shape)
    for dim in dims:
        sizes[dim] = full[dim]
    return value.expand(sizes)


def compress(value: Tensor) -> Tensor:
    """The tensor with size 1 along every dimension in which it is uniform."""
    for dim, size in enumerate(value.shape):
        if size > 1:
            first = value.narrow(dim, 0, 1)
            both_live = (value != value) & (first != first)  # NaN is the only value that differs from itself
            if ((value == first) | both_live).all():
                value = first
    return value


def make_uniform(value: Tensor, dims: Sequence[int]) -> Tensor:
    """The tensor with size 1 along each of `dims`: live wherever it varies along them."""
    for dim in dims:
        if value.shape[dim] > 1:
            low, high = value.amin(dim, keepdim=True), value.amax(dim, keepdim=True)
            value = torch.where(low == high, low, LIVE)
    return value


def keep_zeros(value: Tensor) -> Tensor:
    """The tensor with everything live but its zeros: for operators that mix values with zeros."""
    return torch.where(value == 0, value, LIVE)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Zero times anything finite is zero, also where the other factor depends on the input."""
    return torch.where((left == 0) | (right == 0), torch.zeros((), dtype=torch.float64), left * right)
