"""A budget instead of a ratio: how costly a network would be if it were cut now, and where to cut to arrive there."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from ..graph import channel_graph, evaluation_mode
from ..masks import gates_of
from ..measure import count_macs, count_parameters, measure_latencies
from ..nn import ChannelGate, Variational, named_posteriors, output_dim, plain_copy
from ..recipe import Settings

Cost = Callable[[nn.Module], float]


class Budget(Settings):
    """What the network may cost at the end, as a part of what it costs at the start."""

    kind: Literal["macs", "parameters", "latency"] = "macs"
    """Multiply-accumulates and milliseconds are those of one example input; latency is measured, on one thread."""
    fraction: Annotated[float, Gt(0), Lt(1)]
    """Part of the cost that is left."""


@dataclass(frozen=True)
class Arrival:
    """How close a budget was met."""

    budget: Budget
    dense: float
    at_threshold: float
    """Cost of the cut that the posterior's own threshold would have made."""
    reached: float
    log_alpha: float
    """The threshold that was used instead."""

    @property
    def off(self) -> float:
        """By how much the budget was missed, as a part of it; positive: costlier."""
        return self.reached / (self.budget.fraction * self.dense) - 1


def cost_of(kind: str, example_inputs: Tensor) -> Cost:
    """The function that measures a network."""
    one = example_inputs[:1]
    if kind == "parameters":
        return count_parameters
    if kind == "macs":
        return lambda model: count_macs(model, one)
    return lambda model: measure_latencies({"": model}, one, rounds=15)[""]


def weigh_by_macs_(model: nn.Module, example_inputs: Tensor) -> None:
    """Make the KL of each weight proportional to the multiplications that it costs, that of each channel to their
    square root; on average as before.

    In proportion, the layers with the dearest channels would be cut to a few of them before others lose any.

    A weight of a convolution costs as many as there are positions in its output, and a channel its part of all layers
    that write or read it: a first layer may be cheap, and yet what it writes dear to read.
    """
    spent: dict[nn.Module, float] = {}

    def count(layer: Any, inputs: Any, output: Tensor) -> None:
        fan_in = layer.weight.numel() / layer.weight.shape[output_dim(layer)]
        spent[layer] = spent.get(layer, 0.0) + output[0].numel() * fan_in

    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
    }
    hooks = [layer.register_forward_hook(count) for layer in layers.values()]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(example_inputs[:1])
    finally:
        for hook in hooks:
            hook.remove()
    by_name = {name: spent.get(layer, 0.0) for name, layer in layers.items()}
    channels = _costs_of_gates(model, example_inputs, by_name)
    weights: list[tuple[Variational | ChannelGate, float, int]] = []
    for _, one in named_posteriors(model):
        if isinstance(one, ChannelGate):
            weights.append((one, math.sqrt(channels[one] / len(one.mu)), len(one.mu)))
        else:
            weights.append((one, spent.get(one, 0.0) / one.weight.numel(), one.weight.numel()))
    for kind in (Variational, ChannelGate):
        chosen = [(one, weight, size) for one, weight, size in weights if isinstance(one, kind)]
        mean = sum(weight * size for _, weight, size in chosen) / max(sum(size for *_, size in chosen), 1)
        for one, weight, _ in chosen:
            one.kl_weight *= weight / mean if mean else 1.0


def _costs_of_gates(model: nn.Module, example_inputs: Tensor, spent: dict[str, float]) -> dict[ChannelGate, float]:
    """Gate -> MACs of all its channels together, from those of each layer, `spent`.

    What a layer spends on a group of channels is the part of the indices of its axis that they are.  Heads, which are
    no indices of any axis, cost what their writers cost.
    """
    gates = [one for _, one in named_posteriors(model) if isinstance(one, ChannelGate)]
    costs = {gate: sum(spent.get(writer, 0.0) for writer in gate.writers) for gate in gates}
    graph = channel_graph(plain_copy(model), example_inputs)
    gate_behind = gates_of(model, graph)
    for group in graph.groups:
        gate = gate_behind.get(group.name)
        if gate is None or len(gate.mu) != len(group):
            continue
        parts = {axis: float(np.isin(graph.axes[axis], group.channels).mean()) for axis in group.axes}
        cost = sum(spent.get(name.removesuffix(".weight"), 0.0) * part for (name, _), part in parts.items())
        costs[gate] = cost or costs[gate]
    return costs


class Controller:
    """Presses the KL harder while the budget's edge lags behind, and less while it is ahead.

    The edge is the log alpha of the last channel that must go to meet the budget.  It should travel evenly from where
    it is at first to the threshold.  What the network would cost if it were cut now is no guide: it stays where it is
    until the first channels reach the threshold, the pressure grows meanwhile, and then everything drowns at once.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._start: float | None = None
        self.pressure = 1.0
        """Factor on the KL."""

    def react(self, edge: float, progress: float) -> None:
        """`edge` is the log alpha there now, `progress` the part of the training that is done."""
        self._start = edge if self._start is None else self._start
        wanted = self._start + progress * (self._threshold - self._start)
        self.pressure = min(1e3, max(1e-3, self.pressure * math.exp(min(0.7, max(-0.7, (wanted - edge) / 4)))))


def best_cutoff(scores: Tensor, cost_at: Callable[[float], float], target: float) -> tuple[float, float]:
    """(cutoff, cost there): the score up to which everything goes so that the cost comes closest to the target.

    `scores` of all channels; the cost falls as the cutoff rises, so a bisection over them finds it.
    """
    cuts = [-math.inf, *scores.unique().tolist()]
    low, high = 0, len(cuts) - 1
    costs = {low: cost_at(cuts[low]), high: cost_at(cuts[high])}
    while high - low > 1:
        middle = (low + high) // 2
        costs[middle] = cost_at(cuts[middle])
        low, high = (middle, high) if costs[middle] > target else (low, middle)
    best = min(costs, key=lambda place: abs(costs[place] - target))
    return cuts[best], costs[best]


def copy_with_map(model: nn.Module) -> tuple[nn.Module, dict[nn.Module, nn.Module]]:
    """A deep copy, and which of its modules stands for which."""
    twin = copy.deepcopy(model)
    return twin, dict(zip(model.modules(), twin.modules(), strict=True))
