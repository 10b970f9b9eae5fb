"""Error against compression: what every threshold would have given, on the test set, before fine-tuning.

For the record only: the threshold of a run is chosen on held-out images, and this is measured afterwards.
"""

import statistics
from typing import Any

from ...masks import compute_masks_by_each, count_weights
from ...posterior import DEFAULT_THRESHOLD
from ...report.tables import format_row
from ...training import THRESHOLD_GRID, evaluate_baked
from .finished import FinishedRun


def measure_tradeoff(run: FinishedRun) -> list[dict[str, Any]]:
    """Threshold, compression and test error in percent of a finished run, one row for each threshold."""
    example = run.data.make_example_inputs()
    rows = []
    decisions = [run.recipe.masks.model_copy(update={"threshold": each, "ratio": None}) for each in THRESHOLD_GRID]
    by_each = compute_masks_by_each(run.posterior, decisions, example)
    for threshold, masks in zip(THRESHOLD_GRID, by_each, strict=True):
        kept, total = count_weights(run.posterior, masks)
        score = evaluate_baked(run.posterior, masks, run.data, run.data.test)
        rows.append({"threshold": threshold, "compression": total / max(kept, 1), "error": 100 - 100 * score.accuracy})
    return rows


def format_tradeoff(runs: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table of one variant: means over seeds, one row for each threshold from 0 to the default."""
    lines = ["| removed at log α ≥ | times fewer weights | error % |", "|--:|--:|--:|"]
    for threshold in THRESHOLD_GRID:
        if threshold > DEFAULT_THRESHOLD:
            continue
        rows = [row for run in runs for row in run["tradeoff"] if row["threshold"] == threshold]
        compression = statistics.mean(row["compression"] for row in rows)
        error = statistics.mean(row["error"] for row in rows)
        lines.append(format_row([f"{threshold:g}", f"{compression:.0f}", f"{error:.2f}"]))
    return lines
