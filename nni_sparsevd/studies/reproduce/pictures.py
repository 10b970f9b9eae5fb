"""Pictures of an experiment, drawn from what its runs recorded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from ...files import read_json
from ...posterior import DEFAULT_THRESHOLD
from ...report.pictures import BLUE, GRAY, ORANGE, styled_axes, styled_figure, write_plain_numbers
from .animation import animate_weights
from .experiments import Experiment, Published
from .method import draw_kl, draw_posteriors
from .running import Job
from .tables import Run, group_by_variant

LINE = "#00b4d8"
"""Color of a line on a heat map: it is seen on dark and on light ground."""


@dataclass(frozen=True)
class Material:
    """What there is to draw."""

    experiment: Experiment
    """The experiment."""
    runs: dict[str, list[Run]]
    """Name of a variant -> its finished runs."""
    folders: dict[str, Path]
    """Name of a variant -> folder of its first finished run."""

    def title(self, variant: str) -> str:
        """The variant as the table calls it."""
        return self.experiment.variants[variant].title


def draw_pictures(experiment: Experiment, runs: list[Run], jobs: list[Job], folder: Path) -> list[Path]:
    """Draw the pictures of an experiment.

    Args:
        experiment: The experiment, which lists its pictures.
        runs: Its finished runs.
        jobs: All runs; pictures of a single run show the first one of a variant that is done.
        folder: Where the pictures go.

    Returns:
        The paths of the pictures.
    """
    # Reversed, so that the first job of a variant is the last to enter and stays.
    folders = {job.variant: job.folder for job in reversed(jobs) if job.done}
    runs_by_variant = group_by_variant(experiment, runs)
    material = Material(experiment, runs_by_variant, {name: folders[name] for name in runs_by_variant})
    pictures: list[Path] = []
    for kind in experiment.pictures:
        if kind == "weights":
            pictures += _draw_animations(material, folder)
        else:
            path = folder / f"{kind}.png"
            DRAW[kind](material, path)
            pictures.append(path)
    return pictures


def _draw_animations(material: Material, folder: Path) -> list[Path]:
    """One animation for each variant whose run has snapshots."""
    animations = []
    for name, run in material.folders.items():
        if (run / "snapshots").exists():
            animations.append(animate_weights(run, folder / f"weights_{name}.gif"))
    return animations


@contextmanager
def _panels(titles: list[str], path: Path) -> Iterator[list[Axes]]:
    """One panel for each title, two in a row; the picture is saved to `path` at the end of the block."""
    rows, columns = -(-len(titles) // 2), min(len(titles), 2)
    with styled_figure(path, 4.6 * columns, 3.3 * rows) as picture:
        all_axes = list(picture.subplots(rows, columns, squeeze=False).flat)
        for axes, title in zip(all_axes, titles, strict=False):
            axes.set_title(title, fontsize=10)
        for axes in all_axes[len(titles) :]:
            axes.set_visible(False)
        yield all_axes[: len(titles)]
        picture.tight_layout()


def _draw_compression_axis(axes: Axes, condition: str = "") -> None:
    """A logarithmic horizontal axis with ticks at 1, 2, 5, 10, and so on."""
    axes.set_xscale("log")
    write_plain_numbers(axes.xaxis)
    axes.set_xlabel(f"weights in all / kept{condition}")


def draw_progress(material: Material, path: Path) -> None:
    """Compression against held-out error, one line for each seed through the sparse stage; a dot at its end."""
    sparse_epochs: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for name, runs in material.runs.items():
        by_seed = {run["seed"]: [epoch for epoch in run["epochs"] if epoch["stage"] == "sparse"] for run in runs}
        if all(by_seed.values()):
            sparse_epochs[name] = by_seed
    with _panels([material.title(name) for name in sparse_epochs], path) as panels:
        for axes, by_seed in zip(panels, sparse_epochs.values(), strict=True):
            for seed, epochs in by_seed.items():
                compressions = [epoch["compression"] for epoch in epochs]
                errors = [100 - 100 * epoch["accuracy"] for epoch in epochs]
                (curve,) = axes.plot(compressions, errors, linewidth=1, alpha=0.7, label=f"seed {seed}")
                axes.plot(compressions[-1], errors[-1], "o", color=curve.get_color())
            _draw_compression_axis(axes, f" at log α < {DEFAULT_THRESHOLD:g}")
            axes.set_ylabel("held-out error, %")
        panels[0].legend(frameon=False)


def draw_tradeoff(material: Material, path: Path) -> None:
    """Test error over compression at every threshold, one line for each seed, with the end of its run ringed.

    Published rows stand beside the lines as crosses.
    """
    with _panels([material.title(name) for name in material.runs], path) as panels:
        for axes, (name, runs) in zip(panels, material.runs.items(), strict=True):
            for run in runs:
                _draw_tradeoff_of_run(axes, run)
            for paper in material.experiment.variants[name].published:
                _draw_published(axes, paper)
            _draw_compression_axis(axes)
            axes.set_ylabel("test error, %")
        panels[0].legend(frameon=False, fontsize=8)


def _draw_tradeoff_of_run(axes: Axes, run: Run) -> None:
    compressions = [row["compression"] for row in run["tradeoff"]]
    errors = [row["error"] for row in run["tradeoff"]]
    label = f"ours, seed {run['seed']}"
    (curve,) = axes.plot(compressions, errors, "o-", markersize=3, linewidth=1, label=label)
    end = run["weights"]["compression"], run["error"]
    axes.plot(*end, "o", markersize=10, fillstyle="none", color=curve.get_color())


def _draw_published(axes: Axes, paper: Published) -> None:
    """A cross with the name of the method, without its authors."""
    point = float(paper.compression), float(paper.error)
    axes.plot(*point, "x", color="black")
    axes.annotate(f"{paper.method.partition(' (')[0]} ", point, fontsize=7, ha="right", va="bottom")


def draw_widths(material: Material, path: Path) -> None:
    """Test error over the weights of the whole network: dense, and Sparse VD with its compression beside each point."""
    runs = [run for runs_of_variant in material.runs.values() for run in runs_of_variant]
    runs.sort(key=lambda run: int(run["weights"]["total"]))
    dense = [run for run in runs if run["weights"]["compression"] <= 1]
    sparse = [run for run in runs if run["weights"]["compression"] > 1]
    with styled_axes(path, 6.0, 3.4) as axes:
        axes.plot(*_widths_and_errors(dense), "o-", color=GRAY, label="dense, binary dropout")
        axes.plot(*_widths_and_errors(sparse), "o-", color=BLUE, label="Sparse VD")
        for run in sparse:
            point = run["weights"]["total"], run["error"]
            text = f" {run['weights']['compression']:.0f}× fewer"
            axes.annotate(text, point, color=ORANGE, fontsize=9, va="bottom")
        axes.set_xscale("log")
        axes.set_xlabel("weights of the network before Sparse VD")
        axes.set_ylabel("test error, %")
        axes.legend(frameon=False)


def _widths_and_errors(runs: list[Run]) -> tuple[list[int], list[float]]:
    return [run["weights"]["total"] for run in runs], [run["error"] for run in runs]


def draw_log_alpha(material: Material, path: Path) -> None:
    """How log alpha of all weights spreads over the epochs: two humps part, and the right one is noise."""
    histories: dict[str, dict[str, Any]] = {}
    for name, run in material.folders.items():
        history_file = run / "log_alpha.json"
        if history_file.exists():
            histories[material.title(name)] = read_json(history_file)
    with _panels(list(histories), path) as panels:
        for axes, history in zip(panels, histories.values(), strict=True):
            _draw_log_alpha_map(axes, history)


def _draw_log_alpha_map(axes: Axes, history: dict[str, Any]) -> None:
    """A heat map: epochs to the right, log alpha upwards, the share of the weights as color."""
    rows = history["epochs"]
    counts = np.array([np.sum(list(row["counts"].values()), axis=0) for row in rows], dtype=float)
    percents = 100 * counts / counts.sum(1, keepdims=True)
    epochs = [row["epoch"] for row in rows]
    epoch_edges = np.array([*epochs, epochs[-1] + 1]) - 0.5
    axes.grid(visible=False)
    # A logarithmic scale of colors has no place for 0.
    axes.pcolormesh(epoch_edges, np.array(history["edges"]), percents.T + 1e-3, norm=LogNorm(1e-2, 30), cmap="magma_r")
    axes.axhline(DEFAULT_THRESHOLD, color=LINE, linestyle="--", linewidth=1)
    axes.annotate("removed", (epochs[0], DEFAULT_THRESHOLD + 0.4), color=LINE, fontsize=9)
    axes.set_ylim(-12, 20)
    axes.set_xlabel("epoch of the sparse stage")
    axes.set_ylabel("log α")


def _draw_posteriors_of_first_variant(material: Material, path: Path) -> None:
    draw_posteriors(next(iter(material.folders.values())), path)


def _draw_kl_without_runs(material: Material, path: Path) -> None:
    draw_kl(path)


DRAW: dict[str, Callable[[Material, Path], None]] = {
    "progress": draw_progress,
    "tradeoff": draw_tradeoff,
    "widths": draw_widths,
    "log_alpha": draw_log_alpha,
    "posterior": _draw_posteriors_of_first_variant,
    "kl": _draw_kl_without_runs,
}
"""Kind of a picture, as in an experiment's file -> the function that draws it."""
