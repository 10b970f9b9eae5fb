"""The tables of a league, in Markdown."""

import statistics

from ...report.tables import line, spread
from .league import League
from .standing import HOSTS, RUNTIMES, Standing, champion, mean_ranks, pareto_front, speed


def heading(league: League, level: float) -> str:
    """How a level is called."""
    return f"{league.called(level)} {league.scale}"


def table(league: League, found: list[Standing]) -> list[str]:
    """Test error in percent at every level, mean ± standard deviation over seeds; the best of a level in bold."""
    ranks = mean_ranks(league, found)
    alone = any(one.rows.get(None) for one in found)
    titles = ["", "name", "of", "mean rank", *(heading(league, level) for level in league.levels)]
    titles += ["left to itself", "rate"] if alone else ["rate"]
    lines = [line(titles), "|---|---|---|" + "--:|" * (len(titles) - 3)]
    best = {level: min(_means(found, level), default=None) for level in league.levels}
    for one in found:
        rank = f"{ranks[one.name]:.1f}" if one.name in ranks else ""
        cells = [_cell(league, one, level, best[level]) for level in league.levels]
        cells += [_own(one)] if alone else []
        lines.append(line([one.title, one.name, one.host, rank, *cells, f"{one.rate:g}" if one.rate else ""]))
    return lines


def champions(league: League, found: list[Standing]) -> list[str]:
    """The best of each framework at every level, chosen on held-out images: its test error, and who it is."""
    lines = [line(["", *(heading(league, level) for level in league.levels)]), "|---|" + "--:|" * len(league.levels)]
    best = {level: [champion(found, host, level) for host in HOSTS] for level in league.levels}
    first = {level: min(_means([one for one in those if one], level), default=None) for level, those in best.items()}
    for place, host in enumerate(HOSTS):
        if any(best[level][place] for level in league.levels):
            cells = [_named(league, best[level][place], level, first[level]) for level in league.levels]
            lines.append(line([host, *cells]))
    return lines


def _named(league: League, one: Standing | None, level: float, best: float | None) -> str:
    return f"{_cell(league, one, level, best)}, {one.name}" if one else ""


def reached(one: Standing, level: float) -> float:
    """Times fewer MACs, mean over seeds."""
    return float(statistics.mean(row["dense_macs"] / row["macs"] for row in one.rows[level]))


def fronts(league: League, found: list[Standing]) -> list[str]:
    """Of whole channels: which points nobody beats in a cost without a larger error."""
    if league.kind == "weights":
        return []
    points = {
        f"{one.title} at {level:g}×": (one, level) for one in found for level in league.levels if one.rows.get(level)
    }
    costs = {"MACs": {name: 1 / reached(one, level) for name, (one, level) in points.items()}}
    for runtime, title in RUNTIMES.items():
        timed = {name: speed(one, level, runtime) for name, (one, level) in points.items()}
        costs[f"time in {title}"] = {name: 1 / faster for name, faster in timed.items() if faster}
    errors = {name: one.mean(level, "error") or 0.0 for name, (one, level) in points.items()}
    said = {cost: pareto_front({name: (x, errors[name]) for name, x in of.items()}) for cost, of in costs.items()}
    return [
        f"- Front of error against {cost}: {', '.join(name for name in points if name in front)}."
        for cost, front in said.items()
        if front
    ]


def failures(found: list[Standing]) -> list[str]:
    """One line for each that did not arrive everywhere."""
    return [f"- {one.title} ({one.host}): {one.failed}" for one in found if one.failed]


def _means(found: list[Standing], level: float) -> list[float]:
    means = [one.mean(level, "error") for one in found]
    return [mean for mean in means if mean is not None]


def _cell(league: League, one: Standing, level: float, best: float | None) -> str:
    rows = one.rows.get(level, [])
    if not rows:
        return "failed" if one.failed else ""
    cell = spread([row["error"] for row in rows], 2)
    cell = f"**{cell}**" if one.mean(level, "error") == best else cell
    return cell if league.kind == "weights" else f"{cell} at {reached(one, level):.2f}×"


def _own(one: Standing) -> str:
    """At the point that it chose itself."""
    rows = one.rows.get(None, [])
    if not rows:
        return ""
    return f"{spread([row['error'] for row in rows], 2)} at {spread([row['compression'] for row in rows], 0)}×"
