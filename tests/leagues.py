"""Leagues short enough for a test, and a count of the batches that a rival takes."""

from collections.abc import Callable
from pathlib import Path

from nni_sparsevd.studies.bench import League, read_league
from nni_sparsevd.studies.bench.arena import Arena, Batch

HERE = Path()
"""The digits come with scikit-learn."""


def short(name: str, rates: tuple[float, ...] = (3e-3,), seeds: tuple[int, ...] = (0,)) -> League:
    changes = {"dense": {"epochs": 4}, "prune_epochs": 4, "tune_epochs": 2, "rates": rates, "seeds": seeds}
    return League.model_validate(read_league(name).model_dump() | changes)


def counted(real: Callable[[Arena, int], Batch], steps: list[int]) -> Callable[[Arena, int], Batch]:
    def batch(self: Arena, step: int) -> Batch:
        steps.append(step)
        return real(self, step)

    return batch
