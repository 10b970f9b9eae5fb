"""What the rows of a league say: means over seeds, ranks, and who is first."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .league import League
from .rivals import rivals_of

Row = dict[str, Any]
HOSTS = ("ours", "torch", "NNI", "Torch-Pruning")
"""Whose rivals there are."""
RUNTIMES = {"torch": "PyTorch", "onnx": "ONNX Runtime"}
"""Where the time of whole channels is measured."""


@dataclass(frozen=True)
class Standing:
    """One rival over all levels and seeds."""

    name: str
    title: str
    host: str
    rate: float
    rows: dict[float | None, list[Row]]
    """Level -> a row a seed, of those that did not fail."""
    failed: str
    """What went wrong, where something did."""

    def mean(self, level: float | None, key: str) -> float | None:
        """Over seeds, or None where there is no row."""
        rows = self.rows.get(level, [])
        return statistics.mean(row[key] for row in rows) if rows else None


def standings(league: League, rows: list[Row], rates: dict[str, float]) -> list[Standing]:
    """Everyone who plays, the best mean rank first; those that never arrived come last."""
    found = [_standing(league, name, rival.title, rival.host, rows, rates.get(name))
             for name, rival in rivals_of(league).items()]  # fmt: skip
    ranks = mean_ranks(league, found)
    return sorted(found, key=lambda one: ranks.get(one.name, len(found) + 1))


def _standing(league: League, name: str, title: str, host: str, rows: list[Row], rate: float | None) -> Standing:
    own = [row for row in rows if row["rival"] == name and row["rate"] == rate]
    levels: dict[float | None, list[Row]] = {}
    for row in own:
        if not row["failed"]:
            levels.setdefault(row["level"], []).append(row)
    said = [row["failed"] for row in rows if row["rival"] == name and row["failed"] and rate in (None, row["rate"])]
    return Standing(name, title, host, rate or 0.0, levels, said[0] if said else "")


def speed(one: Standing, level: float, runtime: str) -> float | None:
    """Times faster than the dense start, mean over seeds; None where it was not measured."""
    values = [row["faster"][runtime] for row in one.rows.get(level, []) if runtime in row["faster"]]
    return statistics.mean(values) if values else None


def champion(found: list[Standing], host: str, level: float) -> Standing | None:
    """The best of a framework, by accuracy on the hold-out, mean over seeds; None where nobody arrived."""
    own = [one for one in found if one.host == host and one.rows.get(level)]
    return max(own, key=lambda one: one.mean(level, "held_out") or 0.0, default=None)


def mean_ranks(league: League, found: Iterable[Standing]) -> dict[str, float]:
    """Mean over levels of the place by test error, 1 the best; only of those with a row at every level."""
    errors = {one.name: [one.mean(level, "error") for level in league.levels] for one in found}
    whole = {name: [e for e in values if e is not None] for name, values in errors.items() if None not in values}
    return {
        name: statistics.mean(
            1 + sum(other[place] < value for other in whole.values()) for place, value in enumerate(values)
        )
        for name, values in whole.items()
    }


def pareto_front(points: dict[str, tuple[float, float]]) -> set[str]:
    """Those that nobody beats in one of two costs without being worse in the other."""
    return {
        name
        for name, (x, y) in points.items()
        if not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points.values())
    }
