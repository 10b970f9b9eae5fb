"""A budget instead of a pruning ratio: what the network may cost at the end, and where to cut to get there."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt, Lt
from torch import Tensor, nn

from ..measure import CostKind
from ..nn import make_plain_copy
from ..settings import Settings

Cost = Callable[[nn.Module], float]
"""A function that measures an ordinary network: multiply-accumulates, parameters, milliseconds, or what you like."""
LARGEST_MISS = 0.05
"""Part of a budget by which a network may cost more than was allowed."""


def misses(cost: float, allowed: float) -> bool:
    """Whether a network that costs so much misses a budget that allows so much, in the same unit."""
    return cost > (1 + LARGEST_MISS) * allowed


class Budget(Settings):
    """What the network may cost at the end, as a part of what it costs at the start."""

    kind: CostKind = "macs"
    """Multiply-accumulates or milliseconds of one example input, or parameters; latency is measured on one thread."""
    fraction: Annotated[float, Gt(0), Lt(1)]
    """The part of the cost that is left."""


@dataclass(frozen=True)
class Arrival:
    """How close a budget was met; costs are in the unit of the budget's kind."""

    budget: Budget
    dense: float
    """Cost of the network before anything was removed."""
    at_threshold: float
    """Cost of the cut that the posterior's own threshold would have made."""
    reached: float
    """Cost of the cut that was made."""
    log_alpha: float
    """The threshold on log alpha that was used instead of the posterior's own."""

    @property
    def relative_error(self) -> float:
        """By how much the budget was missed, as a part of the budget; positive where the network costs more."""
        return self.reached / (self.budget.fraction * self.dense) - 1


class BudgetSearch:
    """Finds the cutoff at which a network comes closest to its budget.

    Args:
        budget: What the network may cost.
        cost: The function that measures an ordinary network.
        model: The network before anything is removed, with posteriors or without; measured at once.
    """

    def __init__(self, budget: Budget, cost: Cost, model: nn.Module) -> None:
        self.budget = budget
        self.cost = cost
        self.dense = cost(make_plain_copy(model))
        """Cost of the network before anything is removed."""

    def find_cutoff(self, scores: Tensor, cut_at: Callable[[float], nn.Module]) -> tuple[float, float]:
        """Find the score up to which channels must be removed so that the network comes closest to the budget.

        The cost falls as the cutoff rises, so bisection finds the place with about log2(number of scores) cuts.

        Args:
            scores: The scores of all channels, any shape; a low score is removed first.
            cut_at: Cutoff -> an ordinary copy of the network, cut there.

        Returns:
            The cutoff, -inf where it is best to remove nothing, and the cost of the network that is cut there.
        """
        # 1. Why bisection: each cost is that of a copy of the network, cut and measured, so few must do.
        # 2. Why only scores as cutoffs: between two scores the same channels are removed.
        # 3. Why the best of all that were tried, and not the last one: a measured latency is noisy, and the cost may
        #    rise a little where it should fall; then the bisection may have passed by the best place.
        target = self.budget.fraction * self.dense
        cutoffs = [-math.inf, *scores.unique().tolist()]
        low, high = 0, len(cutoffs) - 1
        costs = {place: self.cost(cut_at(cutoffs[place])) for place in (low, high)}
        while high - low > 1:
            middle = (low + high) // 2
            costs[middle] = self.cost(cut_at(cutoffs[middle]))
            if costs[middle] > target:
                low = middle
            else:
                high = middle
        best = min(costs, key=lambda place: abs(costs[place] - target))
        return cutoffs[best], costs[best]
