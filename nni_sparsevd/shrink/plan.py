"""Which channels can go without changing the output, and why the others stay: a decision, as a value."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import numpy as np
from torch import Tensor, nn

from ..graph import Atoms, Axis, ChannelGraph, ChannelGroup, Inputs, channel_graph
from .carriers import Carriers, Merge
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
    """Indices to cut from every axis, constants to fold or to carry, and the account of each group."""

    groups: tuple[GroupPlan, ...]
    cuts: dict[Axis, tuple[int, ...]]
    folds: dict[str, Tensor] = field(compare=False)
    """Bias name -> what the removed inputs added to its outputs; shape (outputs before the cut,), float64."""
    merges: dict[Axis, tuple[Merge, ...]]
    """Weight and its input axis -> channels that take over what others carry, before these are cut."""

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
        merges = {f"{name}:{dim}": [asdict(merge) for merge in found] for (name, dim), found in self.merges.items()}
        return json.dumps({"groups": self.rows(), "cuts": cuts, "merges": merges}, indent=1)

    def __str__(self) -> str:
        width = max((len(group.name) for group in self.groups), default=5)
        lines = [f"{'group':{width}}  channels  removed  left  reason"]
        for g in self.groups:
            lines.append(f"{g.name:{width}}  {g.channels:8}  {g.removed:7}  {g.channels - g.removed:4}  {g.reason}")
        return "\n".join(lines)


def make_plan(model: nn.Module, example_inputs: Inputs) -> Plan:
    """Decide which channels of `model` can be removed exactly; the zeros in its weights are the only input.

    A channel goes when each output that stays either gives it only zero weights, or receives from it a constant that
    the output's bias can absorb, or that one channel can carry for several.  The largest set of channels for which this
    holds is found, so chains and even cycles of channels that only serve each other go together.  No axis is emptied:
    its last channel stays.

    Raises `TraceError` when the network cannot be traced.
    """
    return plan_of(model, channel_graph(model, example_inputs))


def plan_of(model: nn.Module, graph: ChannelGraph) -> Plan:
    """`make_plan` for a network whose channels are known; zeros in weights do not change them."""
    tensors = {  # under every name: the trace calls a tied tensor by any of them
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    wide = {id(value): value.detach().double().cpu() for value in tensors.values()}  # a tied tensor stays one
    states = {name: wide[id(value)] for name, value in tensors.items()}
    reads = readings(graph, states)
    pinned = np.concatenate([group.labels for group in graph.groups if group.pinned] or [np.empty(0, np.int64)])
    free = np.setdiff1d(np.concatenate([group.labels for group in graph.groups] or [pinned]), pinned)
    carriers = Carriers(graph, reads)
    removed, last = _largest_removal(graph, reads, carriers, free)
    while carriers.carry_(removed):
        removed, last = _largest_removal(graph, reads, carriers, free)
    cuts = {axis: tuple(graph.where(axis, removed).tolist()) for axis in graph.axes}
    folds = {
        r.reader.bias: r.folded(removed) for r in reads if r.reader.bias and np.isin(r.reader.inputs, removed).any()
    }
    groups = tuple(_account(group, reads, carriers, removed, last) for group in graph.groups)
    return Plan(groups, {axis: indices for axis, indices in cuts.items() if indices}, folds, carriers.merges(removed))


def _largest_removal(graph: ChannelGraph, reads: list[Reading], carriers: Carriers, free: Atoms) -> tuple[Atoms, Atoms]:
    """The greatest fixed point: remove all that may go, take back what is needed by what stays, repeat.

    Returns the classes to remove and those kept only because an axis would have been empty without them.
    """
    last = np.empty(0, np.int64)
    removed = free
    while True:
        needed = np.unique(np.concatenate([last, *carriers.needed(removed)]))
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


def _account(group: ChannelGroup, reads: list[Reading], carriers: Carriers, removed: Atoms, last: Atoms) -> GroupPlan:
    gone = np.isin(group.labels, removed)
    stays = group.labels[~gone]
    own = [read for read in reads if np.isin(read.reader.inputs, stays).any()]
    used = [np.unique(read.needed(removed)) for read in own]
    idle = np.setdiff1d(stays, _joined(used)) if own else stays[:0]
    reasons = [group.pinned] if group.pinned else []
    dead = idle
    if not group.pinned:
        live = [read.reader.inputs[read.used.any(0) & np.isnan(read.constant)] for read in own]
        for why, kind in (
            ("not at the zero-padded border that {} sees", Reading.at_border),
            ("no bias of {} alone can stand for it", Reading.homeless),
        ):
            where = [(read, np.intersect1d(read.reader.inputs[kind(read)], stays)) for read in own]
            held = np.setdiff1d(_joined(labels for _, labels in where), _joined(live))
            if held.size:
                names = [
                    read.reader.module or read.reader.weight for read, labels in where if np.isin(held, labels).any()
                ]
                readers = ", ".join(dict.fromkeys(names))
                load = carriers.load(held)
                carried = f", and carries {load} more" if load else ""
                reasons.append(f"{held.size} constant, but {why.format(readers)}{carried}")
                dead = np.union1d(dead, held)
        if np.isin(stays, last).any():
            reasons.append("the last channel stays")
    modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in group.axes))
    return GroupPlan(group.name, modules, len(group), int(gone.sum()), int(dead.size), "; ".join(reasons))


def _joined(labels: Iterable[Atoms]) -> Atoms:
    return np.unique(np.concatenate([*labels, np.empty(0, np.int64)]))
