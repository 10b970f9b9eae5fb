"""Error against compression: what every threshold would have given, on the test set, before fine-tuning.

For the record only: the threshold of a run is chosen on held-out images, and this is measured afterwards.
"""

import statistics
from typing import Any

from ...masks import compute_masks, count_weights
from ...training import THRESHOLD_GRID, evaluate_baked
from .finished import Finished


def measure_tradeoff(done: Finished) -> list[dict[str, Any]]:
    """Threshold, compression and test error of a finished run, one row a threshold."""
    example = done.data.normalize(done.data.train.images[:2])
    rows = []
    for threshold in THRESHOLD_GRID:
        masking = done.recipe.masks.model_copy(update={"threshold": threshold, "ratio": None})
        masks = compute_masks(done.posterior, masking, example_inputs=example)
        kept, total = count_weights(done.posterior, masks)
        score = evaluate_baked(done.posterior, masks, done.data, done.data.test)
        rows.append({"threshold": threshold, "compression": total / max(kept, 1), "error": 100 - 100 * score.accuracy})
    return rows


def tradeoff_table(runs: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table for the runs of one variant: means over seeds, one row a threshold from 0 to 3."""
    lines = ["| removed at log α ≥ | times fewer weights | error % |", "|--:|--:|--:|"]
    for threshold in (value for value in THRESHOLD_GRID if value <= 3):
        same = [row for run in runs for row in run["tradeoff"] if row["threshold"] == threshold]
        fewer, error = (statistics.mean(row[key] for row in same) for key in ("compression", "error"))
        lines.append(f"| {threshold:g} | {fewer:.0f} | {error:.2f} |")
    return lines
