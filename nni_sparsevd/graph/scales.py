"""Attention that divides by the root of the number of dimensions, and what to multiply when that number changes."""

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from .labels import ChannelIds

aten = torch.ops.aten
MOVES = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.unbind.int, aten.select.int, aten.unsqueeze.default, aten.squeeze.dim, aten.contiguous.default,
    aten.clone.default, aten.alias.default, aten.dropout.default, aten.chunk.default, aten.split.Tensor,
    aten.split_with_sizes.default, operator.getitem,
}  # fmt: skip
PARTS = {operator.getitem, aten.select.int}


@dataclass(frozen=True)
class AttentionScale:
    """The rows of a weight, and of its bias, that write the queries of an attention of so many dimensions."""

    module: str
    """The module that runs the attention; it may remember the scale."""
    weight: str
    bias: str | None
    rows: ChannelIds
    dimensions: ChannelIds  # shape: (dimensions,): the class of each


def query_rows(query: Node) -> tuple[str, str | None, ChannelIds] | None:
    """Weight, bias and rows that write `query` and nothing else; None where more than moving lies between."""
    if len(query.users) > 1:  # as where relative positions are multiplied with the queries, too
        return None
    moves: list[Node] = []
    node: Any = query
    while node.target in MOVES:
        moves.append(node)
        node = node.args[0]
        if len(node.users) > 1 and not _parts(node):
            return None
    if node.target != aten.linear.default:
        return None
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else None
    states = [state for state in (weight, bias) if state is not None]
    if any(state.op != "get_attr" or "constant" in state.meta or len(state.users) > 1 for state in states):
        return None
    rows: Any = torch.arange(weight.meta["val"].shape[0]).expand(node.meta["val"].shape)
    for move in reversed(moves):
        target: Any = move.target
        rows = target(rows, *move.args[1:], **move.kwargs)
    return weight.target, bias.target if bias is not None else None, np.unique(rows.numpy())


def _parts(node: Node) -> bool:
    """Whether every user takes a part of its own."""
    users = list(node.users)
    return all(user.target in PARTS for user in users) and len({user.args[1:] for user in users}) == len(users)
