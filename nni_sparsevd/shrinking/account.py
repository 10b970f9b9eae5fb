"""What becomes of each coupled group, and why what stays has to."""

from dataclasses import dataclass

import numpy as np

from ..graph import ChannelGraph, ChannelGroup, ChannelIds, Flags
from .carriers import Carriers
from .readers import Reading


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one coupled group."""

    name: str
    modules: tuple[str, ...]
    channels: int
    removed: int
    dead: int
    """Channels that nothing depends on, but that stay."""
    reason: str
    """Why dead channels stay, or why the group can lose none."""


class Account:
    """The reasons behind one removal."""

    def __init__(
        self, graph: ChannelGraph, reads: list[Reading], carriers: Carriers, removed: Flags, last: ChannelIds
    ) -> None:
        self._graph, self._reads, self._carriers, self._removed, self._last = graph, reads, carriers, removed, last
        self._used, self._live = (np.zeros(graph.num_channels, np.bool_) for _ in range(2))
        for read in reads:
            self._used[read.inputs[read.taken(removed)]] = True
            self._live[read.inputs[read.used.any(0) & np.isnan(read.constant)]] = True

    def of(self, group: ChannelGroup) -> GroupPlan:
        """Count what went and what is dead but stays, with the reasons."""
        stays = group.channels[~self._removed[group.channels]]
        own = np.zeros(self._graph.num_channels, np.bool_)
        own[self._graph.with_members(stays)] = True
        readers = [read for read in self._reads if own[read.inputs].any()]
        dead = stays[~self._any(stays, self._used)] if readers else stays[:0]
        reasons = [group.pinned] if group.pinned else []
        if not group.pinned:
            for why, kind in (
                ("not at the zero-padded border that {} sees", Reading.at_border),
                ("no bias of {} alone can stand for it", Reading.homeless),
            ):
                held = np.zeros_like(own)
                for read in readers:
                    held[read.inputs[kind(read)]] = True
                constant = stays[held[stays] & ~self._live[stays]]
                if constant.size:
                    sees = [read.name for read in readers if np.isin(read.inputs[kind(read)], constant).any()]
                    load = self._carriers.load(constant)
                    carried = f", and carries {load} more" if load else ""
                    names = ", ".join(dict.fromkeys(sees))
                    reasons.append(f"{constant.size} constant, but {why.format(names)}{carried}")
                    dead = np.union1d(dead, constant)
            if own[self._last].any():
                reasons.append("the last channel stays")
        modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in group.axes))
        gone = len(group) - stays.size
        return GroupPlan(group.name, modules, len(group), gone, int(dead.size), "; ".join(reasons))

    def _any(self, labels: ChannelIds, flags: Flags) -> Flags:
        """Of which classes any element is flagged."""
        found: Flags = self._graph.reach[labels] @ flags.astype(np.int64) > 0
        return found
