"""Abstract values: a tensor stored with size 1 along every dimension in which it is uniform, NaN where it is live.

All in float64.  NaN stands for "depends on the input".
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

LIVE = float("nan")


def wide(value: Tensor) -> Tensor:
    """In float64, or as it is where it holds whole numbers or flags."""
    return value.double() if value.is_floating_point() else value


def live_like(like: Tensor) -> Tensor:
    """Depends on the input everywhere."""
    return torch.full([1] * like.dim(), LIVE, dtype=torch.float64)


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """`function` of every tensor in `value`, which may be one or a list of them; other values as they are."""
    if isinstance(value, list | tuple):
        return [mapped(function, item) for item in value]
    return function(value) if isinstance(value, Tensor) else value


def known(arguments: Any) -> bool:
    """Whether no tensor among the arguments depends on the input."""
    return not any(
        isinstance(one, Tensor) and one.is_floating_point() and one.isnan().any() for one in tree_leaves(arguments)
    )


def expanded(node: Node, values: dict[Node, Any]) -> Tensor:
    """The value of a node at its full size."""
    value: Tensor = values[node]
    return value.expand(node.meta["val"].shape).contiguous()


def full_along(node: Node, value: Tensor, *dims: int, argument: int = 0) -> Tensor:
    """`value`, an argument of `node`, at its full size along `dims`."""
    source: Any = node.args[argument]
    full = source.meta["val"].shape
    sizes = list(value.shape)
    for dim in dims:
        sizes[dim] = full[dim]
    return value.expand(sizes)


def compressed(value: Tensor) -> Tensor:
    """Size 1 along every dimension in which the tensor is uniform."""
    for dim, size in enumerate(value.shape):
        if size > 1:
            first = value.narrow(dim, 0, 1)
            if ((value == first) | ((value != value) & (first != first))).all():
                value = first
    return value


def uniform(value: Tensor, dims: Sequence[int]) -> Tensor:
    """The same with every one of `dims` of size 1: live wherever the value varies along them."""
    for dim in dims:
        if value.shape[dim] > 1:
            low, high = value.amin(dim, keepdim=True), value.amax(dim, keepdim=True)
            value = torch.where(low == high, low, LIVE)
    return value


def product(left: Tensor, right: Tensor) -> Tensor:
    """Zero times anything finite is zero, also where the other factor depends on the input."""
    return torch.where((left == 0) | (right == 0), torch.zeros((), dtype=torch.float64), left * right)
