"""Weights of layers during training, from the snapshots of a run, as a GIF."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.animation import PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...files import load_tensors, replace_when_whole
from ...report.pictures import STYLE

FRAMES = 60
"""Most frames of an animation, the held one at the end not counted."""
FRAMES_PER_SECOND = 8
Matrices = dict[str, NDArray[Any]]
"""Name of a layer -> its weight as a matrix."""


def animate_weights(run: Path, path: Path) -> Path:
    """Draw the layers' weights as they would ship, epoch by epoch; removed weights are white.

    Args:
        run: Folder of a run with snapshots.
        path: Where the GIF goes.

    Returns:
        `path`.
    """
    files = sorted((run / "snapshots").glob("*.safetensors"))
    places = np.linspace(0, len(files) - 1, min(len(files), FRAMES))
    shown = [files[round(place)] for place in places]
    frames = [(int(file.stem), _read_matrices(file)) for file in shown]
    held = frames[-1:] * FRAMES_PER_SECOND  # the end is shown for one second more
    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    # All frames must have one size, which a tight bounding box would not give them.
    with matplotlib.rc_context({**STYLE, "axes.grid": False, "savefig.bbox": "standard"}):
        picture, panels = _draw_first_frame(frames[0][1])
        with replace_when_whole(path) as unfinished, writer.saving(picture, str(unfinished), dpi=100):
            for epoch, matrices in frames + held:
                _update_panels(panels, epoch, matrices)
                writer.grab_frame()
    return path


def _draw_first_frame(matrices: Matrices) -> tuple[Figure, list[Axes]]:
    """A figure with one panel for each layer, in colors that stay the same in all frames."""
    height = 0.6 + max(6.0 * rows / columns for rows, columns in (matrix.shape for matrix in matrices.values()))
    picture = Figure(figsize=(6.2 * len(matrices), height))
    panels = list(picture.subplots(1, len(matrices), squeeze=False)[0])
    for axes, matrix in zip(panels, matrices.values(), strict=True):
        # A few large weights would make all others pale: the scale ends at the 99.5th percentile.
        scale = float(np.percentile(np.abs(matrix), 99.5)) or 1.0
        axes.imshow(matrix, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest", aspect="auto")
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(" ", fontsize=10)  # so that the layout leaves room for the titles of the frames
    picture.tight_layout()
    return picture, panels


def _update_panels(panels: list[Axes], epoch: int, matrices: Matrices) -> None:
    for axes, (name, matrix) in zip(panels, matrices.items(), strict=True):
        axes.images[0].set_data(matrix)
        axes.set_title(f"{name}, epoch {epoch}: {100 * (matrix == 0).mean():.1f} % removed", fontsize=10)


def _read_matrices(file: Path) -> Matrices:
    return {name: _to_matrix(weight.float().numpy()) for name, weight in load_tensors(file)[0].items()}


def _to_matrix(weight: NDArray[Any]) -> NDArray[Any]:
    """A weight as a matrix.

    A linear layer's weight is one, (out, in). A convolution's kernels become tiles: there is a row of tiles for each
    input channel and a column for each output channel.
    """
    if weight.ndim == 2:
        return weight
    out, inputs, height, width = weight.shape
    return weight.transpose(1, 2, 0, 3).reshape(inputs * height, out * width)
