"""Weights of a layer during training, from the snapshots of a run, as a GIF."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import PillowWriter
from numpy.typing import NDArray

from ...files import load_tensors
from ...report.pictures import STYLE

FRAMES = 60
"""Most frames of an animation."""
FRAMES_PER_SECOND = 8


def weights(run: Path, path: Path) -> Path:
    """Draw the layers' weights as they would ship, epoch by epoch; what is removed is white.  Returns `path`."""
    files = sorted((run / "snapshots").glob("*.safetensors"))
    shown = [files[round(place)] for place in np.linspace(0, len(files) - 1, min(len(files), FRAMES))]
    frames = [(int(file.stem), _matrices(file)) for file in shown]
    first = frames[0][1]
    height = 0.6 + max(6.0 * rows / columns for rows, columns in (value.shape for value in first.values()))
    writer = PillowWriter(fps=FRAMES_PER_SECOND)
    with plt.rc_context({**STYLE, "axes.grid": False, "savefig.bbox": "standard"}):
        picture, panels = plt.subplots(1, len(first), figsize=(6.2 * len(first), height), squeeze=False)
        for axes, value in zip(panels[0], first.values(), strict=True):
            scale = float(np.percentile(np.abs(value), 99.5)) or 1.0
            axes.imshow(value, cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest", aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(" ", fontsize=10)  # the layout leaves room for those that come
        picture.tight_layout()
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
