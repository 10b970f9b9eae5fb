"""Pictures of a run, from its recorded numbers alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BLUE, ORANGE, GREY = "#2f6690", "#d1603d", "#8d99ae"
STYLE: Any = {
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6",
    "axes.axisbelow": True, "font.size": 10, "figure.dpi": 110, "savefig.bbox": "tight",
}  # fmt: skip


@contextmanager
def figure(path: Path, width: float = 7.0, height: float = 3.2) -> Iterator[Axes]:
    """One pair of axes, saved to `path` at the end."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(width, height))
        try:
            yield axes
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path)
        finally:
            plt.close(figure)


def layer_sparsity(layers: list[dict[str, Any]], path: Path) -> None:
    """One bar a layer: the share of its weights that is gone."""
    with figure(path, height=max(1.6, 0.26 * len(layers) + 0.8)) as axes:
        rows = np.arange(len(layers))
        axes.barh(rows, [100 * layer["sparsity"] for layer in layers], color=BLUE)
        axes.set_yticks(rows, [layer["name"] for layer in layers], fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 100)
        axes.set_xlabel("weights removed, %")


def log_alpha_histograms(history: dict[str, Any], threshold: float, path: Path) -> None:
    """Log alpha of all weights in the first, a middle and the last epoch: noise gathers on the right."""
    epochs = history["epochs"]
    shown = {0: GREY, len(epochs) // 2: ORANGE, len(epochs) - 1: BLUE}
    edges = np.array(history["edges"])
    with figure(path) as axes:
        for index, colour in shown.items():
            counts = np.sum([np.array(layer) for layer in epochs[index]["counts"].values()], axis=0)
            share = 100 * counts / counts.sum()
            axes.stairs(share, edges, color=colour, linewidth=1.6, label=f"epoch {epochs[index]['epoch']}")
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
        axes.set_yscale("log")
        axes.set_xlabel(r"$\log\,\alpha = \log\,\sigma^2 - \log\,\theta^2$")
        axes.set_ylabel("posteriors, % (log scale)")
        axes.legend(frameon=False)


def progress(rows: list[dict[str, Any]], path: Path) -> None:
    """Held-out accuracy of what would ship, and compression, over the epochs of all stages."""
    with figure(path) as axes:
        epochs = np.arange(1, len(rows) + 1)
        axes.plot(epochs, [100 * row["accuracy"] for row in rows], color=BLUE)
        axes.set_ylabel("held-out accuracy, %", color=BLUE)
        axes.set_xlabel("epoch, over all stages")
        other = axes.twinx()
        other.plot(epochs, [row["compression"] for row in rows], color=ORANGE)
        other.set_yscale("log")
        other.grid(visible=False)
        other.set_ylabel("weights in all / kept (log scale)", color=ORANGE)
        for index, row in enumerate(rows[1:], 1):
            if row["stage"] != rows[index - 1]["stage"]:
                axes.axvline(index + 0.5, color=GREY, linestyle=":", linewidth=1)
                axes.annotate(f" {row['stage']}", (index + 0.5, 1), xycoords=("data", "axes fraction"), va="top",
                              fontsize=8, color="#555555")  # fmt: skip


def threshold_curve(curve: dict[str, Any], path: Path) -> None:
    """Held-out accuracy against compression, one point a threshold, before fine-tuning."""
    with figure(path) as axes:
        axes.plot(curve["compression"], [100 * value for value in curve["accuracy"]], "o-", color=BLUE, markersize=4)
        chosen = curve["thresholds"].index(curve["chosen"])
        point = curve["compression"][chosen], 100 * curve["accuracy"][chosen]
        axes.plot(*point, "o", color=ORANGE, markersize=9, label=f"chosen: log α < {curve['chosen']:g}")
        axes.set_xscale("log")
        axes.set_xlabel("weights in all / kept (log scale)")
        axes.set_ylabel("held-out accuracy, %")
        axes.legend(frameon=False)
