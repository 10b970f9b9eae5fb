"""Cells and rows of Markdown tables."""

import statistics
from collections.abc import Iterable, Sequence


def format_spread(values: Sequence[float], digits: int) -> str:
    """Write the mean of some values and, where there are several, their standard deviation.

    Args:
        values: At least one number.
        digits: Decimals of both.
    """
    mean = f"{statistics.mean(values):,.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def format_row(cells: Iterable[str]) -> str:
    """Write one row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
