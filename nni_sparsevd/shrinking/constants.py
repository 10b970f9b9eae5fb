"""What a channel carries when it does not depend on the input.

The network is run once on abstract values: a tensor is stored with size 1 along every dimension in which it is
uniform, and NaN stands for "depends on the input".  NaN then spreads through additions and activations by itself;
only operators that can stop it (a zero weight) or that break uniformity (zero padding) need a rule of their own.
All in float64.  The claim is sound for every finite input: a value that is no NaN is what the network computes there.
"""

import operator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from ..graph import READERS, Trace
from .abstract_values import compressed, expanded, known, live_like, mapped, wide
from .constant_rules import ELEMENTWISE, PASSING, RULES, UNIFORM, pooled


def find_constants(trace: Trace, states: dict[str, Tensor]) -> dict[Node, Any]:
    """The constant value of every node of `trace`, NaN where it depends on the input, for these parameter values."""
    values: dict[Node, Any] = {}
    for node in trace.graph.nodes:
        if node.op == "call_function":
            values[node] = _evaluate(node, values)
        elif node.op != "output":
            name = trace.state(node)
            values[node] = _held(node) if name is None else _read(node, states[name])
    return values


def _read(node: Node, state: Tensor) -> Tensor:
    """In float64, but for the weights of readers: those are large, and only some of their columns are needed so."""
    weight = all(user.target in READERS and user.args[1] is node for user in node.users)
    return state if weight else wide(state)


def _held(node: Node) -> Tensor:
    """An input, or a tensor that the code holds: known where the network ran with real tensors."""
    value = node.meta.get("constant")
    return live_like(node.meta["val"]) if value is None or value.is_meta else wide(value.detach().cpu())


def _evaluate(node: Node, values: dict[Node, Any]) -> Any:
    target: Any = node.target
    if target is operator.getitem:
        return values[node.args[0]][node.args[1]]  # type: ignore[index]
    arguments: Any = map_arg(node.args, lambda source: values[source])
    options: Any = map_arg(node.kwargs, lambda source: values[source])
    if target in PASSING:
        return _passed(node, arguments[0])
    if target in ELEMENTWISE:
        return target(*arguments, **options)
    if target in UNIFORM:
        return pooled(node, arguments[0])
    if target in RULES:
        try:
            return RULES[target](node, *arguments, **options)
        except (TypeError, ValueError, IndexError, RuntimeError):  # called in a way that the rule does not know
            return mapped(live_like, node.meta["val"])
    if known((arguments, options)) and isinstance(target, OpOverload) and _repeatable(target):
        return _computed(node, values)
    return mapped(live_like, node.meta["val"])


def _passed(node: Node, x: Tensor) -> Tensor:
    """The same value; floating-point numbers stay float64 whatever their type, others are really converted."""
    kind = node.meta["val"].dtype
    if kind.is_floating_point:
        return x.double()
    return live_like(x) if not known([x]) else x.to(kind)


def _repeatable(target: OpOverload) -> bool:
    return torch.Tag.nondeterministic_seeded not in target.tags and "empty" not in target._schema.name


def _computed(node: Node, values: dict[Node, Any]) -> Any:
    """The value of an operator that depends on no input: a table of positions, a weight made from a parameter."""
    target: Any = node.target
    full: Any = map_arg(node.args, lambda source: expanded(source, values))
    options: Any = map_arg(node.kwargs, lambda source: expanded(source, values))
    if options.get("device") is not None:
        options = {**options, "device": torch.device("cpu")}
    if isinstance(options.get("dtype"), torch.dtype) and options["dtype"].is_floating_point:
        options = {**options, "dtype": torch.float64}
    return mapped(lambda value: compressed(wide(value)), target(*full, **options))
