"""What becomes of each channel group, and why what is kept has to be."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ..graph import ChannelGroup, ChannelIds
from .constants import StoppedConstants
from .held_members import HeldMembers
from .plan_parts import GroupPlan
from .readings import Reading
from .removal import Removal

OBSTACLES: tuple[tuple[str, Callable[[Reading], NDArray[np.bool_]]], ...] = (
    ("not at the zero-padded border that {} sees", Reading.varies_at_border),
    ("no bias of {} alone can stand for it", Reading.has_no_bias),
)
"""Why a constant keeps its channel, and where that is so."""


class Accountant:
    """Writes the account of each group for one removal."""

    def __init__(self, removal: Removal, readings: list[Reading], stopped: StoppedConstants) -> None:
        self._removal, self._readings, self._stopped = removal, readings, stopped
        self._graph = graph = removal.graph
        read = np.zeros(graph.num_channels, np.bool_)
        self._live = np.zeros(graph.num_channels, np.bool_)
        """Channels that bring any reader something that depends on the input."""
        for reading in readings:
            read[reading.inputs[reading.is_read(removal.removed)]] = True
            self._live[reading.inputs[reading.used.any(0) & np.isnan(reading.constant)]] = True
        self._read = graph.flag_owners(read)
        """Channels that a kept output reads, or of which it reads any member: a head with any of its dimensions."""
        self._inputs = np.concatenate([np.empty(0, np.int64), *(reading.inputs for reading in readings)])
        """The channels that each reader reads, one reader after the other."""
        self._places = np.repeat(np.arange(len(readings)), [reading.inputs.size for reading in readings])
        """For each of them the place of its reader among the readers."""
        self._held = HeldMembers(removal, readings, self._live)

    def plan_group(self, group: ChannelGroup) -> GroupPlan:
        """Count what is removed and what is dead or unread but kept, with the reasons."""
        kept = group.channels[~self._removal.removed[group.channels]]
        with_members = np.zeros(self._graph.num_channels, np.bool_)
        with_members[self._graph.with_members(kept)] = True
        readers = [self._readings[place] for place in np.unique(self._places[with_members[self._inputs]])]
        # A group that no layer reads is an output of the network: it is not unread.
        dead = kept[:0]
        if readers:
            dead = kept[~self._read[kept]]
        reasons = []
        if group.pinned:
            reasons.append(group.pinned)
        else:
            members = self._held.of_group(group)
            for why, is_obstacle in OBSTACLES:
                constant = self._held_constants(np.concatenate([kept, members]), readers, is_obstacle)
                if constant.size:
                    # A constant is no work either, so the channel is dead, though a reader takes it.
                    reasons.append(self._explain(constant, readers, why, is_obstacle))
                    dead = np.union1d(dead, np.intersect1d(constant, kept))
            reasons += self._held.explain(members)
            for why, channels in self._stopped_constants(kept).items():
                reasons.append(f"{channels.size} constant, but {why}")
                dead = np.union1d(dead, channels)
            if with_members[self._removal.last].any():
                reasons.append("the last channel stays")
        return GroupPlan(
            name=group.name,
            modules=tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in group.axes)),
            channels=len(group),
            removed=len(group) - kept.size,
            dead=int(dead.size),
            reason="; ".join(reasons),
        )

    def _held_constants(
        self, kept: ChannelIds, readers: list[Reading], is_obstacle: Callable[[Reading], NDArray[np.bool_]]
    ) -> ChannelIds:
        """Kept channels that are constant for all readers, and that one of them cannot do without."""
        held = np.zeros(self._graph.num_channels, np.bool_)
        for reading in readers:
            held[reading.inputs[is_obstacle(reading)]] = True
        return kept[held[kept] & ~self._live[kept]]

    def _stopped_constants(self, kept: ChannelIds) -> StoppedConstants:
        """Kept channels that are constant up to an operator that stops constants, and live for a reader."""
        # A head owns several values.  One of them may be constant while the head is not dead, so heads are left out.
        if self._graph.with_members(kept).size > kept.size:
            return {}
        live = kept[self._live[kept]]
        stopped = {why: np.intersect1d(live, channels) for why, channels in self._stopped.items()}
        return {why: channels for why, channels in stopped.items() if channels.size}

    def _explain(
        self,
        constant: ChannelIds,
        readers: list[Reading],
        why: str,
        is_obstacle: Callable[[Reading], NDArray[np.bool_]],
    ) -> str:
        names = []
        for reading in readers:
            if np.isin(reading.inputs[is_obstacle(reading)], constant).any():
                names.append(reading.name)
        carried = self._removal.carriers.count_carried(constant)
        reason = f"{constant.size} constant, but {why.format(', '.join(dict.fromkeys(names)))}"
        return f"{reason}, and carries {carried} more" if carried else reason
