"""Which sizes the code of a network can follow.

A reshape gets its sizes as numbers: from an attribute such as `num_heads`, from the shape of another tensor, or written
out.  An attribute can be brought up to date, a number that is written out cannot.  So the network is run once more
without data, without some channels of every kind, and with the attributes set accordingly.  Where that fails, or a
shape is not what it should be, those channels stay.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from torch import nn

from .code_numbers import find_numbers
from .failures import find_failure
from .groups import ChannelGraph
from .links import ChannelIds, Flags
from .nodes import Node
from .operators import operator_name
from .suspects import Suspects
from .traces import find_unused


def pin_what_code_cannot_follow(model: nn.Module, graph: ChannelGraph) -> ChannelGraph:
    """Find the channels whose number the code of a network cannot follow.

    Args:
        model: The network.
        graph: Its channels.

    Returns:
        `graph` with a pin for each of them.
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
            return graph
        graph = tighter


def runs_alike_again(model: nn.Module, graph: ChannelGraph) -> bool:
    """Whether the whole network runs the operators of its trace when it is called again.

    A function that keeps what it has computed, a table of positions for instance, computes it in the first call only.
    """
    return find_failure(model, graph, np.zeros(graph.num_channels, np.bool_)) is None


def _choose_channels(graph: ChannelGraph, draw: np.random.Generator) -> Flags:
    """Some channels of every free group, but not all indices of any axis."""
    # Two channels stay where there are more, as some code takes another path for axes of size 1: einsum leaves them
    # out.  A removal that leaves one channel is tried by itself, before it is planned.
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
    has_numbers = bool(graph.code_sizes) or any(find_numbers(node) for node in graph.trace.graph.nodes)
    return has_numbers or bool(find_unused(graph.trace))


def _tighten_by_trial(model: nn.Module, graph: ChannelGraph, removed: Flags) -> ChannelGraph | None:
    failure = find_failure(model, graph, removed)
    if failure is None:
        return None
    pins = graph.pins
    if failure.has_other_number:
        for node, channels in _channels_behind_numbers(model, graph, removed):
            code = _class_name(model, node.meta["module"])
            pins = pins.with_pins(channels, f"{operator_name(node)} in the code of {code} computes with their number")
    if pins is graph.pins:
        code = _class_name(model, failure.module)
        blamed = Suspects(failure, model, graph, removed).to_blame()
        if blamed.size:
            pins = pins.with_pins(blamed, f"a size in the code of {code} cannot follow")
        else:  # nothing that the failed code meets can be blamed, so nothing is safe
            pins = pins.with_pins(np.flatnonzero(graph.removable()), f"the code of {code} cannot follow")
    return replace(graph, pins=pins.propagated(graph.links))


def _class_name(model: nn.Module, module: str) -> str:
    return type(model.get_submodule(module)).__name__


def _channels_behind_numbers(
    model: nn.Module, graph: ChannelGraph, removed: Flags
) -> Iterator[tuple[Node, ChannelIds]]:
    """The channels whose removal changes a number that the code of a network computes with, and the operator.

    They are found by trial: one group after the other loses its channels alone.  That is one run without data for
    each group, once for all numbers, and only for networks whose code computes with such a number.
    """
    for group in graph.groups:
        chosen = group.channels[removed[group.channels]]
        if group.pinned or not chosen.size:
            continue
        alone = np.zeros_like(removed)
        alone[graph.with_members(chosen)] = True
        failure = find_failure(model, graph, graph.drop_infeasible(alone))
        if failure is not None and failure.node is not None and failure.has_other_number:
            yield failure.node, group.channels
