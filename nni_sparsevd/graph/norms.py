"""Modules that mix channels, such as norms, and that may lose some where they can remember them."""

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import torch
from torch import nn

from .groups import RememberingNorm
from .links import ChannelIds
from .nodes import Node
from .operators import ATTENTION, PRODUCTS, READERS
from .pins import Pins
from .traces import Trace
from .walk import Walk

aten = torch.ops.aten
READING = READERS | {*PRODUCTS, ATTENTION}
"""Operators that no norm has: a module with one of them is more than a norm."""


def find_replaceable_norms(model: nn.Module, recorded: Trace) -> set[str]:
    """Find the modules that may be replaced by a norm that remembers the channels which it loses.

    Args:
        model: The network.
        recorded: Its operators.

    Returns:
        Names of layer norms that do nothing else, and of modules that are given one tensor, once, and return one of its
        shape, without any weight that reads channels.
    """
    reading: set[str] = set()
    for node in recorded.graph.nodes:
        if node.target in READING:
            reading |= _enclosing_modules(node.meta["module"])
    return _find_pure_layer_norms(model, recorded) | (_find_modules_of_one_tensor(recorded) - reading)


def _find_pure_layer_norms(model: nn.Module, recorded: Trace) -> set[str]:
    """Layer norms that do nothing else: timm has some that activate."""
    layer_norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    busy = set()
    for node in recorded.graph.nodes:
        if node.op == "call_function" and node.target not in (aten.layer_norm.default, aten.permute.default):
            busy |= _enclosing_modules(node.meta["module"])
    return layer_norms - busy


def _find_modules_of_one_tensor(recorded: Trace) -> set[str]:
    """Modules that are called once, with one tensor, and return one of the same shape."""
    given, returned = _find_ends(recorded)
    return {name for name in given if name and _keeps_shape(given[name], returned.get(name))}


def _find_ends(recorded: Trace) -> tuple[dict[str, Node], dict[str, Node]]:
    """What each module is given and what it returns, for modules that are called once, with one tensor."""
    calls: Counter[str] = Counter()
    given: dict[str, Node] = {}
    returned: dict[str, Node] = {}
    for node in recorded.graph.nodes:
        for name in node.meta.get("given_to", ()):
            calls[name] += 1
            given[name] = node
        for name in node.meta.get("returned_by", ()):
            returned[name] = node
    return {name: node for name, node in given.items() if calls[name] == 1}, returned


def _keeps_shape(given: Node, returned: Node | None) -> bool:
    if returned is None or returned is given:
        return False
    return bool(given.meta["val"].shape == returned.meta["val"].shape)


def _enclosing_modules(name: str) -> set[str]:
    """A module and all that it stands in, without the network itself."""
    parts = name.split(".")
    return {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)}


def solve_norms(
    model: nn.Module, walk: Walk, value_channels: dict[Node, Any], channel_of: ChannelIds, pins: Pins
) -> tuple[tuple[RememberingNorm, ...], Pins]:
    """Tell which of the modules that were met can remember channels, and pin the channels of the others.

    Args:
        model: The network.
        walk: The walk over its operators.
        value_channels: The channels along the axes of every value.
        channel_of: The channel of each index id.
        pins: The pins so far.

    Returns:
        The modules, and the pins with those of channels that a module mixes and cannot remember.
    """
    # 1. A pure layer norm needs only the number of the channels that it lost, their sum and the sum of their squares:
    #    a class of ours that remembers these takes its place.
    # 2. Any other module has to see all channels: the constants of those that it lost are put back before it.  That
    #    asks for one axis of channels, the same in its input, in its output, and in all its operators that mix them.
    # 3. Where neither is so, the channels stay, for the reasons that the operators give.
    given, returned = _find_ends(walk.recorded)
    permuting = {node.meta["module"] for node in walk.recorded.graph.nodes if node.target == aten.permute.default}
    layer_norms = _find_pure_layer_norms(model, walk.recorded)
    norms = []
    mixed_by: dict[str, list[tuple[ChannelIds, str]]] = defaultdict(list)
    for mixing in walk.equations.mixings:
        name, channels = mixing.node.meta["module"], channel_of[mixing.ids]
        if name in layer_norms:  # 1
            source: Any = mixing.node.args[0]
            channel_dim = 1 if name in permuting else -1  # a layer norm of images permutes them itself
            norms.append(RememberingNorm(name, source, -1, channel_dim, channels, is_layer_norm=True))
        else:
            mixed_by[name].append((channels, mixing.reason))
    for name, mixed in mixed_by.items():
        norm = _find_padded_norm(name, mixed, given, returned, value_channels)  # 2
        if norm is not None:
            norms.append(norm)
            continue
        for channels, reason in mixed:  # 3
            pins = pins.with_pins(channels, reason)
    return tuple(norms), pins


def _find_padded_norm(
    name: str,
    mixed: list[tuple[ChannelIds, str]],
    given: dict[str, Node],
    returned: dict[str, Node],
    value_channels: dict[Node, Any],
) -> RememberingNorm | None:
    """A module whose operators all mix the channels along one axis, which its input and its output have; else None."""
    channels = mixed[0][0]
    if not all(np.array_equal(channels, other) for other, _ in mixed) or name not in given:
        return None
    source, result = given[name], returned[name]
    for dim, along in enumerate(value_channels[source]):
        if along is not None and np.array_equal(along, channels):
            after = value_channels[result][dim]
            if after is None or not np.array_equal(after, channels):
                return None
            rank = len(value_channels[source])
            channel_dim = -1 if dim == rank - 1 else dim
            return RememberingNorm(name, source, dim, channel_dim, channels, is_layer_norm=False)
    return None
