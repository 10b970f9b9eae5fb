"""One pass over the operators of a network: the equations, the writers, and which of them a reader sees last."""

import operator
from collections import defaultdict
from collections.abc import Container
from typing import Any

import numpy as np
import torch
from torch.fx import Node
from torch.fx.node import map_arg

from . import pieces, reshapes, space  # noqa: F401  enter their rules
from .labels import Axis, Equations, IndexIds, TrackedTensor
from .origins import Origin
from .rules import CONVOLUTIONS, READERS, RULES, TRANSPOSED, op_name, opaque, shape_of
from .tracing import Trace

aten = torch.ops.aten


class Walk:
    """What is known after the last operator."""

    def __init__(self, recorded: Trace, layer_norms: Container[str]) -> None:
        self.equations = Equations(layer_norms)
        self.values: dict[Node, Any] = {}
        self.writers: dict[Node, tuple[Axis, str, int]] = {}
        """Operator -> output axis of its weight, the module after which it can be silenced, and the dimension there."""
        self.read: set[Node] = set()
        self.readers: list[tuple[Node, np.ndarray, str | None, str | None]] = []
        """Operator, its input channels, its weight where that is a parameter, the bias that can take up a constant."""
        self._recorded = recorded
        self._sources: dict[Node, frozenset[Node]] = defaultdict(frozenset)
        for node in recorded.graph.nodes:
            if node.op == "output":
                opaque(self.equations, None, self._resolve(node.args), reason="output of the network")
            elif node.op == "call_function":
                self._operator(node)
            else:
                self.values[node] = self._held(node)
        self._couple_sizes()

    def _couple_sizes(self) -> None:
        """Axes that get their size from one attribute lose the same channels, so that one number fits them all."""
        first: dict[Origin, IndexIds | None] = {}
        for one in self.equations.written:
            if one.origin is not None:
                reason = f"{one.origin[1]} is the size of something that is no channel, too"
                self.equations.equate(first.setdefault(one.origin, one.atoms), one.atoms, reason)

    def _resolve(self, arguments: Any) -> Any:
        return map_arg(arguments, lambda node: self.values[node])

    def _held(self, node: Node) -> TrackedTensor:
        name, shape = self._recorded.state(node), shape_of(node)
        return self.equations.state(name, shape) if name else TrackedTensor(shape, (None,) * len(shape))

    def _operator(self, node: Node) -> None:
        self._sources[node] = frozenset().union(*(self._sources[source] for source in self._carriers(node)))
        if node.target is operator.getitem:
            self.values[node] = self.values[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        arguments, options = self._resolve(node.args), self._resolve(node.kwargs)
        if node.target not in RULES:
            reason = f"{op_name(node)} has no rule"
            self.values[node] = opaque(self.equations, node, arguments, dict(options), reason=reason)
            return
        try:
            self.values[node] = RULES[node.target](self.equations, node, *arguments, **options)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError):
            reason = f"{op_name(node)} is called in a way that its rule does not know"
            self.values[node] = opaque(self.equations, node, arguments, dict(options), reason=reason)
            return
        if node.target in READERS:
            self._reader(node, arguments)

    def _carriers(self, node: Node) -> list[Node]:
        """The inputs that bring channels.  One silent factor silences a product: squeeze-and-excite needs no gate."""
        inputs = node.all_input_nodes
        if node.target == aten.mul.Tensor and len(inputs) == 2:
            return [max(inputs, key=lambda source: source.meta["val"].numel())]
        return inputs

    def _reader(self, node: Node, arguments: Any) -> None:
        x, weight = arguments[0], arguments[1]
        # A depthwise convolution passes channels on: those before it need no gate of their own.
        depthwise = node.target in CONVOLUTIONS and weight.shape[1] == 1 and x.shape[1] > 1
        inputs = x.at(-1) if node.target == aten.linear.default else x.at(1)
        name = self._recorded.state(node.args[1])
        if not depthwise:
            self.read |= self._sources[node]
            if inputs is not None:
                self.readers.append((node, inputs, name, self._bias(node, name)))
        # A weight that is computed from a parameter, as a standardised one, is written along that one's first axis.
        own = name or f"{node.meta['module']}.weight"
        axis = (own, 1 if node.target in TRANSPOSED else 0)
        if axis in self.equations.axes:
            self.writers[node] = axis, *self._site(node, own)
            self._sources[node] = frozenset({node})

    def _bias(self, node: Node, weight: str | None) -> str | None:
        given = node.args[2] if len(node.args) > 2 else None
        if given is not None:
            return self._recorded.state(given)
        # A new bias is read only where one of torch's layers was called, not its weight taken from elsewhere.
        module, _, key = (weight or "").rpartition(".")
        ours = key == "weight" and node.meta["module"] == module and module in self._recorded.layers
        return f"{module}.bias" if ours else None

    def _site(self, node: Node, weight: str) -> tuple[str, int]:
        """Where a gate belongs, and in which dimension of that module's output the channels are."""
        users = list(node.users)
        if len(users) == 1 and users[0].target == aten.batch_norm.default:
            norm = self._recorded.state(users[0].args[1])
            if norm is not None:
                return norm.rpartition(".")[0], 1
        return weight.rpartition(".")[0], -1 if node.target == aten.linear.default else 1
