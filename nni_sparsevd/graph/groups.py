"""The coupled channel groups of a network: what would have to be removed together, and what never can be."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, eye_array

from .equations import Axis
from .links import ChannelIds, Flags, Link
from .names import owner_of
from .nodes import Node
from .operators import TRANSPOSED, WEIGHT_NORM
from .origins import Origin
from .pins import Pins
from .scales import AttentionScale
from .traces import Trace


@dataclass(frozen=True)
class Writer:
    """An operator that makes channels, and the module after which they can be silenced for good."""

    axis: Axis
    """The output axis of its weight."""
    site: str
    """The batch norm that alone reads the writer's output, or the writer's own module."""
    channel_dim: int
    """The dimension of the site's output that the channels are in."""
    node: Node = field(compare=False)
    """The operator, the first one where the same weight writes several times."""
    site_node: Node = field(compare=False)
    """The operator of the site: the batch norm, or that of the writer itself."""

    @property
    def module(self) -> str:
        """Qualified name of the module that holds the weight."""
        return owner_of(self.axis[0])


@dataclass(frozen=True)
class Reader:
    """A contraction of channels with a weight: where what a channel carries ends up."""

    node: Node
    weight: str | None
    """The parameter, or None where the weight is computed from one."""
    inputs: ChannelIds  # shape: (inputs,)
    outputs: ChannelIds  # shape: (outputs,)
    bias: str | None
    """The parameter that can take up a constant, perhaps one that is yet to be made; None where nothing can."""

    @property
    def module(self) -> str:
        """Qualified name of the module that reads."""
        return str(self.node.meta["module"])

    @property
    def input_dim(self) -> int:
        """The axis of the weight that the inputs are along."""
        return 0 if self.node.target in TRANSPOSED else 1


@dataclass(frozen=True)
class Product:
    """A contraction of the channels of two computed tensors, the first two arguments of `node`."""

    node: Node
    inputs: ChannelIds  # shape: (channels,)
    dims: tuple[int, int]
    """The dimension of each tensor that is summed over."""
    heads: dict[int, ChannelIds]
    """Batch dimension, counted from the end -> the channels along it: what is removed there needs nothing."""


@dataclass(frozen=True)
class RememberingNorm:
    """A module that mixes channels and may lose some: it remembers what they contributed."""

    module: str
    """Qualified name of the module."""
    input: Node
    """The value that brings the channels to the module."""
    input_dim: int
    """The dimension of `input` that they are along."""
    channel_dim: int
    """The dimension of the module's input that they are along: counted from the end where they are last."""
    channels: ChannelIds  # shape: (channels,)
    is_layer_norm: bool
    """Whether the module is a layer norm alone, of which only sums have to be remembered."""


@dataclass(frozen=True)
class CodeSize:
    """A size that the code of a network gives to an operator as a number."""

    node: Node
    origin: Origin | None
    """The attribute that the size is read from, None where it is written out or computed."""
    channels: ChannelIds  # shape: (the size,), or (0,) where the axis has no channels


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one kind: all of them have indices on the same axes of the same tensors.

    A head, or one dimension of all heads, is a channel too: one that takes others with it.
    """

    name: str
    """The module that writes the channels first, with "#2" and so on where it writes several groups."""
    module: str
    """Qualified name of that module."""
    channels: ChannelIds  # shape: (channels of the group,)
    axes: tuple[Axis, ...]
    """Every axis on which the channels, or members that leave with them, have indices."""
    writers: tuple[Writer, ...]
    """The last writer on each way to a reader: multiplying by zero after these silences a channel everywhere."""
    pinned: str | None
    """Why none of the channels can be removed, or None."""

    def __len__(self) -> int:
        return len(self.channels)


@dataclass(frozen=True)
class ChannelGraph:
    """Every axis of every traced parameter and buffer with the channel of each index, and the channels in groups."""

    trace: Trace
    axes: dict[Axis, ChannelIds]
    """For each axis the channel of each of its indices, shape (size of the axis,)."""
    num_channels: int
    """How many channels there are.  The one with the last number has no index and never leaves."""
    links: tuple[Link, ...]
    pins: Pins
    readers: tuple[Reader, ...]
    products: tuple[Product, ...]
    scales: tuple[AttentionScale, ...]
    remembering_norms: tuple[RememberingNorm, ...]
    """Modules that mix channels and may lose some; none unless they were asked for."""
    writers: tuple[Writer, ...]
    """All writers, in the order of writing."""
    last_writers: tuple[Writer, ...]
    """Those that a reader sees last."""
    code_sizes: tuple[CodeSize, ...]
    value_channels: dict[Node, Any]
    """The channels along the axes of every value: a tuple with None for an axis without, or a list of such tuples."""

    @cached_property
    def reach(self) -> csr_array:
        """Row c flags the channels that leave with channel c: itself, its members, and theirs.

        Members have members of their own where heads are split once more.
        """
        pairs = np.concatenate([np.empty((2, 0), np.int64), *(link.pairs for link in self.links)], 1)
        shape = (self.num_channels, self.num_channels)
        step = csr_array((np.ones(pairs.shape[1], np.int8), (pairs[0], pairs[1])), shape=shape)
        reach = frontier = csr_array(eye_array(self.num_channels, dtype=np.int8))
        while (frontier := csr_array(frontier @ step)).nnz:
            reach = csr_array(reach + frontier)
        return reach

    @cached_property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """The coupled channel groups, in the order in which the network writes them."""
        return _find_groups(self)

    @cached_property
    def directions(self) -> frozenset[str]:
        """The parameters that weight norm divides by their own length: where all of one is 0, the weight is NaN."""
        nodes: list[Any] = [node for node in self.trace.graph.nodes if node.target == WEIGHT_NORM]
        names = (self.trace.state(node.args[0]) for node in nodes)
        return frozenset(name for name in names if name)

    @cached_property
    def free_sizes(self) -> tuple[CodeSize, ...]:
        """The sizes in the code that are those of axes which may lose something."""
        free = self.removable()
        return tuple(size for size in self.code_sizes if free[size.channels].any())

    @cached_property
    def size_attributes(self) -> dict[Origin, ChannelIds]:
        """Each attribute that has to follow the number of channels -> these channels, as many as its value says."""
        # All axes that one attribute stands for are coupled, so those of any will do.
        return {size.origin: size.channels for size in self.free_sizes if size.origin is not None}

    def remaining_sizes(self, removed: Flags) -> dict[Origin, int]:
        """Each of these attributes with the number of its channels that stay."""
        return {origin: int((~removed[channels]).sum()) for origin, channels in self.size_attributes.items()}

    def removable(self) -> Flags:
        """Flag the channels that no pin holds and that some group's removal may take along."""
        flags = np.zeros(self.num_channels, np.bool_)
        for group in self.groups:
            if not group.pinned:
                flags[self.with_members(group.channels)] = True
        pinned = self.pins.pinned()
        # Behind a channel shuffle no operator writes the positions that a grouped convolution reads, so they are in no
        # group: they leave with what the groups before the shuffle lose.
        before = -1
        while flags.sum() != before:
            before = int(flags.sum())
            for link in self.links:
                owners, members = link.pairs
                flags[owners[flags[members]]] = True
                flags[members[flags[owners]]] = True
            flags[pinned] = False
        return flags

    def with_members(self, channels: ChannelIds) -> ChannelIds:
        """`channels`, and all that leave with one of them."""
        return np.unique(self.reach[channels].indices) if self.links else channels

    def flag_owners(self, flags: Flags) -> Flags:
        """Flag the channels that are flagged, or with which a flagged channel leaves."""
        if not self.links:
            return flags
        owners: Flags = self.reach @ flags.astype(np.int64) > 0
        return owners

    def drop_infeasible(self, removed: Flags) -> Flags:
        """`removed` without the channels that cannot leave as long as the others stay."""
        feasible, before = removed.copy(), -1
        while feasible.sum() != before:
            before = int(feasible.sum())
            for link in self.links:
                feasible[link.violations(feasible)] = False
        return feasible

    def indices_along(self, axis: Axis, channels: ChannelIds) -> ChannelIds:
        """Indices along `axis` that leave when `channels` do, shape (indices,)."""
        return np.flatnonzero(np.isin(self.axes[axis], self.with_members(channels)))

    def positions_in_group(self, axis: Axis, group: ChannelGroup) -> ChannelIds:
        """For each index of `axis` the position in `group` of the channel that takes it along, -1 for none."""
        return self.positions_of(self.axes[axis], group)

    def positions_of(self, channels: ChannelIds, group: ChannelGroup) -> ChannelIds:
        """For each of `channels` the position in `group` of the channel that takes it along, -1 for none."""
        rows = self.reach[group.channels]
        position = np.full(self.num_channels, -1, np.int64)
        position[rows.indices] = np.repeat(np.arange(len(group)), np.diff(rows.indptr))
        return position[channels]


def _find_groups(graph: ChannelGraph) -> tuple[ChannelGroup, ...]:
    """Put channels of one kind into a group, in the order in which the network writes them."""
    # 1. A channel touches the axes on which it has an index, and those of the members that leave with it.
    # 2. Channels are of one kind when they touch the same axes, own members through the same links, and are free, or
    #    pinned for the same reason.  Without the links, heads and the dimensions of heads would be one group, as both
    #    touch all rows of the same weights.  Without the reasons, one pinned channel would pin a whole group.
    # 3. Channels are compared by random fingerprints, as large networks have too many for sets: each axis, each side of
    #    a link and each reason has a random number of 64 bits, and a channel's fingerprint is the sum of its own.
    #    Different kinds agree by accident with a probability of about 2^-62 for each pair.
    # 4. Members have no group: they leave with their owners only.  A pinned owner has a group only if it is worth a
    #    word, because some of its members can leave without it, or because an operator writes the owner itself.
    # 5. What no operator writes, such as the channels of an input, has no group.
    axes = list(graph.axes)
    first_writer_of: dict[Axis, int] = {}
    for place, writer in enumerate(graph.writers):
        first_writer_of.setdefault(writer.axis, place)
    touched = _touched_axes(graph)
    fingerprints = _fingerprints(graph, touched)
    shown = np.flatnonzero(_channels_with_a_group(graph) & (np.diff(touched.indptr) > 0))
    shown = shown[np.argsort(fingerprints[shown], kind="stable")]
    kinds = np.split(shown, np.flatnonzero(np.diff(fingerprints[shown])) + 1)
    written = []
    for channels in kinds:
        if not channels.size:
            continue
        own_axes = tuple(axes[place] for place in np.sort(_row(touched, channels[0])))
        writer_places = [first_writer_of[axis] for axis in own_axes if axis in first_writer_of]
        if writer_places:
            written.append((min(writer_places), int(channels[0]), channels, own_axes))
    written.sort(key=lambda kind: kind[:2])
    uses: Counter[str] = Counter()
    groups = []
    for first_writer, first_channel, channels, own_axes in written:
        module = graph.writers[first_writer].module
        last_writers = tuple(dict.fromkeys(writer for writer in graph.last_writers if writer.axis in own_axes))
        reason = graph.pins.reason(first_channel)
        name = module or graph.writers[first_writer].axis[0]  # a weight of the network itself has no module
        uses[name] += 1
        name = name if uses[name] == 1 else f"{name}#{uses[name]}"
        groups.append(ChannelGroup(name, module, channels, own_axes, last_writers, reason))
    return tuple(groups)


def _touched_axes(graph: ChannelGraph) -> csr_array:
    """Channels by axes, shape (channels, axes): 1 where a channel, or a member that leaves with it, has an index."""
    sizes = [channels.size for channels in graph.axes.values()]
    channel = np.concatenate([np.empty(0, np.int64), *graph.axes.values()])
    axis = np.repeat(np.arange(len(sizes)), sizes)
    own = csr_array((np.ones(channel.size, np.int64), (channel, axis)), shape=(graph.num_channels, len(sizes)))
    touched = csr_array(graph.reach @ own) if graph.links else own
    touched.data[:] = 1
    return touched


def _row(matrix: csr_array, row: int) -> ChannelIds:
    """The columns in which a row has entries: what `matrix[row].indices` is, without the cost of a matrix."""
    columns: ChannelIds = matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
    return columns


def _fingerprints(graph: ChannelGraph, touched: csr_array) -> NDArray[np.int64]:
    """One number for each channel, the same for channels of one kind; see `_find_groups`."""
    random = np.random.default_rng(0)
    fingerprints: NDArray[np.int64] = touched @ random.integers(2**62, size=len(graph.axes))
    for link in graph.links:
        for pairs in link.owners:
            fingerprints[np.unique(pairs[0])] += random.integers(2**62)
    # Reasons are compared by their text: several pins may have the same.
    texts = list(dict.fromkeys(graph.pins.reasons))
    number_of_text = dict(zip(texts, random.integers(2**62, size=len(texts)), strict=True))
    number_of_reason = np.array([number_of_text[text] for text in graph.pins.reasons], np.int64)
    pinned = graph.pins.pinned()
    fingerprints[pinned] += number_of_reason[graph.pins.reason_ids[pinned]]
    return fingerprints


def _channels_with_a_group(graph: ChannelGraph) -> Flags:
    """Flag free channels that are no members, and pinned ones that are written, own nothing, or own what is free."""
    pinned = graph.pins.pinned()
    written = np.zeros(graph.num_channels, np.bool_)
    for writer in graph.writers:
        written[graph.axes[writer.axis]] = True
    member, owner, owner_of_free = (np.zeros(graph.num_channels, np.bool_) for _ in range(3))
    for link in graph.links:
        owners, members = link.pairs
        member[link.members] = True
        owner[owners] = True
        owner_of_free[owners[~pinned[members]]] = True
    flags: Flags = np.where(pinned, ~owner | owner_of_free | (written & ~member), ~member)
    return flags
