"""The threshold on log alpha, chosen on data that training did not see, from a recorded curve."""

from dataclasses import asdict, dataclass

from torch import nn

from ..data import DataSets
from ..graph import Inputs
from ..masks import compute_masks, count_weights
from ..settings import MaskSettings
from .scoring import evaluate_baked

THRESHOLD_GRID = tuple(step / 2 for step in range(13))
"""0 to 6 in halves: below 0 the signal is stronger than the noise."""


@dataclass(frozen=True)
class ThresholdCurve:
    """Held-out accuracy and compression (weights in all / weights kept) over thresholds."""

    thresholds: tuple[float, ...]
    accuracy: tuple[float, ...]
    compression: tuple[float, ...]
    chosen: float

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


def choose_threshold(
    model: nn.Module, masking: MaskSettings, data: DataSets, example_inputs: Inputs, total: int | None = None
) -> ThresholdCurve:
    """Bake and score copies of one trained network at every threshold of the grid; choose as `masking` says.

    `total` is how many weights it had before anything was taken out of it; nothing: as many as it has.

    A number is taken as it is.  "held_out" takes the largest compression whose accuracy is within `tolerance` of the
    best on the curve.
    """
    fixed = 3.0 if masking.threshold is None else masking.threshold
    grid = sorted({*THRESHOLD_GRID, fixed} if isinstance(fixed, float) else THRESHOLD_GRID)
    accuracy, compression = [], []
    for threshold in grid:
        setting = masking.model_copy(update={"threshold": threshold, "ratio": None})
        masks = compute_masks(model, setting, example_inputs=example_inputs)
        kept, here = count_weights(model, masks)
        accuracy.append(evaluate_baked(model, masks, data, data.holdout).accuracy)
        compression.append((total or here) / max(kept, 1))
    if isinstance(fixed, float):
        chosen = fixed
    else:
        enough = [i for i, value in enumerate(accuracy) if value >= max(accuracy) - masking.tolerance]
        chosen = grid[max(enough, key=lambda i: (compression[i], grid[i]))]
    return ThresholdCurve(tuple(grid), tuple(accuracy), tuple(compression), chosen)
