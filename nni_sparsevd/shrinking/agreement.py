"""Constants at several input sizes: a value is constant only where all sizes agree."""

from collections import defaultdict
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..graph import READERS, ChannelIds, Node, Trace, compress, live_like, make_uniform

Axes = tuple[ChannelIds | None, ...]
"""The channels along each axis of a tensor, None for an axis without."""
Kind = tuple[object, ...]
"""What an operator is, in which module, and which parameters it takes."""
RELATIVE_ROUNDING, ABSOLUTE_ROUNDING = 1e-9, 1e-14
"""How far two computations of one number may be apart: the mean of 20 equal numbers, and that of 61."""


class OtherValues:
    """The values of a network at another input size, found by the operators that it has in common with this one."""

    def __init__(self, trace: Trace, other: Trace, values: dict[Node, Any], value_channels: dict[Node, Any]) -> None:
        # A network may run other operators at another size: it pads what is no multiple of its window.  So operators
        # are matched, and the arguments of a matched one are compared, too: where one size pads and the other one does
        # not, the convolution that follows gets different arguments.
        self._values = values
        self._channels = value_channels
        self._match = _match_operators(trace, other)
        self._made_of_states = self._find_made_of_states(trace)

    def _find_made_of_states(self, trace: Trace) -> set[Node]:
        """What is computed from parameters and buffers alone, with the same numbers at both sizes."""
        made: set[Node] = set()
        for node in trace.graph.nodes:
            other, sources = self._match.get(node), node.all_input_nodes
            if node.op != "call_function" or other is None or not sources:
                continue
            if all(source in made or trace.state(source) for source in sources) and self._is_same_call(node, other):
                made.add(node)
        return made

    def _is_same_call(self, node: Node, other: Node) -> bool:
        """Whether two operators are called with the same numbers, and with tensors that match."""
        leaves, other_leaves = _leaves((node.args, node.kwargs)), _leaves((other.args, other.kwargs))
        if len(leaves) != len(other_leaves):
            return False
        for leaf, other_leaf in zip(leaves, other_leaves, strict=True):
            if (self._match.get(leaf) if isinstance(leaf, Node) else leaf) != other_leaf:
                return False
        return True

    def known_to_agree(self, node: Node) -> Any:
        """The value of an operator if it is certain to be the same at both sizes; None if it has to be compared."""
        return self._values[self._match[node]] if node in self._made_of_states else None  # type: ignore[index]

    def known_reading(self, node: Node, values: dict[Node, Any]) -> Any:
        """The result of a reader whose arguments have the same values at both sizes, None for every other operator.

        What a reader makes of constants does not depend on the size of the input, so its weight is searched only once.
        """
        other = self._match.get(node)
        if other is None or node.target not in READERS or not self._is_same_call(node, other):
            return None
        pairs = zip(node.all_input_nodes, other.all_input_nodes, strict=True)
        is_same = all(_is_same_value(values[source], self._values[other_source]) for source, other_source in pairs)
        return self._values[other] if is_same else None

    def restrict_arguments_(self, node: Node, values: dict[Node, Any]) -> None:
        """Make live what the matched operator gets another value for."""
        other = self._match.get(node)
        if other is None:
            return
        pairs = zip(node.all_input_nodes, other.all_input_nodes, strict=False)
        for source, other_source in pairs:
            # What matches it is what `restrict` has compared it with already.
            if source.op == "call_function" and self._match.get(source) is not other_source:
                values[source] = self._agreed(values[source], source, other_source)

    def restrict(self, node: Node, value: Any) -> Any:
        """The value of an operator, live where the matched operator has another value."""
        other = self._match.get(node)
        return value if other is None else self._agreed(value, node, other)

    def _agreed(self, value: Any, node: Node, other: Node) -> Any:
        parts = value, self._values[other], node.meta["val"], other.meta["val"]
        return _agreed_parts(*parts, self._channels.get(node, ()))


def _leaves(arguments: Any) -> list[Any]:
    """What the arguments of an operator hold, in order: PyTorch's `tree_leaves`, several times faster."""
    if isinstance(arguments, tuple | list):
        return [leaf for part in arguments for leaf in _leaves(part)]
    return _leaves(list(arguments.values())) if isinstance(arguments, dict) else [arguments]


def _is_same_value(value: Any, other: Any) -> bool:
    """Whether two abstract values are certain to be equal, and live at the same positions."""
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return False
    if value.dtype != other.dtype or value.shape != other.shape:
        return False
    if value.dtype == torch.float64:  # bit by bit, as no NaN equals another
        value, other = value.view(torch.int64), other.view(torch.int64)
    return torch.equal(value, other)


def is_more_live(value: Any, before: Any) -> bool:
    """Whether more of a value is live than was before."""
    return value is not before and _count_live(value) > _count_live(before)


def _count_live(value: Any) -> float:
    """The share of a value that is live, summed over its parts."""
    shares = []
    for leaf in _leaves(value):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
            shares.append(leaf.isnan().double().mean().item())
    return sum(shares)


def _match_operators(trace: Trace, other: Trace) -> dict[Node, Node]:
    """For each operator the one that stands for it where the network runs at another size; not all have one.

    It is of the same kind, and takes what matches the operator's arguments: all of them where there is such a one, else
    as many as can be.  Of several, the first that is left is taken.  By order alone, a table of positions that one
    size interpolates and the other does not would shift all reshapes that follow it.
    """
    left: dict[Kind, list[Node]] = defaultdict(list)
    for node in _operators(other):
        left[_kind(other, node)].append(node)
    matches: dict[Node, Node] = {}
    for node in _operators(trace):
        candidates = left[_kind(trace, node)]
        if candidates:
            origins = [_origin(source) for source in node.all_input_nodes]
            expected = [(matches.get(origin), places) for origin, places in origins]
            matches[node] = _best_candidate(expected, candidates)
            candidates.remove(matches[node])
    return matches


def _operators(trace: Trace) -> list[Node]:
    # One of several parts is compared where the operator is that makes them all; how many there are may differ.
    return [node for node in trace.graph.nodes if node.op != "output" and node.target is not getitem]


def _kind(trace: Trace, node: Node) -> Kind:
    # Parameters tell operators apart that a loop runs more often at another size: the steps of a recurrent layer.
    states = tuple(trace.state(source) for source in node.all_input_nodes)
    return node.op, node.target, node.meta["module"], states


def _origin(node: Node) -> tuple[Node, tuple[Any, ...]]:
    """The operator that makes a value, and the place of the value among several that it makes."""
    places: tuple[Any, ...] = ()
    while node.target is getitem:
        node, place = node.args
        places = (place, *places)
    return node, places


def _best_candidate(expected: list[tuple[Node | None, tuple[Any, ...]]], candidates: list[Node]) -> Node:
    """The first of the operators that take most of what is expected."""
    best, most = candidates[0], -1
    for candidate in candidates:
        found = [_origin(source) for source in candidate.all_input_nodes]
        count = sum(a == b for a, b in zip(expected, found, strict=False))
        if count > most:
            best, most = candidate, count
        if most == len(expected):
            break
    return best


def _agreed_parts(value: Any, other: Any, shaped: Any, other_shaped: Any, channels: Any) -> Any:
    if isinstance(value, list):
        if not isinstance(other, list):
            return [live_like(part) for part in shaped]
        channels = channels if isinstance(channels, list) else [()] * len(value)
        if len(other) != len(value):
            return _agreed_with_all(value, other, shaped, other_shaped, channels)
        return [_agreed_parts(*parts) for parts in zip(value, other, shaped, other_shaped, channels, strict=True)]
    if not isinstance(value, Tensor) or (value.is_floating_point() and value.isnan().all()):
        return value
    if not isinstance(other, Tensor) or other.dim() != value.dim():
        return live_like(shaped)
    return _agreed_tensor(value, other, shaped.shape, other_shaped.shape, channels)


def _agreed_with_all(value: Any, other: Any, shaped: Any, other_shaped: Any, channels: Any) -> list[Any]:
    """Parts of which there are more at one size than at another, such as steps of time: what all of them share."""
    # The steps of a loop mostly have one value, which is compared once: else the work grows with the square of them.
    distinct: list[tuple[Any, Any]] = []
    for pair in zip(other, other_shaped, strict=True):
        if not any(_is_same_value(pair[0], known[0]) and pair[1].shape == known[1].shape for known in distinct):
            distinct.append(pair)
    agreed = []
    for part, shape, own in zip(value, shaped, channels, strict=True):
        for other_part, other_shape in distinct:
            part = _agreed_parts(part, other_part, shape, other_shape, own)
        agreed.append(part)
    return agreed


def _agreed_tensor(value: Tensor, other: Tensor, shape: torch.Size, other_shape: torch.Size, channels: Axes) -> Tensor:
    """`value`, live where `other` differs or where it varies along a dimension that has another size there."""
    resized = [dim for dim in range(value.dim()) if shape[dim] != other_shape[dim]]
    is_varying = any(value.shape[dim] > 1 or other.shape[dim] > 1 for dim in resized)
    if not value.is_floating_point() or not other.is_floating_point():
        # Whole numbers and flags have nothing that stands for "live", so they are live as a whole.
        same = not is_varying and value.dtype == other.dtype and bool((value == other).all())
        return value if same else live_like(value)
    if not is_varying:
        return compress(value if _is_same_value(value, other) else _agreed_numbers(value, other))
    lengths = {dim: _length_of_repeat(channels, dim, other_shape[dim]) for dim in resized}
    agreed = _agreed_numbers(_keep_one_repeat(value, lengths), _keep_one_repeat(other, lengths))
    for dim, length in lengths.items():
        if agreed.shape[dim] > 1:
            agreed = torch.cat([agreed] * (shape[dim] // length), dim)
    return compress(agreed)


def _agreed_numbers(value: Tensor, other: Tensor) -> Tensor:
    """`value`, live where `other` has another number."""
    distance = (value - other).abs()
    same_number = distance <= ABSOLUTE_ROUNDING + RELATIVE_ROUNDING * value.abs()  # False for NaN
    return torch.where(same_number | (value == other), value, torch.nan)


def _length_of_repeat(channels: Axes, dim: int, other_size: int) -> int:
    """How many channels stand behind one another along a resized dimension that repeats them; 1 if it does not.

    A reshape that moves windows or images beside the heads makes one dimension of (windows * heads,): its size follows
    that of the input, though each value belongs to a head.
    """
    ids = channels[dim] if channels else None
    if ids is None or not ids.size:
        return 1
    length = np.unique(ids).size
    if ids.size % length or other_size % length:
        return 1
    return length if (ids.reshape(-1, length) == ids[:length]).all() else 1


def _keep_one_repeat(value: Tensor, lengths: dict[int, int]) -> Tensor:
    """The tensor with one repeat along each resized dimension: live wherever the repeats are not the same."""
    for dim, length in lengths.items():
        if value.shape[dim] > 1:  # else it is uniform there
            value = make_uniform(value.unflatten(dim, (-1, length)), [dim]).squeeze(dim)
    return value
