"""The tables about cost, size and faults, each from the results file of its name."""

from statistics import mean, stdev
from typing import Any


def step_cost(content: dict[str, Any]) -> list[str]:
    """How many times the time and the memory of a dense step, by way to train and network."""
    results = content["results"]
    ways = [way for way in next(iter(results.values())) if way != "dense"]
    lines = ["| times a dense step: time, memory | " + " | ".join(results) + " |", "|---|" + "--:|" * len(results)]
    for way in ways:
        cells = [f"{rows[way]['ratio']:.2f}, {rows[way]['memory']:.2f}" for rows in results.values()]
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def estimators(content: dict[str, Any]) -> list[str]:
    """Error and compression, by way to train and network: mean and standard deviation over seeds."""
    rows = content["results"]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    head = " | ".join(f"{name}: error % | times fewer weights" for name in networks)
    lines = [f"|  | {head} |", "|---|" + "--:|--:|" * len(networks)]
    for way in dict.fromkeys(row["way"] for row in rows):
        cells = []
        for network in networks:
            own = [row for row in rows if (row["network"], row["way"]) == (network, way)]
            for key, digits in (("error", 2), ("compression", 0)):
                values = [row[key] for row in own]
                cells.append(f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines


def faults(content: dict[str, Any]) -> list[str]:
    """What was done to runs, and what was left."""
    lines = [
        "| what happens to a run | times | torn files | runs brought to their end | bit-identical | how it ended |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for row in content["results"]:
        endings = ", ".join(f"{name} {number}" for name, number in row["endings"].items()) or "as if nothing were"
        lines.append(
            f"| {row['kind']} | {row['blows'] or row['runs']} | {row['torn']} | {row['runs']} | {row['equal']} | "
            f"{endings} |"
        )
    return lines


def large_models(content: dict[str, Any]) -> list[str]:
    """Seconds of each stage by network, and how they grow with the number of parameters."""
    lines = [
        "| network | million parameters | attach, s | step, s (times dense) | memory, GiB (times dense) | masks, s | "
        "shrink, s | million parameters left |",
        "|---|" + "--:|" * 7,
    ]
    for row in content["results"]:
        lines.append(
            f"| {row['network']} | {row['parameters'] / 1e6:.0f} | {row['attach']:.1f} | "
            f"{row['step']:.1f} ({row['step'] / row['dense_step']:.1f}) | "
            f"{row['gibibytes']:.1f} ({row['gibibytes'] / row['dense_gibibytes']:.1f}) | {row['masks']:.1f} | "
            f"{row['shrink']:.1f} | {row['parameters_left'] / 1e6:.0f} |"
        )
    for family, own in content["exponents"].items():
        lines.append(
            f"| {family}: cost grows as parameters to the power of |  | {own['attach']:.2f} | {own['step']:.2f} |  | "
            f"{own['masks']:.2f} | {own['shrink']:.2f} |  |"
        )
    return lines


def shrink_while_training(content: dict[str, Any]) -> list[str]:
    """What removing on the way costs and saves."""
    rows = content["results"]
    lines = ["|  | error % | times fewer MACs | processor seconds | beside dense |", "|---|--:|--:|--:|--:|"]
    dense = mean(row["seconds"] for row in rows if row["way"] == "dense")
    for way in dict.fromkeys(row["way"] for row in rows):
        own = [row for row in rows if row["way"] == way]
        error, seconds = [row["error"] for row in own], mean(row["seconds"] for row in own)
        fewer = [row["dense_macs"] / row["macs"] for row in own]
        lines.append(
            f"| {way} | {mean(error):.1f} ± {stdev(error):.1f} | "
            f"{mean(fewer):.1f} ± {stdev(fewer):.1f} | {seconds:.0f} | {seconds / dense:.2f} |"
        )
    return lines
