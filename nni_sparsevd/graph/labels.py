"""Which channels live and die together.

Every index of every axis of every parameter is an atom.  Walking the operators of a network collects
equations between atoms ("this input channel of the convolution is that output channel of the one before")
and pins ("this one is an output of the network: never remove it").  Solved together at the end, the classes of
equal atoms are the coupled channels.  Collecting costs one pass, solving one connected-components call: no
search, however many branches, concatenations and residual sums there are.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Atoms = NDArray[np.int64]
Axis = tuple[str, int]
"""A parameter's or buffer's qualified name and one of its dimensions."""


@dataclass(frozen=True)
class Tracked:
    """What is known of a tensor: its shape and, per dimension, the atoms along it (None: not a channel axis)."""

    shape: tuple[int, ...]
    atoms: tuple[Atoms | None, ...]

    def at(self, dim: int) -> Atoms | None:
        return self.atoms[dim]


class Equations:
    """Collects atoms, equations and pins; `solve` turns them into classes."""

    def __init__(self) -> None:
        self.axes: dict[Axis, Atoms] = {}
        self._count = 0
        self._left: list[Atoms] = []
        self._right: list[Atoms] = []
        self._pins: list[tuple[Atoms, str]] = []

    def fresh(self, size: int) -> Atoms:
        """`size` new atoms."""
        self._count += size
        return np.arange(self._count - size, self._count, dtype=np.int64)

    def state(self, name: str, shape: tuple[int, ...]) -> Tracked:
        """The parameter or buffer `name`: the same atoms at each use."""
        for dim, size in enumerate(shape):
            if (name, dim) not in self.axes:
                self.axes[name, dim] = self.fresh(size)
        return Tracked(shape, tuple(self.axes[name, dim] for dim in range(len(shape))))

    def equate(self, left: Atoms | None, right: Atoms | None, reason: str) -> Atoms | None:
        """State that two axes are the same channels; one that is no channel axis pins the other, for `reason`."""
        if left is None or right is None:
            self.pin(left, reason)
            self.pin(right, reason)
            return None
        if left is not right:
            self._left.append(left)
            self._right.append(right)
        return left

    def pin(self, atoms: Atoms | None, reason: str) -> None:
        """State that none of these may be removed, and why."""
        if atoms is not None and atoms.size:
            self._pins.append((atoms, reason))

    def solve(self) -> tuple[Atoms, dict[int, str]]:
        """The class of every atom, and the reason of each class that is pinned (its first)."""
        left = np.concatenate([*self._left, np.empty(0, np.int64)])
        right = np.concatenate([*self._right, np.empty(0, np.int64)])
        edges = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(self._count, self._count))
        _, classes = connected_components(edges, directed=False)
        classes = classes.astype(np.int64)
        reasons: dict[int, str] = {}
        for atoms, reason in self._pins:
            for label in np.unique(classes[atoms]):
                reasons.setdefault(int(label), reason)
        return classes, reasons
