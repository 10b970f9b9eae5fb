"""The pictures of a league: error against what is left, and against measured time."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from ...report.pictures import BLUE, GRAY, ORANGE, styled_axes
from .league import League
from .standing import HOSTS, RUNTIMES, Standing, find_champion

COLORS = {"ours": BLUE, "torch": "black", "NNI": ORANGE, "Torch-Pruning": GRAY, "ModelOpt": "olivedrab"}
MARKERS = "osv^D<>PX*hdp8H"
LINE_STYLES = ("-", "--", ":", "-.")
FAR_ABOVE = 1.5
"""Errors that are larger than the largest of the champions by more than this factor are outside the picture."""


@dataclass(frozen=True)
class _Curve:
    """Points of one rival, one for each level that it has rows at."""

    places: list[float]
    """On the horizontal axis."""
    errors: list[list[float]]
    """Test errors in percent, one for each seed."""


def draw_all(league: League, standings: list[Standing], folder: Path, name: str) -> list[Path]:
    """Draw every picture of a league.

    Args:
        league: The protocol.
        standings: Its rivals.
        folder: Where the pictures go.
        name: Name of the league, with which the names of the files begin.

    Returns:
        The paths of the pictures: error against zeros or MACs, and for whole channels also against the time in each
        runtime that was measured.
    """
    pictures = [draw_league(league, standings, folder / f"{name}.png")]
    if league.kind == "channels":
        for runtime in RUNTIMES:
            if _is_measured(league, standings, runtime):
                pictures.append(draw_league(league, standings, folder / f"{name}_{runtime}.png", runtime))
    return pictures


def draw_league(league: League, standings: list[Standing], path: Path, runtime: str | None = None) -> Path:
    """Draw one line for each rival, mean over seeds, in the color of its framework.

    The best of each framework at some level, chosen on the hold-out, have names and standard deviations; those of the
    same framework differ in the style of their lines.  The picture ends above them.

    Args:
        league: The protocol.
        standings: Its rivals.
        path: Where the picture goes.
        runtime: Where the times on the horizontal axis were measured; None for zeros or MACs there.

    Returns:
        `path`.
    """
    champions = _champions(league, standings)
    line_styles = _choose_line_styles(champions)
    with styled_axes(path, 8.5, 5.0) as axes:
        for index, standing in enumerate(standings):
            curve = _curve_of(league, standing, runtime)
            if not curve.places:
                continue
            # Dozens of rivals with names would hide each other: only champions get one.
            if standing.name in line_styles:
                _draw_champion(axes, standing, curve, MARKERS[index % len(MARKERS)], line_styles[standing.name])
            else:
                means = [float(np.mean(errors)) for errors in curve.errors]
                # A dot for those that have played at one level alone, whose line has no length.
                axes.plot(
                    curve.places, means, ".-", color=COLORS[standing.host], linewidth=0.8, markersize=3, alpha=0.3
                )
        _draw_error_axis(axes, _errors_to_show(champions), _dense_errors(standings))
        _draw_cost_axis(axes, league, runtime)
        # Beside the axes, because inside them the names would cover the lines.
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=3)
    return path


def _is_measured(league: League, standings: list[Standing], runtime: str) -> bool:
    return any(standing.mean_speedup(level, runtime) for standing, level in product(standings, league.levels))


def _champions(league: League, standings: list[Standing]) -> list[tuple[Standing, float]]:
    """The best rival of each framework, and the level at which it is the best."""
    champions = []
    for host in HOSTS:
        for level in league.levels:
            champion = find_champion(league, standings, host, level)
            if champion is not None:
                champions.append((champion, level))
    return champions


def _choose_line_styles(champions: list[tuple[Standing, float]]) -> dict[str, str]:
    """Name of a champion -> the style of its line; the first of each framework has a solid one."""
    styles: dict[str, str] = {}
    of_host: dict[str, int] = {}
    for champion, _ in champions:
        if champion.name not in styles:
            place = of_host.get(champion.host, 0)
            styles[champion.name] = LINE_STYLES[place % len(LINE_STYLES)]
            of_host[champion.host] = place + 1
    return styles


def _errors_to_show(champions: list[tuple[Standing, float]]) -> list[float]:
    """Errors where a rival is the best of its framework, and its errors elsewhere that are not far above them."""
    best = [row["error"] for champion, level in champions for row in champion.rows[level]]
    others = [row["error"] for champion, _ in champions for rows in champion.rows.values() for row in rows]
    return [error for error in others if error <= FAR_ABOVE * max(best)]


def _dense_errors(standings: list[Standing]) -> list[float]:
    return [row["dense_error"] for standing in standings for rows in standing.rows.values() for row in rows]


def _curve_of(league: League, standing: Standing, runtime: str | None) -> _Curve:
    curve = _Curve([], [])
    for level in league.levels:
        place = standing.mean_speedup(level, runtime) if runtime else _reduction(league, level)
        rows = standing.rows.get(level)
        if place is not None and rows:
            curve.places.append(place)
            curve.errors.append([row["error"] for row in rows])
    return curve


def _reduction(league: League, level: float) -> float:
    """By which factor the weights or the MACs fall at a level."""
    return 1 / (1 - level) if league.kind == "weights" else level


def _draw_champion(axes: Axes, standing: Standing, curve: _Curve, marker: str, line_style: str) -> None:
    """A line with markers, standard deviations over seeds, and a name in the legend."""
    axes.errorbar(
        curve.places,
        [float(np.mean(errors)) for errors in curve.errors],
        [_deviation(errors) for errors in curve.errors],
        color=COLORS[standing.host],
        marker=marker,
        linestyle=line_style,
        markersize=4,
        linewidth=1.4,
        capsize=2,
        label=f"{standing.title} ({standing.host})",
    )


def _deviation(values: list[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _draw_error_axis(axes: Axes, champion_errors: list[float], dense_errors: list[float]) -> None:
    """The vertical axis, logarithmic from the dense start's error, a dotted line, to the largest of the champions'."""
    if champion_errors:
        axes.set_ylim(0.9 * min(champion_errors + dense_errors), 1.1 * max(champion_errors))
    if dense_errors:
        axes.axhline(float(np.mean(dense_errors)), color="black", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    # A logarithmic axis writes powers of ten otherwise, and there may be none between 1 % and 4 %.
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylabel("test error, % (dotted: dense; pale: others)")


def _draw_cost_axis(axes: Axes, league: League, runtime: str | None) -> None:
    """The horizontal axis: times faster, linear, or the league's levels, logarithmic."""
    if runtime:
        axes.set_xlabel(f"times faster in {RUNTIMES[runtime]}, one image, one thread")
        return
    axes.set_xscale("log")
    places = [_reduction(league, level) for level in league.levels]
    axes.set_xticks(places, [league.format_level(level) for level in league.levels])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(league.scale)
