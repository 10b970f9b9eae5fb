"""The largest set of channels that can go: a greatest fixed point."""

import numpy as np
from numpy.typing import NDArray

from ..graph import ChannelGraph, ChannelIds, Flags
from .carriers import Carriers
from .readers import Reading


def largest_removal(
    graph: ChannelGraph, reads: list[Reading], carriers: Carriers, round_to: int
) -> tuple[Flags, ChannelIds]:
    """Remove all that may go, take back what is needed by what stays, repeat.

    Returns the classes to remove, and those kept only because an axis would have been empty without them.
    """
    free = graph.removable()
    cost = _costs(graph, reads)
    last = fill = np.empty(0, np.int64)
    while True:
        removed = _fixed_point(graph, carriers, free, np.concatenate([last, fill]))
        emptied = [labels for labels in graph.axes.values() if labels.size and removed[labels].all()]
        if emptied:
            last = np.append(last, emptied[0][np.argmin(cost[emptied[0]])])
            continue
        missing = _missing(graph, removed, cost, round_to)
        if not missing.size:
            return removed, last
        fill = np.concatenate([fill, missing])


def _fixed_point(graph: ChannelGraph, carriers: Carriers, free: Flags, kept: ChannelIds) -> Flags:
    removed = free.copy()
    removed[kept] = False
    before = -1
    while removed.sum() != before:
        before = removed.sum()
        for needed in carriers.needed(removed):
            removed[needed] = False
        removed = graph.drop_infeasible(removed)
    return removed


def _costs(graph: ChannelGraph, reads: list[Reading]) -> NDArray[np.int64]:
    """How much each class reads: keeping what reads least keeps least else."""
    cost = np.zeros(graph.num_channels, np.int64)
    for read in reads:
        np.add.at(cost, read.outputs, read.used.sum(1))
    return cost


def _missing(graph: ChannelGraph, removed: Flags, cost: NDArray[np.int64], multiple: int) -> ChannelIds:
    """Dead channels to keep so that what is left of each group is a multiple; of heads and the like none."""
    found = [np.empty(0, np.int64)]
    units = {int(label) for link in graph.links for label in link.pairs[0]}
    for group in graph.groups if multiple > 1 else ():
        gone = group.channels[removed[group.channels]]
        if gone.size and int(group.channels[0]) not in units:
            needed = -(len(group) - gone.size) % multiple
            found.append(gone[np.argsort(cost[gone], kind="stable")[:needed]])
    return np.concatenate(found)
