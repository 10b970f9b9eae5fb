"""Operators that only move elements: what is written with a weight is followed through them, backward and forward."""

import operator
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .links import IndexIds
from .nodes import Node

aten = torch.ops.aten
MOVES = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.unbind.int, aten.select.int, aten.unsqueeze.default, aten.squeeze.dim, aten.contiguous.default,
    aten.clone.default, aten.alias.default, aten.dropout.default, aten.chunk.default, aten.split.Tensor,
    aten.split_with_sizes.default, operator.getitem, aten.unflatten.int, aten.movedim.int, aten.mT.default,
}  # fmt: skip
"""Operators that move elements, or take some, and change none."""
SHAPE_OF_SECOND = {aten.reshape_as.default, aten.view_as.default, aten.expand_as.default}
"""Operators that take only the shape of their second argument."""
WRITERS_ALONG: dict[Any, int] = {
    aten.linear.default: -1, aten.conv1d.default: 1, aten.conv2d.default: 1, aten.conv3d.default: 1,
}  # fmt: skip
"""Operators that write with a weight, and the dimension of their result that its rows are along."""
TAKES_A_PIECE = {operator.getitem, aten.select.int}


@dataclass(frozen=True)
class WrittenRows:
    """Some of the outputs of an operator that writes with a weight."""

    writer: Node
    """A linear map or a convolution."""
    rows: IndexIds  # shape: (rows,): the numbers of the outputs, ascending


def find_rows_behind(value: Node, moves: Container[Any]) -> WrittenRows | None:
    """Find the operator that writes `value` with a weight, and its outputs that arrive there and nowhere else.

    Args:
        value: A value that the network computes.
        moves: Operators to follow backward.  Each moves elements, or multiplies them by a number in the code.

    Returns:
        The operator and its outputs; None where there is none, or where anything else uses what lies in between.
    """
    # 1. From the value the operators are followed back to a weight, as long as they only move elements.
    # 2. Nothing else may use what lies on the way, or it would be multiplied, too; only an operator all of whose users
    #    take different pieces, as where queries, keys and values are written by one weight, may have several.
    # 3. The rows are found by moving their numbers the same way forward: what arrives in the place of the value is the
    #    numbers of the rows that write it.
    if len(value.users) > 1:  # as where relative positions are multiplied with the queries, too
        return None
    passed: list[Node] = []
    node: Any = value
    while node.target in moves:
        passed.append(node)
        node = node.args[0]
        if not isinstance(node, Node) or (len(node.users) > 1 and not _users_take_different_pieces(node)):
            return None
    if node.target not in WRITERS_ALONG:
        return None
    dim, full_shape = WRITERS_ALONG[node.target], node.meta["val"].shape
    if node.target != aten.linear.default and len(full_shape) < node.args[1].meta["val"].dim():
        return None  # an image without a batch
    rows: Any = _number_along(dim, full_shape)
    for move in reversed(passed):
        if move.target in MOVES:
            rows = _move(rows, move)
    return WrittenRows(node, np.unique(rows.numpy()))


def _users_take_different_pieces(node: Node) -> bool:
    users = list(node.users)
    return all(user.target in TAKES_A_PIECE for user in users) and len({user.args[1:] for user in users}) == len(users)


def find_norm_after(node: Node, dim: int) -> Node | None:
    """The batch norm that alone reads what an operator writes, channel by channel, perhaps after the batch was moved.

    timm's LeViT flattens batch and tokens between a linear layer and its norm.

    Args:
        node: The operator that writes.
        dim: The dimension of its result that the channels are along.

    Returns:
        The batch norm, whose channel c is the operator's channel c; None where there is none.
    """
    moves: list[Node] = []
    reader = _only_user(node)
    while reader is not None and reader.target in MOVES:
        moves.append(reader)
        reader = _only_user(reader)
    if reader is None or reader.target != aten.batch_norm.default:
        return None
    shape = node.meta["val"].shape
    if not moves:
        return reader if dim % len(shape) == 1 else None
    # The channels are numbered in the operator's result, and the numbers moved the same way.
    numbers: Any = _number_along(dim, shape)
    for move in moves:
        numbers = _move(numbers, move)
        if not isinstance(numbers, Tensor):
            return None
    same = numbers.shape[1] == shape[dim] and bool((numbers == _number_along(1, numbers.shape)).all())
    return reader if same else None


def _only_user(node: Node) -> Node | None:
    """The operator that alone uses the elements of a value; others may take its shape."""
    users = [user for user in node.users if not (user.target in SHAPE_OF_SECOND and user.args[0] is not node)]
    return users[0] if len(users) == 1 else None


def _number_along(dim: int, shape: torch.Size) -> Tensor:
    """The number of its place along a dimension for each element of a tensor."""
    along = [1] * len(shape)
    along[dim] = -1
    return torch.arange(shape[dim]).view(along).expand(shape)


def _move(numbers: Any, move: Node) -> Any:
    """What an operator that only moves elements makes of their numbers."""
    target: Any = move.target
    return target(numbers, *move.args[1:], **move.kwargs)
