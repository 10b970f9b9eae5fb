"""Attention that divides by the root of the number of dimensions, and what to multiply when that number changes."""

from dataclasses import dataclass
from typing import Any

import torch

from .links import ChannelIds, IndexIds
from .moves import MOVES, find_rows_behind
from .nodes import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class AttentionScale:
    """The rows of a weight, and of its bias, that write the queries of an attention of so many dimensions."""

    module: str
    """The module that runs the attention; it may remember the scale."""
    weight: str
    bias: str | None
    rows: IndexIds  # shape: (rows,): places along the output axis of the weight
    dimensions: ChannelIds  # shape: (dimensions,): index ids until the equations are solved


def find_query_rows(query: Node) -> tuple[str, str | None, IndexIds] | None:
    """Weight, bias and rows that write `query` and nothing else; None where there are no such rows."""
    written = find_rows_behind(query, MOVES)
    if written is None:
        return None
    parameters: Any = (*written.writer.args[1:], None)
    weight, bias = parameters[:2]
    if written.writer.target != aten.linear.default:
        return None
    if not _is_a_parameter_of_its_own(weight) or not (bias is None or _is_a_parameter_of_its_own(bias)):
        return None
    return weight.target, None if bias is None else bias.target, written.rows


def _is_a_parameter_of_its_own(state: Node) -> bool:
    """Whether a value is a named parameter or buffer that one operator uses."""
    return state.op == "get_attr" and "constant" not in state.meta and len(state.users) == 1
