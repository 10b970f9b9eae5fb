"""How far a budget can go in a network: what is left when all has left that may."""

import copy
import math
from typing import Literal

import torch
from torch import nn

from ..graph import Inputs
from ..measure import cost_function
from ..nn import find_gates, make_plain_copy
from ..shrinking import shrink
from .removal import choose_cutoffs, use_cutoffs_


def count_least_left(
    model: nn.Module, example_inputs: Inputs, kind: Literal["macs", "parameters"], round_to: int
) -> float:
    """Count what is left of a network's cost when all channels have left that may leave on the way to a budget.

    Args:
        model: A network with gates; it stays as it is.
        example_inputs: What it is called with.
        kind: What costs: macs or parameters.
        round_to: What is left of a gate's channels is a multiple of this.

    Returns:
        A part of the cost of the whole network.

    Raises:
        ShrinkError: The smaller network does not compute the same.
    """
    emptied = copy.deepcopy(model)
    with torch.no_grad():
        for gate in find_gates(emptied):
            gate.log_sigma2.copy_(torch.linspace(0, 1, len(gate.mu)))  # a cutoff tells different channels apart
    use_cutoffs_(emptied, choose_cutoffs(emptied, example_inputs, kind, math.inf, round_to))
    smallest, _ = shrink(emptied, example_inputs)
    cost = cost_function(kind, example_inputs)
    return cost(smallest) / cost(make_plain_copy(model))
