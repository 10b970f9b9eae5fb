"""Pictures of an experiment, drawn from what its runs recorded."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from numpy.typing import NDArray

from ..files import load_tensors, read_json
from ..report.pictures import BLUE, GREY, ORANGE, STYLE, figure
from . import method
from .experiments import Experiment
from .run import Job
from .table import Run

FRAMES = 60
"""Most frames of an animation."""
FRAMES_PER_SECOND = 8


def draw(chosen: Experiment, runs: list[Run], jobs: list[Job], folder: Path) -> list[Path]:
    """Draw the experiment's pictures into `folder`; those of single runs show the first seed of each variant."""
    drawn = []
    first = {job.variant: job for job in reversed(jobs) if job.done}
    for kind in chosen.pictures:
        if kind == "progress":
            drawn.append(progress(chosen, runs, folder / "progress.png"))
        elif kind == "tradeoff":
            drawn.append(tradeoff(chosen, runs, folder / "tradeoff.png"))
        elif kind == "widths":
            drawn.append(widths(chosen, runs, folder / "widths.png"))
        elif kind == "log_alpha":
            shown = {chosen.variants[name].title: job.folder for name, job in first.items()
                     if (job.folder / "log_alpha.json").exists()}  # fmt: skip
            drawn.append(log_alpha(shown, folder / "log_alpha.png"))
        elif kind == "posterior":
            drawn.append(method.posterior(next(iter(first.values())).folder, folder / "posterior.png"))
        elif kind == "kl":
            drawn.append(method.kl(folder / "kl.png"))
        else:
            drawn += [weights(job.folder, folder / f"weights_{name}.gif")
                      for name, job in first.items() if (job.folder / "snapshots").exists()]  # fmt: skip
    return drawn


def progress(chosen: Experiment, runs: list[Run], path: Path) -> Path:
    """Compression against held-out error, one line a seed through the epochs of the sparse stage; a dot at its end."""
    names = [name for name in chosen.variants if any(run["variant"] == name for run in runs)]
    with plt.rc_context(STYLE):
        picture, panels = plt.subplots(1, len(names), figsize=(1 + 3.6 * len(names), 3.4), squeeze=False)
        for axes, name in zip(panels[0], names, strict=True):
            for run in (run for run in runs if run["variant"] == name):
                rows = [row for row in run["epochs"] if row["stage"] == "sparse"]
                line = [row["compression"] for row in rows], [100 - 100 * row["accuracy"] for row in rows]
                (drawn,) = axes.plot(*line, linewidth=1, alpha=0.7, label=f"seed {run['seed']}")
                axes.plot(line[0][-1], line[1][-1], "o", color=drawn.get_color())
            axes.set_xscale("log")
            axes.set_title(chosen.variants[name].title, fontsize=10)
            axes.set_xlabel("weights in all / kept at log α < 3")
        panels[0][0].set_ylabel("held-out error, %")
        panels[0][0].legend(frameon=False)
        return _saved(picture, path)


def tradeoff(chosen: Experiment, runs: list[Run], path: Path) -> Path:
    """Test error over compression at every threshold, one line a seed, the chosen one ringed; published rows beside."""
    names = [name for name in chosen.variants if any(run["variant"] == name for run in runs)]
    with plt.rc_context(STYLE):
        picture, panels = plt.subplots(1, len(names), figsize=(1 + 3.6 * len(names), 3.6), squeeze=False)
        for axes, name in zip(panels[0], names, strict=True):
            for run in (run for run in runs if run["variant"] == name):
                line = [row["compression"] for row in run["tradeoff"]], [row["error"] for row in run["tradeoff"]]
                (drawn,) = axes.plot(*line, "o-", markersize=3, linewidth=1, label=f"ours, seed {run['seed']}")
                axes.plot(run["weights"]["compression"], run["error"], "o", markersize=10, fillstyle="none",
                          color=drawn.get_color())  # fmt: skip
            for row in chosen.variants[name].published:
                axes.plot(float(row.compression), float(row.error), "x", color="black")
                words = f"{row.method.partition(' (')[0]} "
                axes.annotate(words, (float(row.compression), float(row.error)), fontsize=7, ha="right", va="bottom")
            axes.set_xscale("log")
            axes.set_title(chosen.variants[name].title, fontsize=10)
            axes.set_xlabel("weights in all / kept")
        panels[0][0].set_ylabel("test error, %")
        panels[0][0].legend(frameon=False, fontsize=8)
        return _saved(picture, path)


def widths(chosen: Experiment, runs: list[Run], path: Path) -> Path:
    """Test error over the weights of the whole network: dense, and Sparse VD with its compression written beside it."""
    with figure(path, 6.0, 3.4) as axes:
        for sparse, colour in ((False, GREY), (True, BLUE)):
            of = [run for run in runs if (run["weights"]["compression"] > 1) == sparse]
            of.sort(key=lambda run: run["weights"]["total"])
            points = [run["weights"]["total"] for run in of], [run["error"] for run in of]
            axes.plot(*points, "o-", color=colour, label="Sparse VD" if sparse else "dense, binary dropout")
            for run, x, y in zip(of, *points, strict=True):
                if sparse:
                    words = f" {run['weights']['compression']:.0f}× fewer"
                    axes.annotate(words, (x, y), color=ORANGE, fontsize=9, va="bottom")
        axes.set_xscale("log")
        axes.set_xlabel("weights of the network before Sparse VD")
        axes.set_ylabel("test error, %")
        axes.legend(frameon=False)
    return path


def log_alpha(folders: dict[str, Path], path: Path) -> Path:
    """How log alpha of all weights spreads over the epochs: two humps part, and the right one is noise."""
    with plt.rc_context({**STYLE, "axes.grid": False}):
        picture, panels = plt.subplots(1, len(folders), figsize=(1 + 3.6 * len(folders), 3.4), squeeze=False)
        for axes, (title, folder) in zip(panels[0], folders.items(), strict=True):
            _heat(axes, read_json(folder / "log_alpha.json"))
            axes.set_title(title, fontsize=10)
        panels[0][0].set_ylabel("log α")
        return _saved(picture, path)


def _heat(axes: Axes, history: dict[str, Any]) -> None:
    counts = np.array([np.sum(list(row["counts"].values()), axis=0) for row in history["epochs"]], dtype=float)
    share = 100 * counts / counts.sum(1, keepdims=True)
    epochs = [row["epoch"] for row in history["epochs"]]
    edges = np.array(history["edges"])
    columns = np.array([*epochs, epochs[-1] + 1]) - 0.5
    axes.pcolormesh(columns, edges, share.T + 1e-3, norm=LogNorm(1e-2, 30), cmap="magma_r")
    axes.axhline(3, color="white", linestyle="--", linewidth=1)
    axes.annotate("removed", (epochs[0], 3.4), color="white", fontsize=9)
    axes.set_ylim(-12, 20)
    axes.set_xlabel("epoch of the sparse stage")


def weights(run: Path, path: Path) -> Path:
    """The weights that a layer would ship with, epoch by epoch: a GIF.  Removed ones are white."""
    files = sorted((run / "snapshots").glob("*.safetensors"))
    shown = [files[round(place)] for place in np.linspace(0, len(files) - 1, min(len(files), FRAMES))]
    frames = [(int(file.stem), _matrices(file)) for file in shown]
    first = frames[0][1]
    height = 0.8 + max(5.2 * rows / columns for rows, columns in (value.shape for value in first.values()))
    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    with plt.rc_context({**STYLE, "axes.grid": False, "savefig.bbox": "standard"}):
        picture, panels = plt.subplots(1, len(first), figsize=(5.2 * len(first), height), squeeze=False)
        for axes, value in zip(panels[0], first.values(), strict=True):
            scale = float(np.percentile(np.abs(value), 99.5)) or 1.0
            axes.imshow(value, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
            axes.set_axis_off()
        path.parent.mkdir(parents=True, exist_ok=True)
        with writer.saving(picture, str(path), dpi=100):
            for epoch, values in frames + frames[-1:] * FRAMES_PER_SECOND:  # the end is held for a second
                for axes, (name, value) in zip(panels[0], values.items(), strict=True):
                    axes.images[0].set_data(value)
                    axes.set_title(f"{name}, epoch {epoch}: {100 * (value == 0).mean():.1f} % removed", fontsize=10)
                writer.grab_frame()
        plt.close(picture)
    return path


def _matrices(file: Path) -> dict[str, NDArray[Any]]:
    return {name: _flat(value.float().numpy()) for name, value in load_tensors(file)[0].items()}


def _flat(weight: NDArray[Any]) -> NDArray[Any]:
    """A weight as a matrix: (out, in), convolution kernels as tiles with (in, out) rows and columns of them."""
    if weight.ndim == 2:
        return weight
    out, inputs, height, width = weight.shape
    return weight.transpose(1, 2, 0, 3).reshape(inputs * height, out * width)


def _saved(picture: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.tight_layout()
    picture.savefig(path)
    plt.close(picture)
    return path
