"""One pass over the operators of a network: the equations, the writers, and which of them a reader sees last."""

from collections import defaultdict
from collections.abc import Container
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .equations import Axis, Equations, TrackedTensor
from .groups import Writer
from .links import IndexIds
from .moves import find_norm_after
from .names import owner_of
from .nodes import Node, map_nodes
from .operators import (
    CONVOLUTIONS,
    LOOKUPS,
    PRODUCTS,
    TRANSPOSED,
    NoRule,
    NotCovered,
    argument_of,
    bias_of,
    call_rule,
    channel_dim,
    find_row,
    full_shape,
    is_reader,
    operator_name,
    shape_of,
)
from .origins import Origin
from .recorder import partial_write
from .traces import Trace, find_unused

aten = torch.ops.aten


class Walk:
    """Applies the rules of all operators in order; its attributes are what is known after the last one."""

    def __init__(self, recorded: Trace, replaceable_norms: Container[str]) -> None:
        self.equations = Equations(replaceable_norms, recorded.layers)
        self.values: dict[Node, Any] = {}
        """What is known of each value: a `TrackedTensor`, or a list of them."""
        self.writers: dict[Node, Writer] = {}
        """What each operator that makes channels writes."""
        self.last_writers: set[Node] = set()
        """Writers that a reader sees last."""
        self.readers: list[Node] = []
        """Operators that read channels with a weight, but for those that read each channel by itself."""
        self.recorded = recorded
        self._sources: dict[Node, frozenset[Node]] = defaultdict(frozenset)
        """For each value the writers that its channels come from, without passing another writer."""
        unneeded = _find_unneeded(recorded)
        for node in recorded.graph.nodes:
            if node in unneeded:
                self.values[node] = _unknown_result(node.meta["val"])
            elif node.op == "output":
                self._pin_all(self._resolve(node.args), "output of the network")
            elif node.op == "call_function":
                self._follow_operator(node)
            else:
                self.values[node] = self._track_held_tensor(node)
        self._couple_sizes()

    def _couple_sizes(self) -> None:
        """Axes that get their size from one attribute lose the same channels, so that one number fits them all."""
        first_ids: dict[Origin, IndexIds | None] = {}
        for size in self.equations.sizes:
            if size.origin is not None:
                reason = f"{size.origin[1]} is the size of something that is no channel, too"
                self.equations.equate(first_ids.setdefault(size.origin, size.ids), size.ids, reason)

    def _resolve(self, arguments: Any) -> Any:
        return map_nodes(arguments, lambda node: self.values[node])

    def _track_held_tensor(self, node: Node) -> TrackedTensor:
        """An input, a parameter, a buffer, or a tensor that the code holds."""
        name, shape = self.recorded.state(node), shape_of(node)
        return self.equations.track_state(name, shape) if name else _without_channels(shape)

    def _follow_operator(self, node: Node) -> None:
        self._sources[node] = frozenset().union(*(self._sources[source] for source in _channel_inputs(node)))
        if node.target is getitem:
            values: Any = node.args[0]
            self.values[node] = self.values[values][node.args[1]]
            return
        arguments, options = self._resolve(node.args), self._resolve(node.kwargs)
        try:
            self.values[node] = self._apply_rule(node, arguments, options)
        except NotCovered as uncovered:
            self._pin_all((arguments, options), uncovered.reason)
            self.values[node] = _unknown_result(node.meta["val"])
        else:
            if is_reader(node):
                self._record_reader(node)
        if node.target in PRODUCTS:
            self._record_bare_weight(node)
        # Also one that is not covered: its channels are a group, which says why they stay.
        if is_reader(node) and not _passes_channels_on(node):
            self._record_writer(node, arguments[1])

    def _apply_rule(self, node: Node, arguments: Any, options: Any) -> Any:
        row, name = find_row(node.target), operator_name(node)
        if node.target is partial_write:
            raise NotCovered("a part of its memory was written to in place")
        if row is None:
            raise NotCovered(f"{name} has no rule")
        if isinstance(row.channel_rule, NoRule):
            raise NotCovered(f"{name} has no rule: {row.channel_rule.because}")
        return call_rule(row.channel_rule, name, self.equations, node, *arguments, **options)

    def _pin_all(self, values: Any, reason: str) -> None:
        """Pin every channel of these values: nothing is known of what becomes of them."""
        for value in tree_leaves(values):
            if isinstance(value, TrackedTensor):
                for ids in value.ids:
                    self.equations.pin(ids, reason)

    def _record_reader(self, node: Node) -> None:
        # A depthwise convolution passes channels on, so the writers before it need no gate of their own.
        if _is_depthwise(node):
            return
        self.last_writers |= self._sources[node]
        x: Any = node.args[0]
        if self.values[x].ids[channel_dim(node)] is not None:
            self.readers.append(node)

    def _record_writer(self, node: Node, weight: TrackedTensor) -> None:
        axis = self._find_output_axis(node, weight)
        if axis is not None:
            self.writers[node] = self._make_writer(node, axis)
            self._sources[node] = frozenset({node})

    def _record_bare_weight(self, node: Node) -> None:
        """A product with a parameter, perhaps moved, writes along an axis of that parameter."""
        factors: Any = node.args[:2]
        for factor, dim in zip(factors, (-2, -1), strict=True):
            name = self.recorded.state(_find_source(factor))
            value = self.values[factor]
            if name is None or len(value.ids) < 2:
                continue
            for axis, ids in self.equations.axes.items():
                if axis[0] == name and ids is value.ids[dim]:
                    self.writers[node] = Writer(axis, name.rpartition(".")[0], dim, node, node)
                    self._sources[node] = frozenset({node})
                    return

    def _find_output_axis(self, node: Node, weight: TrackedTensor) -> Axis | None:
        """The axis of a parameter along which an operator writes; None where its weight is made of no parameter."""
        # A weight that is computed from a parameter, as a standardized one, is written along that parameter's axis:
        # of the module's own weight where it has one, else (torch's pruning and weight norm) of what it is made from.
        dim = self._find_output_dim(node)
        axis = (self.recorded.state(node.args[1]) or f"{node.meta['module']}.weight", dim)
        if axis in self.equations.axes:
            return axis
        outputs = weight.ids[dim]
        for source, ids in self.equations.axes.items():
            # Rows of a parameter, as the queries' of an attention, are a piece of its axis: the same array, or a view.
            if ids is outputs or (outputs is not None and ids is outputs.base):
                return source
        return None

    def _find_output_dim(self, node: Node) -> int:
        """The dimension of a reader's weight along which it writes; a depthwise weight is as long as its inputs."""
        if node.target not in TRANSPOSED:
            return 0
        weight: Any = node.args[1]
        return 0 if 1 < argument_of(node, "groups") == weight.meta["val"].shape[0] else 1

    def _make_writer(self, node: Node, axis: Axis) -> Writer:
        """An operator that writes along an axis of a weight, and the module after which a gate belongs."""
        dim = channel_dim(node)
        norm_node = find_norm_after(node, dim)
        norm = None if norm_node is None else self.recorded.state(norm_node.args[1])
        if norm_node is None or norm is None:
            return Writer(axis, owner_of(axis[0]), dim, node, node)
        return Writer(axis, owner_of(norm), 1, node, norm_node)


def _is_depthwise(node: Node) -> bool:
    """Whether a reader is a convolution that reads each of several channels by itself."""
    if node.target not in CONVOLUTIONS:
        return False
    x, weight = full_shape(node), full_shape(node, argument=1)
    return weight[1] == 1 and x[channel_dim(node)] > 1


def _passes_channels_on(node: Node) -> bool:
    """Whether a convolution does the same to each channel by itself, as one that blurs: it learns nothing."""
    # No gate fits behind it, as no parameter could take up the factor.  None is needed, as it leaves 0 what it is.
    if not _is_depthwise(node) or bias_of(node) is not None:
        return False
    weight: Any = node.args[1]
    source = _find_source(weight)
    return source.op == "get_attr" and not source.meta["is_parameter"]


def _find_source(node: Node) -> Node:
    """Where a chain of operators that each take one value begins, of which `node` is the last."""
    while node.op == "call_function" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node


def _find_unneeded(recorded: Trace) -> set[Node]:
    """Operators whose results nobody uses, and that run whichever channels leave: the mean of unused attention weights.

    A layer whose result nobody uses still runs: its weight has to fit what enters it.  So does a look-up: its places
    have to be there.  And so does a sum, as the residual that the last block of a WaveNet makes: its sides have to fit.
    """
    unused = find_unused(recorded)
    needed: set[Node] = set()
    for node in reversed(recorded.graph.nodes):
        inputs = node.all_input_nodes
        has_to_fit = len(inputs) > 1 or any(recorded.state(source) for source in inputs) or node.target in LOOKUPS
        if node in unused and (has_to_fit or not needed.isdisjoint(node.users)):
            needed.add(node)
    return set(unused) - needed


def _channel_inputs(node: Node) -> list[Node]:
    """The inputs that bring channels.  One factor of zero is enough for a product: squeeze-and-excite needs no gate."""
    inputs = node.all_input_nodes
    if node.target == aten.mul.Tensor and len(inputs) == 2:
        return [max(inputs, key=lambda source: source.meta["val"].numel())]
    return inputs


def _unknown_result(values: Any) -> Any:
    """What is known of a result where there is no rule: its shape.  Numbers stay what they are, untracked."""
    if isinstance(values, list | tuple):
        return [_unknown_result(value) for value in values]
    return _without_channels(tuple(values.shape)) if isinstance(values, Tensor) else None


def _without_channels(shape: tuple[int, ...]) -> TrackedTensor:
    return TrackedTensor(shape, (None,) * len(shape))
