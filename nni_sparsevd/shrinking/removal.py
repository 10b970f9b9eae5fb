"""The largest set of channels that can be removed: a greatest fixed point."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..graph import ChannelGraph, ChannelIds, Flags, tighten_graph
from .carriers import Carriers
from .readings import Reading


@dataclass(frozen=True)
class Removal:
    """The channels to remove, and what was decided on the way."""

    graph: ChannelGraph
    """With a pin for everything that the network's code cannot follow."""
    carriers: Carriers
    removed: Flags
    last: ChannelIds
    """Channels that are kept only because an axis would have been empty."""


def find_removal(model: nn.Module, graph: ChannelGraph, readings: list[Reading], round_to: int) -> Removal:
    """Find the largest removal that is exact, and that the network's own code can follow.

    Args:
        model: The network.
        graph: Its channel graph.
        readings: What each reader takes from each channel.
        round_to: What is left of each group is a multiple of this number of channels.

    Returns:
        The removal.
    """
    # 1. Carriers are chosen among the constants that had to be kept, so a removal without them comes first.  What they
    #    carry can be removed next, which may free further constants: repeat until no channel carries more.
    # 2. The code may be unable to follow these numbers of channels, though it followed others when the graph was made.
    #    The graph then comes back with more pins, and carriers are chosen anew: one may have carried for a channel that
    #    is kept now.
    # 3. Both loops end: each turn carries or pins at least one channel more.
    while True:
        carriers = Carriers(graph, readings)
        removed, last = _largest_removal(graph, readings, carriers, round_to)
        while carriers.carry_(removed):
            removed, last = _largest_removal(graph, readings, carriers, round_to)
        tighter = tighten_graph(model, graph, removed)
        if tighter is None:
            return Removal(graph, carriers, removed, last)
        graph = tighter


def _largest_removal(
    graph: ChannelGraph, readings: list[Reading], carriers: Carriers, round_to: int
) -> tuple[Flags, ChannelIds]:
    """The largest set of channels that can be removed exactly, and those that stay only for an axis not to be empty."""
    # 1. Everything that is free is removed, then what the kept channels need is taken back, until nothing changes.
    #    Coming down from the top makes the set the largest one: grown from nothing, it would never hold a cycle of
    #    channels that only serve each other.  Keeping more never makes less needed, so the order does not matter.
    # 2. A tensor without any channel is no tensor, so an axis that would be emptied keeps one.  That one may need
    #    others, hence another descent.  Axes are mended one at a time, as one channel often mends several.
    # 3. The same holds for channels that are kept to fill up a multiple of `round_to`.
    # 4. Each round keeps at least one channel more than the last, so the loop ends.
    free = graph.removable()
    cost = _count_read_channels(graph, readings)
    last = fill = np.empty(0, np.int64)
    while True:
        removed = _descend(graph, carriers, free, np.concatenate([last, fill]))
        emptied = [channels for channels in graph.axes.values() if channels.size and removed[channels].all()]
        if emptied:
            last = np.append(last, emptied[0][np.argmin(cost[emptied[0]])])
            continue
        missing = _find_missing(graph, removed, cost, round_to)
        if not missing.size:
            return removed, last
        fill = np.concatenate([fill, missing])


def _descend(graph: ChannelGraph, carriers: Carriers, free: Flags, kept: ChannelIds) -> Flags:
    """Take back what is needed from `free` less `kept` until nothing changes."""
    removed = free.copy()
    removed[kept] = False
    before = -1
    while removed.sum() != before:
        before = removed.sum()
        for needed in carriers.needed(removed):
            removed[needed] = False
        removed = graph.drop_infeasible(removed)
    return removed


def _count_read_channels(graph: ChannelGraph, readings: list[Reading]) -> NDArray[np.int64]:
    """How many channels each channel reads: to keep one that reads few is to keep few others for its sake."""
    cost = np.zeros(graph.num_channels, np.int64)
    for reading in readings:
        np.add.at(cost, reading.outputs, reading.used.sum(1))
    return cost


def _find_missing(graph: ChannelGraph, removed: Flags, cost: NDArray[np.int64], multiple: int) -> ChannelIds:
    """Removed channels to keep, so that what is left of each group is a multiple; heads and the like are not counted.

    A head stands for several channels, so a multiple of heads would be none of channels.
    """
    missing = [np.empty(0, np.int64)]
    if multiple == 1:
        return missing[0]
    # The first of each pair of a link owns the second, as a head owns its dimensions.
    heads = {int(label) for link in graph.links for label in link.pairs[0]}
    for group in graph.groups:
        candidates = group.channels[removed[group.channels]]
        if candidates.size and int(group.channels[0]) not in heads:
            number = -(len(group) - candidates.size) % multiple
            # Stable, so that ties are broken by position and every process keeps the same channels.
            missing.append(candidates[np.argsort(cost[candidates], kind="stable")[:number]])
    return np.concatenate(missing)
