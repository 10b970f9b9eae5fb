"""The zoo as a table: a line a family, with all its masks."""

from collections.abc import Iterable, Sequence
from typing import Any

from ...shrinking import TOLERANCE_32

GRADIENT = 1e-8
"""Differences between gradients that are still rounding."""
Record = dict[str, Any]
"""A `Row` as it is on disk."""


def format_summary(rows: Sequence[Record]) -> str:
    """How many families shrink exactly, and what became of the others."""
    families = _by_family(rows)
    exactly = {name: own for name, own in families.items() if all(row["verdict"] == "exact" for row in own)}
    kept = [name for name, own in exactly.items() if not all(row["killed"] for row in own)]
    smaller = [name for name in exactly if name not in kept and all(row["removed"] for row in exactly[name])]
    others = [name for name in families if name not in smaller and name not in kept]
    exact = [row for row in rows if row["verdict"] == "exact"]
    worst = {key: max((row[key] for row in exact), default=0.0) for key in ("max_rel_64", "max_rel_32")}
    noisy = list(dict.fromkeys(row["family"] for row in exact if row["max_rel_32"] > TOLERANCE_32))
    compared = [row for row in exact if row["max_rel_gradient"] is not None]
    other = list(dict.fromkeys(row["family"] for row in compared if row["max_rel_gradient"] > GRADIENT))
    twice = list(dict.fromkeys(row["family"] for row in rows if row["again"]))
    lines = [
        f"{len(smaller)} of {len(families)} families shrink exactly under every mask",
        f"{len(kept)} keep all channels under some mask, for the reasons given: {_named(kept)}",
        f"{len(others)} others: {_named(others)}",
        f"largest relative difference of those that are exact: {worst['max_rel_64']:.1e} in float64, "
        f"{worst['max_rel_32']:.1e} in float32 (above {TOLERANCE_32:g}, and then within twice what float32 does to the "
        f"masked network by itself: {_named(noisy)})",
        f"gradients differ by more than {GRADIENT:g} of the largest in {_named(other)}",
        f"planning again finds more in {_named(twice)}, where a grouped convolution was left with one group",
    ]
    return "\n".join(lines)


def format_table(rows: Sequence[Record]) -> list[str]:
    """Markdown: what is left of parameters and MACs under "half · random · remember", and the largest differences."""
    lines = [
        "| family: smallest member, input | free groups | removed of killed | parameters | MACs | float64 | float32 "
        "| gradients | s | reasons |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for family, own in _by_family(rows).items():
        first = own[0]
        if any(row["verdict"] != "exact" for row in own):
            wrong = "; ".join(f"{row['kill']}: {row['verdict']}" for row in own)
            lines.append(f"| {family}: {first['model']} | | | | | | | | | **{wrong}** |")
            continue
        lines.append(
            f"| {family}: {first['model']}, {first['input_size']} | {first['free_groups']} of {first['groups']} | "
            + " · ".join(f"{row['removed']:,} of {row['killed']:,}" for row in own)
            + " | "
            + " · ".join(_share(row["parameters"]) for row in own)
            + " | "
            + " · ".join(_share(row["macs"]) for row in own)
            + " | "
            + " | ".join(_largest(own, key) for key in ("max_rel_64", "max_rel_32", "max_rel_gradient"))
            + f" | {max(row['seconds'] for row in own):.1f} | {_reasons(own)} |"
        )
    return lines


def _named(families: Sequence[str]) -> str:
    return ", ".join(families) or "none"


def _by_family(rows: Iterable[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for row in rows:
        found.setdefault(row["family"], []).append(row)
    return found


def _share(pair: Sequence[int]) -> str:
    return f"{pair[1] / pair[0]:.2f}"


def _largest(rows: Iterable[Record], key: str) -> str:
    return f"{max((row[key] for row in rows if row[key] is not None), default=0.0):.0e}"


def _reasons(rows: Iterable[Record]) -> str:
    """Why groups are not free; that the output is one is no news."""
    found: dict[str, int] = {}
    for reason, count in next(iter(rows))["reasons"].items():
        short = reason.split(": removing")[0]
        if short != "output of the network" and "constant, but" not in short:
            found[short] = found.get(short, 0) + count
    return "; ".join(f"{reason} ({count})" for reason, count in found.items())
