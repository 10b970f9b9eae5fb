"""The least that a network can cost: once every channel that may go has gone. Also which gates remove nothing."""

import copy
import math
from dataclasses import dataclass

import torch
from torch import nn

from ..graph import Inputs
from ..measure import cost_function
from ..nn import find_gates, make_plain_copy
from ..shrinking import shrink_
from .costs import CountedCost
from .removal import choose_cutoffs, use_cutoffs_


@dataclass(frozen=True)
class Reach:
    """What is left of a network with gates once every channel that may go has gone."""

    least_left: float
    """A part of the cost of the whole network."""
    held: tuple[str, ...]
    """The gates whose channels stay when they close: a layer that writes these, and how many there are."""

    def describe_held(self) -> str:
        """Name the gates that remove nothing; empty where there are none."""
        if not self.held:
            return ""
        return (
            f"the channels of {', '.join(self.held)} stay, even where their gates close, for something else makes "
            "them, too; others have to meet the budget"
        )


def measure_reach(model: nn.Module, example_inputs: Inputs, kind: CountedCost, round_to: int) -> Reach:
    """Measure what is left of a network once every channel that may go has gone.

    Args:
        model: A network with gates; it stays as it is.
        example_inputs: What it is called with.
        kind: What costs: macs or parameters.
        round_to: What is left of a gate's channels is a multiple of this.

    Returns:
        The least that is left, and the gates that remove nothing.

    Raises:
        ShrinkError: The smaller network does not compute the same.
    """
    emptied = copy.deepcopy(model)
    _fill_in_(emptied)
    with torch.no_grad():
        for gate in find_gates(emptied):
            gate.log_sigma2.copy_(torch.linspace(0, 1, len(gate.mu)))  # a cutoff tells different channels apart
    cost = cost_function(kind, example_inputs)
    whole = cost(make_plain_copy(emptied))
    cutoffs = choose_cutoffs(emptied, example_inputs, kind, math.inf, round_to)
    channels = {gate: len(gate.mu) for gate in cutoffs}
    use_cutoffs_(emptied, cutoffs)
    shrink_(emptied, example_inputs)
    held = [f"{gate.writers[0]} ({count})" for gate, count in channels.items() if len(gate.mu) == count]
    return Reach(cost(make_plain_copy(emptied)) / whole, tuple(held))


@torch.no_grad()
def _fill_in_(model: nn.Module) -> None:
    """Give parameters and statistics of a fresh network that are equal everywhere different values, in place.

    A shift of 0, which the first step of training changes, would hide that it brings closed channels back to life.
    """
    of_gates = {id(tensor) for gate in find_gates(model) for tensor in (*gate.parameters(), *gate.buffers())}
    draw = torch.Generator().manual_seed(0)
    for tensor in (*model.parameters(), *model.buffers()):
        if id(tensor) in of_gates or not tensor.is_floating_point() or tensor.numel() < 2:
            continue
        if (tensor == tensor.flatten()[0]).all():
            tensor.add_(0.1 * torch.rand(tensor.shape, generator=draw).to(tensor))
