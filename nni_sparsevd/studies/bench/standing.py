"""What the rows of a league say: means over seeds, ranks, and who is first."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .league import League
from .rivals import Rival, rivals_of

Row = dict[str, Any]
"""A row as it is in a file; see `trial.Row`."""
HOSTS = ("ours", "torch", "NNI", "Torch-Pruning", "ModelOpt")
"""The frameworks that rivals come from, in the order of the tables."""
RUNTIMES = {"torch": "PyTorch", "onnx": "ONNX Runtime"}
"""Where the time of whole channels is measured: key in a row -> name in a table."""


@dataclass(frozen=True)
class Standing:
    """One rival over all levels and seeds, at the learning rate that was chosen for it."""

    name: str
    """Name of the rival."""
    title: str
    """The rival as the tables call it."""
    host: str
    """The framework that the rival comes from."""
    rate: float
    """Its learning rate; 0 where it failed at every rate."""
    rows: dict[float | None, list[Row]]
    """Level -> one row for each seed at which the rival did not fail."""
    failed: str
    """The first failure, or ""."""

    def mean(self, level: float | None, key: str) -> float | None:
        """Mean of a figure over seeds, or None where the rival has no row."""
        rows = self.rows.get(level, [])
        return statistics.mean(row[key] for row in rows) if rows else None

    def mean_speedup(self, level: float, runtime: str) -> float | None:
        """Times faster than the dense start, mean over seeds; None where it was not measured."""
        values = [row["faster"][runtime] for row in self.rows.get(level, []) if runtime in row["faster"]]
        return statistics.mean(values) if values else None

    def mean_reduction(self, level: float) -> float:
        """Times fewer MACs than the dense start, mean over seeds; the rival has a row at this level."""
        return float(statistics.mean(row["dense_macs"] / row["macs"] for row in self.rows[level]))


def compute_standings(league: League, rows: list[Row], rates: dict[str, float]) -> list[Standing]:
    """The standing of every rival, the best mean rank first; rivals without a rank come last.

    Args:
        league: The protocol; its rivals are those that are listed.
        rows: Rows of all rivals.
        rates: Name of the rival -> its learning rate; rows at other rates are left out.
    """
    standings = []
    for name, rival in rivals_of(league).items():
        rows_of_rival = [row for row in rows if row["rival"] == name]
        standings.append(_judge_rival(name, rival, rows_of_rival, rates.get(name)))
    ranks = compute_mean_ranks(league, standings)
    return sorted(standings, key=lambda standing: ranks.get(standing.name, len(standings) + 1))


def _judge_rival(name: str, rival: Rival, rows: list[Row], rate: float | None) -> Standing:
    levels: dict[float | None, list[Row]] = {}
    failures = []
    for row in rows:
        if row["failed"]:
            # Failures at other rates are of the sweep. A rival without a rate has failed at every rate, and any of its
            # failures is the reason.
            if rate in (None, row["rate"]):
                failures.append(row["failed"])
        elif row["rate"] == rate:
            levels.setdefault(row["level"], []).append(row)
    return Standing(name, rival.title, rival.host, rate or 0.0, levels, failures[0] if failures else "")


def find_champion(league: League, standings: list[Standing], host: str, level: float) -> Standing | None:
    """The rival of a framework with the best mean accuracy on the hold-out; None where every one of them failed.

    Among equals it is the first in the league's order.  That of the standings follows the test errors, which may decide
    nothing.
    """
    by_name = {standing.name: standing for standing in standings if standing.host == host and standing.rows.get(level)}
    present = [by_name[name] for name in rivals_of(league) if name in by_name]
    return max(present, key=lambda standing: standing.mean(level, "held_out") or 0.0, default=None)


def find_champions(league: League, standings: list[Standing], level: float) -> dict[str, Standing]:
    """The best rival of each framework at a level, chosen on the hold-out.

    Returns:
        Framework -> rival, in the order of `HOSTS`, without frameworks whose every rival failed.
    """
    champions: dict[str, Standing] = {}
    for host in HOSTS:
        champion = find_champion(league, standings, host, level)
        if champion is not None:
            champions[host] = champion
    return champions


def compute_mean_ranks(league: League, standings: Iterable[Standing]) -> dict[str, float]:
    """Rank by test error at a level, 1 for the best, mean over levels.

    Returns:
        Name of the rival -> mean rank, of the rivals with a row at every level.
    """
    errors: dict[str, list[float]] = {}
    for standing in standings:
        means = [standing.mean(level, "error") for level in league.levels]
        known = [mean for mean in means if mean is not None]
        if len(known) == len(means):
            errors[standing.name] = known
    return {name: statistics.mean(_ranks(own, errors.values())) for name, own in errors.items()}


def _ranks(own: list[float], all_errors: Iterable[list[float]]) -> list[int]:
    """Rank at each level: one more than the number of rivals with a smaller error there."""
    ranks = []
    for errors_at_level, own_error in zip(zip(*all_errors, strict=True), own, strict=True):
        ranks.append(1 + sum(error < own_error for error in errors_at_level))
    return ranks


def find_pareto_front(points: dict[str, tuple[float, float]]) -> set[str]:
    """Names of the points of two costs that no other point dominates.

    A point dominates another when it is not larger in either cost and smaller in at least one.
    """
    return {name for name, point in points.items() if not any(_dominates(other, point) for other in points.values())}


def _dominates(first: tuple[float, float], second: tuple[float, float]) -> bool:
    return first[0] <= second[0] and first[1] <= second[1] and first != second
