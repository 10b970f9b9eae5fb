"""The picture of a league: error against what is left."""

from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter

from ..report.pictures import BLUE, GREY, ORANGE, figure
from .league import League
from .standing import Standing

COLOURS = {"ours": BLUE, "torch": "black", "NNI": ORANGE, "Torch-Pruning": GREY}
MARKS = "osv^D<>PX*hdp8H"


def draw(league: League, found: list[Standing], path: Path) -> Path:
    """One line a rival, mean and standard deviation over seeds; the colour says whose it is."""
    dense = [row["dense_error"] for one in found for rows in one.rows.values() for row in rows]
    with figure(path, 8.5, 5.0) as axes:
        for index, one in enumerate(found):
            levels = [level for level in league.levels if one.rows.get(level)]
            if not levels:
                continue
            errors = [[row["error"] for row in one.rows[level]] for level in levels]
            axes.errorbar(
                [_place(league, level) for level in levels],
                [float(np.mean(values)) for values in errors],
                [float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 for values in errors],
                color=COLOURS[one.host], marker=MARKS[index % len(MARKS)], markersize=4, linewidth=1.2, capsize=2,
                alpha=1.0 if one.host == "ours" else 0.75, label=f"{one.title} ({one.host})",
            )  # fmt: skip
        if dense:
            axes.axhline(float(np.mean(dense)), color="black", linestyle=":", linewidth=1)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ticks = [_place(league, level) for level in league.levels]
        axes.set_xticks(ticks, [f"{100 * level:g} %" if league.kind == "weights" else f"{level:g}×"
                                for level in league.levels])  # fmt: skip
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("zeros" if league.kind == "weights" else "fewer MACs")
        axes.set_ylabel("test error, % (dotted: dense)")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return path


def _place(league: League, level: float) -> float:
    """Times fewer, for both kinds."""
    return 1 / (1 - level) if league.kind == "weights" else level
