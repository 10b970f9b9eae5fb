"""Which channels cannot be removed, and why."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .links import ChannelIds, Flags, Link


@dataclass(frozen=True)
class Pins:
    """For each channel of a network the reason why it cannot be removed, if there is one."""

    reason_ids: ChannelIds  # shape: (channels of the network,): a place in `reasons`, -1 for a channel that is free
    reasons: tuple[str, ...]

    def pinned(self) -> Flags:
        """Flag the channels that are pinned."""
        pinned: Flags = self.reason_ids >= 0
        return pinned

    def reason(self, channel: int) -> str | None:
        """Why a channel stays, None for a free one."""
        place = int(self.reason_ids[channel])
        return self.reasons[place] if place >= 0 else None

    def with_pins(self, channels: ChannelIds, reason: str) -> "Pins":
        """The same pins, and one for each of `channels` that is free."""
        reason_ids = self.reason_ids.copy()
        reason_ids[channels[reason_ids[channels] < 0]] = len(self.reasons)
        return Pins(reason_ids, (*self.reasons, reason))

    def propagated(self, links: Sequence[Link]) -> "Pins":
        """The same pins, and those that follow from `links`.

        An owner with a pinned member is pinned, because the member would leave with it.  A member all of whose owners
        are pinned is pinned, because nothing takes it along.
        """
        pins, before = self, -1
        while pins.pinned().sum() > before:
            before = int(pins.pinned().sum())
            for link in links:
                pins = pins._through(link)
        return pins

    def _through(self, link: Link) -> "Pins":
        owners, members = link.pairs
        reason_ids, free = self.reason_ids.copy(), ~self.pinned()
        holds_pinned_member = free[owners] & ~free[members]
        reason_ids[owners[holds_pinned_member]] = reason_ids[members[holds_pinned_member]]
        has_free_owner = np.zeros_like(free)
        has_free_owner[members[reason_ids[owners] < 0]] = True
        stranded = link.members[free[link.members] & ~has_free_owner[link.members]]
        if not stranded.size:
            return Pins(reason_ids, self.reasons)
        owner_reasons = np.unique(reason_ids[owners[np.isin(members, stranded)]])
        reason = "; ".join(dict.fromkeys(self.reasons[place] for place in owner_reasons))
        return Pins(reason_ids, self.reasons).with_pins(stranded, reason or "reshape splits the channels")
