"""The operators of one run of a network, as a flat list in which each knows what it takes and who takes its result."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

NodeKind = Literal["placeholder", "get_attr", "call_function", "output"]


# The words are those of `torch.fx`, whose graphs do more (they check names, make code, and can be changed) and take
# half of the time of a trace to build.
class Node:
    """One value of a network: an input, a tensor that the network holds, what an operator makes, or the output.

    Args:
        op: Which of them it is.
        target: The operator's overload, or the name of an input or of a tensor.
        args: What the operator is called with by position, nodes in the place of tensors.
        kwargs: What it is called with by name.
    """

    __slots__ = ("all_input_nodes", "args", "kwargs", "meta", "op", "target", "users")

    def __init__(self, op: NodeKind, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.op, self.target, self.args, self.kwargs = op, target, args, kwargs
        self.meta: dict[str, Any] = {}
        """What else is known of it, such as its shape and the module that ran it; `Trace` lists the entries."""
        self.users: dict[Node, None] = {}
        """The nodes that take it, each once, in order."""
        self.all_input_nodes: list[Node] = list(dict.fromkeys(find_nodes((args, kwargs))))
        """The nodes that it takes, each once, in order."""
        for source in self.all_input_nodes:
            source.users[self] = None

    def __repr__(self) -> str:
        return f"<{self.op} {self.target}>"


class Graph:
    """Nodes in the order in which they ran."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, op: NodeKind, target: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Node:
        """Append a node; see `Node`."""
        node = Node(op, target, args, kwargs or {})
        self.nodes.append(node)
        return node


def map_nodes(arguments: Any, function: Callable[[Node], Any]) -> Any:
    """Arguments with `function` of each node in its place.

    Args:
        arguments: Nodes and other values in any nesting of tuples, lists and dicts.
        function: What takes the place of a node.

    Returns:
        The same nesting.
    """
    if isinstance(arguments, Node):
        return function(arguments)
    if isinstance(arguments, tuple | list):
        return type(arguments)([map_nodes(value, function) for value in arguments])
    if isinstance(arguments, dict):
        return {name: map_nodes(value, function) for name, value in arguments.items()}
    return arguments


def find_nodes(arguments: Any) -> Iterator[Node]:
    """The nodes in the arguments of an operator, in order."""
    for value in arguments.values() if isinstance(arguments, dict) else arguments:
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple | list | dict):
            yield from find_nodes(value)
