"""Pictures of an experiment, drawn from what its runs recorded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import LogLocator, NullFormatter

from ...files import read_json
from ...posterior import DEFAULT_THRESHOLD
from ...report.pictures import BLUE, GRAY, ORANGE, STYLE, styled_axes
from . import animation, method
from .experiments import Experiment
from .running import Job
from .tables import Run, by_variant

LINE = "#00b4d8"
"""Seen on dark and on light ground."""


@dataclass(frozen=True)
class Material:
    """What there is to draw: finished runs by variant, and the folder of each variant's first."""

    chosen: Experiment
    runs: dict[str, list[Run]]
    folders: dict[str, Path]

    def title(self, name: str) -> str:
        """As the table calls the variant."""
        return self.chosen.variants[name].title


def draw(chosen: Experiment, runs: list[Run], jobs: list[Job], folder: Path) -> list[Path]:
    """Draw the experiment's pictures into `folder`; those of single runs show the first seed of each variant."""
    folders = {job.variant: job.folder for job in reversed(jobs) if job.done}
    of = by_variant(chosen, runs)
    there = Material(chosen, of, {name: folders[name] for name in of})
    drawn = []
    for kind in chosen.pictures:
        if kind == "weights":
            drawn += [animation.weights(run, folder / f"weights_{name}.gif")
                      for name, run in there.folders.items() if (run / "snapshots").exists()]  # fmt: skip
        else:
            DRAWN[kind](there, folder / f"{kind}.png")
            drawn.append(folder / f"{kind}.png")
    return drawn


@contextmanager
def _panels(titles: list[str], path: Path) -> Iterator[list[Axes]]:
    """One panel a title, two in a row, saved to `path` at the end."""
    rows, columns = -(-len(titles) // 2), min(len(titles), 2)
    with plt.rc_context(STYLE):
        picture, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.3 * rows), squeeze=False)
        flat = list(axes.flat)
        for each in flat[len(titles) :]:
            each.set_visible(False)
        for each, title in zip(flat, titles, strict=False):
            each.set_title(title, fontsize=10)
        yield flat[: len(titles)]
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.tight_layout()
        picture.savefig(path)
        plt.close(picture)


def _compression_axis(axes: Axes, when: str = "") -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"weights in all / kept{when}")


def progress(there: Material, path: Path) -> None:
    """Compression against held-out error, one line a seed through the epochs of the sparse stage; a dot at its end."""
    lines = {name: {run["seed"]: [row for row in run["epochs"] if row["stage"] == "sparse"] for run in runs}
             for name, runs in there.runs.items()}  # fmt: skip
    lines = {name: by_seed for name, by_seed in lines.items() if all(by_seed.values())}
    with _panels([there.title(name) for name in lines], path) as panels:
        for axes, by_seed in zip(panels, lines.values(), strict=True):
            for seed, rows in by_seed.items():
                line = [row["compression"] for row in rows], [100 - 100 * row["accuracy"] for row in rows]
                (drawn,) = axes.plot(*line, linewidth=1, alpha=0.7, label=f"seed {seed}")
                axes.plot(line[0][-1], line[1][-1], "o", color=drawn.get_color())
            _compression_axis(axes, " at log α < 3")
            axes.set_ylabel("held-out error, %")
        panels[0].legend(frameon=False)


def tradeoff(there: Material, path: Path) -> None:
    """Test error over compression at every threshold, one line a seed, the run's end ringed; published rows beside."""
    with _panels([there.title(name) for name in there.runs], path) as panels:
        for axes, (name, runs) in zip(panels, there.runs.items(), strict=True):
            for run in runs:
                line = [row["compression"] for row in run["tradeoff"]], [row["error"] for row in run["tradeoff"]]
                (drawn,) = axes.plot(*line, "o-", markersize=3, linewidth=1, label=f"ours, seed {run['seed']}")
                end = run["weights"]["compression"], run["error"]
                axes.plot(*end, "o", markersize=10, fillstyle="none", color=drawn.get_color())
            for row in there.chosen.variants[name].published:
                axes.plot(float(row.compression), float(row.error), "x", color="black")
                words = f"{row.method.partition(' (')[0]} "
                axes.annotate(words, (float(row.compression), float(row.error)), fontsize=7, ha="right", va="bottom")
            _compression_axis(axes)
            axes.set_ylabel("test error, %")
        panels[0].legend(frameon=False, fontsize=8)


def widths(there: Material, path: Path) -> None:
    """Test error over the weights of the whole network: dense, and Sparse VD with its compression written beside it."""
    runs = sorted((run for of in there.runs.values() for run in of), key=lambda run: int(run["weights"]["total"]))
    with styled_axes(path, 6.0, 3.4) as axes:
        for sparse, colour in ((False, GRAY), (True, BLUE)):
            of = [run for run in runs if (run["weights"]["compression"] > 1) == sparse]
            points = [run["weights"]["total"] for run in of], [run["error"] for run in of]
            axes.plot(*points, "o-", color=colour, label="Sparse VD" if sparse else "dense, binary dropout")
            for run, x, y in zip(of, *points, strict=True):
                words = f" {run['weights']['compression']:.0f}× fewer" if sparse else ""
                axes.annotate(words, (x, y), color=ORANGE, fontsize=9, va="bottom")
        axes.set_xscale("log")
        axes.set_xlabel("weights of the network before Sparse VD")
        axes.set_ylabel("test error, %")
        axes.legend(frameon=False)


def log_alpha(there: Material, path: Path) -> None:
    """How log alpha of all weights spreads over the epochs: two humps part, and the right one is noise."""
    histories = {
        there.title(name): read_json(run / "log_alpha.json")
        for name, run in there.folders.items()
        if (run / "log_alpha.json").exists()
    }
    with _panels(list(histories), path) as panels:
        for axes, history in zip(panels, histories.values(), strict=True):
            _heat(axes, history)


def _heat(axes: Axes, history: dict[str, Any]) -> None:
    counts = np.array([np.sum(list(row["counts"].values()), axis=0) for row in history["epochs"]], dtype=float)
    share = 100 * counts / counts.sum(1, keepdims=True)
    epochs = [row["epoch"] for row in history["epochs"]]
    columns = np.array([*epochs, epochs[-1] + 1]) - 0.5
    axes.grid(visible=False)
    axes.pcolormesh(columns, np.array(history["edges"]), share.T + 1e-3, norm=LogNorm(1e-2, 30), cmap="magma_r")
    axes.axhline(DEFAULT_THRESHOLD, color=LINE, linestyle="--", linewidth=1)
    axes.annotate("removed", (epochs[0], DEFAULT_THRESHOLD + 0.4), color=LINE, fontsize=9)
    axes.set_ylim(-12, 20)
    axes.set_xlabel("epoch of the sparse stage")
    axes.set_ylabel("log α")


def posterior(there: Material, path: Path) -> None:
    """The prior, and two posteriors of the first variant's first run."""
    method.posterior(next(iter(there.folders.values())), path)


def kl(there: Material, path: Path) -> None:
    """The KL of one weight; no run has a say in it."""
    method.kl(path)


DRAWN: dict[str, Callable[[Material, Path], None]] = {
    each.__name__: each for each in (progress, tradeoff, widths, log_alpha, posterior, kl)
}
