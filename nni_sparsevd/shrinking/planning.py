"""Which channels can be removed without changing the output, and why the others are kept."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..graph import (
    Axis,
    ChannelGraph,
    Flags,
    Inputs,
    Node,
    channel_graph,
    named_states,
    require_parameters,
    search_weights_once,
    trace_other_sizes,
)
from .constants import find_constants, find_stopped_constants, find_values_at_other_sizes
from .group_plans import Accountant
from .plan import NormMemory, Plan
from .plan_fit import read_shapes
from .plan_parts import QueryScaling, SizeChange
from .readings import Reading, find_arriving_constants, find_readings
from .removal import find_removal


def make_plan(model: nn.Module, example_inputs: Inputs, *, round_to: int = 1, remember_norms: bool = False) -> Plan:
    """Decide which channels of a network can be removed exactly; the zeros in its weights are the only evidence.

    A channel is removed when each kept output either multiplies it by zeros only, or receives from it a constant that
    the output's bias can absorb, or that one channel can carry for several.  The largest set of channels for which this
    holds is removed, so chains and even cycles of channels that only serve each other are removed together.  No axis is
    emptied: its last channel is kept.

    Args:
        model: Any network.  It is left as it is.
        example_inputs: What `model` is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or a
            pair (args, kwargs), with numbers, None, lists, dicts and dataclasses in any nesting.
            What a channel carries is compared at other input sizes and numbers that the network accepts, and what
            differs there is no constant.  Strings and flags are part of the call that the plan holds for.
        round_to: What is left of each group is a multiple of this number of channels, where the group had that many:
            dead channels are kept to fill it up.  Heads and the like, which are several channels each, are not counted.
        remember_norms: Whether a norm may lose channels: see `shrink`.

    Returns:
        The plan: what is removed, what is kept, and why.

    Raises:
        ModelError: The network cannot be worked on; see `channel_graph`.  Or it has no parameters.
        TraceError: The network cannot be traced.
        SettingError: `round_to` is below 1.

    Example:
        ```python
        import torch
        from torch import nn

        import nni_sparsevd as svd

        model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 2))
        with torch.no_grad():
            model[0].weight[:2] = 0  # two neurons do not see the input: each is a constant that the next bias absorbs
        plan = svd.make_plan(model, torch.zeros(1, 4))
        assert plan.removed == 2 and plan.groups[1].reason == "output of the network"
        ```
    """
    graph = channel_graph(model, example_inputs, remember_norms=remember_norms)
    require_parameters(model)
    return plan_removal(model, graph, round_to)


def plan_removal(model: nn.Module, graph: ChannelGraph, round_to: int = 1) -> Plan:
    """The plan for a network whose channel graph is known; zeros in the weights do not change the graph.

    Args:
        model: The network that `graph` was made of, possibly with other values in its weights.
        graph: The result of `channel_graph`.
        round_to: What is left of each group is a multiple of this number of channels.

    Returns:
        The plan: what is removed, what is kept, and why.

    Raises:
        SettingError: `round_to` is below 1.
    """
    if round_to < 1:
        raise SettingError(f"round_to: a number of channels, 1 or more, found {round_to}")
    states = _states_on_cpu(model)
    other_sizes = trace_other_sizes(model, graph.trace)
    with search_weights_once():
        others = find_values_at_other_sizes(graph.trace, states, other_sizes, graph.value_channels)
        constants = find_constants(graph.trace, states, others)
        readings = find_readings(graph, states, constants.values)
    removal = find_removal(model, graph, readings, round_to)
    graph, removed = removal.graph, removal.removed
    stopped = find_stopped_constants(graph.trace, constants, graph.value_channels)
    accountant = Accountant(removal, readings, stopped)
    return Plan(
        groups=tuple(accountant.plan_group(group) for group in graph.groups),
        shapes=read_shapes(model),
        cuts=_plan_cuts(graph, removed),
        folds=_plan_folds(readings, removed),
        merges=removal.carriers.merges(removed),
        sizes=_plan_sizes(graph, removed),
        scales=_plan_scales(graph, removed),
        norms=_plan_norms(graph, constants.values, removed),
    )


def _states_on_cpu(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under every name; a tensor that has several names is copied from a device only once."""
    states = dict(named_states(model))
    copies = {id(value): value.detach().cpu() for value in states.values()}
    return {name: copies[id(value)] for name, value in states.items()}


def _plan_cuts(graph: ChannelGraph, removed: Flags) -> dict[Axis, tuple[int, ...]]:
    # A norm that pads its input sees all channels, as before: it keeps its parameters.
    padded = tuple(f"{norm.module}." for norm in graph.remembering_norms if not norm.is_layer_norm)
    cuts = {}
    for axis, channels in graph.axes.items():
        indices = np.flatnonzero(removed[channels])
        if indices.size and not axis[0].startswith(padded):
            cuts[axis] = tuple(indices.tolist())
    return cuts


def _plan_folds(readings: list[Reading], removed: Flags) -> dict[str, Tensor]:
    folds = {}
    for reading in readings:
        if reading.reader and reading.reader.bias and removed[reading.inputs].any():
            added = reading.folded_constants(removed)
            if added.any():  # a dead channel is often 0: no layer should get a bias for that
                folds[reading.reader.bias] = added
    return folds


def _plan_sizes(graph: ChannelGraph, removed: Flags) -> tuple[SizeChange, ...]:
    changes = []
    for (module, attribute, position), channels in graph.size_attributes.items():
        is_removed = removed[channels]
        if is_removed.any():
            changes.append(SizeChange(module, attribute, position, int(is_removed.size), int((~is_removed).sum())))
    return tuple(changes)


def _plan_scales(graph: ChannelGraph, removed: Flags) -> tuple[QueryScaling, ...]:
    scalings = []
    for scale in graph.scales:
        before, after = scale.dimensions.size, int((~removed[scale.dimensions]).sum())
        if after < before:
            rows = tuple(scale.rows.tolist())
            scalings.append(QueryScaling(scale.module, scale.weight, scale.bias, rows, before, after))
    return tuple(scalings)


def _plan_norms(graph: ChannelGraph, values: dict[Node, Any], removed: Flags) -> dict[str, NormMemory]:
    norms = {}
    for norm in graph.remembering_norms:
        is_removed = removed[norm.channels]
        if not is_removed.any():
            continue
        memory = NormMemory(norm.channel_dim, find_arriving_constants(norm, values)[torch.from_numpy(is_removed)])
        if not norm.is_layer_norm:  # a layer norm needs only the sums of the constants
            indices = tuple(np.flatnonzero(is_removed).tolist())
            memory = replace(memory, indices=indices, channels=is_removed.size)
        norms[norm.module] = memory
    return norms
