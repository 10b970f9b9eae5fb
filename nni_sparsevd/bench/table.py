"""The tables of a league, in Markdown."""

from ..report.tables import line, spread
from .league import League
from .standing import Standing, mean_ranks


def heading(league: League, level: float) -> str:
    """How a level is called."""
    return f"{100 * level:g} % zeros" if league.kind == "weights" else f"{level:g}× fewer MACs"


def table(league: League, found: list[Standing]) -> list[str]:
    """Test error in percent at every level, mean ± standard deviation over seeds; the best of a level in bold."""
    ranks = mean_ranks(league, found)
    titles = ["", "of", "mean rank", *(heading(league, level) for level in league.levels), "left to itself", "rate"]
    lines = [line(titles), "|---|---|" + "--:|" * (len(titles) - 2)]
    best = {level: min(_means(found, level), default=None) for level in league.levels}
    for one in found:
        rank = f"{ranks[one.name]:.1f}" if one.name in ranks else ""
        cells = [_cell(one, level, best[level]) for level in league.levels]
        lines.append(line([one.title, one.host, rank, *cells, _own(one), f"{one.rate:g}" if one.rate else ""]))
    return lines


def failures(found: list[Standing]) -> list[str]:
    """One line for each that did not arrive everywhere."""
    return [f"- {one.title} ({one.host}): {one.failed}" for one in found if one.failed]


def _means(found: list[Standing], level: float) -> list[float]:
    means = [one.mean(level, "error") for one in found]
    return [mean for mean in means if mean is not None]


def _cell(one: Standing, level: float, best: float | None) -> str:
    rows = one.rows.get(level, [])
    if not rows:
        return "failed" if one.failed else ""
    cell = spread([row["error"] for row in rows], 2)
    return f"**{cell}**" if one.mean(level, "error") == best else cell


def _own(one: Standing) -> str:
    """At the point that it chose itself."""
    rows = one.rows.get(None, [])
    if not rows:
        return ""
    return f"{spread([row['error'] for row in rows], 2)} at {spread([row['compression'] for row in rows], 0)}×"
