"""The coupled channel groups of a network: what would have to be removed together, and what never can be."""

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_array, eye_array
from torch.fx import Node

from .labels import Axis, ChannelIds, Flags, Link, Pins
from .origins import Origin
from .rules import TRANSPOSED
from .scales import AttentionScale
from .tracing import Trace


@dataclass(frozen=True)
class Writer:
    """An operator that makes channels, and the module after which they can be silenced for good."""

    axis: Axis
    """The output axis of its weight."""
    site: str
    """The batch normalisation that alone reads the writer's output, or the writer's own module."""
    channel_dim: int
    """Where the channels are in the site's output."""

    @property
    def module(self) -> str:
        return self.axis[0].rpartition(".")[0]


@dataclass(frozen=True)
class Reader:
    """A contraction of channels with a weight: where what a channel carries ends up."""

    node: Node
    weight: str | None
    """The parameter, or None where the weight is computed from one."""
    inputs: ChannelIds  # shape: (channels of the input,): the class of each
    outputs: ChannelIds  # shape: (channels of the output,)
    bias: str | None
    """The parameter that can take up a constant, perhaps yet to be born; None where nothing can."""

    @property
    def module(self) -> str:
        return str(self.node.meta["module"])

    @property
    def input_dim(self) -> int:
        return 0 if self.node.target in TRANSPOSED else 1


@dataclass(frozen=True)
class Product:
    """A contraction of the channels of two computed tensors, the first two arguments of `node`."""

    node: Node
    inputs: ChannelIds  # shape: (channels,): the class of each
    dims: tuple[int, int]
    """The dimension of each tensor that is summed over."""
    heads: dict[int, ChannelIds]
    """Batch dimension, counted from the end -> the classes along it: what is removed there needs nothing."""


@dataclass(frozen=True)
class RememberingNorm:
    """A layer norm that may lose channels: it remembers what they were, so that the statistics stay."""

    node: Node
    channel_dim: int
    """Where the channels are in the input of the module: -1, or 1 where it permutes."""
    channels: ChannelIds  # shape: (channels,): the class of each

    @property
    def module(self) -> str:
        return str(self.node.meta["module"])


@dataclass(frozen=True)
class SizeAttribute:
    """An attribute of a module that says how many channels there are."""

    origin: Origin
    channels: ChannelIds


@dataclass(frozen=True)
class CodeSize:
    """A size that the code gives to an operator as a number."""

    node: Node
    origin: Origin | None
    """The attribute that it is read from."""
    channels: ChannelIds  # shape: (the size,): the classes along that axis, or (0,) where it is no channel axis


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one kind: each is one class of coupled indices, and all touch the same axes of the same tensors.

    A head, or one dimension of all heads, is a channel too: one class that takes others with it.
    """

    name: str
    """Of the module that writes them first; numbered where that writes several kinds."""
    module: str
    channels: ChannelIds  # shape: (channels,)
    axes: tuple[Axis, ...]
    writers: tuple[Writer, ...]
    """The last writer on each way to a reader: multiplying by zero after these silences the channel everywhere."""
    pinned: str | None
    """Why none of these may be removed, or None."""

    def __len__(self) -> int:
        return len(self.channels)


@dataclass(frozen=True)
class ChannelGraph:
    """Every axis of every traced parameter and buffer with the class of each index, and the classes in groups."""

    trace: Trace
    axes: dict[Axis, ChannelIds]
    num_channels: int
    """How many classes there are; the last one holds nothing and never goes."""
    links: tuple[Link, ...]
    pins: Pins
    readers: tuple[Reader, ...]
    products: tuple[Product, ...]
    size_attributes: tuple[SizeAttribute, ...]
    scales: tuple[AttentionScale, ...]
    remembering_norms: tuple[RememberingNorm, ...]
    writers: tuple[Writer, ...]
    """All writers, in the order of writing."""
    last_writers: tuple[Writer, ...]
    """Those that a reader sees last."""
    code_sizes: tuple[CodeSize, ...]
    value_channels: dict[Node, Any]
    """The classes along the axes of every value: a tuple, None for an axis without, or a list of them."""

    @cached_property
    def reach(self) -> csr_array:
        """Row u holds the classes that go with class u: itself, and the elements of which it is a unit, and theirs."""
        pairs = np.concatenate([np.empty((2, 0), np.int64), *(link.pairs for link in self.links)], 1)
        step = csr_array(
            (np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=(self.num_channels, self.num_channels)
        )
        reach = frontier = csr_array(eye_array(self.num_channels, dtype=np.int8))
        while (frontier := csr_array(frontier @ step)).nnz:  # units of units, as where heads are split once more
            reach = csr_array(reach + frontier)
        return reach

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """In the order in which the network writes them."""
        return _groups(self)

    def removable(self) -> Flags:
        """Flag the classes that no pin holds and that some group's removal may take along."""
        flags = np.zeros(self.num_channels, np.bool_)
        for group in self.groups:
            if not group.pinned:
                flags[self.with_members(group.channels)] = True
        flags[self.pins.pinned()] = False
        return flags

    def with_members(self, labels: ChannelIds) -> ChannelIds:
        """`labels`, and all classes that go with one of them."""
        return np.unique(self.reach[labels].indices) if self.links else labels

    def drop_infeasible(self, removed: Flags) -> Flags:
        """`removed` without the classes that cannot go as long as others stay."""
        found, before = removed.copy(), -1
        while found.sum() != before:
            before = int(found.sum())
            for link in self.links:
                found[link.violations(found)] = False
        return found

    def indices_along(self, axis: Axis, channels: ChannelIds) -> ChannelIds:
        """Indices along `axis` that go when the classes `labels` go."""
        return np.flatnonzero(np.isin(self.axes[axis], self.with_members(channels)))

    def positions_in_group(self, axis: Axis, group: ChannelGroup) -> ChannelIds:
        """The position in `group` of the channel that takes each index of `axis` along, -1 for none."""
        rows = self.reach[group.channels]
        owner = np.full(self.num_channels, -1, np.int64)
        owner[rows.indices] = np.repeat(np.arange(len(group)), np.diff(rows.indptr))
        return owner[self.axes[axis]]


def _groups(graph: ChannelGraph) -> tuple[ChannelGroup, ...]:
    """Classes that touch the same axes, as the same kind of unit, and are pinned for the same reason or free."""
    names = list(graph.axes)
    sizes = [labels.size for labels in graph.axes.values()]
    label, axis = np.concatenate([np.empty(0, np.int64), *graph.axes.values()]), np.repeat(np.arange(len(names)), sizes)
    touches = csr_array((np.ones(label.size, np.int64), (label, axis)), shape=(graph.num_channels, len(names)))
    touched = csr_array(graph.reach @ touches)
    touched.data[:] = 1
    # Two classes are of one kind when their random fingerprints agree.
    random = np.random.default_rng(0)
    kind = touched @ random.integers(2**62, size=len(names))
    held = graph.pins.pinned()
    element, unit, useful = (np.zeros(graph.num_channels, np.bool_) for _ in range(3))
    for link in graph.links:
        element[link.members] = unit[link.pairs[0]] = True
        useful[link.pairs[0][~held[link.pairs[1]]]] = True
        for axis in link.owners:
            kind[np.unique(axis[0])] += random.integers(2**62)
    texts = list(dict.fromkeys(graph.pins.texts))
    salts = dict(zip(texts, random.integers(2**62, size=len(texts)), strict=True))
    kind[held] += np.array([salts[text] for text in graph.pins.texts], np.int64)[graph.pins.ids[held]]
    # An element goes with its units only; a pinned unit is worth a word where its elements can go without it.
    chosen = np.where(held, ~unit | useful, ~element) & (np.diff(touched.indptr) > 0)
    members = np.flatnonzero(chosen)
    members = members[np.argsort(kind[members], kind="stable")]
    found = []
    for labels in np.split(members, np.flatnonzero(np.diff(kind[members])) + 1):
        where = tuple(names[at] for at in np.sort(touched[labels[:1]].indices)) if labels.size else ()
        first = next((index for index, writer in enumerate(graph.writers) if writer.axis in where), None)
        if first is not None:
            last = tuple(dict.fromkeys(writer for writer in graph.last_writers if writer.axis in where))
            found.append((first, labels, where, last))
    found.sort(key=lambda one: (one[0], int(one[1][0])))
    seen: Counter[str] = Counter()
    groups = []
    for first, labels, where, last in found:
        module = graph.writers[first].module
        seen[module] += 1
        name = module if seen[module] == 1 else f"{module}#{seen[module]}"
        groups.append(ChannelGroup(name, module, labels, where, last, graph.pins.reason(int(labels[0]))))
    return tuple(groups)
