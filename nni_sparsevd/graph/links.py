"""What a reshape says of channels: those of a long axis leave together with those of the short axes.

A reshape that splits an axis into heads and their dimensions, or merges them, is no equation: no channel of the long
axis is a channel of a short one.  A channel of the long axis leaves when its head leaves or when its dimension leaves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

IndexIds = NDArray[np.int64]
"""One number for each index of an axis, as the rules of operators give them out."""
ChannelIds = NDArray[np.int64]
"""Numbers of channels: of each index, once the equations are solved, or of a choice of channels."""
Flags = NDArray[np.bool_]
"""One flag for each channel of a network, shape (channels of the network,)."""


@dataclass(frozen=True)
class Link:
    """A member leaves exactly when one of its owners does.

    Members are the channels of the long axis, owners the channels of the short axes: a head, or one dimension of all
    heads.  A member has one owner on each short axis.
    """

    members: ChannelIds  # shape: (members,), each channel once
    owners: tuple[ChannelIds, ...]  # one array for each short axis, shape: (2, pairs): an owner, and a member of it
    coupling: str
    """Why members leave with their owners only, in words."""

    @cached_property
    def pairs(self) -> ChannelIds:
        """The pairs (owner, member) of all short axes, shape (2, pairs)."""
        return np.concatenate([np.empty((2, 0), np.int64), *self.owners], 1)

    def violations(self, removed: Flags) -> ChannelIds:
        """Channels in `removed` that cannot leave as long as the others stay."""
        owners, members = self.pairs
        leaves_with_owner = np.zeros_like(removed)
        leaves_with_owner[members[removed[owners]]] = True
        members_without_owner = self.members[removed[self.members] & ~leaves_with_owner[self.members]]
        owners_of_kept_members = owners[removed[owners] & ~removed[members]]
        return np.concatenate([members_without_owner, owners_of_kept_members])


def owners_with_the_same_members(links: Sequence[Link], num_channels: int) -> tuple[ChannelIds, ChannelIds]:
    """Pairs of different owners, perhaps of different reshapes, that have exactly the same members."""
    # Two such owners are one channel: a network that splits heads off for the queries, and again for the keys of the
    # same tensor, has one set of heads.
    #
    # Comparing the sets of members of all owners with each other would take quadratic time.  Instead:
    #
    # 1. Each channel draws a random number of 62 bits.  An owner's fingerprint is the sum of its members' numbers, so
    #    equal sets have equal fingerprints, whatever the order.  The sums may overflow; they do so alike.
    # 2. Different sets agree by accident with a probability of about 2^-62 for each pair of owners.
    # 3. Sorting the fingerprints brings equal ones side by side.  Chains of neighbors are enough, because the caller
    #    takes the transitive closure.
    numbers = np.random.default_rng(0).integers(2**62, size=num_channels)
    nothing = np.empty(0, np.int64)
    all_owners, all_fingerprints = [nothing], [nothing]
    for link in links:
        for owners, members in link.owners:
            # A member that an owner has twice counts once, or a repeated axis would look like another set.
            pairs = np.unique(owners * num_channels + members)
            distinct_owners, first = np.unique(pairs // num_channels, return_index=True)
            all_owners.append(distinct_owners)
            all_fingerprints.append(np.add.reduceat(numbers[pairs % num_channels], first))
    owner, fingerprint = np.concatenate(all_owners), np.concatenate(all_fingerprints)
    order = np.argsort(fingerprint, kind="stable")
    owner, fingerprint = owner[order], fingerprint[order]
    same = (fingerprint[1:] == fingerprint[:-1]) & (owner[1:] != owner[:-1])
    return owner[1:][same], owner[:-1][same]
