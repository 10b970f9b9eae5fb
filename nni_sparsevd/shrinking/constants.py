"""What a channel carries when it does not depend on the input.

The network is run once on abstract values: a tensor is stored with size 1 along every dimension in which it is
uniform, and NaN stands for "depends on the input".  NaN then spreads through additions and activations by itself;
only operators that can stop it (a zero weight) or that break uniformity (zero padding) need a rule of their own, which
the table of operators has.  All in float64.  The claim is sound for every finite input: a value that is no NaN is what
the network computes there.

A sum over time or over tokens, and a number made from a shape, depend on no value of the input, but on its size.  So
the network is also run on abstract values at other sizes, and a value counts as constant only where all sizes agree.
"""

from collections import defaultdict
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from ..graph import (
    ChannelIds,
    Node,
    NotCovered,
    OtherSizes,
    Trace,
    call_rule,
    compress,
    expand_fully,
    find_constant_rule,
    is_known,
    is_reader,
    keep_zeros,
    live_like,
    map_nodes,
    map_tensors,
    operator_name,
    to_double,
)
from .agreement import OtherValues, is_more_live
from .running import is_inexact

aten = torch.ops.aten
SUMS = {
    aten.sum.dim_IntList, aten.logsumexp.default, aten.linalg_vector_norm.default, aten.matmul.default,
    aten.bmm.default, aten.mm.default, aten.cumsum.default, aten.cumprod.default, aten.prod.dim_int, aten.sum.default,
    aten.prod.default, aten.softmax.int, aten._softmax.default, aten.log_softmax.int,
}  # fmt: skip
"""Operators whose result grows or falls with the number of equal values that they take."""
SAMPLERS = ("grid_sampler_2d", "grid_sampler_3d", "max_unpool2d", "max_unpool3d", "roi_align", "roi_pool")
"""Operators that take places beside the tensor whose values they take."""
StoppedConstants = dict[str, ChannelIds]
"""What stops constants, in words -> the channels whose constants are stopped, shape (channels,)."""


@dataclass(frozen=True)
class ValuesAtOtherSizes:
    """The values of a network at input sizes other than that of the example."""

    values: tuple[OtherValues, ...]
    complete: bool
    """Whether every dimension of the inputs that can have another size has one."""


@dataclass(frozen=True)
class Constants:
    """What a network carries where that does not depend on the input."""

    values: dict[Node, Any]
    """The abstract value of every node: a tensor, or a list of tensors; NaN where it depends on the input or its size.
    Weights that only readers use keep their type, all other floating-point numbers are float64."""
    not_covered: frozenset[Node]
    """Operators without a rule for the constants that enter them."""
    disagreeing: frozenset[Node]
    """Operators that make something else at another input size."""


AT_NO_OTHER_SIZE = ValuesAtOtherSizes((), complete=True)


def find_values_at_other_sizes(
    trace: Trace, states: dict[str, Tensor], other_sizes: OtherSizes, value_channels: dict[Node, Any]
) -> ValuesAtOtherSizes:
    """Find the values of a network at other sizes, to be compared with those at the size of the example.

    Args:
        trace: The operators of the network at the size of the example.
        states: Every parameter and buffer by name, on the CPU.
        other_sizes: The operators at other sizes.
        value_channels: The channels along the axes of every value, None for an axis without.

    Returns:
        What `find_constants` takes.
    """
    values = []
    for other in other_sizes.traces:
        values.append(OtherValues(trace, other, find_constants(other, states).values, value_channels))
    return ValuesAtOtherSizes(tuple(values), other_sizes.complete)


def find_constants(trace: Trace, states: dict[str, Tensor], others: ValuesAtOtherSizes = AT_NO_OTHER_SIZE) -> Constants:
    """Find the constants that a network carries, with its parameters as they are.

    Args:
        trace: The operators of the network.
        states: Every parameter and buffer by name, on the CPU.
        others: The values at other input sizes.  What differs there counts as depending on the input.

    Returns:
        The value of every node, and the operators that stopped constants.
    """
    evaluation = _Evaluation(trace, states, others)
    for node in trace.graph.nodes:
        if node.op != "output":
            evaluation.values[node] = evaluation.find_value(node)
    return Constants(evaluation.values, frozenset(evaluation.not_covered), frozenset(evaluation.disagreeing))


class _Evaluation:
    """Finds the values of the nodes, one after the other."""

    # 1. A parameter or buffer is what it holds, unless the network writes to it: then it is the result of all the
    #    inputs that the network has seen.
    # 2. Two shortcuts save most of the work where there is a single other size.  What is computed from parameters
    #    alone, and what a reader makes of the same constants, is the same at both sizes.
    # 3. Every other value is computed from those of its arguments.  Before that, an argument becomes live where it
    #    differs at another size.
    # 4. The result becomes live where the network itself would round it, where it may grow with a size for which no
    #    other could be tried, and where it differs at another size.
    def __init__(self, trace: Trace, states: dict[str, Tensor], others: ValuesAtOtherSizes) -> None:
        self.values: dict[Node, Any] = {}
        self.not_covered: set[Node] = set()
        self.disagreeing: set[Node] = set()
        self._trace, self._states, self._others = trace, states, others
        self._only_other = others.values[0] if len(others.values) == 1 else None
        self._from_input: set[Node] = set()
        """What is computed from an input, whether or not it is constant."""
        self._own_rounding = max(
            (_rounding(state.dtype) for state in states.values() if is_inexact(state)), default=0.0
        )

    def find_value(self, node: Node) -> Any:
        """The abstract value of a node, of which all inputs have theirs."""
        name = self._trace.state(node)
        if name is not None:  # 1
            is_written = name in self._trace.written
            return live_like(node.meta["val"]) if is_written else _read_state(node, self._states[name])
        known = self._only_other.known_to_agree(node) if self._only_other else None
        if known is not None:  # 2
            return known
        for other in self._others.values:
            other.restrict_arguments_(node, self.values)  # 3
        if node.op == "placeholder" or not self._from_input.isdisjoint(node.all_input_nodes):
            self._from_input.add(node)
        known = self._only_other.known_reading(node, self.values) if self._only_other else None
        if known is not None:  # 2
            return known
        value = self._compute_value(node) if node.op == "call_function" else _read_held_tensor(node)
        return self._restrict_value(node, value)

    def _compute_value(self, node: Node) -> Any:
        value, is_covered = _evaluate(node, self.values)
        if not is_covered:
            self.not_covered.add(node)
        return value

    def _restrict_value(self, node: Node, value: Any) -> Any:  # 4
        value = _without_rounded(value, node.meta["val"], self._own_rounding)
        # Where no other size could be tried, nothing shows that a sum grows with the size: only 0 passes it.
        if not self._others.complete and node.target in SUMS and node in self._from_input:
            value = map_tensors(keep_zeros, value)
        for other in self._others.values:
            agreed = other.restrict(node, value)
            if is_more_live(agreed, value):
                self.disagreeing.add(node)
            value = agreed
        return value


def _read_state(node: Node, state: Tensor) -> Tensor:
    """In float64, but for the weights of readers: those are large, and only some of their columns are needed so."""
    only_a_weight = all(is_reader(user) and user.args[1] is node for user in node.users)
    return state if only_a_weight and not state.is_complex() else to_double(state)


def _read_held_tensor(node: Node) -> Tensor:
    """An input, or a tensor that the code holds: known where the network ran with real tensors."""
    value = node.meta.get("constant")
    return live_like(node.meta["val"]) if value is None or value.is_meta else to_double(value.detach().cpu())


def _evaluate(node: Node, values: dict[Node, Any]) -> tuple[Any, bool]:
    """The value of an operator, and whether a rule covers it."""
    value = _apply_rule(node, values)
    return (_compute_if_known(node, values), False) if value is None else (value, True)


def _apply_rule(node: Node, values: dict[Node, Any]) -> Any:
    """The value of an operator by its rule; None where no rule covers it."""
    if node.target is getitem:
        sequence: Any = node.args[0]
        return values[sequence][node.args[1]]
    rule = find_constant_rule(node.target)
    if rule is None or _has_complex_factor(node):
        return None
    arguments, options = _look_up_arguments(node, values)
    try:
        value = call_rule(rule, operator_name(node), node, *arguments, **options)
    except NotCovered:
        return None
    return map_tensors(_without_complex_numbers, value)


def _compute_if_known(node: Node, values: dict[Node, Any]) -> Any:
    """The value of an operator without a rule: computed if nothing that enters it is live, and else live."""
    if not isinstance(node.target, OpOverload) or not _is_repeatable(node.target):
        return map_tensors(live_like, node.meta["val"])
    if not is_known(_look_up_arguments(node, values)):
        return map_tensors(live_like, node.meta["val"])
    return _compute(node, values)


def _has_complex_factor(node: Node) -> bool:
    """Whether an operator is given a complex number, which no rule knows: abstract values are real."""
    return any(isinstance(argument, complex) for argument in (*node.args, *node.kwargs.values()))


def _without_complex_numbers(value: Tensor) -> Tensor:
    return to_double(value) if value.is_complex() else value


def _without_rounded(value: Any, like: Any, own_rounding: float) -> Any:
    """A value, live where a type coarser than those of the network's parameters cannot hold it, as behind `x.half()`.

    In such a type the network rounds at every step, and not as float64 does: only what needs no rounding is known.
    """
    if isinstance(value, list):
        return [_without_rounded(part, part_like, own_rounding) for part, part_like in zip(value, like, strict=True)]
    if not isinstance(value, Tensor) or not like.is_floating_point() or _rounding(like.dtype) <= own_rounding:
        return value
    return torch.where(value.to(like.dtype).double() == value, value, torch.nan)


def _rounding(dtype: torch.dtype) -> float:
    """The distance from 1 to the next number of a floating-point type."""
    return torch.finfo(dtype).eps


def _look_up_arguments(node: Node, values: dict[Node, Any]) -> tuple[Any, Any]:
    """The arguments of a node by place and by name, tensors as abstract values."""
    return map_nodes(node.args, lambda source: values[source]), map_nodes(node.kwargs, lambda source: values[source])


def find_stopped_constants(trace: Trace, constants: Constants, value_channels: dict[Node, Any]) -> StoppedConstants:
    """Find the channels that are constant before an operator and live after it, though it reads nothing live.

    Args:
        trace: The operators of the network.
        constants: The result of `find_constants`.
        value_channels: The channels along the axes of every value, None for an axis without.

    Returns:
        What stops constants, in words -> the channels whose constants are stopped.
    """
    stopped: dict[str, list[ChannelIds]] = defaultdict(list)
    values, disagreeing = constants.values, constants.disagreeing
    for node in trace.graph.nodes:
        if node.op != "call_function" or node.target is getitem:
            continue
        if node in disagreeing:
            reason = f"what {operator_name(node)} makes of that depends on the size of the input"
        elif node in constants.not_covered and _is_live(values[node]):
            reason = f"{operator_name(node)} has no rule for constants"
        elif not is_reader(node):  # the plan says of readers what they cannot do without
            reason = f"what {operator_name(node)} makes of that is no constant"
        else:
            continue
        sources = [source for source in node.all_input_nodes if isinstance(values[source], Tensor)]
        before = [part for source in sources for part in _constant_channels(values[source], value_channels[source])]
        lost = _without(before, _all_constant_channels(values[node], value_channels[node]))
        if lost.size and node not in disagreeing and not _is_the_only_one_to_blame(node):
            lost = np.intersect1d(lost, _channels_made_live(node, sources, values, value_channels))
        if lost.size and node not in disagreeing:
            # Not what was lost because another step of a loop, at another size, has another value.
            made, _ = _evaluate(node, values)
            lost = _without([lost], _all_constant_channels(made, value_channels[node]))
        stopped[reason].append(lost)
    return {reason: np.unique(np.concatenate(channels)) for reason, channels in stopped.items() if channels}


def _is_live(value: Any) -> bool:
    """Whether all that an operator makes depends on the input."""
    results = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return all(bool(result.isnan().all()) for result in results)


def _channels_made_live(
    node: Node, sources: list[Node], values: dict[Node, Any], value_channels: dict[Node, Any]
) -> ChannelIds:
    """The channels that are live in what an operator makes, but in nothing that it takes: it met no live one of them.

    A constant that is multiplied by a mask, for instance, and not one that is added to the same channel of another
    branch.
    """
    if not isinstance(values[node], Tensor):
        return np.empty(0, np.int64)
    met = [part for source in sources for part in _channels(values[source], value_channels[source], live=True)]
    return _without(_channels(values[node], value_channels[node], live=True), met)


def _is_the_only_one_to_blame(node: Node) -> bool:
    """Whether a constant that becomes live in an operator does so by the operator, not by what it meets there."""
    return len(node.all_input_nodes) == 1 or operator_name(node) in SAMPLERS


def _all_constant_channels(value: Any, axes: Any) -> list[ChannelIds]:
    """The channels that carry a constant along each axis of a value, or of the first of several."""
    if isinstance(value, list):
        value, axes = value[0], axes[0]
    return _constant_channels(value, axes)


def _without(channels: list[ChannelIds], others: list[ChannelIds]) -> ChannelIds:
    """Channels that are not among others, each once, in order."""
    # By flags, as most operators lose none: to sort them takes several times as long.
    highest = max((int(ids.max()) for ids in (*channels, *others) if ids.size), default=-1)
    flags = np.zeros(highest + 1, np.bool_)
    for ids in channels:
        flags[ids] = True
    for ids in others:
        flags[ids] = False
    return np.flatnonzero(flags)


def _constant_channels(value: Tensor, axes: Any) -> list[ChannelIds]:
    """The channels along each axis of a value that carry a constant everywhere."""
    return _channels(value, axes, live=False)


def _channels(value: Tensor, axes: Any, *, live: bool) -> list[ChannelIds]:
    """The channels along each axis of a value that are live anywhere, or those that are live nowhere."""
    chosen = []
    for dim, channels in enumerate(axes):
        if channels is not None:
            other_dims = tuple(other for other in range(value.dim()) if other != dim)
            is_live = value.isnan().numpy().any(other_dims)
            chosen.append(channels[np.broadcast_to(is_live == live, channels.shape)])
    return chosen


def _is_repeatable(target: OpOverload) -> bool:
    """Whether an operator gives the same result each time: it draws no random numbers, and its memory is set."""
    return torch.Tag.nondeterministic_seeded not in target.tags and "empty" not in target._schema.name


def _compute(node: Node, values: dict[Node, Any]) -> Any:
    """The value of an operator that depends on no input: a table of positions, a weight made from a parameter."""
    target: Any = node.target
    arguments: Any = map_nodes(node.args, lambda source: expand_fully(source, values))
    options: Any = map_nodes(node.kwargs, lambda source: expand_fully(source, values))
    if options.get("device") is not None:
        options = {**options, "device": torch.device("cpu")}
    if isinstance(options.get("dtype"), torch.dtype) and options["dtype"].is_floating_point:
        options = {**options, "dtype": torch.float64}
    return map_tensors(lambda value: compress(to_double(value)), target(*arguments, **options))
