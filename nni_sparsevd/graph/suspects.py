"""Which channels can be to blame where the code of a network fails without some of them."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import nn

from .failures import Failure, find_failure
from .groups import ChannelGraph, CodeSize, SizeAttribute
from .links import ChannelIds, Flags
from .nodes import Node


class Suspects:
    """The channels that can be to blame for a failure.

    A network repeats its modules, and code that fails in one block will fail in the next.  So the code is taken to be
    wrong in every module of the failed module's class, at the operator of the same kind and step there.
    """

    def __init__(
        self,
        failure: Failure,
        model: nn.Module,
        graph: ChannelGraph,
        attributes: Iterable[SizeAttribute],
        sizes: list[CodeSize],
        free: Flags,
        removed: Flags,
    ) -> None:
        self._model, self._graph, self._free, self._removed = model, graph, free, removed
        self._attributes = tuple(attributes)
        kind = type(model.get_submodule(failure.module))
        self._names = {name for name, module in model.named_modules() if type(module) is kind}
        self._failed_nodes = {node for node in self._own_nodes() if _is_alike(node, failure.node)}
        self._followed = {attribute.origin for attribute in self._attributes}
        self._sizes = sizes

    def to_blame(self) -> ChannelIds:
        """The free channels of the narrowest circle that has any."""
        # To blame too many would only cost removals, to blame too few costs another trial.  So the circles widen:
        #
        # 1. sizes that the failed operator is given as plain numbers, which nothing can bring up to date; of several
        #    only those that fail by themselves, as one may be computed from a shape and follow: view(b, 2, c // 2);
        # 2. all sizes that it is given: an attribute may also be used for something else;
        # 3. the channels of its arguments and its result;
        # 4. sizes that are given anywhere in modules of this class: the number may have been computed from one;
        # 5. the channels of everything that runs inside these modules.
        at_failure = [size for size in self._sizes if size.node in self._failed_nodes]
        plain = [size.channels for size in at_failure if size.origin not in self._followed]
        circles = (
            self._failing_alone(plain),
            plain,
            [size.channels for size in at_failure],
            self._channels_at(self._failed_nodes),
            [size.channels for size in self._sizes if size.node.meta["module"] in self._names],
            self._channels_at(self._nodes_inside()),
        )
        nothing = np.empty(0, np.int64)
        for circle in circles:
            channels: ChannelIds = np.unique(np.concatenate([*circle, nothing]))
            channels = channels[self._free[channels]]
            if channels.size:
                return channels
        return nothing

    def _failing_alone(self, axes: list[ChannelIds]) -> list[ChannelIds]:
        """Those of several axes whose channels alone make the operator fail, where the others keep theirs."""
        distinct = {tuple(channels.tolist()): channels for channels in axes if self._removed[channels].any()}
        if len(distinct) < 2:
            return axes
        failing = []
        for channels in distinct.values():
            removed = self._removed.copy()
            for others in distinct.values():
                removed[np.setdiff1d(others, channels)] = False
            removed = self._graph.drop_infeasible(removed)
            if removed[channels].any():
                failure = find_failure(self._model, self._graph, self._attributes, removed)
                if failure is not None and failure.node in self._failed_nodes:
                    failing.append(channels)
        return failing

    def _own_nodes(self) -> list[Node]:
        """What modules of the class run themselves."""
        return [node for node in self._graph.trace.graph.nodes if node.meta.get("module") in self._names]

    def _nodes_inside(self) -> list[Node]:
        """What modules of the class run, or modules inside them."""
        prefixes = tuple(f"{name}." for name in self._names)
        nodes = self._graph.trace.graph.nodes
        return [node for node in nodes if f"{node.meta.get('module')}.".startswith(prefixes)]

    def _channels_at(self, nodes: Iterable[Node]) -> list[ChannelIds]:
        """The channels along all axes of what these operators take and make."""
        channels: list[ChannelIds] = []
        for node in nodes:
            for value in (node, *node.all_input_nodes):
                channels += _flatten(self._graph.value_channels[value])
        return channels


def _is_alike(node: Node, failed: Node | None) -> bool:
    """Whether a node of a module is the failed operator, or its like in another module of that class."""
    return failed is None or (node.target, node.meta["step"]) == (failed.target, failed.meta["step"])


def _flatten(axes: Any) -> list[ChannelIds]:
    """The channels along each axis of a value, or of several."""
    if axes is None:
        return []
    if isinstance(axes, np.ndarray):
        return [axes]
    return [channels for part in axes for channels in _flatten(part)]
