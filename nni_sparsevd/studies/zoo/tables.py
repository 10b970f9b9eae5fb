"""The zoo as a table: one line for each family, with all its kinds of masks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ...report.tables import format_row
from ...shrinking import TOLERANCE_32
from .trials import LARGEST_IN_64, Row

GATED = 0.98
"""The share of the free channels that have a gate, from which on a family needs no word."""
GRADIENT = 1e-8
"""Relative differences between gradients up to this are rounding."""
Record = dict[str, Any]
"""A row as it is in a file."""


def format_summary(records: Sequence[Record]) -> str:
    """How many families shrink exactly, and what became of the others.

    Args:
        records: Rows of a results file.

    Returns:
        Several lines of text.
    """
    rows = [Row.from_dict(record) for record in records]
    families = _group_by_family(rows)
    smaller, whole, others = _sort_families(families)
    exact = [row for row in rows if row.verdict == "exact"]
    in_64 = [row for row in exact if row.parameters[0] <= LARGEST_IN_64]
    rounded = [row for row in exact if row.parameters[0] > LARGEST_IN_64]
    worst_64 = max((row.max_rel_64 for row in in_64), default=0.0)
    worst_32 = max((row.max_rel_32 for row in exact), default=0.0)
    noisy = [row.family for row in exact if row.max_rel_32 > TOLERANCE_32]
    other_gradients = [row.family for row in exact if (row.max_rel_gradient or 0.0) > GRADIENT]
    not_complete = [row.family for row in rows if row.again]
    lines = [
        f"{len(smaller)} of {len(families)} families shrink exactly under every mask",
        f"keep all channels under some mask, for the reasons in the table: {_count_names(whole)}",
        f"anything else, see the table: {_count_names(others)}",
        f"largest relative difference of those that are exact: {worst_64:.1e} in float64, {worst_32:.1e} in float32",
        *_summarize_rounded(rounded),
        f"above {TOLERANCE_32:g} in float32, and then within twice what float32 does to the masked network by itself: "
        f"{_join_names(noisy)}",
        f"gradients differ by more than {GRADIENT:g} of the largest: {_join_names(other_gradients)}",
        f"planning again finds more, as a grouped convolution was left with one group: {_join_names(not_complete)}",
        *_summarize_gates(families),
        *_summarize_commits(families),
    ]
    return "\n".join(lines)


def _summarize_rounded(rows: Sequence[Row]) -> list[str]:
    """What the largest networks differ by: they are held in float32, where a folded bias is rounded."""
    if not rows:
        return []
    worst = max(row.max_rel_64 for row in rows)
    names = _join_names([row.family for row in rows])
    return [f"held in float32 for their size, and compared in float64: {names}, {worst:.1e}"]


def _summarize_gates(families: dict[str, list[Row]]) -> list[str]:
    """How many families have gates on their free channels, and why the others have not; nothing for older rows."""
    counted = {name: rows[0] for name, rows in families.items() if rows[0].free_channels}
    if not counted:
        return []
    few = {name: row for name, row in counted.items() if row.gated_channels < GATED * row.free_channels}
    share = f"{len(counted) - len(few)} of the {len(counted)} families that have any"
    reasons = [f"fewer in {name}: {_join_reasons(list(row.without_gate))}" for name, row in few.items()]
    return [f"gates on at least {GATED:.0%} of the channels that may go: {share}", *reasons]


def _summarize_commits(families: dict[str, list[Row]]) -> list[str]:
    """How many families each commit made, where that was more than one commit."""
    counts = Counter(rows[0].commit or "unknown" for rows in families.values())
    if len(counts) == 1:
        return []
    return ["rows by commit: " + ", ".join(f"{commit[:9]} ({count})" for commit, count in counts.most_common())]


def _join_reasons(reasons: Sequence[str]) -> str:
    """The first reason, and how many there are: those of one network differ in the names of its layers."""
    return reasons[0] if len(reasons) == 1 else f"{reasons[0]}, and {len(reasons) - 1} like it"


def format_table(records: Sequence[Record]) -> list[str]:
    """What is left of parameters and MACs under "half · random · remember", and the largest differences.

    Args:
        records: Rows of a results file.

    Returns:
        Lines of a Markdown table, with one row for each family.
    """
    lines = [
        "| family: smallest member, input | free groups | gates | removed of masked | parameters | MACs | float64 "
        "| float32 | gradients | s | reasons |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for family, rows in _group_by_family(Row.from_dict(record) for record in records).items():
        if all(row.verdict == "exact" for row in rows):
            lines.append(_format_exact(family, rows))
        else:
            verdicts = "; ".join(f"{row.mask_kind}: {row.verdict}" for row in rows)
            lines.append(f"| {family}: {rows[0].model} | | | | | | | | | | **{verdicts}** |")
    return lines


def _sort_families(families: dict[str, list[Row]]) -> tuple[list[str], list[str], list[str]]:
    """Names of the families that become smaller, that stay whole under some mask, and all others."""
    smaller, whole, others = [], [], []
    for name, rows in families.items():
        if any(row.verdict != "exact" for row in rows):
            others.append(name)
        elif any(row.masked == 0 for row in rows):
            whole.append(name)
        elif all(row.removed for row in rows):
            smaller.append(name)
        else:
            others.append(name)
    return smaller, whole, others


def _format_exact(family: str, rows: list[Row]) -> str:
    first = rows[0]
    cells = [
        f"{family}: {first.model}, {first.input_size}",
        f"{first.free_groups} of {first.groups}",
        _format_gates(first),
        " · ".join(f"{row.removed:,} of {row.masked:,}" for row in rows),
        " · ".join(_format_share(row.parameters) for row in rows),
        " · ".join(_format_share(row.macs) for row in rows),
        _format_difference(rows),
        f"{max(row.max_rel_32 for row in rows):.0e}",
        _format_gradient(rows),
        f"{max(row.seconds for row in rows):.1f}",
        _format_reasons(first),
    ]
    return format_row(cells)


def _format_difference(rows: list[Row]) -> str:
    """The largest difference of the outputs in float64, and that of the boxes of a detector."""
    boxes = [row.max_rel_boxes for row in rows if row.max_rel_boxes is not None]
    outputs = f"{max(row.max_rel_64 for row in rows):.0e}"
    return f"{outputs}, boxes {max(boxes):.0e}" if boxes else outputs


def _format_gradient(rows: list[Row]) -> str:
    """The largest difference of the gradients; nothing where none were compared."""
    differences = [row.max_rel_gradient for row in rows if row.max_rel_gradient is not None]
    return f"{max(differences):.0e}" if differences else ""


def _join_names(families: Sequence[str]) -> str:
    """The names with commas, each once."""
    return ", ".join(dict.fromkeys(families)) or "none"


def _count_names(families: Sequence[str]) -> str:
    """How many there are, and their names."""
    return f"{len(families)} ({_join_names(families)})" if families else "none"


def _group_by_family(rows: Iterable[Row]) -> dict[str, list[Row]]:
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row.family, []).append(row)
    return families


def _format_share(before_and_after: Sequence[int]) -> str:
    before, after = before_and_after
    return f"{after / before:.2f}"


def _format_gates(row: Row) -> str:
    """The share of the free channels with a gate; nothing where no channel is free, or where that was not counted."""
    return f"{row.gated_channels / row.free_channels:.1%}" if row.free_channels else ""


def _format_reasons(row: Row) -> str:
    """Why groups are pinned, each reason once with its number of groups.

    Two reasons are left out: that the output of the network is pinned is no news, and "constant, but" is about single
    dead channels that stay in a group that is not pinned.
    """
    counts: dict[str, int] = {}
    for reason, count in row.reasons.items():
        short = reason.split(": removing")[0]
        if short != "output of the network" and "constant, but" not in short:
            counts[short] = counts.get(short, 0) + count
    return "; ".join(f"{reason} ({count})" for reason, count in counts.items())
