"""Which channels live and die together.

Every index of every axis of every parameter is an atom.  Walking the operators of a network collects
equations between atoms ("this input channel of the convolution is that output channel of the one before")
and pins ("this one is an output of the network: never remove it").  Solved together at the end, the classes of
equal atoms are the coupled channels.  Collecting costs one pass, solving one connected-components call: no
search, however many branches, concatenations and residual sums there are.

A reshape that splits an axis into heads and their dimensions, or merges them, is no equation: an element of the long
axis goes when its head goes or when its dimension goes.  That is a `Link`.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch.fx import Node

from .origins import Origin

IndexIds = NDArray[np.int64]
ChannelIds = NDArray[np.int64]
Axis = tuple[str, int]
"""A parameter's or buffer's qualified name and one of its dimensions."""
Flags = NDArray[np.bool_]
"""One flag a class."""


@dataclass(frozen=True)
class TrackedTensor:
    """What is known of a tensor: its shape and, per dimension, the atoms along it (None: not a channel axis)."""

    shape: tuple[int, ...]
    atoms: tuple[IndexIds | None, ...]

    def at(self, dim: int) -> IndexIds | None:
        return self.atoms[dim]


@dataclass(frozen=True)
class Link:
    """What a reshape says of classes: an element of a block goes exactly when one of its units does.

    A block has one dimension for each axis that the reshape splits it into or merges; a unit is an index of one axis.
    """

    members: ChannelIds  # shape: (elements,), each class once
    owners: tuple[ChannelIds, ...]  # shape of each: (2, pairs): a unit, and an element that goes with it

    @cached_property
    def pairs(self) -> IndexIds:
        """Those of all axes, shape (2, pairs)."""
        return np.concatenate([np.empty((2, 0), np.int64), *self.owners], 1)

    def violations(self, removed: Flags) -> IndexIds:
        """Classes that cannot go as long as others stay."""
        units, elements = self.pairs
        taken = np.zeros_like(removed)
        taken[elements[removed[units]]] = True
        alone = self.members[removed[self.members] & ~taken[self.members]]
        return np.concatenate([alone, units[removed[units] & ~removed[elements]]])


def _components(left: IndexIds, right: IndexIds, count: int) -> IndexIds:
    """The class of each of `count` atoms, of which these pairs are equal."""
    edges = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(count, count))
    classes: IndexIds = connected_components(edges, directed=False)[1].astype(np.int64)
    return classes


def _same_elements(links: Sequence[Link], count: int) -> tuple[IndexIds, IndexIds]:
    """Units of several reshapes that take the same elements along: pairs of different classes that are one thing."""
    prints = np.random.default_rng(0).integers(2**62, size=count)
    units, found = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for along, elements in (axis for link in links for axis in link.owners):
        pairs = np.unique(along * count + elements)  # an element that a unit takes twice counts once
        own, first = np.unique(pairs // count, return_index=True)
        units.append(own)
        found.append(np.add.reduceat(prints[pairs % count], first))
    label, fingerprint = np.concatenate(units), np.concatenate(found)
    order = np.argsort(fingerprint, kind="stable")
    label, fingerprint = label[order], fingerprint[order]
    same = (fingerprint[1:] == fingerprint[:-1]) & (label[1:] != label[:-1])
    return label[1:][same], label[:-1][same]


@dataclass(frozen=True)
class Pins:
    """Which classes may not be removed, and why."""

    ids: IndexIds  # shape: (classes,): -1 for a free class
    texts: tuple[str, ...]

    def pinned(self) -> Flags:
        """Flag the classes that are pinned."""
        found: Flags = self.ids >= 0
        return found

    def reason(self, label: int) -> str | None:
        """Why a class stays, None for a free one."""
        place = int(self.ids[label])
        return self.texts[place] if place >= 0 else None

    def with_pins(self, labels: IndexIds, reason: str) -> "Pins":
        """The same, with those of `labels` pinned that are free."""
        ids = self.ids.copy()
        ids[labels[ids[labels] < 0]] = len(self.texts)
        return Pins(ids, (*self.texts, reason))

    def propagated(self, links: Sequence[Link]) -> "Pins":
        """With what follows: a unit with a pinned element cannot go, nor an element all of whose units are pinned."""
        pins, before = self, -1
        while pins.pinned().sum() > before:
            before = int(pins.pinned().sum())
            for link in links:
                pins = pins._through(link)
        return pins

    def _through(self, link: Link) -> "Pins":
        units, elements = link.pairs
        ids, free = self.ids.copy(), ~self.pinned()
        held = free[units] & ~free[elements]
        ids[units[held]] = ids[elements[held]]
        takes = np.zeros_like(free)
        takes[elements[ids[units] < 0]] = True
        stuck = link.members[free[link.members] & ~takes[link.members]]
        if not stuck.size:
            return Pins(ids, self.texts)
        why = dict.fromkeys(self.texts[place] for place in np.unique(ids[units[np.isin(elements, stuck)]]))
        return Pins(ids, self.texts).with_pins(stuck, "; ".join(why) or "reshape splits the channels")


@dataclass(frozen=True)
class Contraction:
    """A sum of products over channels of two computed tensors, the first two arguments of `node`."""

    node: Node
    inputs: IndexIds  # shape: (channels,)
    dims: tuple[int, int]
    """The dimension of each that is summed over."""


@dataclass(frozen=True)
class Written:
    """A size that the code of a network gives as a number."""

    node: Node
    origin: Origin | None
    """The attribute that it is read from."""
    atoms: IndexIds | None
    """Those along the axis, None where it is no channel axis."""


class Equations:
    """Collects atoms, equations, links and pins; `solve` turns them into classes."""

    def __init__(self, layer_norms: Container[str] = ()) -> None:
        self.layer_norms = layer_norms
        """Modules that may remember the channels which they lose."""
        self.remembered: list[tuple[Node, IndexIds]] = []
        self.axes: dict[Axis, IndexIds] = {}
        self.contractions: list[Contraction] = []
        self.written: list[Written] = []
        self.scales: list[tuple[Node, IndexIds]] = []
        """Attentions that are scaled by their number of dimensions, and those."""
        self.count = 0
        self._left: list[IndexIds] = []
        self._right: list[IndexIds] = []
        self._links: list[tuple[IndexIds, tuple[IndexIds, ...]]] = []
        self._pins: list[tuple[IndexIds, str]] = []

    def fresh(self, size: int) -> IndexIds:
        """`size` new atoms."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def state(self, name: str, shape: tuple[int, ...]) -> TrackedTensor:
        """The parameter or buffer `name`: the same atoms at each use."""
        for dim, size in enumerate(shape):
            if (name, dim) not in self.axes:
                self.axes[name, dim] = self.fresh(size)
        return TrackedTensor(shape, tuple(self.axes[name, dim] for dim in range(len(shape))))

    def equate(self, left: IndexIds | None, right: IndexIds | None, reason: str) -> IndexIds | None:
        """State that two axes are the same channels; one that is no channel axis pins the other, for `reason`."""
        if left is None or right is None:
            self.pin(left, reason)
            self.pin(right, reason)
            return None
        if left is not right:
            self._left.append(left)
            self._right.append(right)
        return left

    def link(self, elements: IndexIds, units: Sequence[IndexIds]) -> None:
        """State that each element goes exactly with one of its units: those at its place in the rows of `units`."""
        self._links.append((elements, tuple(units)))

    def link_block(self, block: IndexIds, units: Sequence[IndexIds | None]) -> None:
        """The same for a block of elements with the units along each of its axes; an axis without keeps its size."""
        axes = [(dim, along) for dim, along in enumerate(units) if along is not None]
        spread = [np.expand_dims(along, [d for d in range(block.ndim) if d != dim]) for dim, along in axes]
        self.link(block.ravel(), [np.broadcast_to(along, block.shape).ravel() for along in spread])

    def contract(
        self, node: Node, left: TrackedTensor, right: TrackedTensor, dims: tuple[int, int], reason: str
    ) -> None:
        """State that `node` sums products over dimension `dims` of two computed tensors."""
        summed = self.equate(left.at(dims[0]), right.at(dims[1]), reason)
        if summed is not None:
            self.contractions.append(Contraction(node, summed, dims))

    def write(self, node: Node, place: int, size: object, atoms: IndexIds | None) -> None:
        """State that the code of the network gives `size` for this axis, as its number `place`; -1 is none."""
        if isinstance(size, int) and size not in (-1, 1):
            self.written.append(Written(node, node.meta["origins"].get(place), atoms))

    def pin(self, atoms: IndexIds | None, reason: str) -> None:
        """State that none of these may be removed, and why."""
        if atoms is not None and atoms.size:
            self._pins.append((atoms, reason))

    def solve(self) -> tuple[IndexIds, tuple[Link, ...], "Pins"]:
        """The class of every atom, the links between classes, and the pins of all classes and of one more.

        That last one holds no atom: it stands for what never goes.
        """
        nothing = np.empty(0, np.int64)
        left, right = np.concatenate([*self._left, nothing]), np.concatenate([*self._right, nothing])
        classes = _components(left, right, self.count)
        while True:
            links = tuple(
                Link(np.unique(classes[elements]), tuple(classes[np.stack([along, elements])] for along in units))
                for elements, units in self._links
            )
            left, right = _same_elements(links, self.count)
            if not left.size:
                break
            classes = _components(left, right, self.count)[classes]
        ids = np.full(self.count + 1, -1)
        for place in range(len(self._pins) - 1, -1, -1):  # the first pin of a class is the one that counts
            ids[classes[self._pins[place][0]]] = place
        return classes, links, Pins(ids, tuple(reason for _, reason in self._pins))
