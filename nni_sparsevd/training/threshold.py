"""The threshold: a log alpha from the settings or chosen on held-out data from a recorded curve, or the evidence."""

from dataclasses import asdict, dataclass
from typing import Literal

from torch import nn

from ..data import DataSets
from ..graph import Inputs
from ..masks import compute_masks_by_each, count_weights
from ..settings import MaskSettings
from .scoring import evaluate_baked

Threshold = float | Literal["evidence"]
"""Log alpha from which things are removed, or the change in evidence that removing them brings."""
THRESHOLD_GRID: tuple[float, ...] = tuple(step / 2 for step in range(13))
"""0 to 6 in steps of 0.5: below 0 the signal is stronger than the noise."""


@dataclass(frozen=True)
class ThresholdCurve:
    """Held-out accuracy and compression of one network over thresholds, and the threshold that was chosen.

    `compression` is weights in all / weights kept.
    """

    thresholds: tuple[Threshold, ...]
    accuracy: tuple[float, ...]
    compression: tuple[float, ...]
    chosen: Threshold

    def to_dict(self) -> dict[str, object]:
        """The curve as a JSON object."""
        return asdict(self)


def choose_threshold(
    model: nn.Module,
    threshold: Threshold | Literal["held_out"],
    settings: MaskSettings,
    data: DataSets,
    example_inputs: Inputs,
    *,
    dense_weights: int | None = None,
) -> ThresholdCurve:
    """Score baked copies of a trained network at every threshold of the grid, and choose one of them.

    Args:
        model: A variational network after training.
        threshold: A number or "evidence", which is chosen whatever the curve says; or "held_out", which chooses the
            largest compression whose held-out accuracy is within `settings.tolerance` of the best on the curve.
        settings: How log alpha becomes masks. Their own `threshold` and `ratio` do not count here.
        data: Gives the held-out images.
        example_inputs: What the network is traced with, for masks of whole channels.
        dense_weights: How many weights the network had before any were removed, for the compression. Left out: as
            many as it has here.

    Returns:
        The curve, over the grid and over `threshold` where that is a number; "evidence" comes after the grid.
    """
    numbers = {*THRESHOLD_GRID, threshold} if isinstance(threshold, float) else {*THRESHOLD_GRID}
    grid = sorted(numbers)
    candidates: list[Threshold] = [*grid, "evidence"] if threshold == "evidence" else [*grid]
    accuracy, compression = [], []
    # With a ratio the threshold would not count, and the curve would be one point.
    decisions = [settings.model_copy(update={"threshold": candidate, "ratio": None}) for candidate in candidates]
    for masks in compute_masks_by_each(model, decisions, example_inputs):
        kept, total = count_weights(model, masks)
        accuracy.append(evaluate_baked(model, masks, data, data.holdout).accuracy)
        compression.append((dense_weights or total) / max(kept, 1))
    chosen: Threshold
    if threshold == "held_out":
        chosen = _choose_by_accuracy(grid, accuracy, compression, settings.tolerance)
    else:
        chosen = threshold
    return ThresholdCurve(tuple(candidates), tuple(accuracy), tuple(compression), chosen)


def _choose_by_accuracy(
    thresholds: list[float], accuracy: list[float], compression: list[float], tolerance: float
) -> float:
    """The threshold of the largest compression among those that are accurate enough; of equals the highest."""
    enough = max(accuracy) - tolerance
    points = zip(accuracy, compression, thresholds, strict=True)
    accurate = [(compressed, threshold) for reached, compressed, threshold in points if reached >= enough]
    return max(accurate)[1]
