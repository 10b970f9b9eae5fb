"""Pictures of a run, from its recorded numbers alone.

Every picture is a `Figure` of its own: neither pyplot nor a backend is touched, so that the plots of a notebook that
imports this package appear as they did.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from ..files import write_bytes
from .decision import Decision

Point = tuple[float, float]
BLUE, ORANGE, GRAY = "#2f6690", "#d1603d", "#8d99ae"
STYLE: Any = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "font.size": 10,
    "figure.dpi": 110,
    "savefig.bbox": "tight",
}

LABEL_OFFSETS = ((0, 13), (0, -13), (0, 24), (0, -24), (18, 9), (-18, 9), (18, -9), (-18, -9), (0, 35), (0, -35))
"""Where the name of a point may stand, in typographic points to the right and up; the best place first."""


@contextmanager
def styled_figure(path: Path, width: float = 7.0, height: float = 3.2) -> Iterator[Figure]:
    """Give an empty figure in our style, and save it when the block ends, whole or not at all.

    Args:
        path: The picture's file; its folder is made, and its suffix says the format.
        width: Of the figure, in inches.
        height: Of the figure, in inches.

    Raises:
        FileFormatError: The file cannot be written.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        yield figure
        content = io.BytesIO()
        figure.savefig(content, format=path.suffix.removeprefix("."))
    write_bytes(path, content.getvalue())


@contextmanager
def styled_axes(path: Path, width: float = 7.0, height: float = 3.2) -> Iterator[Axes]:
    """Give the only axes of a `styled_figure`."""
    with styled_figure(path, width, height) as figure:
        yield figure.subplots()


def draw_layer_sparsity(layers: list[dict[str, Any]], path: Path) -> None:
    """Draw a bar for each layer: the share of its weights that is removed."""
    with styled_axes(path, height=max(1.6, 0.26 * len(layers) + 0.8)) as axes:
        rows = np.arange(len(layers))
        axes.barh(rows, [100 * layer["sparsity"] for layer in layers], color=BLUE)
        axes.set_yticks(rows, [layer["name"] for layer in layers], fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlim(0, 100)
        axes.set_xlabel("weights removed, %")


def draw_log_alpha_histograms(history: dict[str, Any], decision: Decision, path: Path) -> None:
    """Draw log alpha of all weights in the first, a middle and the last epoch: noise gathers on the right.

    Args:
        history: What log_alpha.json holds: the edges of the bins, and the counts of each epoch by layer.
        decision: What decided: its threshold is drawn as a line, if it has one.
        path: The picture's file.
    """
    epochs = history["epochs"]
    # in a run of one or two epochs some of the three are the same, and the later color counts
    shown = {0: GRAY, len(epochs) // 2: ORANGE, len(epochs) - 1: BLUE}
    edges = np.array(history["edges"])
    with styled_axes(path) as axes:
        for index, color in shown.items():
            counts = np.sum([np.array(layer) for layer in epochs[index]["counts"].values()], axis=0)
            share = 100 * counts / counts.sum()
            axes.stairs(share, edges, color=color, linewidth=1.6, label=f"epoch {epochs[index]['epoch']}")
        threshold = decision.threshold
        if threshold is not None:
            axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:g}")
        axes.set_yscale("log")
        axes.set_xlabel(r"$\log\,\alpha = \log\,\sigma^2 - \log\,\theta^2$")
        axes.set_ylabel("posteriors, % (log scale)")
        axes.legend(frameon=False)


def draw_progress(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the held-out accuracy of what would ship, and its compression, over the epochs of all stages.

    A dense twin is a line of its own, over the epochs after the dense stage.
    """
    twin = [row for row in rows if row["stage"].startswith("twin")]
    rows = [row for row in rows if not row["stage"].startswith("twin")]
    with styled_axes(path) as axes:
        epochs = np.arange(1, len(rows) + 1)
        axes.plot(epochs, [100 * row["accuracy"] for row in rows], color=BLUE)
        if twin:
            dense_epochs = [row["stage"] for row in rows].count("dense")
            twin_epochs = dense_epochs + np.arange(1, len(twin) + 1)
            axes.plot(twin_epochs, [100 * row["accuracy"] for row in twin], "--", color=GRAY, label="dense twin")
            axes.legend(frameon=False, loc="lower right")
        axes.set_ylabel("held-out accuracy, %", color=BLUE)
        axes.set_xlabel("epoch, over all stages")
        compression = axes.twinx()
        compression.plot(epochs, [row["compression"] for row in rows], color=ORANGE)
        if _need_log_scale([row["compression"] for row in rows]):
            compression.set_yscale("log")
            write_plain_numbers(compression.yaxis)
        compression.grid(visible=False)
        compression.set_ylabel("weights in all / kept", color=ORANGE)
        beginnings = {}
        for index in range(1, len(rows)):
            if rows[index]["stage"] != rows[index - 1]["stage"]:
                beginnings[index + 0.5] = rows[index]["stage"]
        _mark_stages(axes, beginnings)


def _need_log_scale(values: list[float]) -> bool:
    """Whether the values span more than a few times."""
    return max(values) > 4 * min(values)


def write_plain_numbers(axis: Axis, digits: tuple[float, ...] = (1, 2, 5)) -> None:
    """Write numbers at a logarithmic axis, in the place of powers: 1, 2, 5, 10, 20, and so on.

    Args:
        axis: The axis.
        digits: Numbers from 1 to below 10; these and their products with powers of ten are written.
    """
    axis.set_major_locator(LogLocator(subs=digits))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _mark_stages(axes: Axes, beginnings: dict[float, str]) -> None:
    """Draw a line where each stage begins, with its name at the top, or below the name that stands there already.

    Args:
        axes: With their final limits.
        beginnings: Epoch -> the stage that begins there.
    """
    written: list[Bbox] = []
    for epoch, stage in beginnings.items():
        axes.axvline(epoch, color=GRAY, linestyle=":", linewidth=1)
        name = axes.annotate(
            f" {stage.replace('_', ' ')}",
            (epoch, 1),
            (0, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="#555555",
        )
        for line in range(4):
            name.set_position((0, -10 * line))
            if not name.get_window_extent().count_overlaps(written):
                break
        written.append(name.get_window_extent())


def draw_front(front: list[dict[str, Any]], path: Path) -> None:
    """Draw the accuracy of the networks of a run against what they cost, each with its level.

    Args:
        front: Rows of result.json: the dense network, then the levels.
        path: The picture's file.
    """
    with styled_axes(path) as axes:
        names, test_points, held_out_points = [], [], []
        for row in front:
            names.append(row["network"] if row["level"] is None else f"{row['level']:g}")
            test_points.append((row["macs"] / 1e6, 100 * row["test"]))
            held_out_points.append((row["macs"] / 1e6, 100 * row["held_out"]))
        axes.plot(*zip(*test_points, strict=True), "o-", color=BLUE, markersize=5, label="test photos")
        axes.plot(*zip(*held_out_points, strict=True), "s--", color=GRAY, markersize=4, label="held-out photos")
        for row, point in zip(front, test_points, strict=True):
            if row["chosen"]:
                axes.plot(*point, "o", color=ORANGE, markersize=10, label="network of the run")
        axes.set_xscale("log")
        # Numbers at all places of matplotlib's own choice would run into each other before each power of ten.
        write_plain_numbers(axes.xaxis, (1, 1.5, 2, 3, 5, 7))
        axes.margins(0.08, 0.18)
        axes.set_xlabel("million multiply-accumulates, one image (log scale)")
        axes.set_ylabel("accuracy, %")
        axes.legend(frameon=False)
        # Where a label may stand depends on the scales, so the labels come last.
        _label_points(axes, names, test_points, held_out_points)


def _label_points(axes: Axes, names: list[str], points: list[Point], others: list[Point]) -> None:
    """Write a name at each point, where it covers neither an earlier name nor a marker, if there is such a place.

    Args:
        axes: With their final limits.
        names: What is written.
        points: In data coordinates, as many as there are names.
        others: Points without a name that should not be covered either.
    """
    in_pixels = axes.transData.transform([*points, *others])
    markers = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in in_pixels]
    written: list[Bbox] = []
    for name, point in zip(names, points, strict=True):
        label = axes.annotate(
            name, point, LABEL_OFFSETS[0], textcoords="offset points", ha="center", va="center", fontsize=8
        )
        covered = []
        for offset in LABEL_OFFSETS:
            label.set_position(offset)
            covered.append(label.get_window_extent().count_overlaps([*written, *markers]))
        label.set_position(LABEL_OFFSETS[covered.index(min(covered))])
        written.append(label.get_window_extent())


def draw_threshold_curve(curve: dict[str, Any], decision: Decision, path: Path) -> None:
    """Draw held-out accuracy against compression, a point for each threshold, before fine-tuning.

    Args:
        curve: The content of curve.json.
        decision: What decided.  The decision by the evidence is no threshold on log alpha, and stands beside the line;
            a ratio is no point of the curve.
        path: The picture's file.
    """
    points = [(size, 100 * value) for size, value in zip(curve["compression"], curve["accuracy"], strict=True)]
    by_evidence = curve["chosen"] == "evidence"
    line = points[:-1] if by_evidence else points
    chosen = points[curve["thresholds"].index(curve["chosen"])]
    with styled_axes(path) as axes:
        axes.plot(*zip(*line, strict=True), "o-", color=BLUE, markersize=4, label="at thresholds on log α")
        if by_evidence:
            axes.plot(*chosen, "o", color=ORANGE, markersize=9, label="chosen: what the evidence needs")
        elif decision.threshold is not None:
            axes.plot(*chosen, "o", color=ORANGE, markersize=9, label=f"chosen: log α < {decision.threshold:g}")
        if _need_log_scale(curve["compression"]):
            axes.set_xscale("log")
            write_plain_numbers(axes.xaxis)
        axes.set_xlabel("weights in all / kept")
        axes.set_ylabel("held-out accuracy, %")
        axes.legend(frameon=False)


def draw_allocation(layers: list[dict[str, Any]], path: Path) -> None:
    """Draw two bars for each layer: its multiply-accumulates in the dense and in the shrunk network."""
    with styled_axes(path, height=max(1.8, 0.26 * len(layers) + 1.0)) as axes:
        rows = np.arange(len(layers))
        for network, color, thickness in (("dense", GRAY, 0.8), ("shrunk", BLUE, 0.5)):
            macs = [layer["cost"][network]["macs"] / 1e6 for layer in layers]
            axes.barh(rows, macs, thickness, color=color, label=network)
        names = [f"{layer['name']}  {layer['outputs_before']} → {layer['outputs']}" for layer in layers]
        axes.set_yticks(rows, names, fontsize=8)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("multiply-accumulates of one image, millions; beside the names: output channels")
        axes.legend(frameon=False)


def draw_mistakes(images: NDArray[np.uint8], names: list[tuple[str, str]], path: Path) -> None:
    """Draw images in a row of six or several, each below its class and what a network takes it for.

    Args:
        images: Shape (count, channels, height, width), of one channel or three.
        names: Class and answer for each image; what is too long for the width of an image is cut off.
        path: The picture's file.
    """
    columns = min(len(images), 6)
    lines = -(-len(images) // columns)
    with styled_figure(path, height=1.5 * lines + 0.2) as figure:
        sides = {"left": 0.0, "right": 1.0}  # names need the width
        panels = figure.subplots(lines, columns, squeeze=False, gridspec_kw=sides).flatten()
        for panel in panels:
            panel.set_axis_off()
        for panel, image, (label, answer) in zip(panels, images, names, strict=False):
            pixels = image.transpose(1, 2, 0)
            panel.imshow(pixels if pixels.shape[2] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=255)
            caption = f"{_cut(label)}\n→ {_cut(answer)}"
            panel.set_title(caption, fontsize=6, parse_math=False)  # a class may be called $1 or $2


def _cut(name: str, length: int = 17) -> str:
    """A name of at most so many characters, with an ellipsis where some are left out."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
