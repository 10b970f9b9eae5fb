"""One channel that carries what others did, where a bias cannot: constants that vary at a zero-padded border.

Zero padding makes a constant c into c inside and 0 at the border, and so does it to every other constant.  So one of
the constant channels that a padded convolution reads is enough: if c0 is its constant, and sum_k W_k c_k / c0 its
weights, each output is what it was, at the border too and for every size of the input.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph import Atoms, Axis, ChannelGraph
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
        self._of = np.arange(1 + max((int(labels.max()) for labels in graph.axes.values() if labels.size), default=0))

    def needed(self, removed: Atoms) -> list[Atoms]:
        """Classes that outputs which stay take something from: their carriers, where they have one."""
        return [np.unique(self._of[read.needed(removed)]) for read in self._reads]

    def load(self, labels: Atoms) -> int:
        """How many other classes these carry."""
        return int(np.isin(self._of, labels).sum() - labels.size)

    def carry_(self, removed: Atoms) -> bool:
        """Let one channel of each group carry the other constants of it that had to stay; True where that is new."""
        new = False
        for group in self._groups:
            stays = np.setdiff1d(group.labels, removed)
            held = np.array([label for label in stays if self._of[label] == label], np.int64)
            values = self._constants(held, removed)
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

    def _constants(self, labels: Atoms, removed: Atoms) -> NDArray[np.float64]:
        """What each class brings to each reader that stays, shape (readers, classes).

        0 where it brings nothing or the reader's bias takes it; NaN where it is alive, or not in one place of a weight
        that only this reader uses, so that nothing can be put in its place.
        """
        rows = []
        for read in self._reads:
            stuck = read.stuck(removed)
            places = [np.flatnonzero(read.reader.inputs == label) for label in labels]
            row = []
            for where in places:
                taken = stuck[where].any()
                movable = where.size == 1 and read.alone
                row.append(0.0 if not taken else read.constant[where[0]] if movable else np.nan)
            rows.append(row)
        return np.array(rows).reshape(len(self._reads), labels.size)

    def merges(self, removed: Atoms) -> dict[Axis, tuple[Merge, ...]]:
        """What to change in the weights of the readers before `removed` goes: {(weight, its input axis): merges}."""
        found = {}
        for read in self._reads:
            merges = []
            for source in np.flatnonzero(read.stuck(removed) & np.isin(read.reader.inputs, removed)):
                into = int(np.flatnonzero(read.reader.inputs == self._of[read.reader.inputs[source]])[0])
                merges.append(Merge(into, int(source), float(read.constant[source] / read.constant[into])))
            if merges:
                found[read.reader.weight, read.reader.input_dim] = tuple(merges)
        return found
