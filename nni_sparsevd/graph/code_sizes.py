"""Which sizes the code of a network can follow.

A reshape gets its sizes as numbers: from an attribute such as `num_heads`, from the shape of another tensor, or written
out.  An attribute can be brought up to date, a number that is written out cannot.  So the network is run once more
without data, without some channels of every kind, and with the attributes set accordingly.  Where that fails, or a
shape is not what it should be, those channels stay.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from .groups import ChannelGraph, CodeSize, SizeAttribute
from .links import ChannelIds, Flags
from .operators import operator_name
from .pins import Pins
from .resize import cut_, remaining_sizes
from .traces import Trace, find_unused
from .tracing import make_traceable_copy, record

aten = torch.ops.aten
LEFT_OUT = {aten.contiguous.default, aten.alias.default, aten.clone.default}
"""Operators that PyTorch leaves out where an axis of size 1 makes them superfluous."""


def resolve_sizes(model: nn.Module, graph: ChannelGraph) -> ChannelGraph:
    """Find the attributes that have to follow the channels of a network, and what its code cannot follow.

    Args:
        model: The network.
        graph: Its channels.

    Returns:
        `graph` with these attributes, and with pins where the code cannot follow.
    """
    # 1. Some channels of every free group are chosen at random, a different number of each: two axes that are equally
    #    long after the removal would hide that the code confuses them.
    # 2. The smaller network is run.  Where it fails, the channels to blame are pinned, and other channels are chosen.
    # 3. A network whose code gives no sizes is not run at all.
    # 4. Each failure pins at least one channel, and nothing is tried where nothing can be removed: the search ends.
    draw = np.random.default_rng(0)
    if not _needs_trial(graph):
        return graph
    while True:
        removed = graph.drop_infeasible(_choose_channels(graph, draw))
        tighter = _tighten_by_trial(model, graph, removed) if removed.any() else None
        if tighter is None:
            return graph.with_size_attributes(_size_attributes(_free_sizes(graph, graph.removable())))
        graph = tighter


def runs_alike_again(model: nn.Module, graph: ChannelGraph) -> bool:
    """Whether the whole network runs the operators of its trace when it is called again.

    A function that keeps what it has computed, a table of positions for instance, computes it in the first call only.
    """
    return _find_failure(model, graph, (), np.zeros(graph.num_channels, np.bool_)) is None


def _choose_channels(graph: ChannelGraph, draw: np.random.Generator) -> Flags:
    """Some channels of every free group, but not all indices of any axis."""
    # Two channels stay where there are more, as some code goes another way for axes of size 1: einsum leaves them out.
    # A removal that leaves one channel is tried by itself, before it is planned.
    chosen = np.zeros(graph.num_channels, np.bool_)
    for group in graph.groups:
        if group.pinned or len(group) < 2:
            continue
        more = chosen.copy()
        channels = draw.choice(group.channels, draw.integers(1, max(2, len(group) - 1)), replace=False)
        more[graph.with_members(channels)] = True
        if not any(more[graph.axes[axis]].all() for axis in group.axes):
            chosen = more
    return chosen


def tighten_graph(model: nn.Module, graph: ChannelGraph, removed: Flags) -> ChannelGraph | None:
    """None where the code of a network can follow a removal, else `graph` with more pins.

    The network without these channels is run without data, unless its code gives no sizes and no numbers at all.
    """
    return _tighten_by_trial(model, graph, removed) if removed.any() and _needs_trial(graph) else None


def _needs_trial(graph: ChannelGraph) -> bool:
    """Whether the code of a network gives sizes, computes with numbers, or makes what nobody uses, and has to run."""
    has_numbers = bool(graph.code_sizes) or any(_numbers(node) for node in graph.trace.graph.nodes)
    return has_numbers or bool(find_unused(graph.trace))


def _tighten_by_trial(model: nn.Module, graph: ChannelGraph, removed: Flags) -> ChannelGraph | None:
    free = graph.removable()
    attributes = _size_attributes(_free_sizes(graph, free))
    failure = _find_failure(model, graph, attributes, removed)
    if failure is None:
        return None
    if failure.number_at is not None:
        pins = graph.pins
        for changed, channels in _channels_behind_numbers(model, graph, attributes, removed):
            code = _class_name(model, changed.meta["module"])
            pins = pins.with_pins(
                channels, f"{operator_name(changed)} in the code of {code} computes with their number"
            )
        if pins is not graph.pins:
            return _with_pins(graph, pins)
    kind = _class_name(model, failure.module)
    blamed = _Suspects(failure, model, graph, attributes, free).to_blame()
    if blamed.size:
        pins = graph.pins.with_pins(blamed, f"a size in the code of {kind} cannot follow")
    else:  # nothing that the failed code meets can be blamed, so nothing is safe
        pins = graph.pins.with_pins(np.flatnonzero(free), f"the code of {kind} cannot follow")
    return _with_pins(graph, pins)


def _with_pins(graph: ChannelGraph, pins: Pins) -> ChannelGraph:
    """`graph` with these pins, and with the attributes that have to follow what is left free."""
    tighter = replace(graph, pins=pins.propagated(graph.links))
    return tighter.with_size_attributes(_size_attributes(_free_sizes(tighter, tighter.removable())))


def _free_sizes(graph: ChannelGraph, free: Flags) -> list[CodeSize]:
    """Sizes of axes that may lose something."""
    return [size for size in graph.code_sizes if free[size.channels].any()]


def _size_attributes(sizes: Sequence[CodeSize]) -> tuple[SizeAttribute, ...]:
    """The attributes that sizes are read from; all axes that one of them stands for are coupled."""
    channels_of = {size.origin: size.channels for size in sizes if size.origin is not None}
    return tuple(SizeAttribute(origin, channels) for origin, channels in channels_of.items())


@dataclass(frozen=True)
class _Failure:
    """Where a smaller network fails."""

    module: str
    node: Node | None
    """The operator that fails, or None for the code of the module between two operators."""
    number_at: Node | None = None
    """The operator, where it runs but computes with another number."""


NUMBER_OPERATORS = {
    *(getattr(aten, name).Tensor for name in ("add", "sub", "mul", "div", "remainder")),
    *(getattr(aten, name).Scalar for name in ("add", "sub", "mul", "div", "rsub", "pow", "remainder")),
    aten.div.Tensor_mode, aten.floor_divide.default,
    aten.pow.Tensor_Scalar, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default,
    aten.masked_fill.Scalar, aten.scaled_dot_product_attention.default, aten.lift_fresh_copy.default,
    aten.full.default, aten.full_like.default, aten.new_full.default, aten.fill.Scalar, aten.scalar_tensor.default,
}  # fmt: skip
"""Operators that compute with numbers, where others take numbers as sizes and places."""


NUMBERS_OF_A_TENSOR = 8
"""How many numbers a tensor has at most that code makes of single numbers, such as of a height and a width."""


def _numbers(node: Node) -> list[float]:
    """The numbers that an operator computes with, or those of a small tensor that the code makes of numbers."""
    if node.op == "get_attr":
        return _read_small_tensor(node.meta.get("constant"))
    if node.target not in NUMBER_OPERATORS:
        return []
    start = 1 if node.target in (aten.full.default, aten.new_full.default) else 0  # sizes come first, or after x
    arguments = [argument for argument in node.args[start:] if not isinstance(argument, list | tuple)]
    leaves = tree_leaves((arguments, node.kwargs))
    return [float(leaf) for leaf in leaves if isinstance(leaf, int | float) and not isinstance(leaf, bool)]


def _read_small_tensor(constant: Tensor | None) -> list[float]:
    """The numbers of a tensor such as `torch.tensor(width)`; none where it is large, without data, or holds NaN."""
    if constant is None or constant.is_meta or constant.numel() > NUMBERS_OF_A_TENSOR or constant.is_complex():
        return []
    return [] if bool(constant.isnan().any()) else [float(number) for number in constant.flatten()]


def _class_name(model: nn.Module, module: str) -> str:
    return type(model.get_submodule(module)).__name__


def _channels_behind_numbers(
    model: nn.Module, graph: ChannelGraph, attributes: Iterable[SizeAttribute], removed: Flags
) -> Iterator[tuple[Node, ChannelIds]]:
    """The channels whose removal changes a number that the code of a network computes with, and the operator.

    They are found by trial: one group after the other loses its channels alone.  That is one run without data for
    each group, once for all numbers, and only for networks whose code computes with such a number.
    """
    attributes = tuple(attributes)
    for group in graph.groups:
        chosen = group.channels[removed[group.channels]]
        if group.pinned or not chosen.size:
            continue
        alone = np.zeros_like(removed)
        alone[graph.with_members(chosen)] = True
        failure = _find_failure(model, graph, attributes, graph.drop_infeasible(alone))
        if failure is not None and failure.number_at is not None:
            yield failure.number_at, group.channels


def _find_failure(
    model: nn.Module, graph: ChannelGraph, attributes: Iterable[SizeAttribute], removed: Flags
) -> _Failure | None:
    """The first place where the smaller network fails, or makes a tensor of another shape than it should."""
    small = make_traceable_copy(model, graph.trace.device)
    cuts = {axis: np.flatnonzero(removed[channels]).tolist() for axis, channels in graph.axes.items()}
    cut_(small, {axis: indices for axis, indices in cuts.items() if indices}, remaining_sizes(attributes, removed))
    padded_norms = {norm.module for norm in graph.remembering_norms if not norm.is_layer_norm}
    for name in padded_norms:  # which will see all channels, as before, and return those that are left
        owner, _, key = name.rpartition(".")
        setattr(small.get_submodule(owner), key, _PassOn().eval())
    attempt = record(small, graph.trace.inputs, graph.trace.device)
    before, after = _compared_nodes(graph.trace, padded_norms), _compared_nodes(attempt.trace, padded_norms)
    unused = find_unused(graph.trace)
    for old, new in zip(before, after, strict=False):  # a run that failed is shorter
        if old.target != new.target:
            return _Failure(old.meta["module"], old)
        if old in unused:
            continue
        if not _has_expected_shape(new.meta["val"], old.meta["val"], graph.value_channels[old], removed):
            return _Failure(old.meta["module"], old)
        if _numbers(new) != _numbers(old):
            return _Failure(old.meta["module"], old, number_at=old)
    if attempt.error is not None:
        return _Failure(attempt.place, before[len(after)] if attempt.in_operator else None)
    return None if len(before) == len(after) else _Failure("", None)


class _PassOn(nn.Module):
    """Stands for a norm where only shapes count."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def _compared_nodes(trace: Trace, without: Collection[str]) -> list[Node]:
    """The nodes that are compared: none of those in the modules `without`, or in modules inside them."""
    prefixes = tuple(f"{name}." for name in without)
    compared = []
    for node in trace.graph.nodes:
        if node.op == "output" or node.target in LEFT_OUT:
            continue
        if not f"{node.meta.get('module')}.".startswith(prefixes):
            compared.append(node)
    return compared


def _has_expected_shape(after: Any, before: Any, axes: Any, removed: Flags) -> bool:
    if isinstance(before, list | tuple):
        values = zip(after, before, axes, strict=True)
        return all(_has_expected_shape(new, old, old_axes, removed) for new, old, old_axes in values)
    if not isinstance(before, Tensor):
        return True
    expected = []
    for size, channels in zip(before.shape, axes, strict=True):
        expected.append(size if channels is None else int((~removed[channels]).sum()))
    return list(after.shape) == expected


class _Suspects:
    """The channels that can be to blame for a failure.

    A network repeats its modules, and code that fails in one block will fail in the next.  So the code is taken to be
    wrong in every module of the failed module's class, at the operator of the same kind and step there.
    """

    def __init__(
        self,
        failure: _Failure,
        model: nn.Module,
        graph: ChannelGraph,
        attributes: Iterable[SizeAttribute],
        free: Flags,
    ) -> None:
        self._graph, self._free = graph, free
        kind = type(model.get_submodule(failure.module))
        self._names = {name for name, module in model.named_modules() if type(module) is kind}
        self._failed_nodes = {node for node in self._own_nodes() if _is_alike(node, failure.node)}
        self._followed = {attribute.origin for attribute in attributes}
        self._sizes = _free_sizes(graph, free)

    def to_blame(self) -> ChannelIds:
        """The free channels of the narrowest circle that has any."""
        # To blame too many would only cost removals, to blame too few costs another trial.  So the circles widen:
        #
        # 1. sizes that the failed operator is given as plain numbers, which nothing can bring up to date;
        # 2. all sizes that it is given: an attribute may also be used for something else;
        # 3. the channels of its arguments and its result;
        # 4. sizes that are given anywhere in modules of this class: the number may have been computed from one;
        # 5. the channels of everything that runs inside these modules.
        at_failure = [size for size in self._sizes if size.node in self._failed_nodes]
        circles = (
            [size.channels for size in at_failure if size.origin not in self._followed],
            [size.channels for size in at_failure],
            self._channels_at(self._failed_nodes),
            [size.channels for size in self._sizes if size.node.meta["module"] in self._names],
            self._channels_at(self._nodes_inside()),
        )
        nothing = np.empty(0, np.int64)
        for circle in circles:
            channels: ChannelIds = np.unique(np.concatenate([*circle, nothing]))
            channels = channels[self._free[channels]]
            if channels.size:
                return channels
        return nothing

    def _own_nodes(self) -> list[Node]:
        """What modules of the class run themselves."""
        return [node for node in self._graph.trace.graph.nodes if node.meta.get("module") in self._names]

    def _nodes_inside(self) -> list[Node]:
        """What modules of the class run, or modules inside them."""
        prefixes = tuple(f"{name}." for name in self._names)
        nodes = self._graph.trace.graph.nodes
        return [node for node in nodes if f"{node.meta.get('module')}.".startswith(prefixes)]

    def _channels_at(self, nodes: Iterable[Node]) -> list[ChannelIds]:
        """The channels along all axes of what these operators take and make."""
        channels: list[ChannelIds] = []
        for node in nodes:
            for value in (node, *node.all_input_nodes):
                channels += _flatten(self._graph.value_channels[value])
        return channels


def _is_alike(node: Node, failed: Node | None) -> bool:
    """Whether a node of a module is the failed operator, or its like in another module of that class."""
    return failed is None or (node.target, node.meta["step"]) == (failed.target, failed.meta["step"])


def _flatten(axes: Any) -> list[ChannelIds]:
    """The channels along each axis of a value, or of several."""
    if axes is None:
        return []
    if isinstance(axes, np.ndarray):
        return [axes]
    return [channels for part in axes for channels in _flatten(part)]
