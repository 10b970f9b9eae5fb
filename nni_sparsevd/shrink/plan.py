"""Which channels can go without changing the output, and why the others stay: a decision, as a value."""

import json
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from ..graph import Atoms, Axis, ChannelGraph, ChannelGroup, Inputs, channel_graph
from .readers import Reading, readings


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one coupled group."""

    name: str
    modules: tuple[str, ...]
    channels: int
    removed: int
    dead: int
    """Channels that nothing depends on, but that stay."""
    reason: str
    """Why dead channels stay, or why the group can lose none."""


@dataclass(frozen=True)
class Plan:
    """Indices to cut from every axis, constants to fold into biases, and the account of each group."""

    groups: tuple[GroupPlan, ...]
    cuts: dict[Axis, tuple[int, ...]]
    folds: dict[str, Tensor] = field(compare=False)
    """Weight name -> what its removed inputs added to its outputs; shape (outputs before the cut,), float64."""

    @property
    def removed(self) -> int:
        """Channels removed, over all groups."""
        return sum(group.removed for group in self.groups)

    def rows(self) -> list[dict[str, object]]:
        """One JSON-able row a group."""
        names = ("name", "modules", "channels", "removed", "dead", "reason")
        return [{name: getattr(group, name) for name in names} for group in self.groups]

    def to_json(self) -> str:
        """The account and the cuts."""
        cuts = {f"{name}:{dim}": indices for (name, dim), indices in self.cuts.items()}
        return json.dumps({"groups": self.rows(), "cuts": cuts}, indent=1)

    def __str__(self) -> str:
        width = max((len(group.name) for group in self.groups), default=5)
        lines = [f"{'group':{width}}  channels  removed  left  reason"]
        for g in self.groups:
            lines.append(f"{g.name:{width}}  {g.channels:8}  {g.removed:7}  {g.channels - g.removed:4}  {g.reason}")
        return "\n".join(lines)


def make_plan(model: nn.Module, example_inputs: Inputs) -> Plan:
    """Decide which channels of `model` can be removed exactly; the zeros in its weights are the only input.

    A channel goes when each output that stays either gives it only zero weights, or receives from it a constant
    that the output's bias can absorb.  The largest set of channels for which this holds is found, so chains and even
    cycles of channels that only serve each other go together.  No axis is emptied: its last channel stays.

    Raises `TraceError` when the network cannot be traced.
    """
    graph = channel_graph(model, example_inputs)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    states = {name: value.detach().double().cpu() for name, value in tensors.items()}
    reads = readings(graph, states)
    pinned = np.concatenate([group.labels for group in graph.groups if group.pinned] or [np.empty(0, np.int64)])
    free = np.setdiff1d(np.concatenate([group.labels for group in graph.groups] or [pinned]), pinned)
    removed, last = _largest_removal(graph, reads, free)
    cuts = {axis: tuple(graph.where(axis, removed).tolist()) for axis in graph.axes}
    folds = {r.reader.weight: r.folded(removed) for r in reads if np.isin(r.reader.inputs, removed).any()}
    groups = tuple(_account(group, reads, removed, last) for group in graph.groups)
    return Plan(groups, {axis: indices for axis, indices in cuts.items() if indices}, folds)


def _largest_removal(graph: ChannelGraph, reads: list[Reading], free: Atoms) -> tuple[Atoms, Atoms]:
    """The greatest fixed point: remove all that may go, take back what is needed by what stays, repeat.

    Returns the classes to remove and those kept only because an axis would have been empty without them.
    """
    last = np.empty(0, np.int64)
    removed = free
    while True:
        needed = np.unique(np.concatenate([last, *(read.needed(removed) for read in reads)]))
        staying = np.setdiff1d(removed, needed)
        if staying.size < removed.size:
            removed = staying
            continue
        emptied = [labels for labels in graph.axes.values() if labels.size and np.isin(labels, removed).all()]
        if not emptied:
            return removed, last
        last = np.append(last, _cheapest(emptied[0], reads))
        removed = free


def _cheapest(labels: Atoms, reads: list[Reading]) -> int:
    """Of the classes of an axis, the one that reads least: keeping it keeps least else."""

    def cost(label: int) -> int:
        return sum(int(read.used[read.outputs == label].sum()) for read in reads)

    return min((int(label) for label in np.unique(labels)), key=cost)


def _account(group: ChannelGroup, reads: list[Reading], removed: Atoms, last: Atoms) -> GroupPlan:
    gone = np.isin(group.labels, removed)
    stays = group.labels[~gone]
    own = [read for read in reads if np.isin(read.reader.inputs, stays).any()]
    used = [np.unique(read.needed(removed)) for read in own]
    border = {read.reader.module: np.intersect1d(read.reader.inputs[read.at_border()], stays) for read in own}
    idle = np.setdiff1d(stays, np.concatenate([*used, np.empty(0, np.int64)])) if own else stays[:0]
    reasons = [group.pinned] if group.pinned else []
    dead = idle
    if not group.pinned:
        at_border = np.unique(np.concatenate([*border.values(), np.empty(0, np.int64)]))
        live = [read.reader.inputs[read.used.any(0) & np.isnan(read.constant)] for read in own]
        held = np.setdiff1d(at_border, np.concatenate([*live, np.empty(0, np.int64)]))
        if held.size:
            readers = ", ".join(name for name, labels in border.items() if np.isin(held, labels).any())
            reasons.append(f"{held.size} constant, but not at the zero-padded border that {readers} sees")
        if np.isin(stays, last).any():
            reasons.append("the last channel stays")
        dead = np.union1d(idle, held)
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in group.axes))
    return GroupPlan(group.name, modules, len(group), int(gone.sum()), int(dead.size), "; ".join(reasons))
