"""The largest set of channels that can be removed: a greatest fixed point."""

import numpy as np
from numpy.typing import NDArray

from ..graph import ChannelGraph, ChannelIds, Flags
from .carriers import Carriers
from .readers import Reading


def largest_removal(
    graph: ChannelGraph, readings: list[Reading], carriers: Carriers, round_to: int
) -> tuple[Flags, ChannelIds]:
    """The largest set of channels that can be removed exactly.

    1. Everything that is free is removed, then what the kept channels need is taken back, until nothing changes.  Going
       down from the top is what makes the set the largest one: growing it from nothing would never remove a cycle of
       channels that only serve each other.  Keeping more never makes less needed, so the order does not matter.
    2. A tensor without any channel is no tensor, so an axis that would be emptied keeps one.  The kept one may need
       others, hence another descent.  Axes are mended one at a time, as one channel often mends several.
    3. The same for channels that are kept to fill up a multiple of `round_to`.

    Each round keeps at least one channel more, so the loop ends.

    Returns:
        One flag for each class, set where it is removed; and the classes that are kept for the second reason alone.
    """
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
    """How many channels each class reads: to keep one that reads few is to keep few others for its sake."""
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
    heads = {int(label) for link in graph.links for label in link.pairs[0]}
    for group in graph.groups:
        candidates = group.channels[removed[group.channels]]
        if candidates.size and int(group.channels[0]) not in heads:
            number = -(len(group) - candidates.size) % multiple
            missing.append(candidates[np.argsort(cost[candidates], kind="stable")[:number]])
    return np.concatenate(missing)
