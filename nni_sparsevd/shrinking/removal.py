"""The largest set of channels that can be removed: a greatest fixed point."""

import numpy as np
from numpy.typing import NDArray

from ..graph import ChannelGraph, ChannelIds, Flags
from .carriers import Carriers
from .readers import Reading


def largest_removal(
    graph: ChannelGraph, readings: list[Reading], carriers: Carriers, round_to: int
) -> tuple[Flags, ChannelIds]:
    """Find the largest set of channels that can be removed exactly.

    Args:
        graph: The channel graph, which says which channels are pinned.
        readings: What each reader takes from each channel.
        carriers: Which channel carries the constant of which.
        round_to: What is left of each group is a multiple of this number of channels.

    Returns:
        One flag for each channel, set where it is removed; and the channels that are kept only because an axis would
        have been empty without them.
    """
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
