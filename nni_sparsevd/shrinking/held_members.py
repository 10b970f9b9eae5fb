"""Channels without a group that do no work, and stay because each leaves only together with others."""

import numpy as np
from numpy.typing import NDArray

from ..graph import ChannelGraph, ChannelGroup, ChannelIds, Flags
from .readings import Reading
from .removal import Removal


class HeldMembers:
    """The members of links that are kept though no reader needs them, or though they bring only constants.

    A channel of a grouped convolution is such a member: it leaves with its whole group, or with the channels at its
    position in all other groups.  Groups and positions have an account in a plan, and speak for their members.
    """

    def __init__(self, removal: Removal, readings: list[Reading], live: Flags) -> None:
        self._graph = graph = removal.graph
        removed = removal.removed
        needed, idle = np.zeros_like(removed), np.zeros_like(removed)
        for channels in removal.carriers.needed(removed):
            needed[channels] = True
        for reading in readings:
            idle[reading.inputs] = True
        idle &= ~(needed & live) & _without_a_group(graph) & ~removed & ~graph.pins.pinned()
        idle[graph.with_members(removal.last)] = False  # they have the reason of the last channel
        self._members_of = self._choose_groups(idle)
        self._holder = self._find_holders(idle & ~needed, removed)

    def of_group(self, group: ChannelGroup) -> ChannelIds:
        """The members that a group speaks for."""
        return self._members_of.get(group.name, np.empty(0, np.int64))

    def explain(self, members: ChannelIds) -> list[str]:
        """Say of those members that nothing needs how many there are, and what holds them."""
        reasons = []
        for place, count in zip(*np.unique(self._holder[members], return_counts=True), strict=True):
            if place >= 0:
                coupling = self._graph.links[place].coupling
                reasons.append(f"{count} dead, but {coupling}, and others that would leave with them stay")
        return reasons

    def _choose_groups(self, idle: Flags) -> dict[str, ChannelIds]:
        """For each group the idle members it speaks for: one that would take fewer others along comes first."""
        if not idle.any():
            return {}
        rows = {group.name: self._graph.reach[group.channels] for group in self._graph.groups if not group.pinned}
        chosen = {}
        without_group = idle.copy()
        for name in sorted(rows, key=lambda name: rows[name].nnz / rows[name].shape[0]):
            members = np.unique(rows[name].indices)
            chosen[name] = members[without_group[members]]
            without_group[members] = False
        return chosen

    def _find_holders(self, unneeded: Flags, removed: Flags) -> NDArray[np.int64]:
        """For each channel the place of the link that holds it, -1 for none, shape (channels of the network,)."""
        # A link holds a member all of whose owners have to stay, each for another member or because it is pinned.  What
        # is held holds others in its turn, so the search is repeated until nothing is new.
        holder = np.full(removed.size, -1)
        stays = ~removed & ~unneeded
        before = -1
        while unneeded.any() and stays.sum() != before:
            before = int(stays.sum())
            for place, link in enumerate(self._graph.links):
                owners, members = link.pairs
                owner_stays, may_leave = self._graph.pins.pinned(), np.zeros_like(removed)
                owner_stays[owners[stays[members]]] = True
                may_leave[members[~owner_stays[owners]]] = True
                held = link.members[unneeded[link.members] & ~stays[link.members] & ~may_leave[link.members]]
                holder[held] = place
                stays[held] = True
        return holder


def _without_a_group(graph: ChannelGraph) -> Flags:
    """Flag the channels that are members of a link, and own nothing themselves."""
    flags = np.zeros(graph.num_channels, np.bool_)
    for link in graph.links:
        flags[link.members] = True
    for link in graph.links:
        flags[link.pairs[0]] = False
    return flags
