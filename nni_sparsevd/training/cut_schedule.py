"""When channels leave on the way to a budget, and how much may be left at each step."""

import math
from dataclasses import dataclass
from itertools import pairwise

from ..recipe import BudgetSettings
from ..regularize import cost_left_at

FEWEST_STEPS = 10
"""Steps between two cuts: from fewer batches the gates do not know which channels are needed."""


@dataclass(frozen=True)
class Stretch:
    """The steps of the sparse stage in which one level of a budget is reached, and the network heals."""

    level: float
    """The part of the dense cost that is left at the end."""
    before: float
    """The part that was left when the stretch began."""
    first: int
    """Steps done when it begins."""
    last_cut: int
    """Steps done when the level is reached."""
    end: int
    """Steps done when it ends, and the network of the level leaves."""
    every: int
    """Steps between two cuts."""

    def is_due(self, step: int) -> bool:
        """Whether channels leave after `step` steps."""
        # The last cut is made at the very end of the way, whatever the distance to the cut before.
        on_the_way = self.first < step < self.last_cut and (step - self.first) % self.every == 0
        return on_the_way or step == self.last_cut

    def part_left_at(self, step: int) -> float:
        """The part of the dense cost that may be left after `step` steps."""
        progress = (step - self.first) / (self.last_cut - self.first)
        return self.before * cost_left_at(self.level / self.before, progress)


def plan_stretches(settings: BudgetSettings, steps: int) -> tuple[Stretch, ...]:
    """Divide the sparse stage among the levels of a budget, in proportion to the logarithm of what each takes away.

    From 1 to 0.5 and from 0.5 to 0.25 take as many steps.

    Args:
        settings: The budget.
        steps: Steps of the sparse stage.

    Returns:
        A stretch for each level, from the largest to the smallest; the last one ends with the stage.
    """
    levels = (1.0, *settings.levels)
    # The last quotient is 1: with rounding, too, the last stretch ends with the stage.
    ends = [round(steps * (math.log(level) / math.log(levels[-1]))) for level in levels]
    stretches = []
    for (before, level), (first, end) in zip(pairwise(levels), pairwise(ends), strict=True):
        last_cut = first + int(settings.reached_at * (end - first))
        every = max((last_cut - first) // settings.cuts, FEWEST_STEPS)
        stretches.append(Stretch(level, before, first, last_cut, end, every))
    return tuple(stretches)


def count_steps_needed(settings: BudgetSettings) -> int:
    """Count the steps of the shortest sparse stage in which each level of a budget has room for two cuts."""
    steps = 2 * FEWEST_STEPS
    while any(stretch.last_cut - stretch.first < 2 * FEWEST_STEPS for stretch in plan_stretches(settings, steps)):
        steps += 1
    return steps
