"""When channels leave on the way to a budget, and how much may be left at each step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

FEWEST_STEPS = 10
"""Steps between two cuts: from fewer batches the gates do not know which channels are needed."""


def cost_left_at(fraction: float, progress: float) -> float:
    """The part of the cost that may be left: it falls fast at first, while much is idle, and slowly at the end.

    1 - (1 - fraction) * (1 - (1 - progress)^3): Zhu and Gupta 2017, To Prune, or Not to Prune, eq. 1.

    Args:
        fraction: What is left at the end.
        progress: The part of the way that is done, from 0 to 1.

    Returns:
        A part of the cost of the dense network, from 1 down to `fraction`.
    """
    return fraction + (1 - fraction) * (1 - progress) ** 3


@dataclass(frozen=True)
class Stretch:
    """The steps of a training in which one level of a budget is reached, and the network heals."""

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
        # The last cut has a step of its own, however soon after the cut before.
        is_one_of_many = self.first < step < self.last_cut and (step - self.first) % self.every == 0
        return is_one_of_many or step == self.last_cut

    def part_left_at(self, step: int) -> float:
        """The part of the dense cost that may be left after `step` steps."""
        progress = (step - self.first) / (self.last_cut - self.first)
        return self.before * cost_left_at(self.level / self.before, progress)


def plan_stretches(levels: Sequence[float], steps: int, *, reached_at: float, cuts: int) -> tuple[Stretch, ...]:
    """Divide a training among the levels of a budget, in proportion to the logarithm of what each takes away.

    From 1 to 0.5 and from 0.5 to 0.25 take as many steps.

    Args:
        levels: The parts of the cost that are left, from large to small.
        steps: Steps of the training.
        reached_at: The part of a level's steps after which it is reached; in the rest the network heals.
        cuts: How often channels leave on the way to a level, where there are steps enough.

    Returns:
        A stretch for each level; the last one ends with the training.
    """
    # The last quotient is 1: with rounding, too, the last stretch ends with the training.
    ends = [round(steps * (math.log(level) / math.log(levels[-1]))) for level in (1.0, *levels)]
    stretches = []
    for (before, level), (first, end) in zip(pairwise((1.0, *levels)), pairwise(ends), strict=True):
        last_cut = first + int(reached_at * (end - first))
        every = max((last_cut - first) // cuts, FEWEST_STEPS)
        stretches.append(Stretch(level, before, first, last_cut, end, every))
    return tuple(stretches)


def count_steps_needed(levels: Sequence[float], *, reached_at: float, cuts: int) -> int:
    """Count the steps of the shortest training in which each level of a budget has room for two cuts.

    Args:
        levels: As for `plan_stretches`.
        reached_at: As for `plan_stretches`.
        cuts: As for `plan_stretches`.
    """
    steps = 2 * FEWEST_STEPS
    while True:
        stretches = plan_stretches(levels, steps, reached_at=reached_at, cuts=cuts)
        if all(stretch.last_cut - stretch.first >= 2 * FEWEST_STEPS for stretch in stretches):
            return steps
        steps += 1
