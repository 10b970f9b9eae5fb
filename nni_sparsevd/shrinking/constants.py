"""What a channel carries when it does not depend on the input.

The network is run once on abstract values: a tensor is stored with size 1 along every dimension in which it is
uniform, and NaN stands for "depends on the input".  NaN then spreads through additions and activations by itself;
only operators that can stop it (a zero weight) or that break uniformity (zero padding) need a rule of their own, which
the table of operators has.  All in float64.  The claim is sound for every finite input: a value that is no NaN is what
the network computes there.
"""

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from ..graph import (
    READERS,
    NotCovered,
    Trace,
    call_rule,
    compress,
    expand_fully,
    find_constant_rule,
    is_known,
    live_like,
    map_tensors,
    operator_name,
    to_double,
)


def find_constants(trace: Trace, states: dict[str, Tensor]) -> dict[Node, Any]:
    """Find the constants that a network carries, with its parameters as they are.

    Args:
        trace: The operators of the network.
        states: Every parameter and buffer by name, on the CPU.

    Returns:
        The abstract value of every node: a tensor, or a list of tensors; NaN where it depends on the input.  Weights
        that only readers use keep their type, all other floating-point numbers are float64.
    """
    values: dict[Node, Any] = {}
    for node in trace.graph.nodes:
        if node.op == "call_function":
            values[node] = _evaluate(node, values)
        elif node.op != "output":
            name = trace.state(node)
            values[node] = _read_held_tensor(node) if name is None else _read_state(node, states[name])
    return values


def _read_state(node: Node, state: Tensor) -> Tensor:
    """In float64, but for the weights of readers: those are large, and only some of their columns are needed so."""
    only_a_weight = all(user.target in READERS and user.args[1] is node for user in node.users)
    return state if only_a_weight else to_double(state)


def _read_held_tensor(node: Node) -> Tensor:
    """An input, or a tensor that the code holds: known where the network ran with real tensors."""
    value = node.meta.get("constant")
    return live_like(node.meta["val"]) if value is None or value.is_meta else to_double(value.detach().cpu())


def _evaluate(node: Node, values: dict[Node, Any]) -> Any:
    """The value of an operator: by its rule; without one, by running it if nothing that enters it is live."""
    target: Any = node.target
    if target is getitem:
        sequence: Any = node.args[0]
        return values[sequence][node.args[1]]
    arguments: Any = map_arg(node.args, lambda source: values[source])
    options: Any = map_arg(node.kwargs, lambda source: values[source])
    rule = find_constant_rule(target)
    if rule is not None:
        try:
            return call_rule(rule, operator_name(node), node, *arguments, **options)
        except NotCovered:
            pass  # as if there were no rule
    if is_known((arguments, options)) and isinstance(target, OpOverload) and _is_repeatable(target):
        return _compute(node, values)
    return map_tensors(live_like, node.meta["val"])


def _is_repeatable(target: OpOverload) -> bool:
    """Whether an operator gives the same result each time: it draws no random numbers, and its memory is set."""
    return torch.Tag.nondeterministic_seeded not in target.tags and "empty" not in target._schema.name


def _compute(node: Node, values: dict[Node, Any]) -> Any:
    """The value of an operator that depends on no input: a table of positions, a weight made from a parameter."""
    target: Any = node.target
    arguments: Any = map_arg(node.args, lambda source: expand_fully(source, values))
    options: Any = map_arg(node.kwargs, lambda source: expand_fully(source, values))
    if options.get("device") is not None:
        options = {**options, "device": torch.device("cpu")}
    if isinstance(options.get("dtype"), torch.dtype) and options["dtype"].is_floating_point:
        options = {**options, "dtype": torch.float64}
    return map_tensors(lambda value: compress(to_double(value)), target(*arguments, **options))
