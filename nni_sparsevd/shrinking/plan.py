"""Which channels can go without changing the output, and why the others stay: a decision, as a value."""

import json
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..graph import (
    AttentionScale,
    Axis,
    ChannelGraph,
    Inputs,
    SizeAttribute,
    channel_graph,
    named_states,
    remaining_sizes,
    tighten_graph,
)
from .account import Account, GroupPlan
from .carriers import Carriers, Merge
from .constants import find_constants
from .readers import arriving, readings
from .removal import largest_removal


@dataclass(frozen=True)
class Plan:
    """Indices to cut from every axis, constants to fold or to carry, and the account of each group."""

    groups: tuple[GroupPlan, ...]
    cuts: dict[Axis, tuple[int, ...]]
    folds: dict[str, Tensor] = field(compare=False)
    """Bias name -> what the removed inputs added to its outputs; shape (outputs before the cut,), float64."""
    merges: dict[Axis, tuple[Merge, ...]]
    """Weight and its input axis -> channels that take over what others carry, before these are cut."""
    sizes: tuple[tuple[SizeAttribute, int], ...] = field(compare=False)
    """Attributes that say how many channels there are, with what they have to say afterwards."""
    scales: tuple[tuple[AttentionScale, int], ...] = field(compare=False)
    """Attentions that lose dimensions, with how many are left."""
    norms: dict[str, tuple[int, Tensor]] = field(compare=False)
    """Layer norm that has to remember -> where its channels are, and the constants that it loses, float64."""

    @property
    def removed(self) -> int:
        """Channels removed, over all groups."""
        return sum(group.removed for group in self.groups)

    def to_rows(self) -> list[dict[str, object]]:
        """One JSON-able row a group."""
        names = ("name", "modules", "channels", "removed", "dead", "reason")
        return [{name: getattr(group, name) for name in names} for group in self.groups]

    def to_json(self) -> str:
        """The account and the cuts."""
        cuts = {f"{name}:{dim}": indices for (name, dim), indices in self.cuts.items()}
        merges = {f"{name}:{dim}": [asdict(merge) for merge in found] for (name, dim), found in self.merges.items()}
        return json.dumps({"groups": self.to_rows(), "cuts": cuts, "merges": merges}, indent=1)

    def __str__(self) -> str:
        width = max((len(group.name) for group in self.groups), default=5)
        lines = [f"{'group':{width}}  channels  removed  left  reason"]
        for g in self.groups:
            lines.append(f"{g.name:{width}}  {g.channels:8}  {g.removed:7}  {g.channels - g.removed:4}  {g.reason}")
        return "\n".join(lines)


def make_plan(model: nn.Module, example_inputs: Inputs, *, round_to: int = 1, remember_norms: bool = False) -> Plan:
    """Decide which channels of `model` can be removed exactly; the zeros in its weights are the only input.

    A channel goes when each output that stays either gives it only zero weights, or receives from it a constant that
    the output's bias can absorb, or that one channel can carry for several.  The largest set of channels for which this
    holds is found, so chains and even cycles of channels that only serve each other go together.  No axis is emptied:
    its last channel stays.

    What is left of a layer is a multiple of `round_to`, where it had that many: dead channels stay to fill it up.
    Heads and the like, which are several channels each, are not counted.

    With `remember_norms` the width of a transformer may shrink, too: see `shrink`.

    Raises `TraceError` when the network cannot be traced, `SettingError` for a `round_to` below 1.
    """
    return plan_removal(model, channel_graph(model, example_inputs, remember_norms=remember_norms), round_to)


def plan_removal(model: nn.Module, graph: ChannelGraph, round_to: int = 1) -> Plan:
    """`make_plan` for a network whose channels are known; zeros in weights do not change them."""
    if round_to < 1:
        raise SettingError(f"round_to: a number of channels, 1 or more, found {round_to}")
    tensors = dict(named_states(model))  # under every name: a tied tensor is called by any of them
    plain = {id(value): value.detach().cpu() for value in tensors.values()}  # a tied tensor stays one
    named = {name: plain[id(value)] for name, value in tensors.items()}
    values = find_constants(graph.trace, named)
    reads = readings(graph, named, values)
    tighter: ChannelGraph | None = graph
    while tighter is not None:  # the code may not follow these numbers of channels though it followed others
        graph = tighter
        carriers = Carriers(graph, reads)
        removed, last = largest_removal(graph, reads, carriers, round_to)
        while carriers.carry_(removed):
            removed, last = largest_removal(graph, reads, carriers, round_to)
        tighter = tighten_graph(model, graph, removed)
    cuts = {axis: tuple(np.flatnonzero(removed[labels]).tolist()) for axis, labels in graph.axes.items()}
    folds = {
        read.reader.bias: read.folded(removed)
        for read in reads
        if read.reader and read.reader.bias and removed[read.inputs].any()
    }
    account = Account(graph, reads, carriers, removed, last)
    groups = tuple(account.of(group) for group in graph.groups)
    sizes = tuple(
        (size, number)
        for size, number in remaining_sizes(graph.size_attributes, removed)
        if removed[size.channels].any()
    )
    cuts = {axis: indices for axis, indices in cuts.items() if indices}
    scales = tuple((scale, int((~removed[scale.dimensions]).sum())) for scale in graph.scales)
    scales = tuple((scale, number) for scale, number in scales if number < scale.dimensions.size)
    norms = {
        norm.module: (norm.channel_dim, arriving(norm, values)[torch.from_numpy(removed[norm.channels])])
        for norm in graph.remembering_norms
        if removed[norm.channels].any()
    }
    return Plan(groups, cuts, folds, carriers.merges(removed), sizes, scales, norms)
