"""One channel that carries what others did, where a bias cannot: constants that vary at a zero-padded border.

Zero padding makes a constant c into c inside and 0 at the border, and so does it to every other constant.  So one of
the constant channels that a padded convolution reads is enough: if c0 is its constant, and sum_k W_k c_k / c0 its
weights, each output is what it was, at the border too and for every size of the input.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from ..graph import Axis, ChannelGraph, ChannelGroup, ChannelIds, Flags
from .plan_parts import Merge
from .readings import Reading

Needs = list[tuple[Reading, NDArray[np.bool_]]]
"""Readers that need channels, and which ones, shape (channels,) each."""


class Carriers:
    """Which channel carries the constant of which; at first every channel carries its own."""

    def __init__(self, graph: ChannelGraph, readings: list[Reading]) -> None:
        self._groups = [group for group in graph.groups if not group.pinned]
        self._readings = readings
        self._carrier = np.arange(graph.num_channels)

    def needed(self, removed: Flags) -> Iterator[ChannelIds]:
        """For each reader, the channels that its kept outputs need: the carriers of what they take."""
        # Reader by reader, and not all at once: the caller takes back from `removed` what one reader needs before the
        # next one is asked.  The last reader of the network comes first, so that a single pass follows a long chain.
        for reading in reversed(self._readings):
            yield self._carrier[reading.inputs[reading.is_needed(removed)]]

    def count_carried(self, channels: ChannelIds) -> int:
        """How many other channels these ones carry."""
        return int(np.isin(self._carrier, channels).sum() - channels.size)

    def carry_(self, removed: Flags) -> bool:
        """Let one channel of each group carry the constants of others that had to be kept; True if any newly does."""
        needs: Needs = []
        for reading in self._readings:
            needed = reading.is_needed(removed)
            if needed.any():
                needs.append((reading, needed))
        if not needs:
            return False
        # Most readers read few of the many groups, so each group looks only at those that read any of its channels:
        # `places` says to which reader an input belongs.
        inputs = np.concatenate([reading.inputs for reading, _ in needs])
        places = np.repeat(np.arange(len(needs)), [reading.inputs.size for reading, _ in needs])
        new = False
        for group in self._groups:
            is_own = np.zeros(self._carrier.size, np.bool_)
            is_own[group.channels] = True
            own_needs = [needs[place] for place in np.unique(places[is_own[inputs]])]
            if own_needs and self._carry_in_group_(group, removed, own_needs):
                new = True
        return new

    def _carry_in_group_(self, group: ChannelGroup, removed: Flags, needs: Needs) -> bool:
        """Choose the carrier of one group; False where nothing new can be carried."""
        # 1. Only channels that bring a constant to every reader can be carried: NaN stands for anything else.
        # 2. A carrier must bring something to every reader to which any of the carried ones does.  A reader that gets
        #    0 from it, as behind a ReLU, would need the factor c_k / 0.
        # 3. Of those, the one whose smallest constant is largest is taken: the factors, and the rounding errors that
        #    they multiply, are then as small as they can be.
        # 4. What carries already is a candidate again, but what is carried is none: its carrier stands for it.
        kept = group.channels[~removed[group.channels]]
        candidates = kept[self._carrier[kept] == kept]  # 4
        brings = self._constants(candidates, needs)
        is_constant = ~np.isnan(brings).any(0)  # 1
        candidates, brings = candidates[is_constant], brings[:, is_constant]
        brings = brings[(brings != 0).any(1)]  # readers to which any candidate brings something
        if candidates.size < 2 or not brings.size:
            return False
        able = (brings != 0).all(0)  # 2
        if not able.any():
            return False
        weakest = np.abs(brings).min(0)
        carrier = candidates[np.argmax(np.where(able, weakest, -1))]  # 3
        self._carrier[candidates] = carrier
        return True

    def _constants(self, channels: ChannelIds, needs: Needs) -> NDArray[np.float64]:
        """What each channel brings to each reader that needs any of them, shape (readers, channels).

        0 where a channel brings nothing, or the reader's bias absorbs it.  NaN where nothing can be put in its place:
        it depends on the input, it enters the reader in several places, or another reader has the same weight.
        """
        column = np.full(self._carrier.size, -1)
        column[channels] = np.arange(channels.size)
        rows = [np.empty((0, channels.size))]
        for reading, needed in needs:
            columns = column[reading.inputs]
            places = np.flatnonzero(columns >= 0)
            if not places.size:
                continue
            row = np.zeros(channels.size)
            row[columns[places]] = reading.constant[places]
            # A channel that enters a reader in several places, as after a concatenation, has a weight in each of them.
            row[np.bincount(columns[places], minlength=channels.size) > 1] = np.nan
            is_needed = np.zeros(channels.size, bool)
            is_needed[columns[places[needed[places]]]] = True
            rows.append(np.where(is_needed, row if reading.alone else np.nan, 0.0)[None])
        return np.concatenate(rows)

    def merges(self, removed: Flags) -> dict[Axis, tuple[Merge, ...]]:
        """What to change in the weights of the readers before `removed` is cut: {(weight, its input axis): merges}."""
        merges_of = {}
        for reading in self._readings:
            carried = np.flatnonzero(reading.is_needed(removed) & removed[reading.inputs])
            if carried.size and reading.reader and reading.reader.weight:
                merges = tuple(self._merge(reading, int(source)) for source in carried)
                merges_of[reading.reader.weight, reading.reader.input_dim] = merges
        return merges_of

    def _merge(self, reading: Reading, source: int) -> Merge:
        into = int(np.flatnonzero(reading.inputs == self._carrier[reading.inputs[source]])[0])
        return Merge(into, source, float(reading.constant[source] / reading.constant[into]))
