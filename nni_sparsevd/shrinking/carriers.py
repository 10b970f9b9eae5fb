"""One channel that carries what others did, where a bias cannot: constants that vary at a zero-padded border.

Zero padding makes a constant c into c inside and 0 at the border, and so does it to every other constant.  So one of
the constant channels that a padded convolution reads is enough: if c0 is its constant, and sum_k W_k c_k / c0 its
weights, each output is what it was, at the border too and for every size of the input.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph import Axis, ChannelGraph, ChannelIds, Flags
from .readers import Reading


@dataclass(frozen=True)
class Merge:
    """Add `factor` times the input channel `source` of a weight to its channel `into`."""

    into: int
    source: int
    factor: float


class Carriers:
    """Which channel class stands for which; every class for itself at first."""

    def __init__(self, graph: ChannelGraph, reads: list[Reading]) -> None:
        self._groups = [group for group in graph.groups if not group.pinned]
        self._reads = reads
        self._of = np.arange(graph.num_channels)

    def needed(self, removed: Flags) -> Iterator[ChannelIds]:
        """Classes that outputs which stay take something from: their carriers, where they have one.

        Reader by reader: `removed` may lose what one needs before the next is asked.
        """
        return (self._of[read.needed(removed)] for read in self._reads)

    def load(self, labels: ChannelIds) -> int:
        """How many other classes these carry."""
        return int(np.isin(self._of, labels).sum() - labels.size)

    def carry_(self, removed: Flags) -> bool:
        """Let one channel of each group carry the other constants of it that had to stay; True where that is new."""
        new = False
        stuck = [(read, read.stuck(removed)) for read in self._reads]
        stuck = [(read, taken) for read, taken in stuck if taken.any()]
        for group in self._groups:
            stays = group.channels[~removed[group.channels]]
            held = stays[self._of[stays] == stays]
            values = self._constants(held, stuck)
            steady = ~np.isnan(values).any(0)
            held, values = held[steady], values[:, steady]
            reached = (values != 0).any(1)  # readers to which any of them brings something
            able = (values[reached] != 0).all(0) if reached.any() else np.zeros(held.size, bool)
            if held.size < 2 or not able.any():
                continue
            weakest = np.abs(values[reached]).min(0)
            best = held[np.argmax(np.where(able, weakest, -1))]
            self._of[held] = best
            new = True
        return new

    def _constants(self, labels: ChannelIds, stuck: list[tuple[Reading, NDArray[np.bool_]]]) -> NDArray[np.float64]:
        """What each class brings to each reader that stays, shape (readers, classes).

        0 where it brings nothing or the reader's bias takes it; NaN where it is alive, or not in one place of a weight
        that only this reader uses, so that nothing can be put in its place.
        """
        column = np.full(self._of.size, -1)
        column[labels] = np.arange(labels.size)
        rows = [np.empty((0, labels.size))]
        for read, taken in stuck:
            where = column[read.inputs]
            places = np.flatnonzero(where >= 0)
            if places.size:
                several = np.bincount(where[places], minlength=labels.size) > 1
                row = np.zeros(labels.size)
                row[where[places]] = read.constant[places]
                row[several] = np.nan
                brings = np.zeros(labels.size, bool)
                brings[where[places[taken[places]]]] = True
                rows.append(np.where(brings, row if read.alone else np.nan, 0.0)[None])
        return np.concatenate(rows)

    def merges(self, removed: Flags) -> dict[Axis, tuple[Merge, ...]]:
        """What to change in the weights of the readers before `removed` goes: {(weight, its input axis): merges}."""
        found = {}
        for read in self._reads:
            merges = []
            for source in np.flatnonzero(read.stuck(removed) & removed[read.inputs]):
                into = int(np.flatnonzero(read.inputs == self._of[read.inputs[source]])[0])
                merges.append(Merge(into, int(source), float(read.constant[source] / read.constant[into])))
            if merges and read.reader and read.reader.weight:
                found[read.reader.weight, read.reader.input_dim] = tuple(merges)
        return found
