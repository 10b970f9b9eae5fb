"""The coupled channel groups of a network: what would have to be removed together, and what never can be."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import Node
from torch.fx.node import map_arg

from . import moves  # noqa: F401  enters its rules
from .labels import Atoms, Axis, Equations, Tracked
from .rules import RULES, op_name, opaque, shape_of
from .trace import Inputs, Trace, trace

aten = torch.ops.aten
TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
CONVOLUTIONS |= {aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}
READERS = CONVOLUTIONS | TRANSPOSED | {aten.linear.default}
BATCH_NORM = aten._native_batch_norm_legit_no_training.default


@dataclass(frozen=True)
class Writer:
    """An operator that makes channels, and the module after which they can be silenced for good."""

    axis: Axis
    """The output axis of its weight."""
    site: str
    """The batch normalisation that alone reads the writer's output, or the writer's own module."""
    channel_dim: int
    """Where the channels are in the site's output."""

    @property
    def module(self) -> str:
        return self.axis[0].rpartition(".")[0]


@dataclass(frozen=True)
class Reader:
    """A contraction over channels: where what a channel carries ends up."""

    node: Node
    weight: str
    inputs: Atoms  # shape: (channels of the input,): the class of each
    bias: str | None
    """The parameter that can take up a constant, perhaps yet to be born; None where nothing can."""

    @property
    def module(self) -> str:
        return self.weight.rpartition(".")[0]

    @property
    def input_dim(self) -> int:
        return 0 if self.node.target in TRANSPOSED else 1


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one kind: each is one class of coupled indices, and all touch the same axes of the same tensors."""

    name: str
    """The module that writes them first."""
    labels: Atoms  # shape: (channels,)
    axes: tuple[Axis, ...]
    writers: tuple[Writer, ...]
    """The last writer on each way to a reader: multiplying by zero after these silences the channel everywhere."""
    pinned: str | None
    """Why none of these may be removed, or None."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class ChannelGraph:
    """Every axis of every traced parameter and buffer with the class of each index, and the classes in groups."""

    trace: Trace
    axes: dict[Axis, Atoms]
    groups: tuple[ChannelGroup, ...]
    readers: tuple[Reader, ...]

    def where(self, axis: Axis, labels: Atoms) -> Atoms:
        """Indices along `axis` that belong to one of the classes `labels`."""
        return np.flatnonzero(np.isin(self.axes[axis], labels))


def channel_graph(model: nn.Module, example_inputs: Inputs) -> ChannelGraph:
    """Trace `model` and find its coupled channel groups, in the order in which the network writes them.

    Raises `TraceError` when the network cannot be traced.
    """
    recorded = trace(model, example_inputs)
    walk = _Walk(recorded)
    classes, reasons = walk.equations.solve()
    axes = {axis: classes[atoms] for axis, atoms in walk.equations.axes.items()}
    touched: dict[int, list[Axis]] = defaultdict(list)
    for axis, labels in axes.items():
        for label in np.unique(labels):
            touched[int(label)].append(axis)
    kinds: dict[tuple[tuple[Axis, ...], str | None], list[int]] = defaultdict(list)
    for label, found in touched.items():
        kinds[tuple(found), reasons.get(label)].append(label)
    groups = []
    for (where, reason), members in kinds.items():
        written = [writer for writer in walk.writers.values() if writer.axis in where]
        if written:
            last = tuple(walk.writers[node] for node in walk.writers if node in walk.read)
            last = tuple(dict.fromkeys(writer for writer in last if writer.axis in where))  # a module may run twice
            groups.append(ChannelGroup(written[0].module, np.array(members), where, last, reason))
    order = [writer.module for writer in walk.writers.values()]
    groups.sort(key=lambda group: order.index(group.name))
    readers = tuple(Reader(node, name, classes[atoms], bias) for node, name, atoms, bias in walk.readers)
    return ChannelGraph(recorded, axes, tuple(groups), readers)


def item(node: Node, values: dict[Node, Any]) -> Any:
    """What `operator.getitem` takes from a value that is a list; None past what is tracked."""
    source, index = node.args
    found = values[source]  # type: ignore[index]
    return found[index] if index < len(found) else None  # type: ignore[operator,index]


class _Walk:
    """One pass over the operators: collects the equations, the writers, and which of them a reader sees last."""

    def __init__(self, recorded: Trace) -> None:
        self.equations = Equations()
        self.writers: dict[Node, Writer] = {}
        self.read: set[Node] = set()
        self.readers: list[tuple[Node, str, Atoms, str | None]] = []
        self._recorded = recorded
        self._values: dict[Node, Any] = {}
        self._sources: dict[Node, frozenset[Node]] = defaultdict(frozenset)
        for node in recorded.graph.nodes:
            if node.op == "placeholder":
                self._values[node] = self._placeholder(node)
            elif node.op == "output":
                opaque(self.equations, None, self._resolve(node.args), reason="output of the network")
            else:
                self._operator(node)

    def _resolve(self, arguments: Any) -> Any:
        return map_arg(arguments, lambda node: self._values[node])

    def _placeholder(self, node: Node) -> Tracked | None:
        if not isinstance(node.meta.get("val"), torch.Tensor):
            return None
        name, shape = self._recorded.state(node), shape_of(node)
        return self.equations.state(name, shape) if name else Tracked(shape, (None,) * len(shape))

    def _operator(self, node: Node) -> None:
        self._sources[node] = frozenset().union(*(self._sources[source] for source in self._carriers(node)))
        if getattr(node.target, "__name__", "") == "getitem":
            self._values[node] = item(node, self._values)
            return
        arguments = self._resolve(node.args)
        if node.target not in RULES:
            reason = f"{op_name(node)} has no rule"
            options = dict(self._resolve(node.kwargs))
            self._values[node] = opaque(self.equations, node, arguments, options, reason=reason)
            return
        self._values[node] = RULES[node.target](self.equations, node, *arguments, **self._resolve(node.kwargs))
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
            if inputs is not None and name is not None:
                self.readers.append((node, name, inputs, self._bias(node, name)))
        if name is None:
            self.equations.pin(inputs, f"{op_name(node)} with a computed weight")
        else:
            self.writers[node] = Writer((name, 1 if node.target in TRANSPOSED else 0), *self._site(node, name))
            self._sources[node] = frozenset({node})

    def _bias(self, node: Node, weight: str) -> str | None:
        given = node.args[2] if len(node.args) > 2 else None
        if given is not None:
            return self._recorded.state(given)
        # A new bias is read only where one of torch's layers was called, not its weight taken from elsewhere.
        path, kind = list(node.meta["nn_module_stack"].values())[-1]
        module, _, key = weight.rpartition(".")
        ours = key == "weight" and path.split("@")[0] == module and kind.startswith("torch.nn.modules.")
        return f"{module}.bias" if ours else None

    def _site(self, node: Node, weight: str) -> tuple[str, int]:
        """Where a gate belongs, and in which dimension of that module's output the channels are."""
        users = list(node.users)
        if len(users) == 1 and users[0].target == BATCH_NORM:
            norm = self._recorded.state(users[0].args[1])
            if norm is not None:
                return norm.rpartition(".")[0], 1
        return weight.rpartition(".")[0], -1 if node.target == aten.linear.default else 1
