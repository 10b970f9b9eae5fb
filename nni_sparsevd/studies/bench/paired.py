"""Paired differences of test error over seeds, and the verdicts that they allow.

With a seed, all rivals have the same start and the same batches.  Much of what a seed does to an error is therefore the
same for two rivals, and cancels in their difference.
"""

import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from .standing import Standing

Verdict = Literal["first", "level", "behind", "one seed", "fewer seeds", "alone"]
"""What may be said of a rival at a level:

- "first": every other rival is behind;
- "level": neither first nor behind;
- "behind": its error is larger than the lowest, by more than `STANDARD_ERRORS` of the difference;
- "one seed": a difference over one seed has no standard error;
- "fewer seeds": it lacks some of the seeds on which the others are compared;
- "alone": it has no other rival.
"""
STANDARD_ERRORS = 2
"""Standard errors that a difference has to exceed.  By Student's t, three pairs of equals in ten differ by as much over
two seeds, and one in five over three."""
ROUNDING = 1e-9
"""Points of error.  100 * (1 - accuracy) is rounded by less, so that no smaller difference decides anything."""


@dataclass(frozen=True)
class Difference:
    """How much larger one rival's test error is than another's."""

    mean: float
    """Mean over the seeds, in points."""
    standard_error: float | None
    """Standard deviation of the differences over the root of their number; None where there is one seed."""
    seeds: int
    """Number of seeds that both have."""

    @property
    def is_certain(self) -> bool:
        """Whether the first error is larger, by more than `STANDARD_ERRORS`."""
        return self.standard_error is not None and self.mean > STANDARD_ERRORS * self.standard_error + ROUNDING


@dataclass(frozen=True)
class Comparison:
    """All rivals at one level, each against the one with the lowest test error."""

    seeds: int
    """Number of seeds on which they are compared; 0 where too few rivals have one in common."""
    differences: dict[str, Difference]
    """Name of a rival -> its difference to the lowest error; rivals without a seed in common with that are left out."""
    verdicts: dict[str, Verdict]
    """Name of a rival -> what may be said of it; has the names of `differences`."""


def compute_difference(errors: Mapping[int, float], other_errors: Mapping[int, float]) -> Difference | None:
    """How much larger the errors of one rival are than those of another, on the seeds that both have.

    The difference of a rival to itself is 0 ± 0, and that of two rivals changes its sign when they change places.  The
    order of the seeds changes nothing.

    Args:
        errors: Seed -> test error of the first rival, in percent.
        other_errors: Seed -> test error of the second rival.

    Returns:
        Mean and standard error of the differences, or None where the rivals have no seed in common.
    """
    differences = [errors[seed] - other_errors[seed] for seed in errors.keys() & other_errors.keys()]
    if not differences:
        return None
    count = len(differences)
    standard_error = statistics.stdev(differences) / math.sqrt(count) if count > 1 else None
    return Difference(statistics.mean(differences), standard_error, count)


def compare_rivals(standings: Collection[Standing], level: float) -> Comparison:
    """Compare each rival at a level with the one that has the lowest test error.

    That is the lowest mean over the seeds that all have; among equals the first of `standings` counts.  A rival with
    fewer seeds than the others is not among these "all", because one trial that failed, or has not run yet, would leave
    too few seeds for everyone.  It has a difference, but cannot be first.  No rival is first while the difference of
    another one is negative.

    Args:
        standings: The rivals; those without a row at this level are ignored.
        level: One of the league's levels.

    Returns:
        The differences and verdicts.
    """
    errors: dict[str, dict[int, float]] = {}
    for standing in standings:
        if standing.rows.get(level):
            errors[standing.name] = {row["seed"]: row["error"] for row in standing.rows[level]}
    seeds = _find_shared_seeds(errors.values())
    if not seeds:
        return Comparison(0, {}, {})
    complete = {name: {seed: own[seed] for seed in seeds} for name, own in errors.items() if own.keys() >= seeds}
    lowest = min(complete, key=lambda name: round(statistics.mean(complete[name].values()) / ROUNDING))
    differences: dict[str, Difference] = {}
    for name, own in errors.items():
        difference = compute_difference(complete.get(name, own), errors[lowest])
        if difference is not None:
            differences[name] = difference
    verdicts = {name: _judge_difference(difference, len(seeds)) for name, difference in differences.items()}
    verdicts[lowest] = _judge_lowest(lowest, differences, len(seeds))
    return Comparison(len(seeds), differences, verdicts)


def _find_shared_seeds(errors: Collection[Mapping[int, float]]) -> set[int]:
    """The seeds common to the rivals with the most seeds: as many as at least two rivals have."""
    counts = sorted((len(own) for own in errors), reverse=True)
    if not counts:
        return set()
    most = counts[:2][-1]
    return set.intersection(*(set(own) for own in errors if len(own) >= most))


def _judge_difference(difference: Difference, seeds: int) -> Verdict:
    """The verdict of a rival that does not have the lowest error."""
    if difference.seeds == 1:
        return "one seed"
    if difference.seeds < seeds:
        return "fewer seeds"
    return "behind" if difference.is_certain else "level"


def _judge_lowest(lowest: str, differences: dict[str, Difference], seeds: int) -> Verdict:
    """The verdict of the rival with the lowest error; it is first where no other one casts doubt on that."""
    others = [difference for name, difference in differences.items() if name != lowest]
    if not others:
        return "alone"
    if seeds == 1:
        return "one seed"
    doubts = [other for other in others if other.mean < 0 or (other.seeds == seeds and not other.is_certain)]
    return "level" if doubts else "first"
