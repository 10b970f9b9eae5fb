"""Whose code computes with each parameter."""

from collections import defaultdict

import torch

from .moves import SHAPE_OF_SECOND
from .nodes import Node
from .traces import Trace

aten = torch.ops.aten
FORM_OF_FIRST = {
    aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default,
    aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default,
}  # fmt: skip
"""Operators that take only the type or the shape of their first argument, not its values."""
FORM_OF_SECOND = {aten.to.other, aten.type_as.default, *SHAPE_OF_SECOND}
"""The same for their second argument."""


def find_users(trace: Trace) -> dict[str, frozenset[str]]:
    """Find the modules whose code computes with each parameter and buffer.

    Args:
        trace: The operators of a network.

    Returns:
        Name of a parameter or buffer -> names of the innermost modules that were running when it was used.
    """
    users: dict[str, set[str]] = defaultdict(set)
    for node in trace.graph.nodes:
        name = trace.state(node)
        if name is not None:
            users[name].update(user.meta["module"] for user in node.users if _takes_values(user, node))
    return {name: frozenset(modules) for name, modules in users.items()}


def _takes_values(user: Node, node: Node) -> bool:
    if user.op != "call_function":
        return False
    takes_form = user.target in FORM_OF_FIRST or (user.target in FORM_OF_SECOND and user.args[0] is not node)
    return not takes_form
