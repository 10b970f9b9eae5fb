"""How log alpha of each layer is distributed after each epoch of the sparse stage: log_alpha.json."""

from pathlib import Path
from typing import final

import torch
from torch import nn

from ..files import read_json, write_json
from ..nn import named_posteriors

REACH = 20
"""Histograms go from -20 to 20; what lies beyond is counted in the outer bins."""
EDGES = torch.linspace(-REACH, REACH, 81)


@final
class LogAlphaHistory:
    """Histograms by epoch, on disk after every epoch."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        """Begin a history at `path`, or go on with the one that is there."""
        self._path = path
        if resume and path.exists():
            self._history = read_json(path)
        else:
            self._history = {"edges": EDGES.tolist(), "epochs": []}

    def record(self, epoch: int, model: nn.Module, *, write: bool) -> None:
        """Add the histograms of `model`, in place of those of this and later epochs; one process has to `write`."""
        # A run that was killed after it wrote this file, and before its checkpoint, trains this epoch once more.
        earlier = [row for row in self._history["epochs"] if row["epoch"] < epoch]
        self._history["epochs"] = [*earlier, {"epoch": epoch, "counts": _count_log_alpha(model)}]
        if write:
            write_json(self._path, self._history)


def _count_log_alpha(model: nn.Module) -> dict[str, list[int]]:
    """Layer or gate -> how many of its log alphas lie in each bin."""
    counts = {}
    for name, posterior in named_posteriors(model):
        values = posterior.log_alpha().detach().float().cpu().clamp(-REACH, REACH)
        counts[name] = torch.histogram(values.flatten(), EDGES).hist.long().tolist()
    return counts
