"""Attention that divides by the root of the number of dimensions, and what to multiply when that number changes."""

import operator
from collections.abc import Container
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .links import ChannelIds, IndexIds
from .nodes import Node

aten = torch.ops.aten
MOVES = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.unbind.int, aten.select.int, aten.unsqueeze.default, aten.squeeze.dim, aten.contiguous.default,
    aten.clone.default, aten.alias.default, aten.dropout.default, aten.chunk.default, aten.split.Tensor,
    aten.split_with_sizes.default, operator.getitem, aten.unflatten.int, aten.movedim.int, aten.mT.default,
}  # fmt: skip
"""Operators that move elements, or take some, and change none."""
WRITERS_ALONG: dict[Any, int] = {
    aten.linear.default: -1, aten.conv1d.default: 1, aten.conv2d.default: 1, aten.conv3d.default: 1,
}  # fmt: skip
"""Operators that write with a weight, and the dimension of their result that its rows are along."""
TAKES_A_PIECE = {operator.getitem, aten.select.int}


@dataclass(frozen=True)
class AttentionScale:
    """The rows of a weight, and of its bias, that write the queries of an attention of so many dimensions."""

    module: str
    """The module that runs the attention; it may remember the scale."""
    weight: str
    bias: str | None
    rows: IndexIds  # shape: (rows,): places along the output axis of the weight
    dimensions: ChannelIds  # shape: (dimensions,)


def find_query_rows(query: Node) -> tuple[str, str | None, IndexIds] | None:
    """Weight, bias and rows that write `query` and nothing else; None where there are no such rows."""
    written = find_rows_behind(query, MOVES)
    if written is None:
        return None
    node, rows = written
    parameters: Any = (*node.args[1:], None)
    weight, bias = parameters[:2]
    if node.target != aten.linear.default:
        return None
    if not _is_a_parameter_of_its_own(weight) or not (bias is None or _is_a_parameter_of_its_own(bias)):
        return None
    return weight.target, None if bias is None else bias.target, rows


def find_rows_behind(value: Node, moves: Container[Any]) -> tuple[Node, IndexIds] | None:
    """The operator that writes `value` with a weight, and its outputs that arrive there and nowhere else.

    Args:
        value: A value that the network computes.
        moves: Operators to pass on the way back, each of which changes no place but by a number of the code.

    Returns:
        The operator, a linear map or a convolution, and the numbers of its outputs; None where there is none, or where
        anything else uses what lies on the way.
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
    shape = [1] * len(full_shape)
    shape[dim] = -1
    rows: Any = torch.arange(full_shape[dim]).view(shape).expand(full_shape)
    for move in reversed(passed):
        target: Any = move.target
        if target in MOVES:
            rows = target(rows, *move.args[1:], **move.kwargs)
    return node, np.unique(rows.numpy())


def _users_take_different_pieces(node: Node) -> bool:
    users = list(node.users)
    return all(user.target in TAKES_A_PIECE for user in users) and len({user.args[1:] for user in users}) == len(users)


def _is_a_parameter_of_its_own(state: Node) -> bool:
    """Whether a value is a named parameter or buffer that one operator uses."""
    return state.op == "get_attr" and "constant" not in state.meta and len(state.users) == 1
