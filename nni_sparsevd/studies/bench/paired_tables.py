"""The tables of paired differences, in Markdown."""

from collections.abc import Mapping, Sequence

from ...report.tables import format_row
from .league import League
from .paired import Comparison, compare_rivals
from .standing import HOSTS, Standing, find_champions


def format_against_lowest(comparison: Comparison, standing: Standing) -> str:
    """A rival's paired difference to the lowest error of a level, ± its standard error, and the verdict.

    Args:
        comparison: All rivals at the level.
        standing: The rival; it has a row at the level.

    Returns:
        "+0.34 ± 0.08, behind"; "**first**" for a rival that is first.
    """
    if standing.name not in comparison.differences:
        return "no seed in common"
    difference, verdict = comparison.differences[standing.name], comparison.verdicts[standing.name]
    if verdict == "first":
        return "**first**"
    # The lowest error, and another rival's with the same errors, have no deviation to show.
    if difference.mean == 0 and not difference.standard_error:
        return f"0, {verdict}"
    spread = "" if difference.standard_error is None else f" ± {difference.standard_error:.2f}"
    return f"{difference.mean:+.2f}{spread}, {verdict}"


def format_paired_table(league: League, standings: list[Standing]) -> list[str]:
    """Every rival against the lowest error of each level.

    Returns:
        The lines of a table with one row for each rival, and one for the number of seeds.
    """
    cells: dict[str, list[str]] = {standing.name: [] for standing in standings}
    seeds = []
    for level in league.levels:
        comparison = compare_rivals(standings, level)
        seeds.append(comparison.seeds)
        for standing in standings:
            if standing.rows.get(level):
                cells[standing.name].append(format_against_lowest(comparison, standing))
            else:
                cells[standing.name].append("failed" if standing.failed else "")
    return _format_rows(league, cells, seeds)


def format_paired_champions_table(league: League, standings: list[Standing]) -> list[str]:
    """The best rival of each framework against the lowest error among them, at every level.

    Returns:
        The lines of a table with one row for each framework that has a rival, and one for the number of seeds.
    """
    cells: dict[str, list[str]] = {host: [] for host in HOSTS}
    seeds = []
    for level in league.levels:
        champions = find_champions(league, standings, level)
        comparison = compare_rivals(champions.values(), level)
        seeds.append(comparison.seeds)
        for host in HOSTS:
            champion = champions.get(host)
            cells[host].append(format_against_lowest(comparison, champion) if champion else "")
    return _format_rows(league, {host: row for host, row in cells.items() if any(row)}, seeds)


def _format_rows(league: League, cells: Mapping[str, list[str]], seeds: Sequence[int]) -> list[str]:
    lines = [format_row(["", *league.level_titles]), "|---|" + "--:|" * len(league.levels)]
    lines += [format_row([title, *row]) for title, row in cells.items()]
    return [*lines, format_row(["seeds compared", *(str(count) for count in seeds)])]
