"""A row of the table of operators: how channels pass through an operator, and how constants do."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from ..equations import TrackedTensor
from ..links import IndexIds
from ..nodes import Node

ChannelRule = Callable[..., Any]
"""Called with the equations, the node and its arguments, tensors as `TrackedTensor`; returns the tracked result."""
ConstantRule = Callable[..., Any]
"""Called with the node and its arguments, tensors as abstract values; returns the abstract value of the result."""


class NotCovered(Exception):  # noqa: N818  (a rule's answer rather than a failure)
    """Raised by a rule that is called for a case which it does not describe.

    The reason says what the case is.  A channel rule's reason pins all channels that enter the operator; after a
    constant rule's, the result counts as depending on the input.  A rule raises nothing else on purpose: any other
    error is a mistake in the rule and reaches the user.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class NoRule:
    """Takes the place of a rule, and says why there is none."""

    because: str


@dataclass(frozen=True)
class Operator:
    """What is known of some of PyTorch's operators that behave alike."""

    targets: tuple[Any, ...]
    """Overloads, such as `torch.ops.aten.relu.default`; names, such as "torchvision::nms", for those of others."""
    channel_rule: ChannelRule | NoRule
    constant_rule: ConstantRule | NoRule


def call_rule(rule: Callable[..., Any], name: str, *arguments: Any, **options: Any) -> Any:
    """Call a rule of the operator `name`.

    The call is compared with the rule's signature before it is made.  To catch the TypeError of the call instead would
    hide every TypeError inside the rule, so that a mistake there would only show as channels that stay.

    Raises:
        NotCovered: The operator is called with arguments that the rule does not take, or for a case that it does not
            describe.
    """
    misfit = _find_misfit(rule, len(arguments), tuple(options))
    if misfit:
        raise NotCovered(f"{name} is called in a way that its rule does not cover: {misfit}")
    return rule(*arguments, **options)


@cache
def _find_misfit(rule: Callable[..., Any], positional: int, options: tuple[str, ...]) -> str:
    """Why a rule cannot be called with so many arguments and options of these names; "" where it can."""
    try:
        inspect.signature(rule).bind(*range(positional), **dict.fromkeys(options))
    except TypeError as error:
        return str(error)
    return ""


def operator_name(node: Node) -> str:
    """The short name of the operator that `node` runs, such as "conv2d"."""
    return str(getattr(node.target, "__name__", node.target)).removeprefix("aten.").split(".")[0]


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of the one tensor that `node` makes."""
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        raise NotCovered(f"{operator_name(node)} makes something else than one tensor")
    return tuple(int(size) for size in value.shape)


def argument_of(node: Node, name: str) -> Any:
    """What `node` is called with as an argument, by the name in its operator's schema; else the argument's default.

    None where the schema has no such argument.
    """
    if name in node.kwargs:
        return node.kwargs[name]
    place, default = _find_in_schema(node.target, name)
    return node.args[place] if place < len(node.args) else default


@cache
def _find_in_schema(target: Any, name: str) -> tuple[int, Any]:
    """The position of an argument and its default; where there is no such argument, a position behind the last one."""
    arguments = target._schema.arguments
    found = ((place, argument.default_value) for place, argument in enumerate(arguments) if argument.name == name)
    return next(found, (len(arguments), None))


def tracked_results(node: Node, ids: Sequence[IndexIds | None]) -> TrackedTensor | list[TrackedTensor]:
    """What `node` makes, one tensor or several, with these ids along the axes of each."""
    made = node.meta["val"]
    if isinstance(made, Tensor):
        return TrackedTensor(tuple(made.shape), tuple(ids))
    return [TrackedTensor(tuple(value.shape), tuple(ids)) for value in made]
