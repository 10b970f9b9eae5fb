"""The tables of a league, in Markdown."""

import math

from ...report.tables import format_row, format_spread
from .league import League
from .paired import compare_rivals
from .paired_tables import format_against_lowest
from .standing import HOSTS, RUNTIMES, Standing, compute_mean_ranks, find_champions, find_pareto_front


def format_table(league: League, standings: list[Standing]) -> list[str]:
    """Test error in percent at every level, mean ± standard deviation over seeds; in bold who is first at a level.

    Returns:
        The lines of a table with one row for each rival.
    """
    ranks = compute_mean_ranks(league, standings)
    any_automatic = any(standing.rows.get(None) for standing in standings)
    titles = ["", "name", "of", "mean rank", *league.level_titles]
    titles += ["left to itself", "rate"] if any_automatic else ["rate"]
    lines = [format_row(titles), "|---|---|---|" + "--:|" * (len(titles) - 3)]
    verdicts = {level: compare_rivals(standings, level).verdicts for level in league.levels}
    for standing in standings:
        rank = f"{ranks[standing.name]:.1f}" if standing.name in ranks else ""
        rate = f"{standing.rate:g}" if standing.rate else ""
        cells = []
        for level in league.levels:
            is_first = verdicts[level].get(standing.name) == "first"
            cells.append(_format_error(league, standing, level, is_first))
        if any_automatic:
            cells.append(_format_own_level(standing))
        lines.append(format_row([standing.title, standing.name, standing.host, rank, *cells, rate]))
    return lines


def format_champions_table(league: League, standings: list[Standing]) -> list[str]:
    """The best rival of each framework at every level, chosen on the hold-out: its test error and its name.

    In bold who is first among them.

    Returns:
        The lines of a table with one row for each framework that has a rival.
    """
    lines = [format_row(["", *league.level_titles]), "|---|" + "--:|" * len(league.levels)]
    rows: dict[str, list[str]] = {host: [] for host in HOSTS}
    for level in league.levels:
        champions = find_champions(league, standings, level)
        verdicts = compare_rivals(champions.values(), level).verdicts
        for host in HOSTS:
            champion = champions.get(host)
            is_first = champion is not None and verdicts.get(champion.name) == "first"
            rows[host].append(_format_champion(league, champion, level, is_first))
    for host, cells in rows.items():
        if any(cells):
            lines.append(format_row([host, *cells]))
    return lines


def format_level_table(league: League, standings: list[Standing], level: float) -> list[str]:
    """What every rival reached at one level, and what it cost; the lowest test error first, failures last.

    Args:
        league: The protocol; its rivals lose whole channels.
        standings: The standings of the rivals.
        level: One of the levels.

    Returns:
        The lines of a table with one row for each rival.
    """
    runtimes = list(RUNTIMES.values())
    titles = [
        "",
        "name",
        "of",
        "test error %",
        "difference to the lowest",
        "before tuning",
        "times fewer MACs",
        "parameters",
    ]
    titles += [f"times faster in {runtime}" for runtime in runtimes] + ["processor minutes"]
    lines = [format_row(titles), "|---|---|---|" + "--:|" * (len(titles) - 3)]

    comparison = compare_rivals(standings, level)

    def error_at_level(standing: Standing) -> float:
        error = standing.mean(level, "error")
        return math.inf if error is None else error

    for standing in sorted(standings, key=error_at_level):
        names = [standing.title, standing.name, standing.host]
        if not standing.rows.get(level):
            if standing.failed:
                lines.append(format_row([*names, "failed", *[""] * (len(titles) - 4)]))
            continue
        speedups = [standing.mean_speedup(level, runtime) for runtime in RUNTIMES]
        lines.append(
            format_row(
                [
                    *names,
                    format_spread([row["error"] for row in standing.rows[level]], 2),
                    format_against_lowest(comparison, standing),
                    f"{standing.mean(level, 'untuned_error'):.2f}",
                    f"{standing.mean_reduction(level):.2f}",
                    f"{standing.mean(level, 'parameters'):,.0f}",
                    *("" if speedup is None else f"{speedup:.2f}" for speedup in speedups),
                    f"{(standing.mean(level, 'seconds') or 0.0) / 60:.0f}",
                ]
            )
        )
    return lines


def format_fronts(league: League, standings: list[Standing]) -> list[str]:
    """For whole channels, one line for each cost: the rivals at a level that no other one beats in error and cost."""
    if league.kind == "weights":
        return []
    points: dict[str, tuple[Standing, float]] = {}
    for standing in standings:
        for level in league.levels:
            if standing.rows.get(level):
                points[f"{standing.title} at {level:g}×"] = standing, level
    lines = []
    for cost, costs in _costs(points).items():
        errors_and_costs = {}
        for name, value in costs.items():
            standing, level = points[name]
            errors_and_costs[name] = value, standing.mean(level, "error") or 0.0
        front = find_pareto_front(errors_and_costs)
        if front:
            lines.append(f"- Front of error against {cost}: {', '.join(name for name in points if name in front)}.")
    return lines


def _costs(points: dict[str, tuple[Standing, float]]) -> dict[str, dict[str, float]]:
    """Name of a cost -> name of a point -> its cost, as a part of the dense start's, where it was measured."""
    costs = {"MACs": {name: 1 / standing.mean_reduction(level) for name, (standing, level) in points.items()}}
    for runtime, title in RUNTIMES.items():
        times: dict[str, float] = {}
        for name, (standing, level) in points.items():
            speedup = standing.mean_speedup(level, runtime)
            if speedup:
                times[name] = 1 / speedup
        costs[f"time in {title}"] = times
    return costs


def format_failures(standings: list[Standing]) -> list[str]:
    """One line for each rival that failed at some level or seed."""
    return [f"- {standing.title} ({standing.host}): {standing.failed}" for standing in standings if standing.failed]


def _format_champion(league: League, champion: Standing | None, level: float, is_first: bool) -> str:
    return f"{_format_error(league, champion, level, is_first)}, {champion.name}" if champion else ""


def _format_error(league: League, standing: Standing, level: float, is_first: bool) -> str:
    """Test error at a level, in bold where it is first; for whole channels with the factor that was reached."""
    rows = standing.rows.get(level, [])
    if not rows:
        return "failed" if standing.failed else ""
    cell = format_spread([row["error"] for row in rows], 2)
    if is_first:
        cell = f"**{cell}**"
    return cell if league.kind == "weights" else f"{cell} at {standing.mean_reduction(level):.2f}×"


def _format_own_level(standing: Standing) -> str:
    """Test error and compression at the level that the rival chose itself."""
    rows = standing.rows.get(None, [])
    if not rows:
        return ""
    error = format_spread([row["error"] for row in rows], 2)
    return f"{error} at {format_spread([row['compression'] for row in rows], 0)}×"
