"""Which indices live and die together: equations that the rules of operators state, and their solution.

Every index of every axis of every parameter gets a number, its index id.  Walking the operators of a network collects
equations between ids ("this input channel of the convolution is that output channel of the one before"), links (see
`links`) and pins ("this is an output of the network: never remove it").  Solved together at the end, the sets of equal
ids are the channels.  Collecting costs one pass, solving one call that finds connected components: no search, however
many branches, concatenations and residual sums there are.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .links import ChannelIds, IndexIds, Link, owners_with_the_same_members
from .nodes import Node
from .origins import Origin
from .pins import Pins
from .scales import AttentionScale

Axis = tuple[str, int]
"""A parameter's or buffer's qualified name and one of its dimensions."""


@dataclass(frozen=True)
class TrackedTensor:
    """What is known of a tensor: its shape and, for each dimension, the index ids along it.

    None stands for a dimension without channels: a batch, the places of an image, the values of an input.
    """

    shape: tuple[int, ...]
    ids: tuple[IndexIds | None, ...]


def repeat_ids(ids: IndexIds | None, times: int) -> IndexIds | None:
    """Each id `times` times in a row: copies live and die together."""
    return None if ids is None else np.repeat(ids, times)


@dataclass(frozen=True)
class RecordedSize:
    """A size that the code of a network gives to an operator as a number."""

    node: Node
    origin: Origin | None
    """The attribute that the size is read from, None where it is written out or computed."""
    ids: IndexIds | None
    """The index ids along the axis, None where the axis has no channels."""


@dataclass(frozen=True)
class Mixing:
    """An operator that mixes channels, in a module that may be replaced by a norm that remembers those it loses."""

    node: Node
    ids: IndexIds
    """The index ids of the channels."""
    reason: str
    """Why the channels stay where the module cannot be replaced."""


class Equations:
    """Collects equations, links and pins; `solve` turns them into channels."""

    def __init__(self, replaceable_norms: Container[str] = (), layers_of_torch: Container[str] = ()) -> None:
        self.replaceable_norms = replaceable_norms
        """Modules that may be replaced by a norm that remembers the channels which it loses."""
        self.layers_of_torch = layers_of_torch
        """Modules whose classes are PyTorch's own."""
        self.mixings: list[Mixing] = []
        """The operators in replaceable norms that mix channels."""
        self.axes: dict[Axis, IndexIds] = {}
        self.products: list[tuple[Node, tuple[int, int]]] = []
        """Sums of products over channels of two computed tensors, with the dimension of each that is summed over."""
        self.sizes: list[RecordedSize] = []
        self.scales: list[AttentionScale] = []
        """Attentions that are scaled by their number of dimensions, with the index ids of these dimensions."""
        self.num_ids = 0
        self._left: list[IndexIds] = []
        self._right: list[IndexIds] = []
        self._links: list[tuple[IndexIds, tuple[IndexIds, ...], str]] = []
        self._pins: list[tuple[IndexIds, str]] = []

    def new_ids(self, size: int) -> IndexIds:
        """Index ids for a new axis, shape (size,)."""
        self.num_ids += size
        return np.arange(self.num_ids - size, self.num_ids, dtype=np.int64)

    def track_state(self, name: str, shape: tuple[int, ...]) -> TrackedTensor:
        """The parameter or buffer `name`: the same ids at each use."""
        for dim, size in enumerate(shape):
            if (name, dim) not in self.axes:
                self.axes[name, dim] = self.new_ids(size)
        return TrackedTensor(shape, tuple(self.axes[name, dim] for dim in range(len(shape))))

    def equate(self, left: IndexIds | None, right: IndexIds | None, reason: str) -> IndexIds | None:
        """State that two axes have the same channels; an axis without channels pins the other one, for `reason`."""
        if left is None or right is None:
            self.pin(left, reason)
            self.pin(right, reason)
            return None
        if left is not right:
            self._left.append(left)
            self._right.append(right)
        return left

    def mix(self, node: Node, ids: IndexIds | None, reason: str) -> None:
        """State that `node` mixes these channels: they stay, unless its module can remember those that leave."""
        if ids is not None and self.can_remember(node, ids):
            self.mixings.append(Mixing(node, ids, reason))
        else:
            self.pin(ids, reason)

    def can_remember(self, node: Node, ids: IndexIds | None) -> bool:
        """Whether the module that runs `node` may be replaced by a norm that remembers the channels which it loses."""
        return ids is not None and node.meta["module"] in self.replaceable_norms

    def link(self, members: IndexIds, owners: Sequence[IndexIds], coupling: str) -> None:
        """State that each member leaves exactly with one of its owners.

        Args:
            members: Ids along the long axis, shape (members,).
            owners: For each short axis the owner of each member, shape (members,).
            coupling: Why that is so, in words.
        """
        self._links.append((members, tuple(owners), coupling))

    def link_block(self, members: IndexIds, owners: Sequence[IndexIds | None], coupling: str) -> None:
        """State the same of a long axis that is laid out as a block of the short ones.

        Args:
            members: Ids along the long axis, in the shape of the block.
            owners: Ids along each axis of the block, None for an axis that keeps its size.
            coupling: Why that is so, in words.
        """
        aligned = []
        for dim, ids in enumerate(owners):
            if ids is not None:
                other_dims = [other for other in range(members.ndim) if other != dim]
                aligned.append(np.broadcast_to(np.expand_dims(ids, other_dims), members.shape).ravel())
        self.link(members.ravel(), aligned, coupling)

    def contract(
        self, node: Node, left: TrackedTensor, right: TrackedTensor, dims: tuple[int, int], reason: str
    ) -> None:
        """State that `node` sums products over dimension `dims` of two computed tensors, its first two arguments."""
        if self.equate(left.ids[dims[0]], right.ids[dims[1]], reason) is not None:
            self.products.append((node, dims))

    def record_size(self, node: Node, place: int, size: object, ids: IndexIds | None) -> None:
        """State that the code of the network gives `size` for the axis with these ids, as number `place` of its sizes.

        A size of 1 has nothing to lose, and -1 stands for whatever is left.
        """
        if isinstance(size, int) and size not in (-1, 1):
            self.sizes.append(RecordedSize(node, node.meta["origins"].get(place), ids))

    def pin(self, ids: IndexIds | None, reason: str) -> None:
        """State that none of these indices may be removed, and why."""
        if ids is not None and ids.size:
            self._pins.append((ids, reason))

    def solve(self) -> tuple[ChannelIds, tuple[Link, ...], Pins]:
        """Solve the equations.

        Returns:
            The channel of each index id, shape (ids,), the links between channels, and the pins of all channels.
        """
        # 1. Equal ids are one channel: the connected components of the graph whose edges are the equations.
        # 2. Owners of different reshapes that have the same members are one channel, too.  That makes members of their
        #    own owners equal, perhaps, where reshapes are chained; so the search is repeated until nothing is new.
        #    Without this step a head of the queries and the same head of the keys would be two groups, neither of which
        #    could lose anything alone.
        # 3. The channel with the last number holds no index.  It stands for whatever never leaves, such as the outputs
        #    of a reader that has no channels there.
        nothing = np.empty(0, np.int64)
        left, right = np.concatenate([*self._left, nothing]), np.concatenate([*self._right, nothing])
        channel_of = _components(left, right, self.num_ids)
        while True:
            links = tuple(_solved_link(channel_of, *link) for link in self._links)
            left, right = owners_with_the_same_members(links, self.num_ids)
            if not left.size:
                break
            channel_of = _components(left, right, self.num_ids)[channel_of]
        reason_ids = np.full(self.num_ids + 1, -1)
        # Backwards, so that the first pin of a channel is the one that counts.
        for place in range(len(self._pins) - 1, -1, -1):
            reason_ids[channel_of[self._pins[place][0]]] = place
        return channel_of, links, Pins(reason_ids, tuple(reason for _, reason in self._pins))


def _components(left: IndexIds, right: IndexIds, count: int) -> ChannelIds:
    """The component of each of `count` numbers, where `left` and `right` are equal pair by pair."""
    edges = coo_array((np.ones(left.size, np.int8), (left, right)), shape=(count, count))
    component: ChannelIds = connected_components(edges, directed=False)[1].astype(np.int64)
    return component


def _solved_link(channel_of: ChannelIds, members: IndexIds, owners: tuple[IndexIds, ...], coupling: str) -> Link:
    pairs = tuple(channel_of[np.stack([axis_owners, members])] for axis_owners in owners)
    return Link(np.unique(channel_of[members]), pairs, coupling)
