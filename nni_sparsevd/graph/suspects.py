"""Which channels can be to blame where the code of a network fails without some of them."""

from collections.abc import Collection, Iterable
from typing import Any

import numpy as np
from torch import nn

from .failures import Failure, find_failure
from .groups import ChannelGraph
from .links import ChannelIds, Flags
from .nodes import Node

FEW = 4
"""Where so many modules of a class fail, all of the class are blamed: to find each further one would be a trial."""


class Suspects:
    """The channels that can be to blame for a failure.

    A network repeats its modules, and code that fails in one block will fail in the next.  So the code is taken to be
    wrong in every module of the failed module's class, at the operator of the same kind and step there, unless only a
    few of them fail: those whose sizes happen to be equal, or 1.
    """

    def __init__(self, failure: Failure, model: nn.Module, graph: ChannelGraph, removed: Flags) -> None:
        self._failure, self._model, self._graph, self._removed = failure, model, graph, removed
        self._free = graph.removable()

    def to_blame(self) -> ChannelIds:
        """The free channels that are to blame; none where nothing that the failed code meets is free."""
        kind = type(self._model.get_submodule(self._failure.module))
        alike = {name for name, module in self._model.named_modules() if type(module) is kind}
        failing = {self._failure.module}
        while len(failing) < min(len(alike), FEW):
            blamed = self._find_narrowest(failing)
            other = self._find_failure_without(blamed) if blamed.size else self._failure
            if other is None or other.module not in alike:
                return blamed
            if other.module in failing:
                break
            failing.add(other.module)
        return self._find_narrowest(alike)

    def _find_failure_without(self, blamed: ChannelIds) -> Failure | None:
        """What fails where the blamed channels stay and the others leave; None where nothing does."""
        removed = self._removed.copy()
        removed[blamed] = False
        return find_failure(self._model, self._graph, self._graph.drop_infeasible(removed))

    def _find_narrowest(self, modules: Collection[str]) -> ChannelIds:
        """The free channels of the narrowest circle that has any, around the failed operator in these modules."""
        # To blame too many would only cost removals, to blame too few costs another trial.  So the circles widen:
        #
        # 1. sizes that the failed operator is given as plain numbers, which nothing can bring up to date; of several
        #    only those that fail by themselves, as one may be computed from a shape and follow: view(b, 2, c // 2);
        # 2. all sizes that it is given: an attribute may also be used for something else;
        # 3. the channels of its arguments and its result;
        # 4. sizes that are given anywhere in these modules: the number may have been computed from one;
        # 5. the channels of everything that runs inside these modules.
        failed_nodes = {node for node in self._nodes_of(modules) if _is_alike(node, self._failure.node)}
        sizes = self._graph.free_sizes
        at_failure = [size for size in sizes if size.node in failed_nodes]
        plain = [size.channels for size in at_failure if size.origin is None]
        circles = (
            self._failing_alone(plain, failed_nodes),
            plain,
            [size.channels for size in at_failure],
            self._channels_at(failed_nodes),
            [size.channels for size in sizes if size.node.meta["module"] in modules],
            self._channels_at(self._nodes_inside(modules)),
        )
        nothing = np.empty(0, np.int64)
        for circle in circles:
            channels: ChannelIds = np.unique(np.concatenate([*circle, nothing]))
            channels = channels[self._free[channels]]
            if channels.size:
                return channels
        return nothing

    def _failing_alone(self, axes: list[ChannelIds], failed_nodes: Collection[Node]) -> list[ChannelIds]:
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
                failure = find_failure(self._model, self._graph, removed)
                if failure is not None and failure.node in failed_nodes:
                    failing.append(channels)
        return failing

    def _nodes_of(self, modules: Collection[str]) -> list[Node]:
        """What these modules run themselves."""
        return [node for node in self._graph.trace.graph.nodes if node.meta.get("module") in modules]

    def _nodes_inside(self, modules: Collection[str]) -> list[Node]:
        """What these modules run, or modules inside them."""
        prefixes = tuple(f"{name}." for name in modules)
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
