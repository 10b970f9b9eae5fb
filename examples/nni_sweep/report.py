"""What a sweep found, as a table and a picture."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, NullFormatter

from nni_sparsevd.files import write_bytes

MARKERS = {"local": "o", "weight": "s"}
Results = dict[str, Any]


def write(results: Results, out: Path) -> None:
    """table.md and picture.png, if any trial is done."""
    if results["trials"]:
        write_bytes(out / "table.md", table(results).encode())
        picture(results, out / "picture.png")
        print(table(results))


def best(results: Results) -> list[dict[str, Any]]:
    return sorted(results["trials"], key=lambda row: -row["default"])


def table(results: Results) -> str:
    """Markdown, the best first."""
    space = results["space"]
    lines = [f"| score | error % | dense % | compression | kept | {' | '.join(space)} |"]
    lines.append("|--:" * (5 + len(space)) + "|")
    for row in best(results):
        values = [row["parameters"][key] for key in space]
        shown = " | ".join(value if isinstance(value, str) else f"{value:.3g}" for value in values)
        errors = f"{row['error_percent']:.2f} | {row['dense_error_percent']:.2f}"
        lines.append(f"| {row['default']:.2f} | {errors} | {row['compression']:.1f}× | {row['kept']:,} | {shown} |")
    return "\n".join(lines) + "\n"


def picture(results: Results, path: Path) -> None:
    """Test error against compression, coloured by the KL's coefficient: what trades one for the other."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    scale = LogNorm(*results["space"]["kl_coefficient"]["_value"])
    style = {"s": 80, "edgecolors": "black", "linewidths": 0.8}
    for estimator, marker in MARKERS.items():
        rows = [row for row in results["trials"] if row["parameters"]["posterior.estimator"] == estimator]
        x, y = [row["compression"] for row in rows], [row["error_percent"] for row in rows]
        colours = [row["parameters"]["kl_coefficient"] for row in rows]
        points = axes.scatter(x, y, c=colours, norm=scale, marker=marker, zorder=3, **style)
        axes.scatter([], [], c="lightgrey", marker=marker, label=f"estimator {estimator}", **style)
    dense = results["trials"][0]["dense_error_percent"]  # one seed: all trials start from the same dense network
    axes.axhline(dense, color="black", linestyle="--", linewidth=1, label=f"dense network, {dense:.2f} %")
    axes.set(xscale="log", xlabel="compression: weights / weights kept", ylabel="test error, %")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    bar = figure.colorbar(points, label="kl_coefficient", format=lambda value, _: f"{value:g}")
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    figure.savefig(path, dpi=120)
    plt.close(figure)
