"""Attention that divides by the root of the number of dimensions, and what to multiply when that number changes."""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from .links import ChannelIds, IndexIds

aten = torch.ops.aten
MOVES = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.unbind.int, aten.select.int, aten.unsqueeze.default, aten.squeeze.dim, aten.contiguous.default,
    aten.clone.default, aten.alias.default, aten.dropout.default, aten.chunk.default, aten.split.Tensor,
    aten.split_with_sizes.default, operator.getitem,
}  # fmt: skip
"""Operators that move elements, or take some, and change none."""
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
    # 1. From the queries the operators are followed back to a linear map, as long as they only move elements.
    # 2. Nothing else may use what lies on the way, or it would be multiplied, too; only an operator all of whose users
    #    take different pieces, as where queries, keys and values are written by one weight, may have several.
    # 3. The rows are found by moving their numbers the same way forward: what arrives in the place of the queries is
    #    the numbers of the rows that write them.
    if len(query.users) > 1:  # as where relative positions are multiplied with the queries, too
        return None
    moves: list[Node] = []
    node: Any = query
    while node.target in MOVES:
        moves.append(node)
        node = node.args[0]
        if len(node.users) > 1 and not _users_take_different_pieces(node):
            return None
    if node.target != aten.linear.default:
        return None
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    if not _is_a_parameter_of_its_own(weight) or not (bias is None or _is_a_parameter_of_its_own(bias)):
        return None
    rows: Any = torch.arange(weight.meta["val"].shape[0]).expand(node.meta["val"].shape)
    for move in reversed(moves):
        target: Any = move.target
        rows = target(rows, *move.args[1:], **move.kwargs)
    return weight.target, None if bias is None else bias.target, np.unique(rows.numpy())


def _users_take_different_pieces(node: Node) -> bool:
    users = list(node.users)
    return all(user.target in TAKES_A_PIECE for user in users) and len({user.args[1:] for user in users}) == len(users)


def _is_a_parameter_of_its_own(state: Node) -> bool:
    """Whether a value is a named parameter or buffer that one operator uses."""
    return state.op == "get_attr" and "constant" not in state.meta and len(state.users) == 1
