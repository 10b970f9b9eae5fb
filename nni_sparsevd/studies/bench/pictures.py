"""The pictures of a league: error against what is left, and against measured time."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from ...report.pictures import BLUE, GREY, ORANGE, figure
from .league import League
from .standing import HOSTS, RUNTIMES, Standing, champion, speed

COLOURS = {"ours": BLUE, "torch": "black", "NNI": ORANGE, "Torch-Pruning": GREY}
MARKS = "osv^D<>PX*hdp8H"


def draw_all(league: League, found: list[Standing], folder: Path, name: str) -> list[Path]:
    """Against zeros or MACs, and of whole channels against the time in each runtime that was measured."""
    pictures = [draw(league, found, folder / f"{name}.png")]
    if league.kind == "channels":
        pictures += [
            draw(league, found, folder / f"{name}_{runtime}.png", runtime)
            for runtime in RUNTIMES
            if any(speed(one, level, runtime) for one in found for level in league.levels)
        ]
    return pictures


def draw(league: League, found: list[Standing], path: Path, runtime: str | None = None) -> Path:
    """One line a rival, mean over seeds; the colour says whose it is.

    The best of each framework at some level, chosen on held-out images, have names and standard deviations, and the
    picture ends above them.
    """
    chosen = [(one, level) for host in HOSTS for level in league.levels if (one := champion(found, host, level))]
    best = {one.name for one, _ in chosen}
    shown = [row["error"] for one, level in chosen for row in one.rows[level]]
    dense = [row["dense_error"] for one in found for rows in one.rows.values() for row in rows]
    with figure(path, 8.5, 5.0) as axes:
        for index, one in enumerate(found):
            at = {level: speed(one, level, runtime) if runtime else _place(league, level) for level in league.levels}
            where = {level: place for level, place in at.items() if place is not None and one.rows.get(level)}
            if not where:
                continue
            places = list(where.values())
            errors = [[row["error"] for row in one.rows[level]] for level in where]
            means = [float(np.mean(values)) for values in errors]
            if one.name not in best:
                axes.plot(places, means, color=COLOURS[one.host], linewidth=0.8, alpha=0.3)
                continue
            axes.errorbar(
                places, means, [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in errors],
                color=COLOURS[one.host], marker=MARKS[index % len(MARKS)], markersize=4, linewidth=1.4, capsize=2,
                label=f"{one.title} ({one.host})",
            )  # fmt: skip
        if shown:
            axes.set_ylim(0.9 * min(shown), 1.1 * max(shown))
        if dense:
            axes.axhline(float(np.mean(dense)), color="black", linestyle=":", linewidth=1)
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if runtime:
            axes.set_xlabel(f"times faster in {RUNTIMES[runtime]}, one image, one thread")
        else:
            axes.set_xscale("log")
            axes.set_xticks(
                [_place(league, level) for level in league.levels], [league.called(level) for level in league.levels]
            )
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel(league.scale)
        axes.set_ylabel("test error, % (dotted: dense; pale: others)")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return path


def _place(league: League, level: float) -> float:
    """Times fewer, for both kinds."""
    return 1 / (1 - level) if league.kind == "weights" else level
