"""A budget that is met gradually: which channels leave next.

Pressed to die at once, the noise of the channels that a budget asks for breaks a network before they are cut.  A few at
a time, in the order of what they are worth, they leave a network that heals in between.
"""

import itertools
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..graph import Inputs
from ..nn import ChannelGate, find_gates
from .costs import CountedCost, count_gate_costs

LARGEST_EXCESS = 0.01
"""Part of the cost of all gates by which a block may save more than was asked for, where other blocks will do."""


@dataclass(frozen=True)
class _Block:
    """Channels of a gate that leave together."""

    gate: ChannelGate
    cost: float
    worth_per_cost: float
    lowest_log_alpha: float


def choose_cutoffs(
    model: nn.Module,
    example_inputs: Inputs,
    kind: CountedCost,
    saving: float,
    round_to: int,
    held: Collection[ChannelGate] = (),
) -> dict[ChannelGate, float]:
    """Choose what to remove next: the channels that are worth least for what they cost.

    A channel is worth its signal-to-noise ratio 1 / alpha = mu^2 / sigma^2: once the posterior has converged, that is
    2 N times the rise of the mean loss that its removal would bring, to second order.  In a gate that has lost
    channels, those that are left count for more: see `count_worth`.  Channels go in blocks of `round_to`, the block
    that is worth least for its cost first, until the blocks cost what has to be saved.

    Args:
        model: A network with gates.
        example_inputs: What it is called with.
        kind: What costs: macs or parameters.
        saving: How much of it to remove, in its unit.
        round_to: What is left of a gate's channels is a multiple of this; gates of no more channels lose none, except
            that the channels of gates with several outputs each (heads) go one by one.
        held: Gates that lose nothing.

    Returns:
        Gate -> the log alpha from which on its channels go; gates that lose nothing are missing.
    """
    costs = count_gate_costs(model, example_inputs, kind)
    blocks: list[_Block] = []
    for gate in find_gates(model):
        if gate in held:
            continue
        blocks.extend(_list_blocks(gate, costs[gate] / len(gate.mu), round_to))
    # Python's sort keeps the order of equals: blocks of one gate stay in the order of their removal.
    blocks.sort(key=lambda block: block.worth_per_cost)
    # 1. A block that would overshoot by much waits, and so do those behind it in its gate: smaller blocks may do.
    # 2. Where they do not, the waiting blocks go after all, the least worth first.
    cutoffs: dict[ChannelGate, float] = {}
    largest_excess = LARGEST_EXCESS * sum(costs.values())
    saving, waiting = _take_blocks(blocks, saving, largest_excess, cutoffs)
    _take_blocks(waiting, saving, math.inf, cutoffs)
    return cutoffs


def _take_blocks(
    blocks: list[_Block], saving: float, largest_excess: float, cutoffs: dict[ChannelGate, float]
) -> tuple[float, list[_Block]]:
    """Take blocks in order and write their cutoffs; returns what is still to be saved, and the blocks that wait."""
    waiting: list[_Block] = []
    for block in blocks:
        if saving <= 0:
            break
        if block.cost - saving > largest_excess or any(block.gate is other.gate for other in waiting):
            waiting.append(block)
            continue
        saving -= block.cost
        cutoffs[block.gate] = block.lowest_log_alpha
    return saving, waiting


def count_worth(gate: ChannelGate) -> Tensor:
    """What each channel of a gate is worth when channels are ranked, shape (channels,): 1 / alpha over the part left.

    1. What one channel is worth by itself says too little where many go.  Those that stay can replace the first few,
       but not the last ones: a late layer with a thousand channels of little worth would lose nearly all of them, and
       the network could no longer learn its training images.
    2. So worth is divided by the part of the channels that are left, as if the use of a layer grew with the logarithm
       of its channels.  While little has gone, that changes nothing.

    Args:
        gate: The gate, perhaps with fewer channels than it had at first.
    """
    return (-gate.log_alpha().detach()).exp() * (gate.channels_at_first / len(gate.mu))


def _list_blocks(gate: ChannelGate, cost_of_channel: float, round_to: int) -> Iterator[_Block]:
    """The blocks of a gate in the order of their removal."""
    log_alpha, order = gate.log_alpha().detach().sort(descending=True)
    worth = count_worth(gate)[order]
    highest = 0.0
    for start, end in _split_into_blocks(gate, round_to):
        cost = cost_of_channel * (end - start)
        # A block cannot leave before those in front of it, even where it is worth less for its cost.
        highest = max(highest, worth[start:end].sum().item() / cost if cost else math.inf)
        yield _Block(gate, cost, highest, log_alpha[end - 1].item())


def _split_into_blocks(gate: ChannelGate, round_to: int) -> list[tuple[int, int]]:
    """(start, end) of each block of the gate's channels, in the order of removal; the last block always stays."""
    channels = len(gate.mu)
    # A multiple of heads would be none of channels: `shrink` does not round them either.
    unit = 1 if gate.scales_several_outputs() else round_to
    # What does not fill a block leaves first: the rest is a multiple then.
    ends = range(channels % unit or unit, channels, unit)
    return list(itertools.pairwise([0, *ends]))


@torch.no_grad()
def use_cutoffs_(model: nn.Module, cutoffs: dict[ChannelGate, float]) -> dict[ChannelGate, float]:
    """Set the threshold of every gate to its cutoff, in place, or to infinity where it has none.

    Args:
        model: A network with gates.
        cutoffs: From `choose_cutoffs`.

    Returns:
        The thresholds before, to be put back with this function.
    """
    before = {}
    for gate in find_gates(model):
        before[gate] = gate.threshold
        gate.threshold = cutoffs.get(gate, math.inf)
    return before
